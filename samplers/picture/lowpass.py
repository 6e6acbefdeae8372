"""Low-pass filters over the last two dimensions, for techniques that hold coarse content.

`bicubic_low_pass` is the filter of ILVR's authors: down and up again by bicubic interpolation, with antialiasing on
the way down (Keys' kernel with a = -1/2, the border mirrored). It is linear and keeps flat pictures, but it is not
idempotent: phi(phi(x)) is a little smoother than phi(x).
`dct_low_pass` is a projector: it keeps the lowest ceil(n / factor) cosine coefficients (DCT-II, orthonormal) of each
axis, so phi(phi(x)) = phi(x). It overshoots more at sharp borders.

Both act along each axis by a matrix, in float64: they are small in any latent, and the projector is exact to rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core import wide

#: x [..., H, W] -> its coarse part, same shape
LowPass = Callable[[Tensor], Tensor]


def kept(size: int, factor: float) -> int:
    """How many numbers of an axis of that size a factor leaves: ceil(size / factor), at least 1."""
    return max(1, math.ceil(size / factor - 1e-9))


@functools.lru_cache(64)
def _projector(size: int, count: int) -> Tensor:
    """C^T C [size, size] float64, C the first `count` rows of the orthonormal DCT-II."""
    n = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (n[None] + 0.5) * torch.arange(count, dtype=torch.float64)[:, None])
    rows = rows * math.sqrt(2 / size)
    rows[0] = rows[0] / math.sqrt(2)
    return rows.T @ rows


def cubic(x: Tensor) -> Tensor:
    """Keys' interpolation kernel with a = -1/2; 0 from |x| = 2 on."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_matrix(size: int, new: int) -> Tensor:
    """[new, size] float64: bicubic interpolation of an axis to `new` cells, the kernel stretched when going down.

    Rows sum to 1. Beyond the border the axis is mirrored, its last cell repeated."""
    ratio = new / size
    stretch = min(ratio, 1.0)
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) / ratio - 0.5
    reach = math.ceil(2 / stretch) + 1
    cell = centre.floor()[:, None] + torch.arange(-reach, reach + 2, dtype=torch.float64)
    weight = cubic((centre[:, None] - cell) * stretch)
    weight = weight / weight.sum(1, keepdim=True)
    place = cell.long() % (2 * size)
    place = torch.minimum(place, 2 * size - 1 - place)
    return torch.zeros(new, size, dtype=torch.float64).scatter_add_(1, place, weight)


@functools.lru_cache(64)
def _down_and_up(size: int, count: int) -> Tensor:
    """[size, size] float64: to `count` cells and back."""
    return resize_matrix(count, size) @ resize_matrix(size, count)


def _low_pass(factor: float, matrix: Callable[[int, int], Tensor]) -> LowPass:
    if not factor >= 1:
        raise ValueError(f"A low-pass factor is 1 or more (1 keeps everything); got {factor}.")

    def phi(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        down, across = kept(h, factor), kept(w, factor)
        out = wide(x)
        if down < h:
            out = wide(matrix(h, down), x.device) @ out
        if across < w:
            out = out @ wide(matrix(w, across), x.device).T
        return x if (down, across) == (h, w) else out.to(x.dtype)

    return phi


def dct_low_pass(factor: float) -> LowPass:
    """The projector onto cosines of wavelength 2 * factor cells and longer; factor 1 keeps everything, to the bit."""
    return _low_pass(factor, _projector)


def bicubic_low_pass(factor: float) -> LowPass:
    """Down by `factor` and up again, as ILVR's authors do; factor 1 keeps everything, to the bit.

    An axis that the factor does not divide is resized to ceil(size / factor) cells and back over its whole length."""
    return _low_pass(factor, _down_and_up)


#: by the name that a widget offers; the paper's first
LOW_PASSES = {"bicubic (the paper's)": bicubic_low_pass, "cosines (exact)": dct_low_pass}
