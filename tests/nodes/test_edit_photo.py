"""Edit Photo: what it composes, what it returns untouched, what it refuses before any work."""

from __future__ import annotations

import re

import pytest
import torch
from nulltext.tests.running import CLIP, Pixels, normal, run

BEFORE, AFTER = "a photo of a red circle", "a photo of a green circle"


@pytest.fixture
def photo():
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def edit(tiny, prompt, photo, monkeypatch):
    from nulltext.nodes import edit_photo

    monkeypatch.setattr(edit_photo, "worded", lambda clip, text: prompt(text))

    def made(**inputs):
        given = {"model": tiny, "clip": CLIP, "vae": Pixels(), "image": photo, "steps": 4}
        return run("EditPhoto", **{**given, "source_prompt": BEFORE, "edited_prompt": AFTER, **inputs})

    return made


@pytest.mark.parametrize("method", ["draft", "thorough", "thorough, null-text"])
def test_every_method_gives_a_picture_its_latent_and_where_it_changed(edit, photo, method):
    out = edit(method=method, cfg=3.0, blend_threshold=0.95)  # a random model looks nearly everywhere
    picture, latent, mask, report = out
    assert picture.shape == photo.shape and latent["samples"].shape == (1, 4, 8, 8) and mask.shape == (1, 64, 64)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert "red -> green" in report and "network calls" in report and "PSNR" in report
    source = Pixels().encode(photo)
    outside = mask[:, ::8, ::8] == 0
    assert bool(outside.any()), "this picture leaves something outside"
    assert torch.allclose(latent["samples"][:, :, outside[0]], source[:, :, outside[0]], atol=1e-4)
    assert not torch.allclose(latent["samples"], source, atol=1e-2)


@pytest.mark.parametrize(
    "inputs",
    [{"edited_prompt": BEFORE}, {"strength": 0.0}, {"strength": 0.01}, {"edited_prompt": "A photo of a red circle."}],
)
def test_nothing_to_change_returns_the_picture_without_a_call(edit, idle, photo, inputs):
    out = edit(model=idle, **inputs)
    assert torch.equal(out[1]["samples"], Pixels().encode(photo)) and "Notice" in out[3]
    assert ("raise strength" if "strength" in inputs else "change a word") in out[3]


def test_a_latent_stands_in_for_the_picture(edit, photo):
    latent = {"samples": Pixels().encode(photo)}
    a, b = edit(), edit(image=None, latent=latent)
    assert torch.equal(a[1]["samples"], b[1]["samples"])
    masked = edit(image=None, latent=latent | {"noise_mask": torch.zeros(1, 1, 8, 8)})
    assert torch.equal(a[1]["samples"], masked[1]["samples"])
    assert masked.text.endswith("the latent's noise mask is not read here.") and "noise mask" not in b.text


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": None}, "no picture"),
        ({"source_prompt": "  "}, "what the picture shows"),
        ({"edited_prompt": ""}, "what it shall show"),
        ({"image": None, "latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "latent is empty"),
    ],
)
def test_what_is_missing_is_said_before_any_work(edit, idle, inputs, words):
    with pytest.raises(ValueError, match=words):
        edit(model=idle, **inputs)


def test_a_model_without_cross_attention_takes_the_draft_alone(edit, monkeypatch):
    from nulltext.nodes import edit_photo

    monkeypatch.setattr(edit_photo, "has_attention", lambda model: False)
    monkeypatch.setattr(edit_photo, "unet_places", lambda model: {})
    with pytest.raises(ValueError, match="choose the draft"):
        edit(method="thorough")
    assert "Direct Edit (FlowEdit)" in edit(method="draft", blend=False)[3]


def test_a_part_of_the_way_is_climbed_and_the_inversion_tells_of_the_whole(edit, monkeypatch):
    """DiffEdit, for one, asks an inversion from the cache how many steps the whole schedule has."""
    from nulltext.nodes import edit_photo

    made, plain = [], edit_photo.invert
    monkeypatch.setattr(edit_photo, "invert", lambda *a, **more: made.append(plain(*a, **more)) or made[-1])
    edit(method="thorough", strength=0.5, blend=False)
    inversion, _ = made[0]
    assert inversion.steps == 2 and inversion.metadata["schedule_steps"] == 4


@pytest.mark.parametrize(
    ("method", "blend", "looks", "told"),
    [
        ("draft", False, [], [[5.5], [1.5]] * 2),
        ("draft", True, [[3.5, 3.5]] * 4, [[5.5], [1.5]] * 2),
        ("thorough", False, [], [[1.5], [1.5], [1.5, 5.5], [5.5]]),  # there, and back beside the source for a step
    ],
)
def test_a_model_with_a_guidance_of_its_own_is_told_it_beside_each_prompt(edit, family, method, blend, looks, told):
    """At cfg 1: no row of the empty prompt. 3.5 is what ComfyUI tells Flux by itself."""
    model, seen = family("Flux", context_in_dim=64, vec_in_dim=64), []
    net = model.model.diffusion_model
    net.register_forward_pre_hook(lambda _, args, more: seen.append(more["guidance"].tolist()), with_kwargs=True)
    given = {"model": model, "image": None, "latent": normal(1, 16, 8, 8), "steps": 2, "strength": 1.0}
    out = edit(**given, method=method, blend=blend)
    assert seen[: len(looks)] == looks
    assert sorted(seen[len(looks) :]) == sorted(told)
    assert "at cfg 1 and the model's own guidance 1.5 (source) and 5.5 (edit)" in out[3]


def test_the_report_names_every_network_call_and_what_the_cache_saved(edit, tiny, network_calls, monkeypatch, tmp_path):
    """Of one picture at cfg 3 without blend: the pivot, the null-text forwards and the pair's rows are all there is."""
    from nulltext.nodes import null_text

    monkeypatch.setattr(null_text.files, "cache_folder", lambda: tmp_path)
    seen, given = network_calls(tiny), {"method": "thorough, null-text", "cfg": 3.0, "blend": False}
    report = edit(**given)[3]
    told = [int(number) for number in re.findall(r"(\d+) network (?:calls|rows)", report)]
    assert sum(told) == sum(len(x) for x, _ in seen) and len(told) == 3
    assert re.search(r"[1-9]\d* backward passes", report)
    seen.clear()
    again = edit(**given)[3]
    assert "inversion found in the cache, null-text found in the cache" in again
    assert re.findall(r"(\d+) network (?:calls|rows)", again) == [str(sum(len(x) for x, _ in seen))]
