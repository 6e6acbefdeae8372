"""The outlines of the scenes' objects, as signed distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _box(x, y, a, b):
    dx, dy = x.abs() - a, y.abs() - b
    return (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt() + torch.maximum(dx, dy).clamp(max=0)


def _triangle(x, y):
    k = math.sqrt(3)
    x, y = x.abs() - 0.95, 0.55 - y  # equilateral, point up
    fold = x + k * y > 0
    x, y = torch.where(fold, (x - k * y) / 2, x), torch.where(fold, (-k * x - y) / 2, y)
    x = x - x.clamp(-1.9, 0)
    return -(x**2 + y**2).sqrt() * torch.sign(y)


def _star(x, y, rf=0.45):
    k1x, k1y = 0.809016994375, -0.587785252292
    x, y = x.abs(), -y
    for sx in (1, -1):
        d = 2 * (sx * k1x * x + k1y * y).clamp(min=0)
        x, y = x - d * sx * k1x, y - d * k1y
    x, y = x.abs(), y - 1
    bx, by = rf * (-k1y), rf * k1x - 1
    h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0, 1)
    return ((x - bx * h) ** 2 + (y - by * h) ** 2).sqrt() * torch.sign(y * bx - x * by)


def shape_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance in units of the radius; shape [B, 1, 1]."""
    r = (x**2 + y**2).sqrt()
    all_shapes = (
        r - 0.92,
        _box(x, y, 0.78, 0.78),
        _triangle(x, y),
        _star(x, y),
        (r - 0.68).abs() - 0.27,
        torch.minimum(_box(x, y, 0.95, 0.32), _box(x, y, 0.32, 0.95)),
    )
    out = all_shapes[0]
    for i, d in enumerate(all_shapes[1:], 1):
        out = torch.where(shape == i, d, out)
    return out
