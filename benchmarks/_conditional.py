"""How far fills are from the true conditional, on two stated mixtures, and what they cost: RePaint's part of
from_image.

BIMODAL     two equal modes N((-1, -1.5), 0.25 I), N((1, 1.5), 0.25 I), first coordinate known to be 0.5
CORRELATED  one Gaussian of unit variances and correlation 0.9, first coordinate known to be 1.5
FOUR        three correlated modes in four dimensions (seed 3), two known: nothing was chosen by it, and no figure
            holds it

Error: the Wasserstein-1 distance between the drawn last coordinates and their exact conditional (by its quantiles),
so that mean, spread and mode shares all count. Fixed seeds. The official schedule runs on SD's noise table, ours on
its own levels of that range. Judged per mixture: a good mean can hide a bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..samplers.core import VE, gaussian
from ..samplers.mixture import GaussianMixture
from ..samplers.particles import sample_conditional_particles
from ..samplers.repaint import (
    HIGH,
    JUMP,
    LEVELS,
    LOW,
    RESAMPLES,
    karras_sigmas,
    official_path,
    ranged_path,
    renewed,
    repaint_sigmas,
    sample_repaint,
)
from ..samplers.walk import Eta, network_calls


@dataclass(frozen=True)
class Case:
    """A mixture and what is known of it: values [D] where mask [D] is 0."""

    mixture: GaussianMixture
    values: Tensor
    mask: Tensor


def _pair(mixture: GaussianMixture, known: float) -> Case:
    return Case(mixture, torch.tensor([known, 0.0]).double(), torch.tensor([0.0, 1.0]).double())


def _four() -> Case:
    draws = torch.Generator().manual_seed(3)
    root = torch.randn(3, 4, 4, generator=draws, dtype=torch.float64) * 0.35
    means = torch.randn(3, 4, generator=draws, dtype=torch.float64)
    mixture = GaussianMixture.correlated(means, root @ root.mT + 0.05 * torch.eye(4, dtype=torch.float64))
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).double()
    return Case(mixture, (0.7 * means[1] + 0.3 * means[2]) * (1 - mask), mask)


MIXTURES = {
    "bimodal": _pair(GaussianMixture([[-1.0, -1.5], [1.0, 1.5]], 0.5), 0.5),
    "correlated": _pair(GaussianMixture.correlated([[0.0, 0.0]], [[[1.0, 0.9], [0.9, 1.0]]]), 1.5),
}
#: the stated two, and the one that nothing was chosen by
ALL = {**MIXTURES, "four": _four()}
SMALLEST, LARGEST = 0.0292, 14.61  # SD's sigmas
_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
_BAR = (1 - _BETAS).cumprod(0)
_TABLE = ((1 - _BAR) / _BAR).sqrt()


def respaced(steps: int) -> Tensor:
    """[steps + 1] sigmas at evenly spaced times of SD's table, and 0."""
    return torch.cat([_TABLE[torch.linspace(999, 0, steps).round().long()], torch.zeros(1, dtype=torch.float64)])


def exact_quantiles(case: Case, n: int) -> Tensor:
    """The n mid-quantiles of p(last | known), ascending."""
    truth = case.mixture.conditional(case.values, case.mask)
    grid = torch.linspace(-8, 8, 200001, dtype=torch.float64)
    parts = zip(truth.shares, truth.mode_means[:, -1], truth.mode_variances[:, -1])
    cdf = sum(w * torch.special.ndtr((grid - m) / v.sqrt()) for w, m, v in parts)
    return grid[torch.searchsorted(cdf, (torch.arange(n, dtype=torch.float64) + 0.5) / n).clamp(max=len(grid) - 1)]


def distance(fill: Tensor, case: Case) -> float:
    return float((fill.sort().values - exact_quantiles(case, len(fill))).abs().mean())


