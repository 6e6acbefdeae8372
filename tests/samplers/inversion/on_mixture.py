"""What the tests of pivots invert: a labelled mixture, its denoisers, and the schedules of both noise families."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, guided
from nulltext.samplers.measure.mixture import GaussianMixture

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


def source(dtype=torch.float64):
    return MIX.of(0).sample(3, torch.Generator().manual_seed(1)).to(dtype)


def denoiser(process, cfg=1.0, label=0):
    return guided(MIX.of(label).denoiser(process), MIX.denoiser(process), cfg)


def worst(a, b):
    return float((a - b).abs().max())
