"""Techniques on a flow model: the demo's twin by core's own loader and flow sampling, judged by a probe. Beside
each stands a control: the source as it is, or the same run without the technique."""

import functools

import pytest
import torch
from nulltext.demo import probe, scenes
from nulltext.samplers.measure.metrics import psnr
from nulltext.tools import workflows
from torchvision.transforms.functional import to_tensor

RED, GREEN, YELLOW = (scenes.COLOURS.index(name) for name in ("red", "green", "yellow"))
BLUE, PINK = (scenes.BACKGROUNDS.index(name) for name in ("blue", "pink"))
MIDDLE = scenes.PLACES.index("middle")


@pytest.fixture
def pictures(comfy):
    """Runs a workflow in full but for the named inputs and wires {node: {input: link}} -> {title: pictures [B, 3, 128,
    128] in 0..1}."""

    def made(name, wires=(), **inputs):
        flow = workflows.load(name)
        for key, more in dict(wires).items():
            flow[key]["inputs"].update(more)
        for node in flow.values():
            node["inputs"].update({key: value for key, value in inputs.items() if key in node["inputs"]})
        titles, result = workflows.titles(flow), comfy.run(flow).check()
        source = {"Source": [picture.convert("RGB") for picture in workflows.source_pictures(flow)[:1]]}
        found = source | {titles[key]: result.pictures[key] for key in result.pictures}
        return {title: torch.stack([to_tensor(p) for p in shown]) for title, shown in found.items() if shown}

    return made


def seen(image):
    return probe.read(judge(), image)


@functools.cache
def judge():
    return probe.load("conv")


def rim(image):
    """The outermost 16 pixels, which no object in the middle reaches."""
    inner = torch.ones(image.shape[-2:], dtype=torch.bool)
    inner[16:-16, 16:-16] = False
    return image[..., inner][..., None, :]


def likeness(a, b):
    """dB, 120 at most."""
    return float(psnr(a, b).clamp(max=120))


def test_flow_edit_changes_what_the_prompts_say_differently_and_keeps_the_rest(pictures):
    made = pictures("direct_edit_flow", steps=16)
    names = ("Autoencoder", "FlowEdit: colour", "FlowEdit: background")
    readings = [seen(made[name]) for name in names]
    assert [int(r.at_place("colour")) for r in readings] == [RED, GREEN, RED]
    assert [int(r.background) for r in readings] == [BLUE, BLUE, PINK]
    assert all(int(r.place) == MIDDLE and int(r.texture) == 1 for r in readings)
    kept, changed = (likeness(rim(made[name]), rim(made["Autoencoder"])) for name in names[1:])
    assert kept >= 24 and changed <= kept - 8


def test_a_round_trip_gives_the_picture_back_where_plain_ddim_does_not(pictures):
    made = pictures("invert_image_flow", steps=10)
    exact = likeness(made["Reconstruction"], made["Autoencoder"])
    assert int(seen(made["Edit"]).at_place("colour")) == GREEN
    plain = pictures("invert_image_flow", steps=10, pivot="DDIM")
    assert exact >= 60 and exact >= likeness(plain["Reconstruction"], plain["Autoencoder"]) + 15


def test_null_text_brings_the_picture_back_under_guidance(pictures):
    made = pictures("null_text_flow", steps=8, inner_steps=4)
    assert int(seen(made["Edit"]).at_place("colour")) == GREEN
    plain = pictures("null_text_flow", {"10": {"negative": ["8", 0]}}, steps=8, correction="none")
    found, without = (likeness(m["Reconstruction"], m["Autoencoder"]) for m in (made, plain))
    assert found >= without + 5


def test_repaint_removes_what_the_mask_covers(pictures):
    made = pictures("repaint_flow")
    before, after = seen(made["Source"]), seen(made["RePaint fill"])
    assert float(before.present[0, MIDDLE]) > 0.9 and float(after.present.max()) < 0.5
    assert (int(after.background), int(after.texture)) == (BLUE, 1)
    assert likeness(rim(made["RePaint fill"]), rim(made["Source"])) > 40


def test_sdedit_goes_from_faithful_to_free(pictures):
    made = pictures("sdedit_flow", steps=10)
    strip, source = made["SDEdit strip"], made["Source"]
    colours = seen(strip).at_place("colour").tolist()
    assert colours[0] != YELLOW and colours[-1] == YELLOW
    near = [likeness(rim(picture), rim(source)) for picture in strip.split(1)]
    assert near == sorted(near, reverse=True) and near[0] >= near[-1] + 4


def test_disturbance_changes_the_picture_and_keeps_what_it_shows(pictures):
    made = pictures("disturbance_flow", steps_above=6)
    for name in ("Ordinary", "Back-D", "Image-D"):
        reading = seen(made[name])
        assert (int(reading.at_place("colour")), int(reading.background)) == (RED, BLUE)
    for name in ("Back-D", "Image-D"):
        assert 10 < likeness(made[name], made["Ordinary"]) < 35


def test_a_classifier_of_the_other_family_guides_towards_its_class(pictures):
    made = pictures("classifier_guidance_flow", steps=16)
    guided, plain = (seen(made[name]).at_place("colour") == YELLOW for name in ("Guided", "Unguided"))
    assert int(guided.sum()) >= int(plain.sum()) + 2
