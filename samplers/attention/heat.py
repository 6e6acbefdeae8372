"""Attention maps as pictures: heat maps over an image, masks cut from them, strips over the steps. [0, 1], H x W x
3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def heat(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[words, h, w] -> [words, H, W] in [0, 1]: bicubic to `size`, each word from its least to its largest value."""
    big = F.interpolate(maps.unsqueeze(0).float(), size=size, mode="bicubic", align_corners=False)[0]
    low, high = big.amin((-2, -1), keepdim=True), big.amax((-2, -1), keepdim=True)
    return (big - low) / (high - low).clamp(min=1e-12)


def colours(heat_map: Tensor) -> Tensor:
    """[..., H, W] in [0, 1] -> [..., H, W, 3]: black, violet, orange, light yellow, of rising luminance."""
    stops = torch.tensor([[0, 0, 0.05], [0.35, 0.05, 0.5], [0.95, 0.45, 0.15], [1, 0.98, 0.7]], device=heat_map.device)
    place = heat_map.clamp(0, 1) * (len(stops) - 1)
    low = place.floor().clamp(max=len(stops) - 2).long()
    weight = (place - low).unsqueeze(-1)
    return stops[low] * (1 - weight) + stops[low + 1] * weight


def overlay(picture: Tensor, heat_map: Tensor, opacity: float = 0.6) -> Tensor:
    """picture [H, W, 3] in [0, 1] under a heat map [H, W]."""
    return picture * (1 - opacity) + colours(heat_map).to(picture) * opacity


def soft_mask(heat_map: Tensor, threshold: float, blur: float) -> Tensor:
    """[H, W] heat in [0, 1] -> mask in [0, 1]: 1 above the threshold, its edge blurred with a Gaussian of `blur`
    pixels."""
    mask = (heat_map > threshold).float()
    if blur <= 0:
        return mask
    reach = max(1, int(3 * blur))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=mask.device).float() ** 2) / (2 * blur**2))
    kernel = kernel / kernel.sum()
    big = F.pad(mask.view(1, 1, *mask.shape), (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(big, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0].clamp(0, 1)


def strip(picture: Tensor, steps: list[Tensor], opacity: float, height: int = 128) -> Tensor:
    """picture [H, W, 3] and maps [words, h, w] per step -> [words, height, steps * width, 3], small pictures side by
    side."""
    size = tuple(max(1, side * height // max(picture.shape[:2])) for side in picture.shape[:2])
    small = F.interpolate(picture.movedim(-1, 0)[None], size=size, mode="area")[0].movedim(0, -1)
    heats = [heat(maps, size) for maps in steps]
    return torch.stack([torch.cat([overlay(small, h[w], opacity) for h in heats], 1) for w in range(len(steps[0]))])


def spread(items: list, most: int) -> list:
    """At most `most` items, first and last among them, evenly between."""
    if len(items) <= most:
        return list(items)
    places = torch.linspace(0, len(items) - 1, most).round().long().tolist()
    return [items[p] for p in places]