def errors(sample: Callable[..., Tensor], sigmas: Tensor, n: int, rows: int = 1, seed: int = 0) -> dict[str, float]:
    """Error of n fills on each mixture, `rows` of the batch for each, and the mean of the stated two."""
    out = {}
    for name, case in ALL.items():
        noise = gaussian(torch.empty(n * rows, len(case.values), dtype=torch.float64), seed)
        fill = sample(
            case.mixture.denoise,
            sigmas[0] * noise(),
            sigmas,
            source=case.values.expand(n, -1),
            mask=case.mask[None],
            process=VE,
            noise=noise,
        )
        out[name] = distance(fill[:, -1], case)
    return {**out, "mean": _mean(out)}


def _mean(values: dict[str, float]) -> float:
    return sum(values[name] for name in MIXTURES) / len(MIXTURES)


def repaint_error(sigmas: Tensor, path: Sequence[int], n: int, eta: Eta = 1.0) -> dict[str, float]:
    return {**errors(partial(sample_repaint, path=path, eta=eta), sigmas, n), "calls": network_calls(path)}


def exact_error(levels: int, particles: int, n: int, seed: int = 0) -> dict[str, float]:
    """The same for the exact-leaning fill; calls count rows of the network per picture."""
    sample = partial(sample_conditional_particles, particles=particles, seed=seed)
    sigmas = karras_sigmas(levels, SMALLEST, LARGEST)
    return {**errors(sample, sigmas, n, particles, seed), "calls": levels * particles}


def floor_error(n: int, seed: int = 5) -> dict[str, float]:
    """What n draws from the true conditional itself show: the measure's own noise."""
    out = {}
    for name, case in ALL.items():
        quantiles = exact_quantiles(case, 100001)
        drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        out[name] = distance(quantiles[(drawn * 100000).long()], case)
    return {**out, "mean": _mean(out), "calls": 0}


#: Resamples of our schedule that are measured beside the default
MORE = (2, 3, 6, 20, 40, 100)


def default_path(resamples: int = RESAMPLES) -> tuple[Tensor, list[int]]:
    """(levels, path) of the default schedule over SD's range of sigmas, with that many resamples."""
    sigmas = repaint_sigmas(LEVELS, SMALLEST, LARGEST)
    return sigmas, ranged_path(sigmas, JUMP, resamples, LOW, HIGH)


def curves(bench, n: int) -> dict[str, list[dict]]:
    """Error against calls of every method, kept one by one."""
    quick = bench.quick

    def run(key, compute):
        return bench.once(f"conditional of {n}: {key}", compute)

    out = {"naive": [], "ours": [], "official": [], "exact-leaning": []}
    for steps in (20, 100, 250) if quick else (20, 50, 100, 250, 1000):
        out["naive"].append(run(f"naive {steps}", lambda s=steps: repaint_error(respaced(s), range(s + 1), n)))
    for r in sorted({RESAMPLES} if quick else {RESAMPLES, *MORE}):
        sigmas, path = default_path(r)
        key = f"ours renewed {len(sigmas) - 1}, {JUMP}, {r} in {LOW:g}..{HIGH:g}"
        out["ours"].append(run(key, lambda s=sigmas, p=path: repaint_error(s, p, n, renewed())))
    for steps, jump, r in (
        ((20, 5, 2), (250, 10, 10)) if quick else ((20, 5, 2), (30, 5, 3), (50, 5, 5), (250, 10, 5), (250, 10, 10))
    ):
        path = official_path(steps, jump, r)
        out["official"].append(
            run(f"official {steps}/{jump}/{r}", lambda s=steps, p=path: repaint_error(respaced(s), p, n))
        )
    for levels, particles in ((100, 8),) if quick else ((50, 4), (100, 8), (100, 32)):
        out["exact-leaning"].append(
            run(f"exact {levels} x {particles}", lambda a=levels, b=particles: exact_error(a, b, n))
        )
    return out


def calls_to_stay_within(share: float, series: dict[str, list[dict]], name: str) -> int | None:
    """The fewest calls of ours that were measured within `share` of the 2410-call error on that mixture."""
    bound = (1 + share) * next(p[name] for p in series["official"] if p["calls"] == 2410)
    return min((p["calls"] for p in series["ours"] if p[name] <= bound), default=None)
