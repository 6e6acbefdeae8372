"""The exact pair: its way back, its order, its schedules, BDIA in its authors' coordinates."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.inversion.exact_pair import fitting_gamma, invert_exact_pair, pair_weight, sample_exact_pair
from nulltext.samplers.ode import sample_euler
from nulltext.tests.samplers.inversion.on_mixture import (
    ALPHAS,
    MIX,
    STEPS,
    cfgs,
    denoiser,
    dtypes,
    grid,
    processes,
    source,
    worst,
)


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
