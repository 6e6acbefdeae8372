"""The attention benchmark's edits: the redrawn scene is the right answer, the picture before is not."""
import pytest
import torch
from nulltext.benchmarks._scene_edits import KINDS, PixelJudge, edits
from nulltext.benchmarks.attention import rank_correlation, summary
from nulltext.demo import captions, scenes


def test_edits_change_one_attribute_and_say_so():
    found = edits(16, 5)
    assert [e.kind for e in found] == list(KINDS) * 4
    assert [e.refine for e in found] == [False] * 7 + [True] + [False] * 7 + [True]
    for edit in found:
        assert edit.source != edit.edited
        assert len(edit.source.split()) == len(edit.edited.split()) - edit.refine
        assert edit.edited == captions.captions(edit.after)[0]
        background = edit.background()
        changed = (scenes.draw(edit.before)[0] - scenes.draw(edit.after)[0]).abs().amax(1, keepdim=True)
        assert float((changed * background).max()) <= 0.02


def test_pixels_judge_colours():
    judge = PixelJudge()
    for edit in edits(24, 6):
        if edit.kind in judge.kinds:
            assert judge.done(edit, scenes.draw(edit.after)[0]) is True
            assert judge.done(edit, edit.image) is False
        else:
            assert judge.done(edit, edit.image) is None
    red = torch.tensor(scenes.RGB["red"]).view(1, 3, 1, 1).expand(1, 3, 8, 8).clone()
    red[..., 4:] = torch.tensor(scenes.RGB["blue"]).view(3, 1, 1)
    assert judge.colour_strength(red, scenes.COLOURS.index("red"), 0) == 0.5


def test_summaries():
    rows = [
        {"p2p": {"success": True, "mse": 0.01}},
        {"p2p": {"success": False, "mse": 0.03}},
        {"p2p": {"success": None, "mse": None}},
        {"kind": "colour"},
    ]
    success, psnr = summary(rows, "p2p")
    assert success == 0.5  # what could not be judged does not count
    assert psnr == pytest.approx(-10 * torch.tensor(0.02).log10().item(), abs=1e-4)
    assert rank_correlation([1, 2, 3, 4]) == pytest.approx(1)
    assert rank_correlation([4, 3, 2, 1]) == pytest.approx(-1)
