"""What boxes that edit a given picture have in common: the picture must be there, as pixels or as a latent, the mask
lies on the latent's grid, and outside of the mask the picture is put back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.comfy import is_empty
from ..samplers.masks import put_back, to_frames, to_grid


def check_picture(latent: dict, need: str, way_out: str = "encode an image") -> None:
    """ValueError "<need>, but the latent is empty: <way_out>." for ComfyUI's empty latent."""
    if is_empty(latent):
        raise ValueError(f"{need}, but the latent is empty: {way_out}.")


def check_given(title: str, image: Tensor | None, latent: dict | None) -> None:
    """ValueError unless a box that takes an IMAGE or a LATENT was given one."""
    if image is None and latent is None:
        raise ValueError(f"{title} has no picture: wire image, from Load Picture for one, or latent.")


def encoded(vae, image: Tensor | None, latent: dict | None, need: str) -> dict:
    """The LATENT that was given, else the IMAGE [B, H, W, C] encoded. ValueError as `check_picture` says."""
    if latent is None:
        latent = {"samples": vae.encode(image[..., :3])}
    check_picture(latent, need)
    return latent


def own_mask(latent: dict) -> Tensor | None:
    """A latent's noise mask as MASK [B or 1, h, w], if it has one; with frames as `by_frame` takes it. What may change
    in one of its channels may change in all; one video's has no channels unless it has five sides, as the engine reads
    it."""
    mask, samples = latent.get("noise_mask"), latent["samples"]
    if mask is None:
        return None
    if mask.ndim == 5:
        return mask.amax(1)
    if samples.ndim == 5 and len(samples) == 1 < samples.shape[2]:
        return mask.reshape(-1, *mask.shape[-2:])
    return mask.reshape(1 if mask.ndim == 2 else len(mask), -1, *mask.shape[-2:]).amax(1)


def by_frame(mask: Tensor, samples: Tensor) -> Tensor:
    """A mask for latents [B, C, ...] as [B or 1, F, H, W], F 1 where all frames have the same.

    mask: [n, F, H, W]; or a MASK [n, H, W], whose n are the pictures of one video, or the items of a batch. ValueError
    for fewer masks than frames."""
    frames = samples.shape[2] if samples.ndim == 5 else 1
    if mask.ndim == 3:
        mask = mask[None] if frames > 1 == len(samples) and len(mask) > 1 else mask[:, None]
    return mask if mask.shape[1] == 1 else to_frames(mask, frames)


def mask_unread(latent: dict, so: str = "") -> str:
    """What a box says that does not read a latent's own noise mask, where there is one, and what comes of it."""
    return "" if latent.get("noise_mask") is None else f"\nNotice: the latent's noise mask is not read here{so}."


def in_turn(latent: dict, made: Sequence[Tensor]) -> dict:
    """The LATENT of several results of one, each as large as it, behind each other; without its noise mask."""
    out = {k: v for k, v in latent.items() if k != "noise_mask"} | {"samples": torch.cat(list(made))}
    if "batch_index" in out:  # which noise of a larger batch each picture has
        out["batch_index"] = [*out["batch_index"]] * len(made)
    return out


def check_pair(original: Tensor, edited: Tensor) -> None:
    """ValueError unless two IMAGEs [B, H, W, C] have one size, and the original is one or as many as the edits."""
    (h, w), (eh, ew) = original.shape[1:3], edited.shape[1:3]
    if (h, w) != (eh, ew):
        raise ValueError(f"The original is {w} x {h} pixels and the edit {ew} x {eh}: resize one of them first.")
    if len(original) not in (1, len(edited)):
        raise ValueError(
            f"There are {len(original)} originals for {len(edited)} edits: wire one original, or one for each edit."
        )


class MaskedEdit:
    """A latent [B, C, ...] with the cells that may change.

    grid: the mask [B or 1, 1, ..., h, w] on the latent's grid, of one frame where all have the same, 0 = keep; None
    where everything may change."""

    def __init__(self, samples: Tensor, mask: Tensor | None, grow: int = 0):
        self.samples = samples
        self.grid = None
        if mask is not None:
            frames = by_frame(mask, samples).unbind(1)
            grids = [to_grid(frame, samples.shape[-2:], grow, len(samples)) for frame in frames]
            self.grid = torch.stack(grids, 2) if samples.ndim == 5 else grids[0]

    @property
    def empty(self) -> bool:
        """Whether there is a mask and it marks nothing."""
        return self.grid is not None and not bool((self.grid > 0).any())

    @property
    def everything(self) -> bool:
        """Whether no cell is held."""
        return self.grid is None or not bool((self.grid == 0).any())

    def notice(self) -> str:
        """What to say where a mask holds nothing."""
        return " Notice: the mask covers everything, so nothing is held." if self.everything else ""

    def put_back(self, edited: Tensor, below: float | None = None) -> Tensor:
        """The edit, with the given latent to the bit where the mask is 0 (or less than `below`)."""
        if self.grid is None:
            return edited
        kept = self.grid == 0 if below is None else self.grid < below
        return put_back(self.samples, edited, kept)
