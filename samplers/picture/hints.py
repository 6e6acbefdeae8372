"""Hints for a ControlNet from pictures: edges, scribble, mask, shading. Well-known filters, no network.

Edges are Canny's (1986): Gaussian, Sobel, thinning across the edge, two thresholds. A scribble is thick dark lines by a
difference of two Gaussians (Marr & Hildreth 1980), drawn white on black. Shading is the picture's own brightness at a
large scale, stretched to 0..1: no measured depth, though near and lit things are mostly bright in both. All read
brightness alone.
Everything takes IMAGE-like tensors [B, 3, H, W] in 0..1 and gives [B, 3, H, W] in 0..1, three equal channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("edges", "scribble", "mask", "shading")


def gray(images: Tensor) -> Tensor:
    """Luma (Rec. 601) [B, 1, H, W]."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian of that standard deviation in pixels, borders repeated; 0 leaves x as it is."""
    if sigma <= 0:
        return x
    reach = max(1, math.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[..., None, :], groups=x.shape[1])
    return F.conv2d(rows, kernel[..., None], groups=x.shape[1])


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's derivatives to the right and down of x [B, 1, H, W], in brightness per pixel."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype, device=x.device)[None, None] / 8
    padded = F.pad(x, (1,) * 4, mode="replicate")
    return F.conv2d(padded, kernel), F.conv2d(padded, kernel.mT)


def edges(images: Tensor, threshold: float = 0.1, sigma: float = 1.0) -> Tensor:
    """White lines one pixel wide. threshold: brightness per pixel where a line begins, 0.4 of it where one goes on."""
    right, down = gradient(blurred(gray(images), sigma))
    strength = (right.square() + down.square()).sqrt()
    # thinning: only the highest of the three pixels across the edge stays
    unit = torch.stack([right, down]) / strength.clamp(min=1e-9)
    beside = [_shifted(strength, unit, by) for by in (1.0, -1.0)]
    thin = strength * ((strength >= beside[0]) & (strength > beside[1]))
    line, weak = thin >= threshold, thin >= 0.4 * threshold
    while True:  # weak pixels that touch a line join it
        grown = (F.max_pool2d(line.float(), 3, 1, 1) > 0) & weak
        if bool((grown == line).all()):
            return line.to(images).expand(-1, 3, -1, -1).clone()
        line = grown


def _shifted(x: Tensor, unit: Tensor, by: float) -> Tensor:
    """x [B, 1, H, W] read `by` pixels further along the unit vectors [2, B, 1, H, W]."""
    h, w = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h).to(x), torch.arange(w).to(x), indexing="ij")
    at = torch.stack([columns + by * unit[0, :, 0], rows + by * unit[1, :, 0]], -1)
    scale = torch.tensor([2 / w, 2 / h]).to(x)
    return F.grid_sample(x, (at + 0.5) * scale - 1, mode="bilinear", padding_mode="zeros", align_corners=False)


def scribble(images: Tensor, threshold: float = 0.1, sigma: float = 2.0) -> Tensor:
    """Thick soft lines where the picture is darker or brighter than its surroundings by more than `threshold`/4,
    as the difference of two blurs tells: `sigma` and 1.6 of it."""
    light = gray(images)
    lines = (blurred(light, sigma) - blurred(light, 1.6 * sigma)).abs()
    drawn = F.max_pool2d((lines > threshold / 4).to(images), 3, 1, 1)
    return blurred(drawn, 0.5).clamp(0, 1).expand(-1, 3, -1, -1).clone()


def mask(images: Tensor, threshold: float = 0.5) -> Tensor:
    """White where the picture is brighter than `threshold`."""
    return (gray(images) > threshold).to(images).expand(-1, 3, -1, -1).clone()


def shading(images: Tensor, sigma: float = 4.0) -> Tensor:
    """Brightness at a large scale, each picture's own darkest at 0 and brightest at 1; a flat picture is 0.5."""
    light = blurred(gray(images), sigma)
    low, high = light.flatten(1).amin(1)[:, None, None, None], light.flatten(1).amax(1)[:, None, None, None]
    flat = high - low < 1e-4
    return torch.where(flat, 0.5, (light - low) / (high - low).clamp(min=1e-4)).expand(-1, 3, -1, -1).clone()


def hint(images: Tensor, kind: str, threshold: float = 0.0, sigma: float = 0.0) -> Tensor:
    """One of `KINDS`; a threshold or sigma of 0 is the kind's own. ValueError for another kind, and for a picture that
    isn't [B, 3, H, W]."""
    if kind not in KINDS:
        raise ValueError(f"There is no hint {kind!r}: choose one of {', '.join(KINDS)}.")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"A hint is made of pictures with three colours; got the shape {list(images.shape)}.")
    options = {"threshold": threshold, "sigma": sigma}
    if kind in ("mask", "shading"):
        options.pop("sigma" if kind == "mask" else "threshold")
    given = {name: value for name, value in options.items() if value}
    return {"edges": edges, "scribble": scribble, "mask": mask, "shading": shading}[kind](images, **given)
