"""Figures as pictures: where a chart draws a value, and where a grid puts a picture."""

import math

import torch
from nulltext.samplers.measure.charts import (
    COLOURS,
    from_picture,
    line_chart,
    smoothed,
    stacked,
    straight,
    tiles,
    to_picture,
)


def rows_of(chart, colour):
    """[pixels, 2] (row, column) of a line's own colour."""
    own = torch.tensor(colour) / 255
    return ((chart[0] - own).abs().amax(-1) < 1e-3).nonzero()


def test_a_picture_survives_the_way_there_and_back():
    image = (torch.rand(1, 5, 7, 3, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    assert torch.allclose(from_picture(to_picture(image)), image, atol=1e-6)


def test_larger_values_stand_higher_and_a_gap_is_left_where_a_value_is_not_finite():
    chart = line_chart("two", {"low": [1.0, 1.0, 1.0, 1.0, 1.0], "high": [3.0, 3.0, float("nan"), 3.0, 3.0]}, width=400)
    low, high = (rows_of(chart, COLOURS[i]) for i in range(2))
    plot = 320  # columns right of it hold the legend
    low, high = low[low[:, 1] < plot], high[high[:, 1] < plot]
    assert high[:, 0].max() < low[:, 0].min()
    columns = high[:, 1].unique()
    assert (columns.diff() > 50).sum() == 1  # one gap, two steps wide
    assert (low[:, 1].unique().diff() == 1).all()


def test_a_curve_is_smoothed_over_a_40th_of_its_values_and_never_ahead():
    assert smoothed([]) == [] and smoothed([3.0, 1.0]) == [3.0, 1.0]
    curve = [0.0] * 40 + [3.0] * 80  # the mean of three
    assert smoothed(curve)[38:44] == [0.0, 0.0, 1.0, 2.0, 3.0, 3.0]
    assert smoothed(curve[::-1])[:2] == [3.0, 3.0], "the first values are means of those that there are"


def test_narrow_pictures_are_padded_white_when_they_are_stacked():
    out = stacked([torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 5, 3)])
    assert out.shape == (1, 6, 5, 3) and out[0, :2, 3:].min() == 1 and out[0, 2:].max() == 0


def test_tiles_go_row_by_row_and_leave_out_an_unfinished_row():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    out = tiles(images, 2)
    assert out.shape == (1, 4, 4, 3)
    assert out[0, ::2, ::2, 0].tolist() == [[0, 1], [2, 3]]


def test_a_straight_line_runs_through_its_points_and_nowhere_else():
    line = straight({4: 1.0, 0: 3.0, 8: 5.0}, [-1, 0, 2, 4, 6, 8, 9])
    assert line[1:-1] == [3.0, 2.0, 1.0, 3.0, 5.0] and all(math.isnan(v) for v in (line[0], line[-1]))
    assert all(math.isnan(v) for v in straight({}, [0, 1]))
