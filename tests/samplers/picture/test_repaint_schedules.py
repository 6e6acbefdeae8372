"""RePaint's schedules: the paper's and our levels, presets by their calls, and how much noise is drawn anew."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, VarianceExploding
from nulltext.samplers.picture.repaint import karras_sigmas, official_path
from nulltext.samplers.picture.repaint_schedules import (
    DENSITY,
    OURS,
    PAPER,
    PRESETS,
    Schedule,
    data_scale,
    renewed,
    repaint_sigmas,
)
from nulltext.samplers.walk import network_calls


def test_our_levels_stand_closer_where_they_are_resampled():
    sigmas = OURS.sigmas(0.0292, 14.61)
    assert len(sigmas) == OURS.levels + 1 and sigmas[-1] == 0
    assert sigmas[0].item() == pytest.approx(14.61) and sigmas[-2].item() == pytest.approx(0.0292)
    gaps = -sigmas[:-1].log().diff()
    within = (sigmas[1:-1] > OURS.low) & (sigmas[:-2] < OURS.high)
    outside = (sigmas[1:-1] > OURS.high) | (sigmas[:-2] < OURS.low)
    assert within.sum() >= 7 and outside.sum() >= 7
    torch.testing.assert_close(gaps[within], gaps[within][:1].expand(int(within.sum())))
    torch.testing.assert_close(gaps[outside], DENSITY * gaps[within][0].expand(int(outside.sum())))
    flow = OURS.sigmas(0.03, 1.0, FLOW)
    assert flow[0] == 1 and flow[-2].item() == pytest.approx(0.03) and bool((flow[1:] < flow[:-1]).all())


@pytest.mark.parametrize("low, high", [(0.0, 1000.0), (30.0, 50.0), (0.001, 0.01), (2.0, 1.0)])
def test_levels_are_even_where_the_range_lies_outside_covers_all_or_is_upside_down(low, high):
    sigmas = Schedule(12, 1, 2, low, high, renew=True).sigmas(0.0292, 14.61)
    assert len(sigmas) == 13 and bool((sigmas[1:] < sigmas[:-1]).all())
    gaps = sigmas[:-1].log().diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps))


def test_presets_cost_what_their_names_say_and_the_papers_comes_first():
    assert next(iter(PRESETS.values())) is PAPER
    for name, plan in PRESETS.items():
        sigmas = plan.sigmas(0.0292, 14.61)
        assert (sigmas is None) == name.startswith("paper")
        sigmas = karras_sigmas(plan.levels, 0.0292, 14.61) if sigmas is None else sigmas
        calls = int(name.split(" calls")[0].split()[-1])
        assert network_calls(plan.path(sigmas)) == pytest.approx(calls, abs=0 if name.startswith("paper") else 10)
        if not plan.renew:
            numbers = map(int, name[:-1].split("(")[1].split("/"))
            assert plan.eta() == 1.0 and plan.path(sigmas) == official_path(*numbers)


def test_the_scale_is_the_known_parts():
    source = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    hidden = torch.where(mask == 1, 1e3, source)
    assert data_scale(hidden, mask) == pytest.approx(float(source[..., :4].std()), rel=1e-6)
    assert data_scale(source, torch.ones_like(mask)) == pytest.approx(float(source.std()), rel=1e-6)
    assert data_scale(source, None) == data_scale(source, torch.ones_like(mask))
    assert data_scale(torch.zeros_like(source), mask) == 1


def test_the_schedule_does_not_ask_how_a_network_scales_its_input():
    ours, edm = (repaint_sigmas(8, 0.1, 10.0, process, 0.3, 2.0) for process in (VE, VarianceExploding(data=0.5)))
    assert torch.equal(ours, edm)


@pytest.mark.parametrize("process", (VE, FLOW))
def test_renewed_noise_is_all_new_above_the_range_none_below_and_falls_evenly_within(process):
    eta = renewed(0.1, 1.0, process)

    def new_share(ratio, ratio_next):
        s, s_next = ((torch.tensor(r) if process is VE else torch.tensor(r / (1 + r))) for r in (ratio, ratio_next))
        x = torch.ones(1, 1, dtype=torch.float64)
        mean, std = process.transition(x, 0.5 * x, s.double(), s_next.double(), eta(s.double(), s_next.double()))
        kept = (mean - process.signal(s_next) * 0.5) / (x - process.signal(s) * 0.5) * s  # of the old noise
        assert float(kept**2 + std**2) == pytest.approx(float(s_next) ** 2, rel=1e-5)
        return float(std / s_next) ** 2

    assert new_share(1.5, 1.2) == pytest.approx(1, abs=1e-5)
    assert new_share(1.0, 0.9) == pytest.approx(1, abs=1e-5)
    assert new_share(10**-0.5, 0.3) == pytest.approx(0.5, abs=1e-5)
    assert max(new_share(0.1, 0.05), new_share(0.05, 0.01)) < 1e-6
