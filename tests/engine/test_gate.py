"""What the gate before every box brings to one meaning, and what it refuses in one sentence."""

from __future__ import annotations

import math
from types import SimpleNamespace

import nulltext
import numpy as np
import pytest
import torch
from nulltext.nodes.base import CFG, MASK, SEED, Boolean, Box, Choice, Float, Int, Output, Socket, Text

NAN = float("nan")


@pytest.fixture(autouse=True)
def _engine(engine):
    """The gate's laws need ComfyUI's names alone."""


def check(kind, value):
    from nulltext.engine.gate import checked

    return checked(kind, "it", value)


def refused(kind, value, words="it"):
    with pytest.raises(ValueError, match=words) as error:
        check(kind, value)
    said = str(error.value)
    assert "\n" not in said and 20 < len(said) < 500


def holding(shape, *values):
    t = torch.rand(shape)
    t.flatten()[: len(values)] = torch.tensor(values)
    return t


def test_pictures_become_rgb_between_0_and_1():
    picture = torch.rand(2, 8, 9, 3)
    assert check("IMAGE", picture) is picture
    assert check("IMAGE", picture[0]).shape == (1, 8, 9, 3)
    grey = check("IMAGE", picture[..., :1])
    assert grey.shape == picture.shape and torch.equal(grey[..., 0], grey[..., 2])
    assert torch.equal(check("IMAGE", torch.cat([picture, picture[..., :1]], -1)), picture)
    wild = holding((1, 8, 8, 3), -3.0, 7.0)
    held = check("IMAGE", wild)
    assert float(held.min()) == 0 and float(held.max()) == 1 and float(wild.max()) == 7
    assert check("IMAGE", picture.half()).dtype == torch.float32


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "picture",
        {"samples": torch.zeros(1, 4, 8, 8)},
        torch.zeros(0, 8, 8, 3),
        torch.zeros(1, 8, 0, 3),
        torch.zeros(1, 1, 1, 3),
        torch.zeros(1, 1, 64, 3),
        torch.zeros(1, 8, 8, 2),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(8, 8),
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 8, 8, 3, dtype=torch.complex64),
        holding((1, 8, 8, 3), NAN),
        holding((1, 8, 8, 3), math.inf),
    ],
)
def test_what_is_no_picture_is_refused(value):
    refused("IMAGE", value)


def test_masks_are_held_to_0_and_1():
    mask = torch.rand(2, 8, 9)
    assert check("MASK", mask) is mask
    assert check("MASK", mask[0]).shape == (1, 8, 9) and check("MASK", mask[:, None]).shape == (2, 8, 9)
    assert check("MASK", mask > 0.5).dtype == torch.float32
    held = check("MASK", holding((1, 4, 4), -1.0, 5.0))
    assert float(held.min()) == 0 and float(held.max()) == 1
    for bad in (None, torch.zeros(0, 4, 4), torch.zeros(4), torch.zeros(1, 3, 4, 4), holding((1, 4, 4), NAN)):
        refused("MASK", bad)


def test_latents():
    latent = {"samples": torch.randn(2, 4, 8, 8), "batch_index": [0, 1]}
    assert check("LATENT", latent) is latent
    with_mask = {**latent, "noise_mask": holding((1, 1, 64, 64), -1.0, 2.0)}
    held = check("LATENT", with_mask)["noise_mask"]
    assert float(held.max()) == 1 and float(with_mask["noise_mask"].max()) == 2  # what was given is left alone
    for samples in (None, torch.zeros(1, 4), torch.zeros(0, 4, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.long)):
        refused("LATENT", {"samples": samples})
    refused("LATENT", {"samples": holding((1, 4, 8, 8), NAN)}, "NaN")
    refused("LATENT", {"samples": holding((1, 4, 8, 8), 1e30)}, "no VAE makes")
    refused("LATENT", {**latent, "noise_mask": torch.ones(3, 1, 64, 64)}, "2 latents with 3 noise masks")
    refused("LATENT", {**latent, "noise_mask": holding((1, 1, 8, 8), NAN)}, "noise mask")
    for other in (torch.zeros(1, 4, 8, 8), {}, None, []):
        refused("LATENT", other)


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found_in_every_precision(dtype, value):
    if dtype == torch.float8_e4m3fn:
        value = NAN  # it has no infinity
    samples = torch.zeros(1, 4, 32, 32)
    assert check("LATENT", {"samples": samples.to(dtype)})["samples"].dtype == dtype
    samples[0, 2, 13, 7] = value
    refused("LATENT", {"samples": samples.to(dtype)}, "NaN")
    assert check("CONDITIONING", [[torch.zeros(1, 7, 64), {"pooled_output": torch.zeros(0, 64).to(dtype)}]])
    refused("CONDITIONING", [[torch.zeros(1, 7, 64), {"pooled_output": samples.to(dtype)}]], "its pooled_output")


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [1.0, 2.0, 0.0],
        [2.0, 2.0, 0.0],
        [NAN, 1.0, 0.0],
        [math.inf, 1.0, 0.0],
        [2.0, 1.0, -1.0],
        [[2.0, 0.0]],
    ],
)
def test_schedules_that_do_not_fall_are_refused(values):
    refused("SIGMAS", torch.tensor(values))


