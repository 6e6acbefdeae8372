"""The steps that a null-text disturbance needs: how errors grow, and the schedule that lets them shrink."""

import math

import pytest
import torch
from nulltext.samplers.core import VE
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.disturbance import Disturbance, disturbed
from nulltext.samplers.picture.disturbance_schedules import disturbance_schedule, gains, stable_strength

ALPHA_BAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SIGMA = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
ZERO = torch.zeros(1, dtype=torch.float64)


def test_the_gain_counts_cfg_from_the_conditional_at_any_strength():
    assert gains([2.0, 1.0], 5.0, 9.0, strength=0.5) == pytest.approx([(1 + 4 * 0.5) * 0.5])


def noise_left(sigmas, cfg, strength=lambda s: 1.0):
    """RMS of what a disturbed run leaves of noise around a flat picture (Image-D, one narrow mode: the paper's clean
    case)."""
    mixture = GaussianMixture([[0.0, 0.0]], 0.02)
    d = Disturbance(VE, float(sigmas[0]), reference=torch.zeros(1, 2, dtype=torch.float64))
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigmas[0]
    denoise = disturbed(mixture.denoise, mixture.denoise, cfg, d, strength)
    return sample_euler(denoise, x, sigmas).square().mean().sqrt().item()


def geometric(steps, high=0.8, low=0.03):
    return torch.cat([torch.logspace(math.log10(high), math.log10(low), steps, dtype=torch.float64), ZERO])


def test_the_gain_rule_tells_noise_from_a_picture():
    few, enough = geometric(8), geometric(40)
    assert max(gains(few, 10.0, 0.9)) > 2 > 1 > max(gains(enough, 10.0, 0.9))
    assert noise_left(few, 10.0) > 5.0
    assert noise_left(enough, 10.0) < 0.1


def test_faded_strength_is_stable_where_the_asked_one_is_not():
    few = geometric(8)
    faded = stable_strength(few, 10.0)
    assert 0 < max(faded) < 1
    assert faded[-1] == pytest.approx((1.5 - 1) / 9)  # r = 0
    step = {round(float(s), 6): v for s, v in zip(few, faded)}
    assert noise_left(few, 10.0, lambda s: step[round(s, 6)]) < 0.5
    assert stable_strength(geometric(40), 10.0)[:-1] == [1.0] * 39
    assert stable_strength(geometric(40), 1.0) == [1.0] * 40
    for index, value in enumerate(faded[:-1]):
        assert gains(few, 10.0, 0.9, strength=value)[index] <= 1.5 + 1e-9


def test_schedule_gives_the_window_enough_steps():
    given = torch.cat([SIGMA[torch.linspace(999, 0, 25).long()], ZERO])
    window = float(SIGMA[300])
    out = disturbance_schedule(given, 10.0, window, above=8)
    assert bool((out[1:] < out[:-1]).all()) and out[-1] == 0 and out[0] == given[0] and out[-2] == given[-2]
    assert int((out > window * 1.001).sum()) == 8
    assert max(gains(out, 10.0, window)) <= 1.0 + 1e-6
    assert max(gains(given, 10.0, window)) > 2
    assert int((out > 0).sum()) - 8 - 1 == math.ceil(math.log(float(given[-2]) / window) / math.log(0.9))
    above = lambda sigmas: int((sigmas > window * 1.001).sum())
    assert above(disturbance_schedule(given, 10.0, window)) == above(given)
    assert torch.equal(disturbance_schedule(given, 1.0, window), given)
    plain = disturbance_schedule(given, 1.0, window, above=4)  # no null branch: nothing to be stable for
    inside = given <= window * 1.001
    assert above(plain) == 4 and plain[0] == given[0] and torch.equal(plain[4:], given[inside])
    outside = disturbance_schedule(given, 10.0, float(given[-2]) / 2, above=4)  # nothing of it lies in the window
    assert len(outside) == 4 + 2 and torch.equal(outside[[0, -2, -1]], given[[0, -2, -1]])
    partial = disturbance_schedule(given[15:], 10.0, 99.0)  # a run from a picture starts inside the window
    assert partial[0] == given[15] and max(gains(partial, 10.0, 99.0)) <= 1.0 + 1e-6
