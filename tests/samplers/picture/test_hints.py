"""Hints from pictures: lines where edges are, and nothing where nothing is."""

import pytest
import torch
from nulltext.samplers.picture import hints


def disc(side=64, radius=18):
    grid = torch.arange(side) - side / 2 + 0.5
    away = (grid[:, None] ** 2 + grid[None] ** 2).sqrt()
    return ((radius - away).clamp(-1, 1) / 2 + 0.5).expand(1, 3, -1, -1).clone(), away


def test_edges_are_thin_closed_and_lie_on_the_outline():
    picture, away = disc()
    line = hints.edges(picture)[0, 0]
    assert set(line.unique().tolist()) == {0.0, 1.0}
    on = away[line > 0]
    assert (on - 18).abs().max() < 1.6 and on.numel() < 2 * 2 * torch.pi * 18 * 0.75
    # from the centre, every direction meets the line
    angles = torch.arange(0, 360, 5) * torch.pi / 180
    near = torch.nn.functional.max_pool2d(line[None, None], 3, 1, 1)[0, 0]
    at = [(round(31.5 + 18 * float(a.sin())), round(31.5 + 18 * float(a.cos()))) for a in angles]
    assert all(near[y, x] for y, x in at)


def test_a_weak_edge_is_kept_only_where_it_goes_on_from_a_strong_one():
    ramp = torch.zeros(1, 3, 48, 48)
    ramp[..., 24:] = torch.linspace(0.10, 0.8, 48)[:, None]  # an upright edge, weak above and strong below
    line = hints.edges(ramp, threshold=0.1)[0, 0]
    assert line[4:44].amax(1).min() == 1
    ramp[..., 24:] = 0.15
    assert hints.edges(ramp, threshold=0.1).max() == 0


@pytest.mark.parametrize("kind", ["edges", "scribble"])
def test_a_flat_picture_has_no_lines(kind):
    assert hints.hint(torch.full((2, 3, 32, 32), 0.4), kind).abs().max() == 0


def test_a_mask_is_what_is_bright_and_shading_is_stretched():
    picture, away = disc()
    assert torch.equal(hints.hint(picture, "mask", 0.5)[0, 0] > 0, away < 18)
    shade = hints.hint(picture * 0.3 + 0.2, "shading", sigma=4.0)
    torch.testing.assert_close((shade.min(), shade.max()), (torch.tensor(0.0), torch.tensor(1.0)))
    assert torch.equal(hints.hint(torch.full((1, 3, 8, 8), 0.3), "shading"), torch.full((1, 3, 8, 8), 0.5))


def test_scribbles_are_thicker_than_edges():
    picture, away = disc()
    line = hints.hint(picture, "scribble", sigma=2.0)[0, 0] > 0.5
    assert line.sum() > 2 * hints.edges(picture)[0, 0].sum()
    assert (away[line] - 18).abs().max() < 9


@pytest.mark.parametrize("kind", hints.KINDS)
def test_a_threshold_and_a_blur_of_0_are_the_kinds_own(kind):
    picture = disc()[0] * 0.6
    made = hints.hint(picture, kind)
    assert torch.equal(made, getattr(hints, kind)(picture)) and made.min() == 0 and made.max() > 0.9


def test_a_blur_of_a_tenth_is_none():
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(hints.hint(picture, "edges", 0.2, 0.1), hints.edges(picture, 0.2, 0))


def test_a_blur_keeps_the_mean_of_a_flat_picture_and_its_width():
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    spread = hints.blurred(point, 3.0)[0, 0]
    at = torch.arange(41) - 20.0
    assert abs(float((spread.sum(0) * at**2).sum()) ** 0.5 - 3.0) < 0.1
    torch.testing.assert_close(hints.blurred(torch.ones(1, 1, 9, 9), 2.0), torch.ones(1, 1, 9, 9))


def test_refusals():
    with pytest.raises(ValueError, match="no hint 'depth'"):
        hints.hint(torch.zeros(1, 3, 8, 8), "depth")
    with pytest.raises(ValueError, match="three colours"):
        hints.hint(torch.zeros(1, 8, 8, 3), "mask")
