"""Masks between pixels and latents. Everywhere 1 means: change here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def dilate(mask: Tensor, cells: int) -> Tensor:
    """Grow the mask [..., H, W] by `cells` in every direction (a square of 2 cells + 1)."""
    if cells <= 0:
        return mask
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    wide = F.max_pool2d(flat, (1, 2 * cells + 1), stride=1, padding=(0, cells))  # a square is a row of columns
    return F.max_pool2d(wide, (2 * cells + 1, 1), stride=1, padding=(cells, 0)).reshape(mask.shape)


def to_grid(mask: Tensor, size: tuple[int, int], grow: int = 0, batch: int | None = None, of: str = "latent") -> Tensor:
    """MASK [B, H, W] or [H, W] on a latent grid: [B, 1, h, w]. A cell takes the largest value of its pixels, then
    grows by `grow`.

    Averaging would let a cell that is half inside pull the background along. batch: how many latents (`of` names them)
    the mask is for; ValueError unless there is one mask, or one for each."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if batch is not None and len(mask) not in (1, batch):
        raise ValueError(
            f"There are {len(mask)} masks for {batch} {of}{'s' * (batch != 1)}: give one, or one for each."
        )
    if mask.shape[-2:] != tuple(size):
        smaller = mask.shape[-2] >= size[0] and mask.shape[-1] >= size[1]
        mask = F.adaptive_max_pool2d(mask, size) if smaller else F.interpolate(mask, size, mode="nearest")
    return dilate(mask, grow)


def frame_of(count: int, frames: int) -> Tensor:
    """Which of a video latent's `frames` each of its `count` pictures is in: as video autoencoders pack them, the first
    frame holds the first picture alone, the others share the rest evenly. As many pictures as frames: each its own."""
    return torch.tensor([-(-i * (frames - 1) // max(count - 1, 1)) for i in range(count)])


def to_frames(mask: Tensor, frames: int) -> Tensor:
    """A mask for each picture of a video [B, N, H, W] as one for each latent frame [B, F, H, W]: the largest value of
    the frame's pictures. ValueError for fewer masks than frames."""
    if mask.shape[1] < frames:
        raise ValueError(f"There are {mask.shape[1]} masks for {frames} frames: give one, or one for each frame.")
    whose = frame_of(mask.shape[1], frames)
    return torch.stack([mask[:, whose == frame].amax(1) for frame in range(frames)], 1)


def to_pixels(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask or map [B, h, w] as squares of pixels: [B, H, W]."""
    return F.interpolate(mask[:, None].float(), size, mode="nearest")[:, 0]


def feather(mask: Tensor, pixels: int, tick: Callable[[], None] | None = None) -> Tensor:
    """MASK [B, H, W] with an edge that falls to 0 over `pixels` outside of it; 1 stays 1 inside, 0 stays 0 beyond.

    tick: called for each pixel; may raise to stop."""
    if pixels <= 0:
        return mask
    edge, out = mask[:, None].float(), mask[:, None].float()
    for k in range(1, pixels + 1):  # Chebyshev distance, one pixel a time
        if tick:
            tick()
        edge = dilate(edge, 1)
        out = torch.maximum(out, edge * (1 - k / (pixels + 1)))
    return out[:, 0]


def put_back(source: Tensor, edited: Tensor, known: Tensor) -> Tensor:
    """The ending of a masked edit: edited [B, C, ..., h, w], and where `known` [B or 1, 1, ..., h, w] is true the
    source to the bit; in the source's dtype and on its device."""
    return torch.where(known.to(source.device), source, edited.to(source))


def composite(original: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """IMAGEs [B, H, W, C] by MASK [B or 1, H, W]: the edited one where it is 1, the original to the bit where it is
    0. On the edited one's device."""
    original, m = original.to(edited.device), mask[..., None].to(edited)
    return torch.where(m == 0, original, torch.where(m == 1, edited, m * edited + (1 - m) * original))
