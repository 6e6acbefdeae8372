"""The mixture is what every other test is held against, so it is held here against brute force and against itself."""

import math

import pytest
import torch
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.measure.mixture import GaussianMixture

LEVELS = {VE: (0.05, 0.7, 3.0), FLOW: (0.05, 0.5, 0.95)}
CASES = [(process, sigma) for process, levels in LEVELS.items() for sigma in levels]


def mixture():
    means = torch.tensor([[-1.5, 0.3], [1.0, 1.2], [0.4, -2.0]])
    return GaussianMixture(means, torch.tensor([0.3, 0.5, 0.2]), torch.tensor([0.2, 0.5, 0.3]), labels=[0, 1, 0])


def correlated():
    cov = torch.tensor([[[0.5, 0.4], [0.4, 0.6]], [[0.3, -0.1], [-0.1, 0.2]]])
    return GaussianMixture.correlated(torch.tensor([[-1.0, 0.5], [1.2, 0.2]]), cov, torch.tensor([0.4, 0.6]))


def grid(limit=6.0, n=601):
    axis = torch.linspace(-limit, limit, n, dtype=torch.float64)
    cell = float(axis[1] - axis[0]) ** 2
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), cell


@pytest.mark.parametrize("make", [mixture, correlated])
@pytest.mark.parametrize("process,sigma", CASES)
def test_denoise_is_the_posterior_mean_found_by_integration(make, process, sigma):
    m = make()
    points, cell = grid()
    prior = m.log_prob(points).exp()
    x = torch.tensor([[0.3, 0.1], [-1.0, 0.8]], dtype=torch.float64)
    for row in x:
        likelihood = (-(row - process.signal(sigma) * points).square().sum(1) / (2 * sigma**2)).exp()
        mass = prior * likelihood
        density = mass.sum() * cell / (2 * math.pi * sigma**2)
        expected = (mass[:, None] * points).sum(0) / mass.sum()
        torch.testing.assert_close(m.denoise(row[None], sigma, process)[0], expected, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(m.log_prob(row[None], sigma, process)[0].exp(), density, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("make", [mixture, correlated])
@pytest.mark.parametrize("process,sigma", CASES)
def test_tweedie(make, process, sigma):
    m = make()
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (score,) = torch.autograd.grad(m.log_prob(x, sigma, process).sum(), x)
    expected = (process.signal(sigma) * m.denoise(x, sigma, process) - x) / sigma**2
    torch.testing.assert_close(score, expected.detach(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ends_are_finite_and_exact(process, dtype):
    m = mixture()
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(m.denoise(x, 0.0, process), x)
    mean = (m.weights[:, None] * m.means).sum(0)
    top = 1.0 if process is FLOW else 1e6
    torch.testing.assert_close(m.denoise(x, top, process), mean.to(dtype).expand(7, 2), atol=1e-4, rtol=1e-4)


def test_classes():
    m = mixture()
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    log_p = m.log_prob_class(x, sigma)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(6, dtype=torch.float64))
    for column, share in enumerate((0.5, 0.5)):  # Bayes: p(y | x) p(x) = p(x | y) p(y)
        joint = m.of(column).log_prob(x, sigma) + math.log(share)
        torch.testing.assert_close(log_p[:, column] + m.log_prob(x, sigma), joint)
    blend = sum(log_p[:, [c]].exp() * m.of(c).denoise(x, sigma) for c in m.classes)
    torch.testing.assert_close(m.denoise(x, sigma), blend)
    with pytest.raises(ValueError, match="No mode has label 9"):
        m.of(9)


def test_sample_and_shapes():
    m = GaussianMixture(torch.randn(3, 4, 2, 2), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 1.0]))
    x = m.sample(4000, torch.Generator().manual_seed(3))
    assert x.shape == (4000, 4, 2, 2)
    share = m.responsibilities(x).mean(0)
    torch.testing.assert_close(share, m.weights, atol=0.03, rtol=0)
    assert m.denoise(x[:2].float(), 0.5).dtype == torch.float32
    c = correlated()
    flat = c.sample(40000, torch.Generator().manual_seed(4))
    mean = (c.weights[:, None] * c.means).sum(0)
    spread = c.means - mean
    cov = (c.weights[:, None, None] * (c.covariances() + spread[:, :, None] * spread[:, None])).sum(0)
    torch.testing.assert_close(torch.cov(flat.T), cov, atol=0.03, rtol=0)


@pytest.mark.parametrize("make", [mixture, correlated])
def test_conditional_against_integration(make):
    m = make()
    known = 0.35
    axis = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    line = torch.stack([torch.full_like(axis, known), axis], 1)
    density = m.log_prob(line).exp()
    mean = (density * axis).sum() / density.sum()
    variance = (density * (axis - mean) ** 2).sum() / density.sum()
    found = m.conditional(torch.tensor([known, 99.0], dtype=torch.float64), torch.tensor([0, 1]))
    torch.testing.assert_close(found.mean[1], mean)
    torch.testing.assert_close(found.variance[1], variance)
    assert found.mean[0] == known and found.variance[0] == 0
    shares = (m.responsibilities(line) * density[:, None]).sum(0) / density.sum()
    torch.testing.assert_close(found.shares, shares)
    everything = m.conditional(torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(everything.shares, m.weights)


def test_bad_parameters():
    with pytest.raises(ValueError, match="stds above 0"):
        GaussianMixture(torch.zeros(2, 3), torch.tensor([0.1, 0.0]))
    with pytest.raises(ValueError, match="2 means need 2 weights"):
        GaussianMixture(torch.zeros(2, 3), 1.0, torch.ones(3))
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture.correlated(torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))
