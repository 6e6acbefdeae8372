"""The yardsticks of the from-image bench, on cases whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks.from_image import cartoon, conditional, mixtures, strips
from nulltext.benchmarks.from_image.__main__ import average_precision, intersection_over_union
from nulltext.benchmarks.from_image.cartoon import blur_of_equal_drop, blurred, drops, edges, middle, textures
from nulltext.benchmarks.from_image.fill import core_noise_mask, seam_and_fill
from nulltext.demo import scenes
from nulltext.samplers.measure import charts
from nulltext.samplers.picture.repaint_schedules import OURS, PRESETS
from PIL import Image


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
    assert textures(flat, mask).tolist() == [[0.0, 0.0]] and (textures(grain, mask) > 0).all()
    bars = flat.clone()
    bars[..., :8, :] += 0.4  # one border in the background is no texture, but counts in the whole
    assert textures(bars, mask)[0, 0] == 0 and textures(bars, mask, 1.0)[0, 0] > 0
    assert drops(flat, bars + 0.01 * (grain - flat), mask, 1.0).item() == pytest.approx(1)
    assert edges(flat, mask) > 0.05
    soft = blurred(grain, 2.0)
    assert drops(soft, grain, mask) > 0.8 and drops(grain, grain, mask).item() == pytest.approx(0, abs=1e-6)
    assert edges(soft, mask) < 0.8 * edges(grain, mask)
    half = blur_of_equal_drop(grain, mask, 0.5)
    assert drops(half, grain, mask).item() == pytest.approx(0.5, abs=0.05)


def test_a_scene_without_room_for_a_region_is_judged_by_the_other():
    mask = torch.zeros(2, 64, 64)
    mask[0, 20:44, 20:44] = 1
    mask[1, 30:34, 30:34] = 1  # no 20 pixels lie well inside
    grain = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert textures(grain, mask).isnan().tolist() == [[False, False], [False, True]]
    torch.testing.assert_close(drops(grain / 2, grain, mask), torch.full((2,), 0.75))


def test_cartoon_figures_are_medians_with_the_spread_of_the_noise_seeds(monkeypatch):
    """Pictures whose answers are known: by how much of the ordinary run's grain each way and seed has left."""
    seeds, painted = [], []

    def left(name, seed):
        return {
            "imaged_paper": 0.5,
            "backd_paper": 2.0,
            "bound_alone": 0.4,
            "imaged_match": 0.3,
            "backd_match": 0.1 * (seed + 1),
        }.get(name, 0.7)

    def ways(bench, key, n, make, batch):
        seed = int(key[-1])
        seeds.append(key)
        truth = cartoon.some(n, 31, lambda s: s.texture > 0)
        clean = scenes.draw(truth.changed("texture", 0))[0] * 0 + 0.5
        grain = 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        made = {f"plain, cfg {cfg}": clean + grain for cfg in (6, 10)}
        made |= {name: clean + left(name, seed) * grain for name in cartoon.LOOKS}
        if seed == 0:
            made |= {name: clean + left(name, seed) * grain for name in [*cartoon.BESIDE, "sdedit"]}
            made["source"] = clean
        made["backd_match"][0] = clean[0] + 20 * grain[0]  # one bad scene moves no median by much
        painted.append(made)
        return dict(made)

    kept = []
    monkeypatch.setattr(cartoon, "kept_pictures", ways)
    monkeypatch.setattr(cartoon, "objects_read", lambda judge, image, truth: float(image.std()))  # tells them apart
    monkeypatch.setattr(strips, "save", lambda title, rows, columns, path: kept.append((rows, path)))
    figures = cartoon.measure_cartoon(SimpleNamespace(quick=True), None)
    assert len(set(seeds)) == 3
    assert {
        f"cartoon_{what}_{way}{end}"
        for what in ("flat_median", "edges")
        for end in ("", "_spread")
        for way in ("imaged_paper", "backd_paper", "bound_alone", "imaged_match", "backd_match")
    } <= set(figures)
    for way, share in (("imaged_paper", 0.5), ("backd_paper", 2.0), ("bound_alone", 0.4), ("imaged_match", 0.3)):
        assert figures[f"cartoon_flat_median_{way}"] == pytest.approx(1 - share**2, abs=1e-3)
        assert figures[f"cartoon_edges_{way}"] == pytest.approx(share - 1, abs=1e-3)
        assert figures[f"cartoon_flat_median_{way}_spread"] == pytest.approx(0, abs=1e-3)
    assert figures["cartoon_flat_median_backd_match"] == pytest.approx(1 - 0.2**2, abs=0.05)
    assert figures["cartoon_flat_median_backd_match_spread"] == pytest.approx(0.3**2 - 0.1**2, abs=1e-3)
    assert figures["cartoon_edges_backd_match_spread"] == pytest.approx(0.2, abs=1e-3)
    assert figures["cartoon_read_imaged_paper"] == sorted(float(made["imaged_paper"].std()) for made in painted)[1]
    ((rows, path),) = kept
    assert path.name == "cartoon_strip.jpg" and path.parent == strips.OUTPUT and len(rows) == 4  # quick: not the page
    captions, pictures = zip(*rows[0].cells)
    drop, edge = figures["cartoon_flat_median_imaged_paper"], figures["cartoon_edges_imaged_paper"]
    assert f"Image-D: flat drop {drop:.2f}, edges {edge:+.2f}" in captions
    for name, shown in zip(("source", "plain, cfg 6", "imaged_paper", "backd_paper"), pictures):
        assert shown.tobytes() == strips.shown(painted[0][name][0]).tobytes()


