"""The attention benchmark's edits: the redrawn scene is the right answer, the picture before is not."""

import pytest
import torch
from nulltext.benchmarks.attention import runs
from nulltext.benchmarks.attention.__main__ import line, rank_correlation, summary
from nulltext.benchmarks.edits import KINDS, colour_amount, edits, log_odds, rest_cell
from nulltext.demo import captions, probe, scenes


def test_edits_change_one_attribute_and_say_so():
    found = edits(16, 5)
    assert [e.kind for e in found] == list(KINDS) * 4
    assert [e.refine for e in found] == [False] * 7 + [True] + [False] * 7 + [True]
    for edit in found:
        assert edit.source != edit.edited
        assert len(edit.source.split()) == len(edit.edited.split()) - edit.refine
        assert edit.edited == captions.captions(edit.after)[0]
        background = 1 - edit.region
        changed = (scenes.draw(edit.before)[0] - scenes.draw(edit.after)[0]).abs().amax(1, keepdim=True)
        assert float((changed * background).max()) <= 0.02


def test_the_probe_judges_the_redrawn_scene_right_and_the_scene_before_wrong():
    judge, found = probe.load("conv"), edits(16, 6)
    assert sum(bool(edit.done(judge, scenes.draw(edit.after)[0])) for edit in found) >= 15
    assert not any(bool(edit.done(judge, edit.image)) for edit in found)
    edit = found[0]
    colour, place = (int(getattr(edit.after, name)[0, 0]) for name in ("colour", "place"))
    assert log_odds(judge, scenes.draw(edit.after)[0], colour, place) > 0 > log_odds(judge, edit.image, colour, place)


def test_the_amount_of_a_colour_grows_with_its_depth_and_with_the_object():
    scene = scenes.sample(8, torch.Generator().manual_seed(2), "held_out", two=0.0)
    image, mask = scenes.draw(scene)[0], scenes.draw(scene)[1][:, :1]
    ground = torch.stack([torch.tensor(scenes.RGB[scenes.BACKGROUNDS[int(i)]]) for i in scene.background])
    object_ = torch.stack([torch.tensor(scenes.RGB[scenes.COLOURS[int(i)]]) for i in scene.colour[:, 0]])
    ground, object_ = ground.view(-1, 3, 1, 1), object_.view(-1, 3, 1, 1)
    torch.testing.assert_close(colour_amount(ground.expand_as(image), scene), torch.zeros(8), rtol=0, atol=1e-5)
    for depth in (0.5, 1.0, 1.5):
        flat = ground + depth * mask * (object_ - ground)
        torch.testing.assert_close(colour_amount(flat, scene), torch.full((8,), depth), rtol=0, atol=0.02)
    larger = torch.nn.functional.max_pool2d(mask, 9, 1, 4)
    assert (colour_amount(ground + larger * (object_ - ground), scene) > 1.1).all()
    assert (colour_amount(image, scene) > 0.5).all()


def test_summaries():
    rows = [
        {"p2p": {"success": True, "mse": 0.01}},
        {"p2p": {"success": False, "mse": 0.03}},
        {"p2p": {"success": None, "mse": None}},
        {"kind": "colour"},
    ]
    success, psnr, measured = summary(rows, "p2p")
    assert success == 0.5 and measured == 2  # what could not be judged does not count
    assert psnr == pytest.approx(-10 * torch.tensor(0.02).log10().item(), abs=1e-4)
    assert rank_correlation([1, 2, 3, 4]) == pytest.approx(1)
    assert rank_correlation([4, 3, 2, 1]) == pytest.approx(-1)


def test_a_mean_over_fewer_pictures_than_edits_says_so_and_one_over_a_few_is_not_shown():
    assert rest_cell("29.1", 16, 16) == "29.1"
    assert rest_cell("29.1", 9, 16) == "29.1 (9 of 16)"
    assert rest_cell("29.1", 7, 16) == "- (7 of 16)" and rest_cell("29.1", 2, 2) == "- (2 of 2)"
    rows = [{"p2p": {"success": True, "mse": 0.01 if i < 9 else None}} for i in range(16)]
    assert line("texture", rows, "p2p") == ["texture", "p2p", 16, 1.0, "20.0 (9 of 16)"]
    assert line("texture", rows[2:], "p2p")[-1] == "- (7 of 14)"


def test_there_is_a_plan_for_every_kind_of_edit():
    assert set(runs.PLANS) == set(KINDS)
