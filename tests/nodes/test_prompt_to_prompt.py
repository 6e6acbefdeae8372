"""Prompt-to-Prompt in one box on a tiny UNet of the engine: what a user wires, sees and is refused."""

import pytest
import torch
from nulltext.tests.running import SCALE, defaults, normal, run, sample

EMPTY = torch.zeros(2, 4, 8, 8)


@pytest.fixture
def p2p(tiny, prompt):
    """p2p(edited): Out of the all-in-one box on `tiny`, from an empty latent where no inversion is given."""

    def made(edited="a red dog", model=tiny, **inputs):
        edited = prompt(edited) if isinstance(edited, str) else edited
        values = {"steps": 3, "blend_layers": "all", **inputs}
        if not {"latent", "inversion"} & inputs.keys():
            values["latent"] = EMPTY
        return run("PromptToPrompt", model=model, edited=edited, negative=prompt(""), **values)

    return made


@pytest.fixture
def source(prompt):
    return prompt("a red cat")


def test_prompt_to_prompt_from_noise(tiny, p2p, prompt, source, euler):
    out = p2p(source=source, seed=5)
    edit, made, mask, report = out
    assert edit["samples"].shape == made["samples"].shape == EMPTY.shape
    assert torch.equal(mask, torch.ones(2, 64, 64))
    assert report.startswith("replace\n3 steps at cfg 7.5, 24 network rows")
    same = p2p(source, source=source, seed=5)
    assert torch.equal(same[0]["samples"], same[1]["samples"])
    plain = euler(tiny, EMPTY, 7.5, 3, seed=5, ends=(source, prompt("")))
    assert torch.allclose(made["samples"], plain, atol=1e-2)  # the source is a plain picture
    edit, made, mask, report = p2p(source=source, seed=5, blend_words="dog, cat", blend_threshold=0.9)
    assert 0 < float(mask.mean()) < 1
    assert "local blend lets" in report
    outside = mask[:, ::8, ::8].unsqueeze(1) == 0
    assert torch.equal(edit["samples"] * outside, made["samples"] * outside)


@pytest.mark.parametrize("written", ["auto", "fox", "fox, wolf"])
def test_the_words_that_differ_stand_in_for_those_that_are_in_no_prompt(p2p, source, written):
    named, out = (p2p(source=source, seed=5, blend_words=w, blend_threshold=0.9) for w in ("dog, cat", written))
    assert torch.equal(out.samples, named.samples) and 0 < float(out[2].mean()) < 1
    assert "local blend where these look: cat/dog" in out.text
    assert ('Notice: blend_words names "fox"' in out.text) == (written != "auto")


def test_a_known_blend_word_is_kept_beside_an_unknown_one(p2p, source):
    named, out = (p2p(source=source, seed=5, blend_words=w, blend_threshold=0.9) for w in ("dog", "fox, dog"))
    assert torch.equal(out.samples, named.samples) and '"fox"' in out.text


def test_the_preview_is_the_edit_not_the_source(p2p, source, monkeypatch):
    from nulltext.engine.comfy import get

    seen = []
    monkeypatch.setattr(get("latent_preview"), "prepare_callback", lambda *_: lambda i, x0, x, total: seen.append(x0))
    edit, made, _, _ = p2p(source=source, seed=5)
    first = seen[-1][:1].cpu() / SCALE
    assert torch.allclose(first, edit["samples"][:1], atol=1e-3)
    assert not torch.allclose(first, made["samples"][:1], atol=1e-1)


def test_with_a_vae_the_box_shows_source_and_edit(p2p, source):
    class VAE:
        def decode(self, samples):
            return samples[:, :3].movedim(1, -1).clamp(0, 1)

    out = p2p(source=source, seed=5, vae=VAE())
    assert "between source and edit" in out.text and "between" not in p2p(source=source, seed=5).text
    assert torch.equal(out.samples, p2p(source=source, seed=5).samples)


def test_several_edits_and_refine(p2p, prompt, source):
    options = {"edit": "replace", "word_windows": "red: 0.2-0.6", "self_attention": "mutual (MasaCtrl)"}
    out = p2p(source=source, edited_2=prompt("a big red cat"), **options)
    assert out.samples.shape == (4, 4, 8, 8)
    assert "edit 1: replace; edit 2: refine, as replace needs prompts of as many words (3 and 4 words)" in out.text


def test_prompt_to_prompt_refusals(p2p, make_condition, source):
    for inputs, words in (
        ({}, "needs the source prompt"),
        ({"edited": make_condition(1), "source": source}, "NullText_Prompt"),
        ({"source": source, "latent": None}, "wire an empty latent, or an inversion"),
        ({"source": source, "keep_words": "fox"}, '"fox" is in none of the prompts'),
        ({"source": source, "cfg": 0.0}, "there is no inversion: set a cfg"),
    ):
        with pytest.raises(ValueError, match=words):
            p2p(**inputs)


def test_prompt_to_prompt_from_an_inversion(tiny, p2p, prompt, source):
    latent = normal(1, 4, 8, 8, seed=1) / SCALE
    inversion = run("InvertImage", model=tiny, positive=source, latent=latent, steps=4, use_cache=False)[0]
    edit, kept, _, report = p2p(inversion=inversion, blend_words="dog, cat", blend_threshold=1.0)
    assert torch.allclose(kept["samples"], latent, atol=1e-4)
    assert torch.allclose(edit["samples"], latent, atol=1e-4)  # an empty blend mask
    assert "12 network rows" in report
    assert "Notice" not in report
    unread = p2p(inversion=inversion, latent=latent)[3]
    assert unread.splitlines()[0] == "replace; Notice: latent is not read with an inversion, which brings its own"
    options = {**defaults("PromptToPromptGuider", "required"), "blend_layers": "auto", "cfg": 7.5}
    ignored = "replace; Notice: keep_source is not read with an inversion, whose source is its stored path"
    for keep, where, said in (
        (False, {"inversion": inversion}, "replace"),
        (True, {"source": source}, "replace"),
        (True, {"inversion": inversion}, ignored),
    ):
        more = {"model": tiny, "edited": prompt("a red dog"), "negative": prompt(""), "keep_source": keep, **where}
        guided = run("PromptToPromptGuider", **{**options, **more})
        assert guided.text == said
    guider = guided[0]  # with keep_source, and yet the edit alone comes back below
    noise, sigmas, source_latent, sampler = run("InversionParts", inversion=inversion, strength=1.0)
    out = sample(guider, noise.generate_noise(source_latent), sigmas, source_latent["samples"], sampler, seed=0)
    assert torch.allclose(out, p2p(inversion=inversion).samples, atol=1e-3)
    other = tiny.clone()
    with torch.inference_mode():
        weight = tiny.model.diffusion_model.out[2].weight
        other.add_patches({"diffusion_model.out.2.weight": (torch.ones_like(weight),)}, 0.1)
    with pytest.raises(ValueError):
        p2p(model=other, inversion=inversion)