def test_every_disturbance_fades_alike_and_only_the_control_looks_at_x_itself(monkeypatch):
    """The runs of one cfg share schedule and strength; the bound alone is never faded, for nothing is disturbed."""
    seen = {}

    class Stub:
        table = torch.linspace(0.03, 14.6, 1000)
        at = lambda self, time: 0.0 if time <= 0 else float(self.table[round(min(time, 1.0) * 999)])
        pair = lambda self, part: ((lambda x, s: x * 0), (lambda x, s: x * 0))
        decode = lambda self, x: x

    def spy(cond, uncond, cfg, disturbance, strength, match):
        kind = "itself" if disturbance.itself else "back" if disturbance.older else "image"
        seen[len(seen)] = (kind, cfg, match, [strength(float(s)) for s in (4.0, 0.03)])
        return cond

    monkeypatch.setattr(cartoon, "disturbed", spy)
    for cfg in (6.0, 10.0):
        cartoon.redrawn(Stub(), None, torch.zeros(1, 1, 2, 2), 0, cfg, cartoon.LOOKS)
    ways = {(kind, cfg, match): faded for kind, cfg, match, faded in seen.values()}
    rollback, picture = cartoon.MATCH_ROLLBACK, cartoon.MATCH_PICTURE
    assert set(ways) == {
        ("image", 6.0, None),
        ("image", 6.0, picture),
        ("back", 10.0, None),
        ("back", 10.0, rollback),
        ("itself", 10.0, rollback),
    }
    assert ways["back", 10.0, None] == ways["back", 10.0, rollback] != [1.0, 1.0]
    assert ways["image", 6.0, None] == ways["image", 6.0, picture] != [1.0, 1.0]
    assert ways["itself", 10.0, rollback] == [1.0, 1.0]


def test_a_figure_is_the_middle_of_the_seeds_that_were_run():
    runs = [{"a": {"flat": 0.1}, "b": {"flat": 0.5}}, {"a": {"flat": 0.4}}, {"a": {"flat": 0.2}}]
    assert middle(runs, "a", "flat") == (0.2, pytest.approx(0.3)) and middle(runs, "b", "flat") == (0.5, 0.0)
    assert middle([{"a": {"read": None}}], "a", "read") == (None, None)


def test_core_noise_mask_is_the_engines_rule():
    z, noise, mask = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return x * 0 + 7

    out = core_noise_mask(denoise, z, mask, noise)(torch.full((1, 1, 2, 2), 3.0), 2.0)
    torch.testing.assert_close(seen[0], torch.where(mask == 1, torch.tensor(3.0), z + 2 * noise))
    torch.testing.assert_close(out, torch.where(mask == 1, torch.tensor(7.0), z))


