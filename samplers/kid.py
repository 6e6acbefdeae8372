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


def kid(features: Tensor, reference: Tensor, *, bootstrap: int = 200, seed: int = 0) -> tuple[float, float]:
    """KID of features [N, d] against reference [M, d] and its bootstrap standard error. N, M >= 2.

    Values are as the kernel gives them (papers often print them times 1000)."""
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError("KID compares rows of equal length; got "
                         f"{tuple(features.shape)} and {tuple(reference.shape)}.")
    if min(len(features), len(reference)) < 2:
        raise ValueError("KID needs at least two items on either side.")
    x, y = features.double().cpu(), reference.double().cpu()
    kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    kxx.fill_diagonal_(0)
    kyy.fill_diagonal_(0)
    n, m = len(x), len(y)

    def mmd(a: Tensor, b: Tensor) -> Tensor:  # a [R, n], b [R, m]: how often each item was drawn
        def within(k, w):
            return ((w @ k) * w).sum(1) / (w.sum(1) ** 2 - (w**2).sum(1)).clamp(min=1)
        return within(kxx, a) + within(kyy, b) - 2 * ((a @ kxy) * b).sum(1) / (a.sum(1) * b.sum(1))

    value = mmd(torch.ones(1, n, dtype=x.dtype), torch.ones(1, m, dtype=x.dtype))[0]
    generator = torch.Generator().manual_seed(seed)

    def counts(size: int) -> Tensor:
        index = torch.randint(size, (bootstrap, size), generator=generator)
        return torch.zeros(bootstrap, size, dtype=x.dtype).scatter_add_(1, index, torch.ones_like(index, dtype=x.dtype))

    error = mmd(counts(n), counts(m)).std() if bootstrap > 1 else torch.tensor(float("nan"))
    return float(value), float(error)
