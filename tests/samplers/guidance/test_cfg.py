"""The paper's w and its schedules over sigma, by hand."""

import math

import pytest
import torch
from nulltext.samplers.core import guided
from nulltext.samplers.guidance.cfg import ScheduleOfW, from_w


def schedule(shape="linear", start=4.0, end=1.0, high=8.0, low=0.125):
    return ScheduleOfW(start, end, high, low, shape)


def test_cfg_is_one_more_than_w():
    assert [from_w(w) for w in (-1.0, 0.0, 2.5)] == [0.0, 1.0, 3.5]
    x, cond, uncond = torch.rand(3, 4), (lambda x, s: 3 * x), (lambda x, s: x)
    torch.testing.assert_close(guided(cond, uncond, from_w(2.5))(x, 1.0), 3.5 * cond(x, 1.0) - 2.5 * uncond(x, 1.0))


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_the_span_holds_both_of_its_ends_and_w_is_0_outside(shape):
    made = schedule(shape)
    assert made(8.0) == 4.0
    assert made(0.125) == (4.0 if shape == "constant" else pytest.approx(1.0))
    assert made(8.0 * (1 + 1e-5)) == made(0.125 * (1 - 1e-5)) == made(0.0) == 0.0


def test_linear_and_cosine_are_of_the_logarithm_of_sigma():
    """Each halving of sigma is a sixth of the way from 8 to 1/8."""
    for sixth in range(7):
        sigma = 8.0 / 2**sixth
        assert schedule("linear")(sigma) == pytest.approx(4 - 3 * sixth / 6)
        assert schedule("cosine")(sigma) == pytest.approx(4 - 3 * (1 - math.cos(math.pi * sixth / 6)) / 2)
        assert schedule("constant")(sigma) == 4.0


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_a_window_without_edges_runs_between_finite_levels_and_holds_all_others(shape):
    made, whole = schedule(shape), ScheduleOfW(4.0, 1.0, math.inf, 0.0, shape, highest=8.0, lowest=0.125)
    assert [whole(s) for s in (8.0, 1.0, 0.125)] == [made(s) for s in (8.0, 1.0, 0.125)]
    assert (whole(80.0), whole(0.001)) == (made(8.0), made(0.125))


def test_a_schedule_may_rise():
    made = schedule("linear", start=0.0, end=6.0)
    assert [made(s) for s in (8.0, 1.0, 0.125)] == pytest.approx([0.0, 3.0, 6.0])


def test_a_span_of_one_level_holds_nothing_and_a_span_down_to_0_is_finite():
    assert schedule("linear", high=2.0, low=2.0)(2.0) == 0.0
    assert schedule("linear", low=0.0)(0.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"shape": "step"}, "one of constant, linear, cosine"),
        ({"high": 0.1}, "above its end"),
        ({"low": -0.1}, "above its end"),
        ({"start": -1.01}, "at least -1"),
        ({"end": -1.01}, "at least -1"),
    ],
)
def test_what_has_no_meaning_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        schedule(**wrong)


def test_w_of_minus_1_is_allowed():
    assert schedule("constant", start=-1.0, end=-1.0)(1.0) == -1.0
