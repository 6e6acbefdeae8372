"""The pictures that the pack brings: offered beside ComfyUI's input folder, read where they lie, copied nowhere.

Their names end in " [sample]", as ComfyUI's own "[output]" and "[temp]" tell which folder a name belongs to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import ImageSequence
from torch import Tensor
from torch.nn.functional import interpolate

from .files import LARGEST_PICTURE, opened_picture, upright
from .folders import folder, full_path

FOLDER = Path(__file__).resolve().parents[1] / "workflows" / "inputs"
MARK = " [sample]"
SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}


def samples() -> list[str]:
    """Names of the pack's pictures, sorted, with their mark; none where the package was installed without them."""
    found = FOLDER.iterdir() if FOLDER.is_dir() else ()
    return sorted(path.name + MARK for path in found if path.suffix.lower() in SUFFIXES)


def listed() -> list[str]:
    """The pictures in ComfyUI's input folder, then the pack's."""
    root = folder("input")
    found = root.iterdir() if root.is_dir() else ()
    return [*sorted(p.name for p in found if p.suffix.lower() in SUFFIXES and p.is_file()), *samples()]


def sample_path(name: str) -> Path | None:
    """Where the pack's picture of that name lies; None if there is none."""
    return FOLDER / name.removesuffix(MARK) if name in samples() else None


def picture_path(name: str) -> Path:
    """The file of a listed name, or of one that ComfyUI marks ("mine.png [output]"). ValueError if there is none."""
    if name.endswith(MARK):
        path = sample_path(name)
        if path is None:
            raise ValueError(f"The pack has no picture {name!r}; it has: {', '.join(samples()) or 'none'}.")
        return path
    kind, plain = "input", name
    for other in ("input", "output", "temp"):
        if name.endswith(f" [{other}]"):
            kind, plain = other, name.removesuffix(f" [{other}]")
    path = full_path(kind, plain)
    if not path.is_file():
        raise ValueError(f"There is no picture {plain!r} in ComfyUI's {kind} folder: choose one, or upload it.")
    return path


def folder_path(name: str) -> Path:
    """The folder input/<name>, else the pack's folder of that name (input/<name> where neither is there)."""
    path = full_path("input", name)
    own = FOLDER / path.name
    return own if not path.is_dir() and path.parent == folder("input") and own.is_dir() else path


def load_picture(path: Path) -> tuple[Tensor, Tensor]:
    """(IMAGE [B, H, W, 3], MASK [B, H, W], 1 where the picture is transparent) in 0..1, upright; B frames of one size.

    ValueError for what can't be read, or has more than `LARGEST_PICTURE` pixels."""
    images, masks = [], []
    with opened_picture(path) as opened:
        for number, each in enumerate(ImageSequence.Iterator(opened)):
            if number * opened.width * opened.height > LARGEST_PICTURE:
                raise ValueError(f"The picture {path.name} has too many frames: take fewer, or smaller ones.")
            frame = upright(each)
            if images and frame.size != (images[0].shape[1], images[0].shape[0]):
                continue
            clear = "A" in frame.getbands() or "transparency" in frame.info
            pixels = np.asarray(frame.convert("RGBA" if clear else "RGB"), np.float32) / 255
            images.append(torch.from_numpy(pixels[..., :3].copy()))
            masks.append(torch.from_numpy(1 - pixels[..., 3]) if clear else torch.zeros(images[-1].shape[:2]))
    return torch.stack(images), torch.stack(masks)


def fitting(width: int, height: int, size: int, step: int = 8) -> tuple[int, int]:
    """(width, height) with about size^2 pixels in the picture's own proportions, in whole steps of `step` pixels."""
    root = (width / height) ** 0.5
    return tuple(max(step, round(size * part / step) * step) for part in (root, 1 / root))


def filling(images: Tensor, masks: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """IMAGE [B, H, W, 3] and MASK [B, H, W] at that size, in their own proportions: what stands over at two sides is
    cut."""
    scale = max(width / images.shape[2], height / images.shape[1])
    across, down = (max(least, round(n * scale)) for least, n in zip((width, height), images.shape[2:0:-1]))
    images, masks = resized(images, masks, across, down)
    left, top = (across - width) // 2, (down - height) // 2
    cut = (slice(None), slice(top, top + height), slice(left, left + width))
    return images[cut], masks[cut]


def at_most(images: Tensor, side: int = 1024) -> Tensor:
    """IMAGE [B, H, W, 3] shrunk so that its longer side has at most so many pixels."""
    longer = max(images.shape[1:3])
    if longer <= side:
        return images
    height, width = (max(8, round(n * side / longer)) for n in images.shape[1:3])
    return resized(images, torch.zeros(images.shape[:3]), width, height)[0]


def resized(images: Tensor, masks: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """IMAGE [B, H, W, 3] and MASK [B, H, W] at another size."""
    if images.shape[1:3] == (height, width):
        return images, masks
    out = interpolate(images.movedim(-1, 1), (height, width), mode="bicubic", antialias=True, align_corners=False)
    cover = interpolate(masks[:, None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    return out.movedim(1, -1).clamp(0, 1), cover[:, 0].clamp(0, 1)
