"""What the bench of the demo model reckons itself, without trained weights."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks import harness
from nulltext.benchmarks.demo_model import __main__ as demo_model
from nulltext.benchmarks.demo_model import bottleneck
from nulltext.demo import scenes


@pytest.fixture
def steered(tmp_path, monkeypatch):
    """steered(reads): the figures and lines where an edited picture is read as reads(kind of mean, strength, level)."""
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)

    class Means(bottleneck.Means):
        def by_place(self, truth):
            return "by_place", "random"

        def by_object(self, truth):
            return "by_object", "random"

    class Model:
        judge, sigmas = None, torch.tensor([1.0, 0.0])
        encode = lambda self, picture: picture  # noqa: E731
        denoise = lambda self, x, sigma: x  # noqa: E731
        zero_change = lambda self, x, sigma: 0.5  # noqa: E731
        edit = lambda self, x, shifts, k, low: (shifts, k, low)  # noqa: E731

    monkeypatch.setattr(bottleneck, "Means", Means)
    monkeypatch.setattr(bottleneck, "Bottleneck", Model)

    def measure(reads):
        monkeypatch.setattr(bottleneck, "read_off", lambda judge, images, *_: reads(*images))
        return bottleneck.measure_bottleneck(harness.Bench("x", "", ["--fresh"]), 4)

    return measure


def test_means_over_an_object_are_tried_where_those_over_a_place_miss(steered):
    best = (1.0, 2.0)

    def reads(kind, k, low):
        return (0.9, 0.9) if kind == "by_object" and (k, low) == best else (0.9, 0.1)

    figures, lines = steered(reads)
    assert figures["h_steer_place"] == figures["h_kept_place"] == 0.9
    assert "by_object, k 1, sigma >= 2" in lines[0][0]
    asked = []
    figures, lines = steered(lambda *way: asked.append(way[0]) or (0.6, 0.7))
    assert "by_object" not in asked and "by_place" in lines[0][0] and figures["h_kept_colour"] == 0.7
    keys = {f"h_{what}_{name}" for what in ("steer", "kept") for name in ("background", "place", "colour")}
    assert set(figures) == keys | {"h_zero_change_sigma1", "h_zero_change_sigma5"}


def test_the_share_of_the_bars_is_the_lower_one():
    assert bottleneck.share_of_bars((0.6, 1.0)) == pytest.approx(1) == bottleneck.share_of_bars((0.9, 0.7))
    assert bottleneck.share_of_bars((0.3, 1.0)) == pytest.approx(0.5)


def test_scenes_with_an_object_are_training_scenes_with_that_object_in_other_surroundings():
    truth = bottleneck.one_object(3, "held_out", 36, "place", bottleneck.TARGETS["place"])
    found = bottleneck.with_object(truth, 6, 1)
    assert len(found) == 18 and not bool(scenes.held_out(found).any())
    for name in ("shape", "colour", "size", "place"):
        assert torch.equal(getattr(found, name)[:, 0], getattr(truth, name)[:, 0].repeat_interleave(6))
    assert len({int(b) for b in found.background[:6]}) > 1 and bool((found.count == 1).all())


def test_random_directions_have_the_shifts_norm_and_below_the_lowest_level_there_is_none():
    shifts = [torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)]
    one, none = bottleneck.random_like(shifts)
    assert float(one.norm()) == pytest.approx(float(shifts[0].norm()), rel=1e-5) and not bool(none.any())
    model = SimpleNamespace(sigmas=torch.tensor([4.0, 1.0, 0.5, 0.0]), encode=lambda picture: picture, h=None)
    model.denoise = lambda x, sigma: setattr(model, "h", x.mean((1, 2, 3))[:, None])
    pair = scenes.sample(4, torch.Generator().manual_seed(0), "train", 0.0)
    found = bottleneck.Bottleneck.mean_shift(model, pair, pair.changed("background", 2), torch.zeros(4).long(), 1.0)
    assert [bool(level.any()) for level in found] == [True, True, False]


def test_every_figure_that_has_a_bar_is_measured_and_stands_beside_it(tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    monkeypatch.setattr(harness.Bench, "finish", lambda bench, table, figures: told.update(figures, table=table))
    names = ("colour", "shape", "background", "texture", "place", "pair", "two_objects")
    monkeypatch.setattr(demo_model, "following", lambda *a, **k: dict.fromkeys(names, 0.5))
    monkeypatch.setattr(demo_model, "Demo", lambda: SimpleNamespace(empty=lambda n: None, denoise=lambda *a: None))
    monkeypatch.setattr(demo_model, "through", lambda demo, image: image + 0.01)
    monkeypatch.setattr(demo_model, "attention", lambda truth: (5.0, 0.9))
    monkeypatch.setattr(demo_model, "seconds", lambda *a: 0.02)
    monkeypatch.setattr(demo_model, "judges", lambda truth: [])
    steered = {f"h_{what}_{name}": 0.5 for what in ("steer", "kept") for name in bottleneck.TARGETS}
    steered |= {f"h_zero_change_sigma{s}": 0.2 for s in (1, 5)}
    monkeypatch.setattr(demo_model, "measure_bottleneck", lambda *a: (steered, []))
    demo_model.main(["--quick"])
    bars = {"colour": 0.95, "shape": 0.96, "background": 0.95, "texture": 0.95, "place": 0.95, "two_objects": 0.95}
    bars |= {"unseen_pairs": 0.93, "psnr_autoencoder": 31.5, "psnr_unseen_colours": 28.0}
    bars |= {"h_zero_change_sigma1": 0.15, "h_zero_change_sigma5": 0.15, "h_steer_place": 0.6, "h_kept_place": 0.7}
    bars |= {"h_steer_background": 0.6, "h_kept_background": 0.7, "h_steer_colour": 0.6, "h_kept_colour": 0.7}
    lines = {parts[0]: parts[1:] for parts in (line.split() for line in told["table"].splitlines())}
    for name, bar in bars.items():
        assert float(lines[name][-1]) == bar and float(lines[name][0]) == pytest.approx(told[name], abs=1e-3), name
    assert told["psnr_autoencoder"] == pytest.approx(40.0, abs=0.1)
