"""How different two pictures look: the form and the scale of LPIPS (Zhang et al. 1801.03924) without its network.

    d(a, b) = sum_k w_k mean over places |u_k(a) - u_k(b)|^2

u_k is the vector of a place's filter responses at scale k and of a constant that stands for "nothing to see", brought
to length 1: 0 between equal places, 2 between places that have nothing in common.

Departure: the filters are the 4 x 4 cosine patterns of each colour without the constant one, on the picture halved k
times, in place of AlexNet's layers, so that nothing is downloaded. The weights w_k are fitted so that two noised
photographs stand as far from themselves as pictures do in the LPIPS tables that Asyrp's authors published (2210.10960,
mean of five data sets): .7 at noise level .28, 1.0 at .56 (1.1 in the tables), 1.5 for noise alone (1.4). What a
picture shows does not count, and no figure of LPIPS itself should be compared.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE, _FAINT = 4, 0.2
WEIGHTS = (0.1, 0.68)  # of the whole picture, its half


def _filters() -> Tensor:
    """[15, 1, 4, 4]: the orthonormal cosine patterns but the constant one."""
    k, i = torch.arange(_SIDE)[:, None], torch.arange(_SIDE)[None]
    rows = torch.cos(math.pi * (2 * i + 1) * k / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
    rows[0] /= math.sqrt(2)
    return torch.einsum("ai,bj->abij", rows, rows).reshape(-1, 1, _SIDE, _SIDE)[1:]


def _directions(picture: Tensor) -> Tensor:
    """[B, 46, h, w] of [B, 3, H, W]: every place's responses and the constant, at length 1."""
    b, c, *size = picture.shape
    found = F.conv2d(2 * picture.reshape(b * c, 1, *size), _filters().to(picture), stride=_SIDE // 2)
    found = found.reshape(b, -1, *found.shape[-2:])
    return F.normalize(F.pad(found, (0, 0, 0, 0, 0, 1), value=_FAINT), dim=1)


def perceptual_distance(a: Tensor, b: Tensor) -> Tensor:
    """[B] of pictures [B, 3, H, W] in 0..1, one shape; 0 for equal ones. Scales smaller than two filters are left out.

    ValueError for pictures of two shapes, or below 8 pixels."""
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[-2:]) < 2 * _SIDE:
        raise ValueError(
            f"Two images of one shape [B, C, H, W] are compared, 8 pixels or more; got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    total, weight = torch.zeros(len(a), dtype=a.dtype, device=a.device), 0.0
    for w in WEIGHTS:
        if min(a.shape[-2:]) >= 2 * _SIDE:
            total = total + w * (_directions(a) - _directions(b)).square().sum(1).mean((1, 2))
            weight += w
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total * (sum(WEIGHTS) / weight)
