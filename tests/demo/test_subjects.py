"""Subjects are drawn where the scene's object stood, and the judge finds them, and nothing else."""

import pytest
import torch
from nulltext.demo import scenes, subjects
from nulltext.demo.shapes import shape_distance

each = pytest.mark.parametrize("name", subjects.SUBJECTS)


def some(name, n=6, seed=3):
    return subjects.sample(name, n, torch.Generator().manual_seed(seed))


@each
def test_the_judge_finds_the_drawn_subject(name):
    s = some(name)
    images, masks = subjects.draw(name, s)
    for i in range(len(s)):
        assert subjects.best_iou(name, images[i], subjects.pose(s, i)) > 0.75, i
        drawn, asked = masks[i] > 0.5, subjects.silhouette(name, subjects.pose(s, i), 128)
        assert subjects.iou(drawn, asked) > 0.93, i  # the pose is the one that was drawn


@each
def test_the_judge_does_not_take_the_scenes_own_objects(name):
    s = some(name)
    images, _ = scenes.draw(s)
    found = [subjects.best_iou(name, images[i], subjects.pose(s, i)) for i in range(len(s))]
    assert max(found) < 0.2, found


@each
def test_another_place_is_not_found(name):
    s = some(name)
    away = s.changed("place", (s.place[:, 0] + 1) % 4)
    images, _ = subjects.draw(name, away)
    for i in range(len(s)):
        if int(s.place[i, 0]) != 4:
            assert subjects.best_iou(name, images[i], subjects.pose(s, i)) < 0.45, i


def test_another_shape_in_the_same_colour_scores_less():
    s = some("cyan crescent", 4)
    paint = torch.tensor(scenes.UNSEEN_COLOURS["cyan"]).expand(4, 2, 3)
    circles, _ = scenes.draw(s.changed("shape", 0), paint=paint)
    crescents, _ = subjects.draw("cyan crescent", s)
    for i in range(4):
        at = subjects.pose(s, i)
        assert (
            subjects.best_iou("cyan crescent", circles[i], at)
            < subjects.best_iou("cyan crescent", crescents[i], at) - 0.1
        )


def test_shapes_differ_from_one_another_and_from_the_trained_ones():
    at = subjects.Pose(0.5, 0.5, 0.3)
    drawn = [subjects.silhouette(name, at, 96) for name in subjects.SUBJECTS]
    grid = (torch.arange(96) + 0.5) / 96
    y, x = torch.meshgrid((grid - 0.5) / 0.3, (grid - 0.5) / 0.3, indexing="ij")
    known = [shape_distance(torch.tensor([[[k]]]), x[None], y[None])[0] < 0 for k in range(len(scenes.SHAPES))]
    for i, one in enumerate(drawn):
        assert one.any() and not one[0].any() and not one[:, 0].any()  # inside its radius
        assert all(subjects.iou(one, other) < 0.75 for other in drawn[:i] + known)


def test_a_caption_says_the_word_for_the_colour():
    s = some("lime arrow", 3)
    for text in subjects.caption("lime arrow", s, "sks"):
        assert " sks triangle " in text and not any(f"{c} triangle" in text for c in scenes.COLOURS)
    assert all("  " not in text for text in subjects.caption("lime arrow", s, ""))
