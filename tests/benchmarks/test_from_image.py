"""The yardsticks of the from-image bench, on cases whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks import _cartoon, _strips
from nulltext.benchmarks import _conditional as conditional
from nulltext.benchmarks._cartoon import blur_of_equal_drop, blurred, edge_contrast, texture, texture_drop
from nulltext.benchmarks._fill import core_noise_mask, seam_and_fill
from nulltext.benchmarks.from_image import average_precision, intersection_over_union
from nulltext.demo import scenes
from nulltext.samplers.repaint import renewed
from nulltext.samplers.walk import network_calls


def test_average_precision_and_overlap():
    truth = torch.tensor([True, True, False, False])
    assert average_precision(torch.tensor([0.9, 0.8, 0.2, 0.1]), truth) == 1.0
    assert average_precision(torch.tensor([0.1, 0.2, 0.8, 0.9]), truth) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert intersection_over_union(truth, torch.tensor([False, True, True, False])) == pytest.approx(1 / 3)


def test_seam_is_read_at_the_border_and_the_fill_inside():
    truth = torch.zeros(1, 3, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    step = truth + 0.3 * mask
    seam, fill = seam_and_fill(step, truth, mask)
    assert seam.item() == pytest.approx(0.3) and fill.item() == pytest.approx(0.3)
    inside = truth.clone()
    inside[..., 12:] = 0.5
    seam, fill = seam_and_fill(inside, truth, mask)
    assert seam.item() == 0 and fill.item() == pytest.approx((0.25 / 2) ** 0.5)


def test_texture_and_edges_tell_a_pattern_from_a_border():
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:44, 20:44] = 1
    generator = torch.Generator().manual_seed(0)
    flat = 0.3 + 0.4 * mask[:, None].expand(1, 3, 64, 64)
    grain = flat + 0.05 * torch.randn(1, 1, 64, 64, generator=generator)
    assert texture(flat, mask).tolist() == [0.0, 0.0] and (texture(grain, mask) > 0).all()
    bars = flat.clone()
    bars[..., :8, :] += 0.4  # one border in the background is no texture, but counts in the whole
    assert texture(bars, mask)[0] == 0 and texture(bars, mask, 1.0)[0] > 0
    assert texture_drop(flat, bars + 0.01 * (grain - flat), mask, 1.0) == pytest.approx(1)
    assert edge_contrast(flat, mask) > 0.05
    soft = blurred(grain, 2.0)
    assert texture_drop(soft, grain, mask) > 0.8 and texture_drop(grain, grain, mask) == pytest.approx(0, abs=1e-6)
    assert edge_contrast(soft, mask) < 0.8 * edge_contrast(grain, mask)
    half = blur_of_equal_drop(grain, mask, 0.5)
    assert texture_drop(half, grain, mask) == pytest.approx(0.5, abs=0.05)


def test_cartoon_figures_tell_the_ways_apart_and_leave_a_strip(monkeypatch):
    """Pictures whose answers are known: Back-D lost the grain, Image-D half of it, SDEdit shows another object."""
    painted = {}

    def ways(bench, key, n, make, batch):
        truth = _cartoon.some(n, 31, lambda s: s.texture > 0)
        clean = scenes.draw(truth.changed("texture", 0))[0]
        grain = 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        painted.update({"source": clean, "backd": clean, "imaged": clean + grain / 2, "sdedit": clean + grain,
                        "imaged, as backd": clean + grain / 4, "backd, unmatched": clean + 3 * grain})
        painted.update({f"plain of {name}": clean + grain for name in ("backd", "imaged", "imaged, as backd")})
        return dict(painted)

    kept = []
    monkeypatch.setattr(_cartoon, "kept_pictures", ways)
    monkeypatch.setattr(_cartoon, "objects_read", lambda judge, image, truth: float(image.std()))  # tells them apart
    monkeypatch.setattr(_strips, "save", lambda title, rows, columns, path: kept.append((rows, path)))
    figures = _cartoon.measure_cartoon(SimpleNamespace(quick=True), None)
    assert figures["cartoon_rms_backd"] == 0
    assert figures["cartoon_rms_imaged"] == pytest.approx(0.0125, rel=0.02)  # at Back-D's settings
    assert figures["cartoon_texture_drop_backd"] > figures["cartoon_texture_drop_imaged"] > 0.5
    for way in ("backd", "imaged"):
        assert figures[f"cartoon_read_{way}"] == float(painted[way].std())
        assert figures[f"cartoon_read_plain_{way}"] == float(painted[f"plain of {way}"].std())
    assert {f"cartoon_{k}" for k in ("edge_change_backd", "edge_change_imaged", "texture_drop_backd_whole",
                                     "texture_drop_imaged_whole")} <= set(figures)
    ((rows, path),) = kept
    assert path.name == "cartoon_strip.jpg" and path.parent == _strips.OUTPUT and len(rows) == 4  # quick: not the page
    captions, pictures = zip(*rows[0].cells)
    drop, edges = figures["cartoon_texture_drop_imaged"], figures["cartoon_edge_change_imaged"]
    assert f"Image-D: flat drop {drop:.2f}, edges {edges:+.2f}" in captions
    for name, shown in zip(("source", "plain of imaged", "backd", "imaged"), pictures):
        assert shown.tobytes() == _strips.to_picture(painted[name][0]).tobytes()


def test_core_noise_mask_is_the_engines_rule():
    z, noise, mask = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return x * 0 + 7

    out = core_noise_mask(denoise, z, mask, noise)(torch.full((1, 1, 2, 2), 3.0), 2.0)
    torch.testing.assert_close(seen[0], torch.where(mask == 1, torch.tensor(3.0), z + 2 * noise))
    torch.testing.assert_close(out, torch.where(mask == 1, torch.tensor(7.0), z))


def test_distance_to_the_conditional_and_the_default_schedules_cost():
    for case in conditional.ALL.values():
        exact = conditional.exact_quantiles(case, 2000)
        assert conditional.distance(exact, case) == 0
        assert conditional.distance(exact + 0.25, case) == pytest.approx(0.25, rel=1e-6)
    levels, path = conditional.default_path()
    assert network_calls(path) <= 100
    naive = conditional.repaint_error(levels, range(len(levels)), 500)
    ours = conditional.repaint_error(levels, path, 500, renewed())
    assert all(ours[name] < 0.5 * naive[name] for name in ("bimodal", "correlated", "mean"))


def test_calls_to_stay_within_are_judged_per_mixture():
    series = {
        "official": [{"calls": 35, "a": 9.0, "b": 9.0}, {"calls": 2410, "a": 1.0, "b": 0.1}],
        "ours": [{"calls": 50, "a": 1.2, "b": 0.2}, {"calls": 100, "a": 1.09, "b": 0.12}],
    }
    assert conditional.calls_to_stay_within(0.1, series, "a") == 100
    assert conditional.calls_to_stay_within(0.1, series, "b") is None
    assert conditional.calls_to_stay_within(0.3, series, "a") == 50
