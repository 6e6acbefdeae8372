"""The bench of edits by kind: what a row costs, and the error of a mean."""

import pytest
import torch
from nulltext.benchmarks.edits import KINDS
from nulltext.benchmarks.kinds import __main__ as kinds

STEPS = 4


@pytest.fixture(scope="module")
def group():
    return kinds.Group(kinds.counting(STEPS), None, "texture", kinds.chosen("texture", 2), 1)


@pytest.mark.parametrize(
    "way, rows",
    [
        ("plain", STEPS + 2 * STEPS),
        ("negative prompt", STEPS + 2 * STEPS),
        ("proximal", STEPS + 2 * STEPS),
        ("DiffEdit", 2 * kinds.ways.MAPS + 3 + 2 * 3),  # three of four steps at depth 0.8
    ],
)
def test_rows_are_the_inversions_and_the_edits(group, way, rows):
    with torch.no_grad():
        image, counted = kinds.WAYS[way](group)
    assert image.shape == (2, 3, 128, 128) and counted == rows


def test_every_kind_is_drawn_on_scenes_that_allow_it():
    assert all(len(kinds.chosen(kind, 3)) == 3 for kind in KINDS)
    assert not kinds.chosen("texture", 8).texture.any() and kinds.chosen("colour", 8).texture.any()


def test_the_error_is_the_means():
    assert kinds.spread([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx((5 / 3) ** 0.5 / 2))
    assert kinds.spread([]) == (None, None) and kinds.told([1.0], 1) == "1.0"
    rows = {"a way": {kind: [{"success": 1, "background": None, "rows": 3.0}] * 2 for kind in KINDS}}
    shown, figures = kinds.result(rows)
    assert "1.00 +- 0.00; - (0 of 2)" in shown and figures["rows a way, all"] == 3
    edits = [{"success": 1, "background": 30.0 if i else None, "rows": 3.0} for i in range(10)]
    assert "1.00 +- 0.00; 30.0 +- 0.0 (9 of 10)" in kinds.result({"a way": dict.fromkeys(KINDS, edits)})[0]
