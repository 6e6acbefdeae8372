"""Source and edit under one divider: every box that edits shows both where a VAE is wired, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from nulltext.nodes import NODE_CLASS_MAPPINGS as NODES
from nulltext.nodes.report import text_result
from nulltext.nodes.shown import EditBox
from nulltext.tests.running import Pixels, defaults, noised_inversion, normal, run

EDITS = sorted(node.ID for node in NODES.values() if issubclass(node, EditBox))


def test_the_boxes_that_edit_a_picture_are_there():
    known = "BlendedDiffusion DiffEdit DirectEdit DisturbanceSampler ILVRSampler PromptToPrompt RePaintSampler SDEdit"
    assert {f"NullText_{name}" for name in (*known.split(), "Sampler")} <= set(EDITS)


@pytest.mark.parametrize("key", EDITS)
def test_the_vae_may_stay_open_and_the_first_output_is_the_edit(key, engine):
    node = NODES[key]
    (vae,) = (i for i in node.INPUTS if i.name == "vae")
    assert vae.kind == "VAE" and not vae.wanted
    assert node.RETURN_TYPES[0] == "LATENT"


@pytest.mark.parametrize("name", ["repaint", "sdedit", "diffedit", "blended"])
def test_with_a_vae_the_report_has_the_psnr_outside_the_mask(tiny, edits, mask, name):
    latent = normal(1, 4, 8, 8)
    plain, shown = (edits[name](tiny, latent, mask, **more) for more in ({}, {"vae": Pixels()}))
    assert torch.equal(plain.samples, shown.samples)
    assert shown.text.startswith(plain.text) and "PSNR" not in plain.text
    assert "outside the mask between source and" in shown.text


def test_a_run_from_nothing_has_no_source_to_show(tiny, ends):
    given = {"model": tiny, "positive": ends[0], "negative": ends[1], "latent": torch.zeros(1, 4, 8, 8)}
    out = run("DisturbanceSampler", **given, steps_above=1, steps_below=2, vae=Pixels())
    assert "between source" not in out.text


def test_what_a_box_shows_has_the_same_names_in_each_item_of_a_list(tiny, ends):
    """ComfyUI takes those of the first item for all."""
    box = NODES["NullText_DisturbanceSampler"]()
    given = defaults("DisturbanceSampler", "required") | {"steps_above": 1, "steps_below": 2, "vae": Pixels()}
    given |= {"model": tiny, "positive": ends[0], "negative": ends[1]}
    picture, empty = (
        box.shown(**given, latent={"samples": x})["ui"] for x in (normal(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))
    )
    assert picture.keys() == empty.keys() and picture["a_images"] and not empty["a_images"]


@pytest.mark.parametrize("name", ["sdedit", "direct"])
def test_the_latents_own_noise_mask_stands_in_for_the_mask(tiny, edits, mask, name):
    latent = normal(1, 4, 8, 8)
    wired, own = (
        edits[name](tiny, {"samples": latent} | more, given, vae=Pixels())
        for more, given in (({}, mask), ({"noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])}, None))
    )
    assert torch.equal(wired.samples, own.samples) and wired.text.split("PSNR")[1] == own.text.split("PSNR")[1]
    assert "outside the mask" in own.text and (own.samples - latent).abs().max() > 0.01


class Frames:
    """A video VAE: T latent frames are 4 T - 3 pictures."""

    def decode(self, samples):
        frames = samples[:, :3].repeat_interleave(4, 2)[:, :, 3:].movedim(1, -1)
        return frames.repeat_interleave(8, 2).repeat_interleave(8, 3).clamp(0, 1)


class Halves(EditBox):
    """Changes the right half of the first latent's frames, the lower half of the second's."""

    ID, TITLE, INPUTS, OUTPUTS = "halves", "Halves", (), ()
    READS_MASK = True

    def run(self, latent):
        edit = latent["samples"].clone()
        edit[0, ..., 4:] += 1
        edit[1, ..., 4:, :] += 1
        return text_result("", {"samples": edit})


@pytest.mark.parametrize("frames", [2, 3])
def test_a_noise_mask_for_each_frame_covers_the_pictures_of_that_frame(engine, frames):
    """As core's nodes that make a video of a picture give it: the first frame is held. This edit changes it too."""
    mask = torch.zeros(2, 1, frames, 8, 8)
    mask[0, :, 1:, :, 4:], mask[1, :, 1:, 4:] = 1, 1
    latent = {"samples": normal(2, 16, frames, 8, 8), "noise_mask": mask}
    said = Halves().shown(vae=Frames(), latent=latent)["ui"]["nulltext_said"]
    assert [" inf dB outside the mask" in line for line in said] == [False, *[True] * (4 * frames - 4)] * 2


@pytest.mark.parametrize("name", ["SDEdit", "DirectEdit"])
def test_a_noise_mask_for_each_frame_is_read(family, make_condition, name):
    model, latent = family("Wan 2.1", text_dim=64), normal(1, 16, 2, 8, 8)
    mask = torch.zeros(1, 1, 2, 8, 8)
    mask[:, :, 1, :, 4:] = 1
    prompts = ("positive", "negative") if name == "SDEdit" else ("source", "target", "negative")
    given = {prompt: make_condition(i) for i, prompt in enumerate(prompts)}
    out = run(name, model=model, latent={"samples": latent, "noise_mask": mask}, steps=3, **given)
    changed = (out.samples != latent).any(1)
    assert torch.equal(changed, mask[:, 0] > 0)


def test_the_report_measures_outside_of_a_noise_mask_where_that_is_read(make_model, tiny, ends, mask):
    latent = {"samples": normal(1, 4, 8, 8), "noise_mask": mask[:, None]}
    given = {"positive": ends[0], "negative": ends[1], "latent": latent, "cfg": 3.0, "vae": Pixels()}
    flow = run("RFInversion", model=make_model("FLOW"), steps=2, **given)
    cartoon = run("DisturbanceSampler", model=tiny, steps_above=1, steps_below=2, **given)
    given |= {"edited": given.pop("positive"), "source": ends[1], "model": tiny, "steps": 3}
    drawn = run("MasaCtrl", **given)
    inverted = run("MasaCtrl", **given, inversion=noised_inversion(tiny, latent["samples"], steps=3))
    assert "whole picture may change" in flow.text
    assert all("dB between" in out.text for out in (flow, inverted))
    assert all("dB outside the mask" in out.text for out in (cartoon, drawn))
