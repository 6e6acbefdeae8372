"""Attention Re-weight, Record and Map on a tiny UNet of the engine: what a user wires, sees and is refused."""

import pytest
import torch
from nulltext.engine import rows
from nulltext.tests.running import run

EMPTY = torch.zeros(2, 4, 8, 8)


def reweight(model, positive, weights, start=0.0, end=1.0):
    return run(
        "AttentionReweight", model=model, positive=positive, weights=weights, start_percent=start, end_percent=end
    )


def record(model, positive, words="", layers="auto", start=0.0, end=1.0):
    more = {"words": words, "layers": layers, "start_percent": start, "end_percent": end}
    return run("AttentionRecord", model=model, positive=positive, **more)


def heat(maps, image, words="", **inputs):
    return run("AttentionMap", maps=maps, image=image, words=words, threshold=0.4, **inputs)


@pytest.fixture
def sample(euler):
    def made(model, positive, negative, cfg=3.0):
        return euler(model, EMPTY, cfg, 3, seed=5, ends=(positive, negative))

    return made


def test_reweight_with_and_without_cfg(tiny, prompt, sample):
    positive, negative = prompt("a red cat"), prompt("")
    for cfg in (1.0, 3.0):
        plain = sample(tiny, positive, negative, cfg)
        out = reweight(tiny, positive, "red: 4, cat: -2")
        assert out.text == "Re-weighted: red x 4, cat x -2"
        assert not torch.allclose(sample(out[0], positive, negative, cfg), plain, atol=1e-3)
        assert torch.equal(sample(tiny, positive, negative, cfg), plain)  # the model given stays as it was
        between = sample(reweight(tiny, positive, "red: 4", 0.7, 0.8)[0], positive, negative, cfg)
        assert torch.equal(between, plain)  # a window that no step falls into


@pytest.mark.parametrize("weights, end", [("", 1.0), ("red: 1, cat: 1.0", 1.0), ("red: 5", 0.0)])
def test_nothing_to_reweight_is_the_model_given_and_said(tiny, prompt, weights, end):
    out = reweight(tiny, prompt("a red cat"), weights, end=end)
    assert out[0] is tiny and "goes through as it is" in out.text


def test_reweight_refuses_what_it_cannot_do(tiny, prompt, make_condition):
    with pytest.raises(ValueError, match='"dog" is not in the prompt "a red cat"; its words are: a, red, cat'):
        reweight(tiny, prompt("a red cat"), "dog: 2")
    with pytest.raises(ValueError, match=r"NullText_Prompt"):
        reweight(tiny, make_condition(1), "cat: 2")
    with pytest.raises(ValueError, match="should read"):
        reweight(tiny, prompt("a red cat"), "cat=2")
    with pytest.raises(ValueError, match="start must be at or before end"):
        reweight(tiny, prompt("a red cat"), "cat: 2", 0.8, 0.2)


def test_maps_of_a_plain_run(tiny, prompt, sample):
    positive, negative = prompt("a red cat"), prompt("")
    model, maps = record(tiny, positive, "red, red cat", "all")
    assert torch.allclose(sample(tiny, positive, negative), sample(model, positive, negative), atol=1e-3)
    image = torch.rand(2, 64, 64, 3)
    out = heat(maps, image)
    heat_map, mask, strip = out
    assert heat_map.shape == (4, 64, 64, 3)
    assert mask.shape == (4, 64, 64) and 0 < float(mask.mean()) < 1
    assert strip.shape == (4, 128, 3 * 128, 3)
    assert out.text == "red, red cat: mean of 3 steps"
    picture, mask, strip = heat(maps, image, "red cat", blur=0.0, opacity=0.0, strip_steps=2)
    assert torch.equal(picture, image)  # opacity 0 is the picture
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert strip.shape == (2, 128, 2 * 128, 3)
    for some in (image[:1], torch.cat([image, image])):
        with pytest.raises(ValueError, match=f"had 2 pictures, and {len(some)} are wired"):
            heat(maps, some)
    notice = '\nNotice: "fox" was not recorded; recorded are: red, red cat.'
    assert heat(maps, image, "fox").text == out.text + notice, "another prompt's words stop nothing: all are shown"
    found = heat(maps, image, "fox, red")
    assert found.text == "red: mean of 3 steps" + notice and found[0].shape == (2, 64, 64, 3)


