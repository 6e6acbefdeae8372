"""The attention nodes on a tiny UNet of the engine: what a user wires, sees and is refused."""

import json

import pytest
import torch
from nulltext.engine.comfy import sigmas_of
from nulltext.engine.words import KEY
from nulltext.nodes.attention import AttentionMap, AttentionRecord, AttentionReweight
from nulltext.nodes.edit_score import EditScore
from nulltext.nodes.prompt_to_prompt import PromptToPrompt, PromptToPromptGuider

NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
DEFAULTS = {
    name: spec[1]["default"] for name, spec in PromptToPrompt.INPUT_TYPES()["required"].items() if "default" in spec[1]
}


@pytest.fixture
def prompt(make_condition):
    """A CONDITIONING as the Prompt node makes it: one token per word, other words other embeddings."""

    def make(text):
        words = text.split()
        ids = [900, *(sum(map(ord, w)) for w in words)] + [901] * (76 - len(words))
        record = {
            "text": text,
            "words": [{"text": w, "tokens": [i + 1]} for i, w in enumerate(words)],
            "ids": ids,
            "chunks": 1,
        }
        embedding = torch.cat([make_condition(i)[0][0][:, :1] for i in ids], 1)
        return [[embedding, {"pooled_output": torch.zeros(1, 64), KEY: [record]}]]

    return make


def sample(model, positive, negative, cfg=3.0, steps=3, latent=None):
    from nulltext.engine.sampler import core_sampler, sample_latent

    latent = {"samples": torch.zeros_like(NOISE) if latent is None else latent}
    with torch.inference_mode():
        return sample_latent(
            model, positive, negative, cfg, core_sampler("euler"), sigmas_of(model, "normal", steps), latent, 5
        )["samples"]


def reweight(model, positive, weights, start=0.0, end=1.0):
    out = AttentionReweight().run(model, positive, weights, start, end)
    return out["result"][0], out["ui"]["text"][0]


def p2p(model, edited, negative, **inputs):
    values = {**DEFAULTS, "steps": 3, "blend_layers": "all", **inputs}
    if not {"latent", "inversion"} & inputs.keys():
        values["latent"] = {"samples": torch.zeros_like(NOISE)}
    with torch.inference_mode():
        return PromptToPrompt().run(model, edited, negative, **values)


def test_reweight_with_and_without_cfg(tiny, prompt):
    positive, negative = prompt("a red cat"), prompt("")
    for cfg in (1.0, 3.0):
        plain = sample(tiny, positive, negative, cfg)
        model, said = reweight(tiny, positive, "red: 4, cat: -2")
        assert said == "Re-weighted: red x 4, cat x -2"
        assert not torch.allclose(sample(model, positive, negative, cfg), plain, atol=1e-3)
        assert torch.equal(sample(tiny, positive, negative, cfg), plain)  # the model given stays as it was
        between = sample(reweight(tiny, positive, "red: 4", 0.7, 0.8)[0], positive, negative, cfg)
        assert torch.equal(between, plain)  # a window that no step falls into


@pytest.mark.parametrize("weights, end", [("", 1.0), ("red: 1, cat: 1.0", 1.0), ("red: 5", 0.0)])
def test_nothing_to_reweight_is_the_model_given_and_said(tiny, prompt, weights, end):
    model, said = reweight(tiny, prompt("a red cat"), weights, end=end)
    assert model is tiny
    assert "goes through as it is" in said


def test_reweight_refuses_what_it_cannot_do(tiny, prompt, make_condition):
    with pytest.raises(ValueError, match='"dog" is not in the prompt "a red cat"; its words are: a, red, cat'):
        reweight(tiny, prompt("a red cat"), "dog: 2")
    with pytest.raises(ValueError, match=r"NullText_Prompt"):
        reweight(tiny, make_condition(1), "cat: 2")
    with pytest.raises(ValueError, match="should read"):
        reweight(tiny, prompt("a red cat"), "cat=2")
    with pytest.raises(ValueError, match="start must be at or before end"):
        reweight(tiny, prompt("a red cat"), "cat: 2", 0.8, 0.2)


