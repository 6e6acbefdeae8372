"""Inversion round trips on the mixture: each pivot against its own way back, in both processes and both precisions."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, VarianceExploding, euler_step, gaussian, guided
from nulltext.samplers.inversion.edit_friendly import invert_edit_friendly, sample_edit_friendly
from nulltext.samplers.inversion.exact_pair import fitting_gamma, invert_exact_pair, pair_weight, sample_exact_pair
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

MIX = GaussianMixture(
    torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0.3, 0.4, 0.5, 0.3, 0.4, 0.5]),
    labels=[0, 0, 0, 1, 1, 1],
)
STEPS = 50
processes = pytest.mark.parametrize("process", [VE, FLOW])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
cfgs = pytest.mark.parametrize("cfg", [1.0, 7.5])


ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def grid(process, dtype=torch.float64, n=STEPS, alphas=ALPHAS):
    """Stable Diffusion's own sigmas, or flow's from 1 to 0."""
    if process is FLOW:
        return torch.linspace(1, 0, n + 1, dtype=dtype)
    sigmas = ((1 - alphas) / alphas).sqrt()
    return torch.cat([sigmas[torch.linspace(999, 0, n).long()], torch.zeros(1)]).to(dtype)


def zero_terminal_snr(scheduler, n=STEPS):
    """Sigmas of Stable Diffusion's table, rescaled as ComfyUI does so that its last level holds no signal."""
    root = ALPHAS.sqrt()
    alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alphas[-1] = 4.8973451890853435e-08
    sigmas = ((1 - alphas) / alphas).sqrt()
    if scheduler == "normal":
        return grid(VE, n=n, alphas=alphas)
    if scheduler == "simple":
        return torch.cat([sigmas[[-1 - i * 1000 // n for i in range(n)]], torch.zeros(1)])
    ends = sigmas[[-1, 0]] ** (1 / 7)  # karras
    return torch.cat([torch.linspace(*ends.tolist(), n, dtype=torch.float64) ** 7, torch.zeros(1)])


def source(dtype=torch.float64):
    return MIX.of(0).sample(3, torch.Generator().manual_seed(1)).to(dtype)


def denoiser(process, cfg=1.0, label=0):
    return guided(MIX.of(label).denoiser(process), MIX.denoiser(process), cfg)


def logged(denoise):
    asked = []

    def ask(x, sigma):
        asked.append(float(sigma))
        return denoise(x, sigma)

    return ask, asked


def worst(a, b):
    return float((a - b).abs().max())


@processes
@dtypes
@cfgs
def test_exact_pair_returns_the_source(process, dtype, cfg):
    x0, s, denoise = source(dtype), grid(process, dtype), denoiser(process, cfg)
    for gamma in (None, 1.0):
        pivot = invert_exact_pair(denoise, x0, s, process=process, gamma=gamma)
        assert torch.equal(pivot.trajectory[-1], x0) and torch.equal(pivot.pair.to(dtype), pivot.trajectory[:2])
        back = sample_exact_pair(denoise, pivot.trajectory[0], s, process=process, pair=pivot.pair, gamma=gamma)
        assert worst(back, x0) <= (1e-10 if dtype == torch.float64 else 1e-6)
        rounded = sample_exact_pair(denoise, x0, s, process=process, pair=pivot.trajectory[:2], gamma=gamma)
        assert worst(rounded, x0) <= (1e-10 if dtype == torch.float64 else 1e-3)


@processes
def test_exact_pair_needs_its_pair_and_its_gamma(process):
    x0, s, denoise = source(), grid(process), denoiser(process, 7.5)
    pivot = invert_exact_pair(denoise, x0, s, process=process)
    assert worst(sample_exact_pair(denoise, pivot.trajectory[0], s, process=process), x0) > 1e-3
    if process is VE:  # on flow's even grid both forms are one
        assert worst(sample_exact_pair(denoise, x0, s, process=process, pair=pivot.pair, gamma=1.0), x0) > 1e-3
    with pytest.raises(ValueError, match="at least 2 steps"):
        invert_exact_pair(denoise, x0, torch.tensor([1.0, 0.0]), process=process)


@pytest.mark.parametrize("scheduler", ["normal", "simple", "karras"])
def test_the_exact_pair_ends_in_white_noise_on_a_zero_terminal_snr_table(scheduler):
    s, denoise = zero_terminal_snr(scheduler), MIX.denoiser(VE)
    x0 = MIX.sample(64, torch.Generator().manual_seed(1))
    gamma = fitting_gamma(s, VE)
    pivot = invert_exact_pair(denoise, x0, s, process=VE, gamma=gamma)
    assert all(0.8 < float(pivot.trajectory[i].std() / s[i]) < 1.3 for i in (0, 1))
    assert gamma == (None if scheduler == "karras" else 1.0)  # karras has no long step
    for one in (gamma, None):  # and what O-BELM inverted before still comes back
        pivot = invert_exact_pair(denoise, x0, s, process=VE, gamma=one)
        back = sample_exact_pair(denoise, x0, s, process=VE, pair=pivot.pair, gamma=one)
        assert worst(back, x0) < 1e-6


@processes
@pytest.mark.parametrize("steps", [10, 20, 50, 100])
def test_o_belm_fits_every_usual_schedule(process, steps):
    assert fitting_gamma(grid(process, n=steps), process) is None


@processes
def test_o_belm_is_second_order(process):
    """Against a fine-step solution; Euler's error halves with the step, O-BELM's falls to a quarter."""
    x = torch.randn(4, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    denoise = denoiser(process)
    # up to a last sigma above 0 and with even steps: the order of the formula, not of the grid's end
    top, low = (0.9, 0.1) if process is FLOW else (3.0, 0.3)
    x = process.noised(source()[:1], top, x)

    def run(sampler, n):
        return sampler(denoise, x, torch.linspace(top, low, n + 1, dtype=torch.float64), process=process)

    exact = run(sample_exact_pair, 1600)
    euler = [worst(run(sample_euler, n), exact) for n in (40, 80)]
    belm = [worst(run(sample_exact_pair, n), exact) for n in (40, 80)]
    assert 1.7 < euler[0] / euler[1] < 2.4
    assert belm[0] / belm[1] > 3 and belm[1] < euler[1] / 10


def test_bdia_in_its_authors_coordinates():
    """gamma in VP form: z_- = gamma z_+ + ..., 2307.10829, for one step of made-up numbers."""
    s = torch.tensor([3.0, 2.0, 1.2], dtype=torch.float64)
    a, b = (1 + s**2) ** -0.5, s * (1 + s**2) ** -0.5
    gamma, above, x, d = 0.6, 0.7, -0.4, 0.9  # x_+, x_t in VE form, eps
    vp = (
        gamma * a[0] * above
        + (a[2] / a[1] - gamma * a[0] / a[1]) * (a[1] * x)
        + ((b[2] - b[1] * a[2] / a[1]) - gamma * (b[0] - b[1] * a[0] / a[1])) * d
    )
    g = pair_weight(s, 1, VE, gamma)
    ours = x + (s[2] - s[1]) * d + g * (above - x - (s[0] - s[1]) * d)
    assert float(ours) == pytest.approx(float(vp / a[2]))
    assert pair_weight(s, 1, VE, None) == pytest.approx(0.8**2)


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


@processes
@dtypes
@cfgs
def test_edit_friendly_returns_the_source_to_the_bit(process, dtype, cfg):
    x0, s, denoise = source(dtype), grid(process, dtype), denoiser(process, cfg)
    pivot = invert_edit_friendly(denoise, x0, s, process=process, noise=gaussian(x0, 5))
    assert worst(pivot.trajectory[-1], x0) < 1e-6
    for skip in (0, 20):
        back = sample_edit_friendly(
            denoise, pivot.trajectory[skip], s[skip:], process=process, residuals=pivot.residuals[skip:]
        )
        assert torch.equal(back, pivot.trajectory[-1])
    cut = pivot.residuals.clone()
    cut[-1] = 0  # the authors' way
    assert worst(sample_edit_friendly(denoise, pivot.trajectory[0], s, process=process, residuals=cut), x0) > 1e-3


@processes
def test_edit_friendly_noises_are_independent_and_strong(process):
    x0, s = MIX.of(0).sample(64, torch.Generator().manual_seed(1)), grid(process)
    pivot = invert_edit_friendly(denoiser(process), x0, s, process=process, noise=gaussian(x0, 5))
    noise = torch.stack([(pivot.trajectory[i] - process.signal(s[i]) * x0) / s[i] for i in range(STEPS)]).flatten(1)
    off = torch.corrcoef(noise) - torch.eye(STEPS)
    assert float(off.abs().max()) < 0.1
    i = STEPS // 2
    _, std = process.transition(x0, x0, s[i], s[i + 1], 1.0)
    assert float(pivot.residuals[i].std() / std) > 1.2  # the paper's fig. 5: more variance than DDPM's own noise


@processes
def test_edit_friendly_edits(process):
    """Replayed under the other class the result leaves the source's class for the other."""
    x0, s = source(), grid(process)
    pivot = invert_edit_friendly(denoiser(process), x0, s, process=process, noise=gaussian(x0, 5))
    edit = sample_edit_friendly(
        denoiser(process, label=1), pivot.trajectory[0], s, process=process, residuals=pivot.residuals
    )
    assert float(MIX.log_prob_class(edit)[:, 1].exp().min()) > 0.99
    near = sample_edit_friendly(
        denoiser(process, label=1), pivot.trajectory[40], s[40:], process=process, residuals=pivot.residuals[40:]
    )
    assert worst(near, x0) < worst(edit, x0)
    with pytest.raises(ValueError, match="as many residuals"):
        sample_edit_friendly(denoiser(process), x0, s, process=process, residuals=pivot.residuals[1:])


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
