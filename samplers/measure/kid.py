"""Kernel Inception Distance (Binkowski et al. 1801.01401) between two sets of feature vectors, with a standard error.

Squared maximum mean discrepancy with the kernel k(x, y) = (x.y / d + 1)^3, unbiased: pairs of one item with itself are
left out, so the value may be negative. The paper averages over random subsets; here the whole sets are used once, and
the standard error is a bootstrap over items. A resampled set holds items twice; pairs of equal items stay left out
(they would add k(x, x), which no two independent draws have), so the bootstrap is centred on the estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 for rows x [N, d], y [M, d] -> [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _distances(features: Tensor, reference: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """MMD^2 [R] where a [R, N] and b [R, M] say how often each item was drawn."""
    x, y = features.double().cpu(), reference.double().cpu()

    def within(rows: Tensor, drawn: Tensor) -> Tensor:
        k = kernel(rows, rows).fill_diagonal_(0)
        return ((drawn @ k) * drawn).sum(1) / (drawn.sum(1) ** 2 - (drawn**2).sum(1)).clamp(min=1)

    return within(x, a) + within(y, b) - 2 * ((a @ kernel(x, y)) * b).sum(1) / (a.sum(1) * b.sum(1))


def _draws(sizes: tuple[int, int], bootstrap: int, seed: int) -> list[Tensor]:
    """How often each item is drawn, for both sets: first the sets as they are, then `bootstrap` resamplings."""
    generator, out = torch.Generator().manual_seed(seed), []
    for size in sizes:
        index = torch.randint(size, (bootstrap, size), generator=generator)
        counts = torch.zeros(bootstrap, size, dtype=torch.float64)
        counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
        out.append(torch.cat([torch.ones(1, size, dtype=torch.float64), counts]))
    return out


def _check(features: Tensor, reference: Tensor) -> None:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"KID compares rows of equal length; got {tuple(features.shape)} and {tuple(reference.shape)}."
        )
    if min(len(features), len(reference)) < 2:
        raise ValueError("KID needs at least two items on either side.")


def _told(values: Tensor) -> tuple[float, float]:
    return float(values[0]), float(values[1:].std()) if len(values) > 2 else float("nan")


def kid(features: Tensor, reference: Tensor, *, bootstrap: int = 200, seed: int = 0) -> tuple[float, float]:
    """KID of features [N, d] against reference [M, d] and its bootstrap standard error. N, M >= 2.

    Values are as the kernel gives them (papers often print them times 1000)."""
    _check(features, reference)
    return _told(_distances(features, reference, *_draws((len(features), len(reference)), bootstrap, seed)))


def kid_gain(
    worse: Tensor, better: Tensor, reference: Tensor, *, bootstrap: int = 200, seed: int = 0
) -> tuple[float, float]:
    """KID of `worse` [N, d] less that of `better` [N, d], and its standard error, for paired rows (the same start
    noise, say): one bootstrap draws the same items of both and the same reference, so that what they share cancels."""
    _check(worse, reference)
    if worse.shape != better.shape:
        raise ValueError(f"Paired sets must be alike; got {tuple(worse.shape)} and {tuple(better.shape)}.")
    draws = _draws((len(worse), len(reference)), bootstrap, seed)
    return _told(_distances(worse, reference, *draws) - _distances(better, reference, *draws))