def test_maps_of_a_plain_run(tiny, prompt):
    positive, negative = prompt("a red cat"), prompt("")
    model, maps = AttentionRecord().run(tiny, positive, "red, red cat", "all", 0.0, 1.0)
    plain, recorded = sample(tiny, positive, negative), sample(model, positive, negative)
    assert torch.allclose(plain, recorded, atol=1e-3)
    image = torch.rand(2, 64, 64, 3)
    out = AttentionMap().run(maps, image, "", 0.4, 2.0, 0.6, 8)
    heat_map, mask, strip = out["result"]
    assert heat_map.shape == (4, 64, 64, 3)
    assert mask.shape == (4, 64, 64)
    assert 0 < float(mask.mean()) < 1
    assert strip.shape == (4, 128, 3 * 128, 3)
    assert out["ui"]["text"] == ["red, red cat: mean of 3 steps"]
    one = AttentionMap().run(maps, image[:1], "red cat", 0.4, 0.0, 0.0, 2)["result"]
    assert torch.equal(one[0][0], image[0])  # opacity 0 is the picture
    assert set(one[1].unique().tolist()) == {0.0, 1.0}
    assert one[2].shape == (1, 128, 2 * 128, 3)
    with pytest.raises(ValueError, match='"fox" was not recorded; recorded are: red, red cat'):
        AttentionMap().run(maps, image, "fox", 0.4, 2.0, 0.6, 8)


def test_maps_beside_reweight_and_prompt_to_prompt(tiny, prompt):
    source, edited, negative = prompt("a red cat"), prompt("a red dog"), prompt("")
    watched, maps = AttentionRecord().run(tiny, edited, "dog", "all", 0.0, 1.0)
    plain = p2p(tiny, edited, negative, source=source)["result"][0]["samples"]
    beside = p2p(watched, edited, negative, source=source)["result"][0]["samples"]
    assert torch.allclose(plain, beside, atol=1e-3)
    assert maps["record"].maps.maps(1).shape == (1, 8, 8)
    heavy = p2p(reweight(watched, edited, "dog: 5")[0], edited, negative, source=source)["result"][0]["samples"]
    as_option = p2p(tiny, edited, negative, source=source, weights="dog: 5")["result"][0]["samples"]
    assert not torch.allclose(heavy, plain, atol=1e-3)
    assert torch.allclose(heavy, as_option, atol=1e-3)


def test_maps_of_no_run_are_refused(tiny, prompt):
    _, maps = AttentionRecord().run(tiny, prompt("a cat"), "", "auto", 0.0, 1.0)
    assert maps["words"] == ["a", "cat"]
    with pytest.raises(ValueError, match="No attention map was recorded"):
        AttentionMap().run(maps, torch.rand(1, 64, 64, 3), "", 0.4, 2.0, 0.6, 8)
    with pytest.raises(ValueError, match="names no layers"):
        AttentionRecord().run(tiny, prompt("a cat"), "", "front", 0.0, 1.0)
    with pytest.raises(ValueError, match="no words"):
        AttentionRecord().run(tiny, prompt(""), "", "auto", 0.0, 1.0)
    for share in (0.0, 0.5, 1.0):
        with pytest.raises(ValueError, match="Nothing would be recorded, .* are both"):
            AttentionRecord().run(tiny, prompt("a cat"), "", "auto", share, share)


def test_prompt_to_prompt_from_noise(tiny, prompt):
    source, edited, negative = prompt("a red cat"), prompt("a red dog"), prompt("")
    out = p2p(tiny, edited, negative, source=source, seed=5)
    edit, made, mask, report = out["result"]
    assert edit["samples"].shape == made["samples"].shape == NOISE.shape
    assert torch.equal(mask, torch.ones(2, 64, 64))
    assert report.startswith("replace\n3 steps at cfg 7.5, 24 network rows")
    same = p2p(tiny, source, negative, source=source, seed=5)["result"]
    assert torch.equal(same[0]["samples"], same[1]["samples"])
    assert torch.allclose(
        made["samples"], sample(tiny, source, negative, 7.5), atol=1e-2
    )  # the source is a plain picture
    blended = p2p(tiny, edited, negative, source=source, seed=5, blend_words="dog, cat", blend_threshold=0.9)["result"]
    assert 0 < float(blended[2].mean()) < 1
    assert "local blend lets" in blended[3]
    outside = blended[2][:, ::8, ::8].unsqueeze(1) == 0
    assert torch.equal(blended[0]["samples"] * outside, blended[1]["samples"] * outside)