def test_the_table_of_mixtures_is_wide_and_only_four_of_them_tune():
    unseen = [mixtures.ALL[name] for name in mixtures.UNSEEN]
    assert len(mixtures.TUNING) == 4 and set(mixtures.TUNING) | set(mixtures.UNSEEN) == set(mixtures.ALL)
    assert len(unseen) >= 12 and not set(mixtures.TUNING) & set(mixtures.UNSEEN)
    sizes = {len(case.values) for case in unseen}
    assert min(sizes) == 2 and max(sizes) == 16
    assert min(case.scale for case in unseen) < 0.5 and max(case.scale for case in unseen) > 2.5
    assert max(len(case.mixture.means) for case in unseen) == 20
    again = mixtures._cases()
    for name, case in mixtures.ALL.items():
        assert torch.equal(case.values, again[name].values)
        assert torch.equal(case.mixture.means, again[name].mixture.means)
        assert 0 < case.mask.sum() < len(case.mask) and not (case.values * case.mask).any()
    third, triple = mixtures.ALL["bimodal_third"], mixtures.ALL["bimodal_triple"]
    assert triple.scale == pytest.approx(9 * third.scale)
    quantiles = [conditional.exact_quantiles(case, 50) for case in (third, triple)]
    torch.testing.assert_close(quantiles[1], 9 * quantiles[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["bimodal", "doubled", "ring", "grid"])
def test_exact_quantiles_are_those_of_the_density_along_the_line_of_what_is_known(name):
    case = mixtures.ALL[name]
    line = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    density = case.mixture.log_prob(torch.stack([case.values[0].expand(len(line)), line], 1)).exp()
    cdf = density.cumsum(0) / density.sum()
    middle = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    torch.testing.assert_close(
        conditional.exact_quantiles(case, 20)[:, 0], line[torch.searchsorted(cdf, middle)], rtol=0, atol=3e-3
    )


def test_distance_counts_every_unknown_coordinate_and_its_own_noise_is_small():
    for case in mixtures.ALL.values():
        exact = torch.zeros(500, len(case.values), dtype=torch.float64)
        exact[:, case.mask > 0.5] = conditional.exact_quantiles(case, 500)
        assert conditional.distance(exact, case) == 0
        assert conditional.distance(exact + 0.25, case) == pytest.approx(0.25, rel=1e-6)
        first = exact.clone()
        first[:, (case.mask > 0.5).nonzero()[0]] += 0.3
        assert conditional.distance(first, case) == pytest.approx(0.3 / float(case.mask.sum()), rel=1e-6)
        assert conditional.floor_error(case, 500) < 0.2 * case.truth.variance.max() ** 0.5


def test_presets_are_measured_on_their_own_levels_at_the_datas_scale():
    assert [conditional.calls_of(plan) for plan in PRESETS.values()] == [2410, 230, 105, 349]
    case = mixtures.ALL["bimodal_triple"]
    small = conditional.scheduled_error(case, PRESETS["paper, 105 calls (25/5/5)"], 400)
    ours = conditional.scheduled_error(case, OURS, 400)
    assert ours < 0.5 * small < conditional.repaint_error(case, conditional.respaced(25), range(26), 400)
    one_third = conditional.scheduled_error(mixtures.ALL["bimodal_third"], OURS, 400)
    assert one_third < 0.5 * small / 9


def test_figures_are_ratios_to_the_authors_schedule_and_the_worst_is_of_the_unseen():
    rows = {
        name: {"calls": conditional.calls_of(plan)} | dict.fromkeys(mixtures.ALL, 2.0) for name, plan in PRESETS.items()
    }
    rows["ours, about 350 calls"] |= {"eight": 5.0, "bimodal": 9.0}
    found = conditional.figures(rows)
    assert found["repaint_calls_default"] == 2410 and found["repaint_worst_ratio_default"] == 1
    assert {f"repaint_ratio_{name}" for name in mixtures.ALL} <= set(found)
    assert found["repaint_worst_ratio_ours_349"] == 2.5 and found["repaint_worst_ratio_paper_105"] == 1


def test_the_error_chart_has_a_line_for_every_way(tmp_path):
    ratios = {"a": dict.fromkeys(mixtures.UNSEEN, 0.5), "b": dict.fromkeys(mixtures.UNSEEN, 3.0)}
    strips.error_chart(ratios, mixtures.UNSEEN, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as page:
        pixels = torch.tensor(list(page.convert("RGB").getdata())).reshape(page.height, page.width, 3)
    heights = []
    for colour in charts.COLOURS[:2]:
        y, x = (pixels == torch.tensor(colour)).all(2).nonzero().T
        assert x.max() - x.min() > 600
        heights.append(float(y.double().mean()))
    assert heights[0] > heights[1]  # 0.5 stands below 3