def test_a_long_schedule_is_refused_in_a_short_sentence():
    refused("SIGMAS", torch.ones(5000), "fall strictly.*5000 in all")


def test_prompts():
    prompt = [[torch.randn(1, 77, 64), {"pooled_output": torch.zeros(1, 64)}]]
    assert check("CONDITIONING", prompt)[0][0] is prompt[0][0]
    for bad in ([], None, "text", [[torch.zeros(1, 77, 64)]], [[None, {}]], [[torch.zeros(1, 64), {}]]):
        refused("CONDITIONING", bad)
    refused("CONDITIONING", [[torch.zeros(1, 0, 64), {}]], "empty")
    refused("CONDITIONING", [[holding((1, 7, 64), NAN), {}]], "NaN")
    refused("CONDITIONING", [[torch.zeros(1, 7, 64), {"mask": holding((1, 8, 8), NAN)}]], "its mask")
    refused("CONDITIONING", [[torch.zeros(1, 7, 64), {"strength": NAN}]], "its strength")


KINDS = ["MODEL", "CLIP", "VAE", "CLIP_VISION", "CLASSIFIER", "IMAGE_TEXT", "INVERSION"]
KINDS += ["H_DIRECTION", "TUNING_SET", "LORA_MODEL", "ATTENTION_MAPS"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wire_of_another_kind_is_refused(kind):
    for value in (None, torch.zeros(1, 4, 8, 8), [], "x", 3, {}, {"samples": torch.zeros(1, 4, 8, 8)}):
        refused(kind, value)


@pytest.mark.parametrize("widget", [CFG, Float("t", 0.5, "")])
def test_numbers_must_be_finite_and_within_the_widgets_range(widget):
    for bad in (NAN, math.inf, -math.inf, -0.1, 1e9, "1", None, [], [1.0], {}, torch.tensor(0.5), 10**400):
        with pytest.raises(ValueError, match=f"^{widget.name} must be a number from 0 to") as error:
            widget.checked(bad)
        assert len(str(error.value)) < 200
    assert widget.checked(1) == 1.0


def test_whole_numbers_switches_words_and_texts():
    for bad in (NAN, 1.5, -1, 2**64, "0", None, [], 1e300):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            SEED.checked(bad)
    assert SEED.checked(2**64 - 1) == 2**64 - 1 and Int("n", 1, "").checked(3.0) == 3
    for bad in ("c", "", None, 1, [], "a" * 10_000):
        with pytest.raises(ValueError, match="must be one of a, b; got"):
            Choice("way", ["a", "b"], "").checked(bad)
    for bad in (None, 1, [], "a\0b", "\ud800", "x" * 200_000):
        with pytest.raises(ValueError, match="^words") as error:
            Text("words", "", "").checked(bad)
        assert "NoneType" not in str(error.value)


def test_null_is_the_default_of_a_widget_that_may_be_left_out():
    steps, words = Int("steps", 25, "").optional(), Choice("kind", ["a", "b"], "").optional()
    assert steps.checked(None) == 25 and words.checked(None) == "a" and MASK.optional().checked(None) is None
    with pytest.raises(ValueError, match="steps must be"):
        Int("steps", 25, "").checked(None)


def test_numpys_numbers_are_numbers():
    """Arithmetic nodes of other packs give them."""
    seed, cfg = SEED.checked(np.uint64(2**64 - 1)), CFG.checked(np.float32(7.5))
    switch = Boolean("on", False, "").checked(np.True_)
    assert (seed, cfg, switch) == (2**64 - 1, 7.5, True)
    assert (type(seed), type(cfg), type(switch)) == (int, float, bool)
    for widget, bad in ((SEED, np.float64(1.5)), (SEED, np.int64(-1)), (CFG, np.float32("nan")), (CFG, np.True_)):
        with pytest.raises(ValueError, match=f"^{widget.name} must be"):
            widget.checked(bad)


class _Echo(Box):
    ID, TITLE, CATEGORY, SEARCH_ALIASES, DESCRIPTION = "x", "Echo", "NullText", ["echo"], "Says what it is given."
    INPUTS = (Socket("latent", "LATENT", ""), MASK.optional(), Text("words", "", ""))
    OUTPUTS = (Output("LATENT", ""),)

    def run(self, latent, words, mask=None):
        if words:
            raise {"disk": OSError(28, "No space left on device", "/secret/place")}.get(words, ValueError(words))
        return ({"samples": latent["samples"] * (mask.mean() if mask is not None else 1)},)


def test_what_a_box_says_is_short_and_tells_no_path():
    latent = {"samples": torch.ones(2, 4, 8, 8)}
    with pytest.raises(ValueError) as error:
        _Echo().run(latent, words="begin " + "prompt " * 10_000 + "do this instead")
    assert len(str(error.value)) <= 500 and str(error.value).startswith("begin") and "this instead" in str(error.value)
    with pytest.raises(ValueError, match="The input words is missing"):
        _Echo().run(latent=latent)
    with pytest.raises(ValueError, match="No space left on device") as error:
        _Echo().run(latent=latent, words="disk")
    assert "secret" not in str(error.value)


def test_the_gate_is_around_what_the_engine_calls():
    for node in (n for n in nulltext.NODE_CLASS_MAPPINGS.values() if n.FUNCTION != "run"):
        vae = next(i.name for i in node.INPUTS if i.kind == "VAE")
        with pytest.raises(ValueError, match=f"The input {vae} must be a VAE"):
            getattr(node(), node.FUNCTION)(**{vae: "x"})


def test_masks_are_counted_against_the_batch_before_the_box_runs():
    latent = {"samples": torch.ones(2, 4, 8, 8)}
    assert float(_Echo().run(latent, "", torch.full((2, 8, 8), 3.0))[0]["samples"].max()) == 1
    with pytest.raises(ValueError, match="There are 3 masks for 2 latents"):
        _Echo().run(latent, "", torch.ones(3, 8, 8))


def test_a_result_that_holds_nan_is_refused():
    latent = {"samples": torch.full((2, 4, 8, 8), 9e5)}
    out = {"samples": torch.full((1, 4, 8, 8), NAN)}
    from nulltext.engine.gate import finite

    assert finite("LATENT", latent, "Echo") is latent
    for kind, value in (("LATENT", out), ("IMAGE", out["samples"]), ("MASK", out["samples"])):
        with pytest.raises(ValueError, match="Echo ended in NaN"):
            finite(kind, value, "Echo")


def test_prompts_and_schedules_of_another_model_are_refused(tiny, make_model, make_condition):
    from nulltext.engine.matching import together

    wide = [[torch.zeros(1, 77, 2048), {}]]
    with pytest.raises(
        ValueError, match="made for another model: its tokens have 2048 numbers, and this model reads 64"
    ):
        together({"model": ("MODEL", tiny), "positive": ("CONDITIONING", wide)})
    together({"model": ("MODEL", tiny), "positive": ("CONDITIONING", make_condition())})
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for batch in (1, 2):
        two = {"negative": ("CONDITIONING", make_condition(batch=batch)), "latent": ("LATENT", latent)}
        if batch == 1:
            together({"model": ("MODEL", tiny), **two})
            continue
        with pytest.raises(ValueError, match="The input negative holds 2 prompts for 1 latent:"):
            together({"model": ("MODEL", tiny), **two})
    sigmas = torch.tensor([14.6, 1.0, 0.0])
    together({"model": ("MODEL", tiny), "sigmas": ("SIGMAS", sigmas)})
    with pytest.raises(ValueError, match="flow model"):
        together({"model": ("MODEL", make_model("FLOW")), "sigmas": ("SIGMAS", sigmas)})


def test_a_vae_of_another_model_is_refused(tiny):
    from nulltext.engine.matching import together

    together({"model": ("MODEL", tiny), "vae": ("VAE", SimpleNamespace(latent_channels=4))})
    with pytest.raises(ValueError, match="makes latents of 16 channels, the model works on 4: wire the VAE"):
        together({"model": ("MODEL", tiny), "vae": ("VAE", SimpleNamespace(latent_channels=16))})


def test_pictures_that_a_vae_makes_no_cell_of():
    from nulltext.engine.matching import together

    small = ("IMAGE", torch.rand(1, 7, 64, 3))
    together({"image": small})
    with pytest.raises(ValueError, match="64 x 7 pixels, too small for a VAE"):
        together({"image": small, "vae": ("VAE", object())})


def test_a_reference_is_shrunk_once():
    from nulltext.engine.samples import at_most

    picture = torch.rand(1, 40, 20, 3)
    assert at_most(picture, 40) is picture and at_most(picture, 20).shape == (1, 20, 10, 3)


@pytest.mark.parametrize("key", sorted(nulltext.NODE_CLASS_MAPPINGS))
def test_every_node_stands_behind_the_gate(key):
    node = nulltext.NODE_CLASS_MAPPINGS[key]
    assert hasattr(getattr(node, node.FUNCTION), "__wrapped__"), "the gate is not around what the engine calls"
    numbers = [i for i in node.INPUTS if i.kind in ("FLOAT", "INT")]
    for number in numbers:
        with pytest.raises(ValueError, match=f"^{number.name} must be a "):
            getattr(node(), node.FUNCTION)(**{number.name: NAN})


def test_what_core_hands_to_a_sampler_of_ours_is_looked_at(tiny, ends):
    from nulltext.engine.guider import guider_class
    from nulltext.engine.sampler import core_sampler, own_sampler
    from nulltext.samplers.ode import sample_euler

    guider = guider_class()(tiny)
    guider.set_conds(*ends)
    good, sigmas = torch.zeros(1, 4, 8, 8), torch.tensor([5.0, 1.0, 0.0])
    for sampler in (core_sampler("euler"), own_sampler(sample_euler)):
        for latent, levels in ((holding((1, 4, 8, 8), NAN), sigmas), (good, sigmas * NAN), (good, sigmas[None])):
            with pytest.raises(ValueError, match=r"NaN|one row"):
                guider.sample(good, latent, sampler, levels, disable_pbar=True, seed=1)


@pytest.mark.parametrize("kind", ["IMAGE", "MASK", "LATENT", "SIGMAS", "CONDITIONING", *KINDS])
def test_nothing_wired_is_said_in_words(kind):
    with pytest.raises(ValueError, match="nothing") as error:
        check(kind, None)
    assert "NoneType" not in str(error.value)


def test_masks_are_one_for_each_latent_or_for_each_frame_of_one_video():
    from nulltext.engine.matching import together

    masks, wide = torch.ones(3, 8, 8), {"samples": torch.zeros(1, 4, 3, 8, 8)}
    for several, latent in ((2, wide["samples"]), (1, wide["samples"][:, :, :1]), (1, wide["samples"][:, :, 0])):
        samples = latent.expand(several, *latent.shape[1:])
        with pytest.raises(ValueError, match=f"3 masks for {several} latent"):
            together({"latent": ("LATENT", {"samples": samples}), "mask": ("MASK", masks)})
    together({"latent": ("LATENT", wide), "mask": ("MASK", masks)})
    together({"edit": ("STRING", "replace"), "mask": ("MASK", masks)})  # no picture: nothing to count by
    refused("LATENT", {"samples": torch.ones(2, 4, 3, 8, 8), "noise_mask": masks[:, None]}, "2 latents with 3 noise")
    check("LATENT", {**wide, "noise_mask": masks[:, None]})


def test_a_part_of_a_picture_is_refused_where_latents_have_frames(tiny, make_condition, monkeypatch):
    from nulltext.engine.matching import together

    flat, whole = ("percentage", 1.0, 0.5, 0.0, 0.5), ("percentage", 1.0, 1.0, 0.5, 0.0, 0.0, 0.5)
    given = [{"positive": ("CONDITIONING", make_condition(area=area))} for area in (flat, whole, (8, 4, 0, 4))]
    for each in given:
        together({"model": ("MODEL", tiny), **each})
    form = SimpleNamespace(latent_channels=4, latent_dimensions=3)
    monkeypatch.setattr(tiny, "get_model_object", lambda name: form)
    with pytest.raises(
        ValueError, match="positive is for a part of a picture.*take ConditioningSetAreaPercentageVideo"
    ):
        together({"model": ("MODEL", tiny), **given[0]})
    for each in given[1:]:
        together({"model": ("MODEL", tiny), **each})
