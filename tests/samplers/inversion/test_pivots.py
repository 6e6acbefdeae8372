"""Inversion round trips on the mixture: each pivot against its own way back, in both processes and both precisions."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, VarianceExploding, euler_step, gaussian
from nulltext.samplers.inversion.edit_friendly import invert_edit_friendly
from nulltext.samplers.inversion.exact_pair import invert_exact_pair
from nulltext.samplers.inversion.pivots import (
    invert_ddim,
    invert_ddim_lower,
    invert_fixed_point,
    random_pivot,
    whiteness,
)
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.tests.running import normal
from nulltext.tests.samplers.inversion.on_mixture import MIX, STEPS, denoiser, dtypes, grid, processes, source, worst


def logged(denoise):
    asked = []

    def ask(x, sigma):
        asked.append(float(sigma))
        return denoise(x, sigma)

    return ask, asked


@processes
@dtypes
def test_fixed_point_is_undone_by_euler(process, dtype):
    x0, s, denoise = source(dtype), grid(process, dtype), denoiser(process)
    errors = []
    for iterations in (0, 1, 3, 5, 10):
        pivot = invert_fixed_point(denoise, x0, s, process=process, iterations=iterations)
        assert torch.equal(pivot.trajectory[-1], x0)
        errors.append(worst(sample_euler(denoise, pivot.trajectory[0], s), x0))
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 20
    assert errors[3] < 1e-5 and errors[4] < (1e-8 if dtype == torch.float64 else 1e-5)


@processes
def test_fixed_point_stops_at_its_tolerance(process):
    x0, s = source(), grid(process)
    ask, asked = logged(denoiser(process))
    pivot = invert_fixed_point(ask, x0, s, process=process, iterations=50, tolerance=1e-6)
    assert len(asked) < STEPS * 20
    assert worst(sample_euler(denoiser(process), pivot.trajectory[0], s), x0) < 1e-4


def test_ddim_is_the_authors_step_in_vp_form():
    """z_t = a_t x0_hat + b_t eps(z_u, t): the raw VP latent of the lower level, the timestep of the higher."""
    x0, s = source(), grid(VE, n=10)
    pivot = invert_ddim(denoiser(VE), x0, s, process=VE).trajectory
    z = x0 * (1 + s[-1] ** 2) ** -0.5
    for i in reversed(range(10)):
        a, b = (1 + s[i] ** 2) ** -0.5, s[i] * (1 + s[i] ** 2) ** -0.5
        a_lo, b_lo = (1 + s[i + 1] ** 2) ** -0.5, s[i + 1] * (1 + s[i + 1] ** 2) ** -0.5
        eps = (z - a * denoiser(VE)(z / a, s[i])) / b  # the eps network at (z, t)
        z = a * (z - b_lo * eps) / a_lo + b * eps
        torch.testing.assert_close(pivot[i] * a, z)


@processes
def test_ddim_at_the_lower_level_is_the_ode_s_euler_step_upwards(process):
    """x_hi = x + (s_hi - s_lo) d(x, s_lo), and at s_lo = 0, where d has no value, the authors' step."""
    x0, s, denoise = source(), grid(process, n=12), denoiser(process)
    pivot = invert_ddim_lower(denoise, x0, s, process=process).trajectory
    assert torch.equal(pivot[-1], x0)
    assert torch.equal(pivot[-2], invert_ddim(denoise, x0, s, process=process).trajectory[-2])
    x = pivot[-2]
    for i in reversed(range(11)):
        x = x + (s[i] - s[i + 1]) * (x - denoise(x, s[i + 1])) / s[i + 1]
        torch.testing.assert_close(pivot[i], x)


def test_ddim_comes_back_best_by_the_input_scale_of_the_data():
    """Data of standard deviation 0.5, as EDM's models see them."""
    mix = GaussianMixture(0.4 * normal(6, 8, dtype=torch.float64), 0.25)
    x0, denoise, s = mix.sample(200, torch.Generator().manual_seed(1)), mix.denoiser(VE), grid(VE, n=20)

    def left(process):
        start = invert_ddim(denoise, x0, s, process=process).trajectory[0]
        return float((sample_euler(denoise, start, s) - x0).square().mean().sqrt())

    assert left(VarianceExploding(data=0.5)) < 0.75 * left(VE)


