"""What the bench of latent directions reckons itself, without trained weights."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks.latent_directions import asyrp, dclip, two_wishes
from nulltext.demo import scenes


class Model:
    """Two levels; h of a pair differs by its group's own vector."""

    sigmas = torch.tensor([4.0, 1.0, 0.0])

    def mean_shift(self, sources, targets, groups):
        count = int(groups.max()) + 1
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(count, 3, 4, 4, generator=generator) for _ in range(2)]


def test_the_random_directions_have_the_norm_of_the_found_ones_at_every_level():
    for attribute in ("background", "colour"):
        found, control = asyrp.directions_of(Model(), attribute, 8)
        assert len(found) == len(control) == len(scenes.PLACES)
        for a, b in zip(found, control):
            assert torch.allclose(a.shifts.flatten(1).norm(dim=1), b.shifts.flatten(1).norm(dim=1), rtol=1e-5)
            assert abs(float(torch.cosine_similarity(a.shifts.flatten(), b.shifts.flatten(), dim=0))) < 0.3


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_scenes_belong_to_their_split_as_they_are_judged(split):
    for found in (
        dclip.plain_scenes(12, split, 1),
        two_wishes.red_scenes(12, split, 1),
        asyrp.subjects(12, split, 1, "background", asyrp.TARGETS["background"], asyrp.BEFORE),
    ):
        assert len(found) == 12 and bool((scenes.held_out(found) == (split == "held_out")).all())


def test_scenes_are_plain_photos_before_and_the_object_counts_as_kept_by_thirds(monkeypatch):
    truth = dclip.plain_scenes(6, "held_out", 1)
    assert bool((truth.texture == scenes.TEXTURES.index("plain")).all())
    assert bool((truth.style == scenes.STYLES.index("photo")).all())
    reading = SimpleNamespace(
        texture=torch.tensor([dclip.STRIPES.after] * 3 + [0] * 3),
        style=torch.tensor([dclip.DRAWING.after] * 2 + [0] * 3 + [dclip.DRAWING.after]),
        place=truth.place[:, 0],
        at_place=lambda name, place=None: getattr(truth, name)[:, 0] + (name == "shape"),
    )
    monkeypatch.setattr(dclip.probe, "read", lambda judge, images: reading)
    assert dclip.judged(None, None, truth) == pytest.approx([0.5, 0.5, 1 / 3, 2 / 3])


def test_two_wishes_are_reached_where_both_are_and_shape_and_place_count_as_kept(monkeypatch):
    truth = two_wishes.red_scenes(4, "held_out", 1)
    assert bool((truth.colour[:, 0] == two_wishes.RED).all()) and bool((truth.texture == dclip.STRIPES.before).all())
    read = {"colour": torch.tensor([two_wishes.BLUE] * 3 + [two_wishes.RED]), "shape": truth.shape[:, 0] + 1}
    reading = SimpleNamespace(
        texture=torch.tensor([dclip.STRIPES.after, 0, dclip.STRIPES.after, dclip.STRIPES.after]),
        place=truth.place[:, 0],
        at_place=lambda name, place=None: read[name],
    )
    monkeypatch.setattr(two_wishes.probe, "read", lambda judge, images: reading)
    assert two_wishes.judged(None, None, truth) == pytest.approx([0.75, 0.75, 0.5, 0.5])


def test_a_setting_is_as_good_as_the_worse_of_its_two_figures():
    assert asyrp.passes((0.7, 0.75)) == pytest.approx(1)
    assert dclip.good((0.4, 1.0, 0.0, 0.85), 0, 0.8) == 0.5 and dclip.good((0.4, 1.0, 0.0, 0.425), 1, 0.8) == 0.5
    assert asyrp.passes((1.0, 0.6)) == pytest.approx(0.8) and asyrp.passes((0.35, 1.0)) == pytest.approx(0.5)


def test_every_way_is_judged_by_its_own_target_and_each_mixture_is_a_span_of_the_schedule():
    names = dclip.ways_of([{}, {}])
    assert {dclip.target_of(n) for n in names if "texture" in n or n.startswith("inversion")} == {0}
    assert {dclip.target_of(n) for n in names if "style" in n} == {1}
    assert [n for n in names if dclip.target_of(n) == 2] == ["DiffusionCLIP, both in the weights"]
    for method in ("SDEdit", "FlowEdit"):
        assert (
            sum(n.startswith(f"{method} texture") for n in names)
            == sum(n.startswith(f"{method} style") for n in names)
            > 1
        )
    for attribute in ("texture", "style"):
        found = [n for n in names if n.startswith(f"DiffusionCLIP {attribute}")]
        assert [n.split("degree ")[1] for n in found] == ["0.5", "1", "1.2", "1.4", "1.5", "1.6", "1.8"]
    again = [n for n in dclip.ways_of([{}, {}], [{}]) if n not in names]
    assert (
        again == [dclip.way(dclip.STRIPES, degree, seed=2) for degree in dclip.DEGREES] == list(dclip.degrees_of([{}]))
    )
    assert {dclip.target_of(n) for n in again} == {0} and again[0] != dclip.way(dclip.STRIPES, 1.0)
    for mix in dclip.MIXES.values():
        assert all(0 <= a < b <= 1 for a, b in mix.spans) and min(mix.weights) > 0