def test_maps_that_two_samplers_filled_are_told(tiny, prompt, sample):
    """They are the latest run's; one run after each look is how a queue goes."""
    positive, image = prompt("a red cat"), torch.rand(2, 64, 64, 3)
    model, maps = record(tiny, positive, "red", "all")
    for _ in range(2):
        sample(model, positive, prompt(""))
        assert "Notice" not in heat(maps, image).text
    for _ in range(2):
        sample(model, positive, prompt(""))
    assert all("2 runs" in heat(maps, image).text for _ in range(2)), "whoever looks first"


def test_only_runs_that_fill_the_maps_are_counted(tiny, prompt, sample):
    """Not those of another prompt, nor every step of an inversion's rise."""
    positive, other, image = prompt("a red cat"), prompt("a blue dog"), torch.rand(2, 64, 64, 3)
    model, maps = record(tiny, positive, "red", "all")
    for ends in (other, positive):
        sample(model, ends, prompt(""))
    assert "Notice" not in heat(maps, image).text
    for _ in range(2):
        for ends in (other, positive):
            sample(model, ends, prompt(""))
    assert "2 runs" in heat(maps, image).text
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    given = {"steps": 5, "cfg": 1.0, "pivot": "DDIM", "use_cache": False}
    run("InvertImage", model=model, positive=positive, negative=prompt(""), latent=latent, **given)
    assert maps["record"].shown() <= 2, "the rise, and the way back where the engine tells its schedule"


def test_each_prompt_of_the_queue_has_maps_of_its_own(tiny, prompt, euler, monkeypatch):
    """Also where runs of one step follow each other, whose levels never rise; an interrupted run counts for none."""
    ends, image, job = (prompt("a red cat"), prompt("")), torch.rand(2, 64, 64, 3), iter("ab")
    model, maps = record(tiny, ends[0], "red", "all")
    only, seeds = torch.tensor([14.0, 0.0]), (5, 6)

    def mask(model, maps, seed):
        euler(model, EMPTY, 1.0, seed=seed, ends=ends, sigmas=only)
        found = heat(maps, image, blur=0.0)
        return found[0], found.text

    alone = [mask(*record(tiny, ends[0], "red", "all"), seed) for seed in seeds]
    for seed, (expected, text) in zip(seeds, alone):
        name = next(job)
        monkeypatch.setattr(rows, "running_job", lambda name=name: name)
        euler(model, EMPTY, 1.0, seed=9, ends=ends, sigmas=only)  # nobody looks at it
        monkeypatch.setattr(rows, "running_job", lambda name=name: name + "again")
        got, said = mask(model, maps, seed)
        torch.testing.assert_close(got, expected)
        assert said == text and "Notice" not in said
    assert not torch.equal(alone[0][0], alone[1][0])


def test_maps_of_no_run_are_refused(tiny, prompt):
    cat = prompt("a cat")
    _, maps = record(tiny, cat)
    assert maps["words"] == ["a", "cat"]
    with pytest.raises(ValueError, match="No attention map was recorded"):
        heat(maps, torch.rand(1, 64, 64, 3))
    with pytest.raises(ValueError, match="names no layers"):
        record(tiny, cat, layers="front")
    with pytest.raises(ValueError, match="no words"):
        record(tiny, prompt(""))
    for share in (0.0, 0.5, 1.0):
        with pytest.raises(ValueError, match="Nothing would be recorded, .* are both"):
            record(tiny, cat, start=share, end=share)


def test_maps_beside_reweight_and_prompt_to_prompt(tiny, prompt):
    source, edited = prompt("a red cat"), prompt("a red dog")
    watched, maps = record(tiny, edited, "dog", "all")

    def edit(model, **inputs):
        values = {"steps": 3, "blend_layers": "all", "latent": EMPTY, "source": source, **inputs}
        return run("PromptToPrompt", model=model, edited=edited, negative=prompt(""), **values).samples

    plain = edit(tiny)
    assert torch.allclose(plain, edit(watched), atol=1e-3)
    assert maps["record"].maps.maps(1).shape == (1, 8, 8)
    heavy = edit(reweight(watched, edited, "dog: 5")[0])
    assert not torch.allclose(heavy, plain, atol=1e-3)
    assert torch.allclose(heavy, edit(tiny, weights="dog: 5"), atol=1e-3)
