"""The plain samplers against the mixture: the ODE's order, the SDE's law, the callback, the counted calls."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_ancestral, sample_euler, sample_heun

MIX = GaussianMixture(torch.tensor([[-1.2], [0.9]]), torch.tensor([0.3, 0.2]), torch.tensor([0.35, 0.65]))


def grid(process, n, dtype=torch.float64):
    top = 1.0 if process is FLOW else 30.0
    return (torch.linspace(1, 0, n + 1, dtype=dtype) ** (1 if process is FLOW else 3)) * top


def counted(process):
    calls = []

    def denoise(x, sigma):
        calls.append(float(sigma))
        return MIX.denoise(x, sigma, process)

    return denoise, calls


@pytest.mark.parametrize("process", [VE, FLOW])
def test_order_of_convergence(process):
    """Half the step: Euler's error halves, Heun's falls to a quarter. One Gaussian: smooth, with a known solution."""
    one = GaussianMixture(torch.tensor([[0.7]]), 0.5)
    denoise = one.denoiser(process)
    n = torch.tensor([[-1.5], [0.2], [1.1]], dtype=torch.float64)
    a, top = float(process.signal(grid(process, 2)[0])), float(grid(process, 2)[0])
    x = top * n  # the ODE keeps each point at its place in standard deviations
    exact = 0.7 + 0.5 * (x - a * 0.7) / (a**2 * 0.25 + top**2) ** 0.5

    def error(sampler, steps):
        return float((sampler(denoise, x, grid(process, steps), process=process) - exact).abs().max())

    assert 1.7 < error(sample_euler, 80) / error(sample_euler, 160) < 2.4
    assert 3.0 < error(sample_heun, 80) / error(sample_heun, 160) < 5.0
    assert error(sample_heun, 160) < 1e-3


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_samples_the_mixture(process, eta):
    n = 4000
    x = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * grid(process, 2)[0]
    out = sample_ancestral(MIX.denoiser(process), x, grid(process, 100), process=process, noise=gaussian(x, 1), eta=eta)
    right = out[:, 0] > -0.2
    assert float(right.double().mean()) == pytest.approx(0.65, abs=0.03)
    assert float(out[right].mean()) == pytest.approx(0.9, abs=0.02)
    assert float(out[right].std()) == pytest.approx(0.2, abs=0.02)
    assert float(out[~right].std()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("process", [VE, FLOW])
def test_ancestral_at_eta_zero_is_euler(process):
    x = torch.randn(5, 1, dtype=torch.float64) * grid(process, 2)[0]

    def never():
        raise AssertionError("eta 0 needs no noise")

    euler = sample_euler(MIX.denoiser(process), x, grid(process, 20))
    zero = sample_ancestral(MIX.denoiser(process), x, grid(process, 20), process=process, noise=never, eta=0.0)
    torch.testing.assert_close(euler, zero)


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("sampler,calls", [(sample_euler, 10), (sample_heun, 19), (sample_ancestral, 10)])
def test_calls_callback_and_last_step(process, sampler, calls):
    denoise, asked = counted(process)
    reports = []
    x = torch.randn(3, 1, generator=torch.Generator().manual_seed(0)) * float(grid(process, 2)[0])
    kept = x.clone()
    sigmas = grid(process, 10, torch.float32)
    out = sampler(denoise, x, sigmas, process=process, noise=gaussian(x, 0), callback=reports.append)
    assert len(asked) == calls and min(asked) > 0
    assert [r["i"] for r in reports] == list(range(10))
    assert [float(r["sigma"]) for r in reports] == sigmas[:-1].tolist()
    assert torch.equal(out, reports[-1]["denoised"])  # the step to sigma 0 returns D to the bit
    assert torch.equal(x, kept) and out.dtype == x.dtype


def test_a_schedule_that_rises_is_refused_before_any_call():
    denoise, asked = counted(VE)
    for sampler in (sample_euler, sample_heun, sample_ancestral):
        with pytest.raises(ValueError, match="fall strictly"):
            sampler(denoise, torch.zeros(1, 1), torch.tensor([1.0, 2.0, 0.0]), process=VE, noise=lambda: None)
    assert asked == []
