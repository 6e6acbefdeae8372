"""What the page asks the server for: words without a model, schedules without a run, pictures of a result."""

from __future__ import annotations

import json

import pytest
import torch

REPAINT = {"kind": "repaint", "schedule": "custom", "levels": "11", "jump": "1", "resamples": "15", "low": "0"}
REPAINT |= {"high": "2", "noise": "renewed (ours, for few levels)"}


def test_words_are_the_tokenizers_own_and_can_be_named_in_a_field(engine):
    from nulltext.nodes import page

    assert page.words("A (Red:1.3) car, the car's hat") == ["a", "red", "car", "the", "car", "s", "hat"]
    long = " ".join(["snow"] * 200)
    assert page.words(long) == ["snow"] * 200
    assert page.words("") == []


def test_a_drawn_repaint_schedule_is_the_one_that_is_walked(engine):
    from nulltext.nodes import page
    from nulltext.samplers.picture.repaint import ranged_path

    drawn = page.drawing(REPAINT)
    sigmas = torch.tensor(drawn["sigmas"])
    assert len(sigmas) == 12 and drawn["sigmas"][0] == pytest.approx(14.61, abs=0.01)
    assert drawn["path"] == ranged_path(sigmas, 1, 15, 0.0, 2.0)
    assert drawn["calls"] == sum(b > a for a, b in zip(drawn["path"], drawn["path"][1:])) > 11
    assert str(drawn["calls"]) in drawn["said"]
    assert page.drawing({**REPAINT, "resamples": "1"})["calls"] == 11
    for name, calls in (
        ("paper, 2410 calls (250/10/10)", 2410),
        ("paper, 105 calls (25/5/5)", 105),
        ("ours, about 350 calls", 349),
    ):  # a preset does not read the numbers
        drawn = page.drawing({**REPAINT, "schedule": name})
        assert drawn["calls"] == calls and str(calls) in drawn["said"]
        assert (drawn["window"][0] > 0) == name.startswith("ours")
        json.dumps(drawn, allow_nan=False)
    wired = page.drawing({"kind": "repaint", "schedule": "paper, 105 calls (25/5/5)", "steps": "30"})
    assert len(wired["sigmas"]) == 31  # a SAMPLER takes the levels that are wired
    demo = page.drawing({**REPAINT, "ckpt": "nulltext_demo.safetensors"})
    assert demo["sigmas"][0] == pytest.approx(66, abs=0.5) and demo["noise"] != drawn["noise"]


def test_a_drawn_disturbance_follows_cfg_and_window(engine):
    from nulltext.nodes import page

    options = {"kind": "disturbance", "cfg": "10", "start_percent": "0.7", "denoise": "1"}
    options |= {"steps_above": "12", "steps_below": "0"}
    calm, wild = page.drawing(options), page.drawing({**options, "steps_below": "5"})
    assert "stable" in calm["said"] and "NOT" not in calm["said"] and "NOT stable" in wild["said"]
    assert wild["calls"] < calm["calls"]
    assert page.drawing({**options, "start_percent": "0.5"})["window"][0] > calm["window"][0]


BAD = ("nan", "inf", "-inf", "", "x", "1e400", "-1", "999999999", "1e9", "0x10", "\0", "[]")
DISTURBANCE = {"kind": "disturbance", "cfg": "10", "start_percent": "0.7", "denoise": "1", "end_percent": "1"}
DISTURBANCE |= {"steps_above": "12", "steps_below": "0", "steps": "20"}
NUMBERS = ("levels", "jump", "resamples", "low", "high", "particles", "steps")


@pytest.mark.parametrize(
    "options", [{}, {"kind": "other"}, {**REPAINT, "schedule": "none"}, {**REPAINT, "mode": "x" * 9999}]
)
def test_what_makes_no_schedule_is_refused(engine, options):
    from nulltext.nodes import page

    with pytest.raises(ValueError) as refused:
        page.drawing(options)
    assert len(str(refused.value)) < 500


def test_every_number_is_held_to_its_widgets_range(engine):
    from nulltext.nodes import page

    for base, names in ((REPAINT, NUMBERS), (DISTURBANCE, set(DISTURBANCE) - {"kind"})):
        for name in names:
            for value in BAD:
                with pytest.raises(ValueError, match=f"^{name} must be a (whole )?number from"):
                    page.drawing({**base, name: value})


def test_a_path_too_long_to_draw_is_refused_before_it_is_made(engine, monkeypatch):
    from nulltext.nodes import page
    from nulltext.samplers.picture import repaint

    long = {**REPAINT, "levels": "1000", "resamples": "1000", "high": "1000"}
    monkeypatch.setattr(repaint, "jump_path", None)
    with pytest.raises(ValueError, match="visits 19.* noise levels.*lower resamples"):
        page.drawing(long)


def test_pages_of_other_sites_are_told_by_their_headers(engine):
    from nulltext.nodes.page import foreign

    assert foreign({"Origin": "https://evil.example", "Host": "127.0.0.1:8188"})
    assert foreign({"Sec-Fetch-Site": "cross-site", "Host": "127.0.0.1:8188"})
    assert foreign({"Origin": "null", "Host": "127.0.0.1:8188"})
    assert not foreign({"Origin": "http://127.0.0.1:8188", "Host": "127.0.0.1:8188", "Sec-Fetch-Site": "same-origin"})
    assert not foreign({"Host": "127.0.0.1:8188"})  # no browser


def test_before_and_after_need_a_vae_and_tell_the_psnr(engine):
    from nulltext.nodes import report

    class VAE:
        def decode(self, samples):
            return samples.movedim(1, -1)

    assert report.before_after(None, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)) == ("", {})
    line, ui = report.before_after(VAE(), torch.full((2, 3, 8, 8), 0.5), torch.full((2, 3, 8, 8), 0.6))
    assert "20.0, 20.0 dB" in line and ui["nulltext_said"] == ["PSNR 20.0 dB"] * 2
    assert len(ui["a_images"]) == len(ui["b_images"]) == 2
    from PIL import Image

    with Image.open(report.folders.folder("temp") / ui["a_images"][0]["filename"]) as picture:
        assert picture.size == (8, 8) and picture.getpixel((0, 0)) == (128, 128, 128)


def test_an_edit_is_measured_outside_its_mask(engine):
    from nulltext.nodes import report

    before, after = torch.full((1, 16, 16, 3), 0.5), torch.full((2, 16, 16, 3), 0.6)
    after[:, :8] = 1.0
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    line, ui = report.compared(before, after, mask)
    assert ui["nulltext_said"] == ["PSNR 20.0 dB outside the mask"] * 2 and "edit" in line
    assert len(ui["a_images"]) == 2
    for everything in (None, torch.ones(1, 16, 16), torch.zeros(1, 16, 16)):
        line, ui = report.compared(before, after, everything)
        assert "outside" not in line and float(ui["nulltext_said"][0].split()[1]) < 10
