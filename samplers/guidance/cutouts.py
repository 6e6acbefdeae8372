"""Random crops and augmentations of a picture before an image tower sees it (Katherine Crowson's cutouts; Blended
Diffusion's augmentations, 2111.14818 section 3.2).

Size of a crop: floor(U^power (side_max - side_min)) + side_min, uniform place, area-averaged to the tower's resolution.
All images of a batch get the same crops, so that a batch of N equals N single runs. Random numbers come from the
generator given (guidance.generator_at), never from the global one. Departure: the first cutout is always the whole
picture, not augmented, as in Blended Diffusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Cutouts:
    """count crops of size x size pixels. power > 1 prefers small crops. smallest: least side, as a share of the
    picture's.

    flip: chance of a mirror image; degrees, translate (share of the side): affine jitter, edges repeated; noise: std
    of added noise on a [0, 1] picture; grey: chance of a grey crop."""

    count: int = 8
    size: int = 64
    power: float = 1.0
    smallest: float = 0.5
    flip: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    noise: float = 0.0
    grey: float = 0.0

    def __post_init__(self):
        if self.count < 1 or self.size < 1:
            raise ValueError(f"Cutouts need a count and a size of at least 1; got {self.count} and {self.size}.")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"The smallest cutout is a share of the picture in (0, 1]; got {self.smallest}.")

    def boxes(self, height: int, width: int, generator: torch.Generator) -> list[tuple[int, int, int, int]]:
        """(top, left, h, w) per crop, the first the whole picture."""
        boxes = [(0, 0, height, width)]
        largest = min(height, width)
        least = max(1, round(self.smallest * largest))
        for _ in range(self.count - 1):
            u, v, w = torch.rand(3, generator=generator).tolist()
            side = min(largest, int(u**self.power * (largest - least + 1)) + least)
            boxes.append((int(v * (height - side + 1)), int(w * (width - side + 1)), side, side))
        return boxes

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [count, B, C, size, size]."""
        crops = []
        for i, (top, left, h, w) in enumerate(self.boxes(*image.shape[-2:], generator)):
            crop = resize(image[..., top : top + h, left : left + w], self.size)
            crops.append(self._augment(crop, generator) if i else crop)
        return torch.stack(crops)

    def _augment(self, crop: Tensor, generator: torch.Generator) -> Tensor:
        # draw every number whether it is used or not: switching one augmentation leaves the others' draws as they were
        flip, grey, angle, dx, dy = torch.rand(5, generator=generator).tolist()
        noise = torch.randn(crop.shape[1:], generator=generator)
        if self.flip and flip < self.flip:
            crop = crop.flip(-1)
        if self.degrees or self.translate:
            a = math.radians(self.degrees) * (2 * angle - 1)
            # affine_grid speaks of the half side
            theta = crop.new_tensor(
                [
                    [math.cos(a), -math.sin(a), 2 * self.translate * (2 * dx - 1)],
                    [math.sin(a), math.cos(a), 2 * self.translate * (2 * dy - 1)],
                ]
            )
            sides = (crop.shape[-1], crop.shape[-2])  # the grid speaks of x, then y
            grid = F.affine_grid(theta[None].expand(crop.shape[0], 2, 3), list(crop.shape), align_corners=False)
            # edges repeated: border padding, which Apple's GPUs lack
            grid = torch.stack([axis.clamp(1 / n - 1, 1 - 1 / n) for axis, n in zip(grid.unbind(-1), sides)], -1)
            crop = F.grid_sample(crop, grid, align_corners=False)
        if self.grey and grey < self.grey:
            crop = crop.mean(1, keepdim=True).expand_as(crop)
        if self.noise:
            crop = crop + self.noise * noise.to(crop)
        return crop


def _averages(n: int, size: int, like: Tensor) -> Tensor:
    """[size, n]: each row averages its share of n pixels in a row, as `adaptive_avg_pool2d` does, which Apple's GPUs
    have for n a multiple of size only."""
    pixel, row = torch.arange(n, device=like.device), torch.arange(size, device=like.device)
    first, end = row * n // size, ((row + 1) * n + size - 1) // size  # neighbours may share a pixel
    inside = (pixel >= first[:, None]) & (pixel < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None]


def resize(image: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, C, size, size]: area average down (no aliasing), bilinear up."""
    if image.shape[-1] >= size and image.shape[-2] >= size:
        rows, columns = (_averages(n, size, image) for n in image.shape[-2:])
        return rows @ image @ columns.T
    return F.interpolate(image, (size, size), mode="bilinear", align_corners=False)
