"""Low-pass filters over the last two dimensions, for techniques that hold coarse content.

`dct_low_pass` is a projector: it keeps the lowest ceil(n / factor) cosine coefficients (DCT-II, orthonormal) of each
axis, so phi(phi(x)) = phi(x) and phi is linear, smooth and free of block edges. `resized_low_pass` is the filter of
ILVR's authors (down and up by bicubic interpolation); it is not idempotent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

#: x [..., H, W] -> its coarse part, same shape
LowPass = Callable[[Tensor], Tensor]


@functools.lru_cache(64)
def _projector(size: int, kept: int) -> Tensor:
    """C^T C [size, size] float64, C the first `kept` rows of the orthonormal DCT-II."""
    n = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (n[None] + 0.5) * torch.arange(kept, dtype=torch.float64)[:, None])
    rows = rows * math.sqrt(2 / size)
    rows[0] = rows[0] / math.sqrt(2)
    return rows.T @ rows


def kept(size: int, factor: float) -> int:
    """How many coefficients of an axis of that size a factor leaves: ceil(size / factor), at least 1."""
    return max(1, math.ceil(size / factor - 1e-9))


def dct_low_pass(factor: float) -> LowPass:
    """The projector onto cosines of wavelength 2 * factor cells and longer; factor 1 keeps everything, to the bit."""
    if not factor >= 1:
        raise ValueError(f"A low-pass factor is 1 or more (1 keeps everything); got {factor}.")

    def phi(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        down, across = kept(h, factor), kept(w, factor)
        # in float64: the projector is exact to rounding, and small in any latent
        out = x.double()
        if down < h:
            out = _projector(h, down).to(x.device) @ out
        if across < w:
            out = out @ _projector(w, across).to(x.device)
        return x if (down, across) == (h, w) else out.to(x.dtype)

    return phi


def resized_low_pass(factor: int) -> LowPass:
    """Down and up again by `factor`, bicubic with antialiasing, as ILVR's authors do."""

    def phi(x: Tensor) -> Tensor:
        size, flat = x.shape[-2:], x.reshape(-1, 1, *x.shape[-2:])
        small = [max(1, round(n / factor)) for n in size]
        down = torch.nn.functional.interpolate(flat, small, mode="bicubic", antialias=True, align_corners=False)
        up = torch.nn.functional.interpolate(down, size, mode="bicubic", align_corners=False)
        return up.reshape(x.shape)

    return phi