@processes
def test_ddim_beats_its_variants(process):
    """The rescaled input is nearer to the forward path than the unscaled one."""
    x0, s, denoise = source(), grid(process), denoiser(process)
    official = worst(sample_euler(denoise, invert_ddim(denoise, x0, s, process=process).trajectory[0], s), x0)
    x = x0
    for i in reversed(range(STEPS)):
        x = x + (s[i] - s[i + 1]) * (x - denoise(x, s[i])) / s[i]
    unscaled = worst(sample_euler(denoise, x, s), x0)
    assert official < unscaled / 2 if process is VE else official == pytest.approx(unscaled)
    assert official < 0.2


@processes
@pytest.mark.parametrize(
    "invert", [invert_ddim, invert_ddim_lower, invert_fixed_point, invert_exact_pair, invert_edit_friendly]
)
def test_walks_the_forwards_sigmas_and_no_other(process, invert):
    ask, asked = logged(denoiser(process))
    s, x0, seen, ticks = grid(process), source(), [], []
    more = {"noise": gaussian(x0, 0)} if invert is invert_edit_friendly else {}
    kept = x0.clone()
    pivot = invert(ask, x0, s, process=process, callback=seen.append, tick=lambda: ticks.append(1), **more)
    allowed = set(s[:-1].tolist())
    assert set(asked) <= allowed and 0.0 not in asked
    calls = {
        invert_ddim: STEPS,
        invert_ddim_lower: STEPS,
        invert_fixed_point: 6 * STEPS,
        invert_exact_pair: STEPS + 5,
        invert_edit_friendly: STEPS,
    }[invert]
    assert len(asked) == len(ticks) == calls
    assert [c["i"] for c in seen] == list(range(STEPS))
    # the pair knows its end without asking there
    assert {float(c["sigma"]) for c in seen} == (allowed - {float(s[0])} if invert is invert_exact_pair else allowed)
    assert pivot.trajectory.shape == (STEPS + 1, *x0.shape) and bool(torch.isfinite(pivot.trajectory).all())
    assert torch.equal(x0, kept)


@processes
def test_end_noise_has_the_levels_spread(process):
    # wide enough for the statistics; standardised data, for x_T = s n + a x0
    x0, s = MIX.sample(64, torch.Generator().manual_seed(4)), grid(process)
    pivot = invert_fixed_point(MIX.denoiser(process), x0, s, process=process, iterations=5)
    spread, neighbours = whiteness(pivot.trajectory[0], s[0])
    assert 0.95 < spread < 1.1 and abs(neighbours) < 0.06


def test_whiteness_tells_white_from_smooth():
    n = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert whiteness(3 * n, 3.0) == pytest.approx((1.0, 0.0), abs=0.03)
    smooth = torch.nn.functional.avg_pool2d(n, 3, 1, 1)
    assert whiteness(smooth, 1.0)[1] > 0.5 and whiteness(smooth, 1.0)[0] < 0.5


def test_eps_v_and_flow_networks_give_their_trajectory():
    """One analytic denoiser behind ComfyUI's three output forms."""
    x0 = source()

    def eps_form(x, s):
        eps = (x - MIX.denoise(x, s)) / s
        return x - s * eps

    def v_form(x, s):
        v = (x / (1 + s**2) - MIX.denoise(x, s)) * (1 + s**2) ** 0.5 / s
        return x / (1 + s**2) - v * s / (1 + s**2) ** 0.5

    def flow_form(x, s):
        velocity = (x - MIX.denoise(x, s, FLOW)) / s
        return x - s * velocity

    for form, process in ((eps_form, VE), (v_form, VE), (flow_form, FLOW)):
        s = grid(process)
        for invert in (invert_ddim, invert_exact_pair):
            torch.testing.assert_close(
                invert(form, x0, s, process=process).trajectory,
                invert(MIX.denoiser(process), x0, s, process=process).trajectory,
                atol=1e-6,
                rtol=1e-6,
            )


@processes
def test_random_pivot(process):
    x0, s = source(), grid(process)
    pivot = random_pivot(x0, s, process=process, noise=gaussian(x0, 3)).trajectory
    n = gaussian(x0, 3)()
    assert torch.equal(pivot[-1], x0) and torch.equal(pivot[7], process.noised(x0, s[7], n))
    torch.testing.assert_close(euler_step(pivot[7], x0, s[7], s[8]), pivot[8])  # one straight line from n to x0