def test_several_edits_and_refine(tiny, prompt):
    source, negative = prompt("a red cat"), prompt("")
    out = p2p(
        tiny,
        prompt("a red dog"),
        negative,
        source=source,
        edited_2=prompt("a big red cat"),
        edit="replace",
        word_windows="red: 0.2-0.6",
        self_attention="mutual (MasaCtrl)",
    )
    assert out["result"][0]["samples"].shape == (4, 4, 8, 8)
    said = out["ui"]["text"][0]
    assert "edit 1: replace; edit 2: refine, as replace needs prompts of as many words (3 and 4 words)" in said


def test_prompt_to_prompt_refusals(tiny, prompt, make_condition):
    source, edited, negative = prompt("a red cat"), prompt("a red dog"), prompt("")
    with pytest.raises(ValueError, match="needs the source prompt"):
        p2p(tiny, edited, negative)
    with pytest.raises(ValueError, match="NullText_Prompt"):
        p2p(tiny, make_condition(1), negative, source=source)
    with pytest.raises(ValueError, match="wire an empty latent, or an inversion"):
        p2p(tiny, edited, negative, source=source, latent=None)
    with pytest.raises(ValueError, match='"fox" is in none of the prompts'):
        p2p(tiny, edited, negative, source=source, blend_words="fox")


def test_prompt_to_prompt_from_an_inversion(tiny, prompt):
    from nulltext.nodes.inversion import InvertImage
    from nulltext.nodes.inversion_sampling import InversionParts

    source, edited, negative = prompt("a red cat"), prompt("a red dog"), prompt("")
    names = {k: v[1]["default"] for k, v in InvertImage.INPUT_TYPES()["required"].items() if "default" in v[1]}
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) / 0.18215}
    with torch.inference_mode():
        made = InvertImage().run(tiny, source, latent, **{**names, "steps": 4, "use_cache": False})
    inversion = made["result"][0]
    edit, kept, _, report = p2p(
        tiny, edited, negative, inversion=inversion, blend_words="dog, cat", blend_threshold=1.0
    )["result"]
    assert torch.allclose(kept["samples"], latent["samples"], atol=1e-4)
    assert torch.allclose(edit["samples"], latent["samples"], atol=1e-4)  # an empty blend mask
    assert "12 network rows" in report
    assert "Notice" not in report
    unread = p2p(tiny, edited, negative, inversion=inversion, latent=latent)["result"][3]
    assert unread.splitlines()[0] == "replace; Notice: latent is not read with an inversion, which brings its own"
    options = {k: v for k, v in DEFAULTS.items() if k not in ("cfg", "seed", "steps", "scheduler")}
    for keep, where, said in (
        (False, {"inversion": inversion}, "replace"),
        (True, {"source": source}, "replace"),
        (
            True,
            {"inversion": inversion},
            "replace; Notice: keep_source is not read with an inversion, whose source is its stored path",
        ),
    ):
        guided = PromptToPromptGuider().run(tiny, edited, negative, 7.5, keep, **where, **options)
        assert guided["ui"]["text"] == [said]
    guider = guided["result"][0]  # with keep_source, and yet the edit alone comes back below
    noise, sigmas, source_latent, sampler = InversionParts().run(inversion, 1.0)
    with torch.inference_mode():
        out = guider.sample(
            noise.generate_noise(source_latent), source_latent["samples"], sampler, sigmas, disable_pbar=True, seed=0
        )
    assert torch.allclose(out, p2p(tiny, edited, negative, inversion=inversion)["result"][0]["samples"], atol=1e-3)
    other = tiny.clone()
    with torch.inference_mode():
        other.add_patches(
            {"diffusion_model.out.2.weight": (torch.ones_like(tiny.model.diffusion_model.out[2].weight),)}, 0.1
        )
    with pytest.raises(ValueError):
        p2p(other, edited, negative, inversion=inversion)


