"""A folder of pictures with one sub-folder per class, read and encoded for training a latent classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .comfy import full_path, latent_in

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read(folder: str) -> tuple[list[str], list[Path], list[int]]:
    """Labels (names of the sub-folders of input/<folder>, sorted), pictures, and each picture's class.

    ValueError unless there are at least two classes with two pictures each."""
    root = full_path("input", folder)
    if not root.is_dir():
        raise ValueError(
            f"There is no folder {folder!r} in ComfyUI's input folder: put one sub-folder of pictures per class there."
        )
    labels, pictures, targets = [], [], []
    for place in sorted(p for p in root.iterdir() if p.is_dir()):
        found = sorted(p for p in place.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not found:
            continue
        if len(found) < 2:
            raise ValueError(f"The class {place.name!r} has one picture only: give each class at least two.")
        pictures += found
        targets += [len(labels)] * len(found)
        labels.append(place.name)
    if len(labels) < 2:
        raise ValueError(
            f"The folder {folder!r} holds {len(labels)} sub-folder(s) with pictures: a classifier needs "
            "at least two classes, one sub-folder each."
        )
    return labels, pictures, targets


def encode(model, vae, pictures: list[Path], size: int, progress) -> Tensor:
    """Latents [N, C, h, w] in model space, fp32 on the CPU; one tick per picture."""
    out = []
    for path in pictures:
        try:
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
                square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(
                f"The picture {path.parent.name}/{path.name} can't be read ({error}): replace or remove it."
            ) from None
        pixels = torch.from_numpy(np.asarray(square, np.float32) / 255)[None]
        out.append(latent_in(model, vae.encode(pixels)).float().cpu())
        progress.tick(1)
    return torch.cat(out)


def training_levels(model, low: float, high: float) -> Tensor:
    """The noise levels to train at: the model's own table, or 256 spaced in log sigma where it has none."""
    table = getattr(model.get_model_object("model_sampling"), "sigmas", None)
    if table is not None and len(table) > 1:
        return table.detach().float().cpu().clone()
    return torch.logspace(np.log10(max(low, 1e-3)), np.log10(high), 256)