def test_edit_score():
    image = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    same = EditScore().run(image, image)["result"]
    assert same[1:] == (100.0, pytest.approx(1.0), 0.0, pytest.approx(0.0, abs=1e-9))
    changed = image.clone()
    changed[:, :16] = 1 - changed[:, :16]
    mask = torch.zeros(1, 32, 48)
    mask[:, :16] = 1
    whole, outside = EditScore().run(image, changed)["result"], EditScore().run(image, changed, mask)["result"]
    assert outside[1] == 100.0
    assert whole[1] < 20
    assert whole[4] > 0
    assert "outside the mask" in outside[0]
    assert "whole picture: PSNR" in outside[0]
    with pytest.raises(ValueError, match="resize one of them"):
        EditScore().run(image, changed[:, :16])
    with pytest.raises(ValueError, match="covers the whole picture"):
        EditScore().run(image, changed, torch.ones(1, 32, 48))
    with pytest.raises(ValueError, match="needs a CLIP vision model"):
        EditScore().run(image, changed, prompt=[])


def test_edit_score_with_clip_vision():
    class Vision:
        def encode_image(self, image):
            tokens = image[:, ::8, ::8].flatten(1, 2).repeat(1, 1, 2)
            return {"penultimate_hidden_states": tokens, "image_embeds": image.mean((1, 2))}

    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    text = [[torch.zeros(1, 77, 8), {"pooled_output": image.mean((1, 2))}]]
    report = EditScore().run(image, image, clip_vision=Vision(), prompt=text)["result"][0]
    assert "similarity to the prompt 100.00" in report
    assert "CLIP vision" in report
    with pytest.raises(ValueError, match=r"does not belong to this CLIP vision model \(3 numbers\)"):
        EditScore().run(
            image, image, clip_vision=Vision(), prompt=[[torch.zeros(1, 77, 8), {"pooled_output": torch.zeros(1, 5)}]]
        )


def test_edit_score_with_the_engines_own_clip_vision(engine, tmp_path):
    """A random tower in the engine's class: what its `encode_image` returns is what is read."""
    tower = {
        "hidden_act": "quick_gelu",
        "hidden_size": 16,
        "image_size": 224,
        "intermediate_size": 16,
        "model_type": "clip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_channels": 3,
        "patch_size": 56,
        "projection_dim": 12,
    }
    (tmp_path / "vision.json").write_text(json.dumps(tower))
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    edit = image.clone()
    edit[1, 16:48, 16:48] = 0
    with torch.inference_mode():
        vision = engine.get("clip_vision").ClipVisionModel(str(tmp_path / "vision.json"))
        generator = torch.Generator().manual_seed(0)
        for p in vision.model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        embedded = vision.encode_image(edit)["image_embeds"].float().cpu()
        pooled = embedded[1:] - embedded[:1]  # near to the second picture's, far from the first's
        text = [[torch.zeros(1, 77, 8), {"pooled_output": pooled}]]
        report, *_, structure = EditScore().run(image, edit, clip_vision=vision, prompt=text)["result"]
        alone = EditScore().run(image[:1], edit[:1], clip_vision=vision, prompt=text)["result"]
    assert structure > 0
    assert alone[-1] == pytest.approx(0, abs=1e-6)
    similar = 100 * torch.cosine_similarity(embedded, pooled).clamp(min=0)
    assert 0 <= float(similar[0]) < float(similar[1])
    for said, value in ((report, similar.mean()), (alone[0], similar[0])):
        assert float(said.split("similarity to the prompt ")[1].split()[0]) == pytest.approx(float(value), abs=0.1)
