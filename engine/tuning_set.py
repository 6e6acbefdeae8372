"""Pictures to train on: read, cut to a few sizes, encoded, with a caption each.

Pictures of one shape train in one batch. So each picture is scaled and cut, as little as possible, to the size of the
same area whose sides are whole steps: a square of `size` pixels for a square picture, a wide one for a wide picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..samplers.record_file import check_tensors, read, write
from ..samplers.tuning.controlnet import HINT_SCALE
from ..samplers.tuning.objective import Examples
from .comfy import Progress, get, latent_in
from .files import cache_folder, opened_picture, trim, upright
from .samples import SUFFIXES, folder_path
from .training_store import STORE_BYTES


class Found(NamedTuple):
    """A picture in RGB; beside: its caption's file; see_through: whether parts of it were transparent."""

    name: str
    picture: Image.Image
    beside: str | None = None
    see_through: bool = False


@dataclass(frozen=True)
class TuningSet:
    """latents: LATENT samples [C, h, w], fp32 on the CPU (not in model space). captions: one each. masks: [1, h, w] in
    0..1 or None each, 1 where the loss counts; both with an axis of frames where the VAE makes one. names: what to call
    a picture in a message."""

    latents: tuple[Tensor, ...]
    captions: tuple[str, ...]
    masks: tuple[Tensor | None, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)

    def examples(self, model) -> Examples:
        """As the loop takes them: in the MODEL's space; a dropped caption is the empty one. ValueError for latents of
        another kind of model."""
        channels = model.get_model_object("latent_format").latent_channels
        if self.latents[0].shape[0] != channels:
            raise ValueError(
                f"The pictures were encoded to {self.latents[0].shape[0]} channels and this model works on {channels}: "
                "encode them with the VAE that belongs to the model."
            )
        with torch.inference_mode(False):
            latents = tuple(latent_in(model, z[None].clone())[0].float() for z in self.latents)
            masks = tuple(None if m is None else m.clone() for m in self.masks)
            return Examples(latents, self.captions, masks if any(m is not None for m in masks) else (), empty="")

    def texts(self) -> list[str]:
        """Every different caption, and the empty one first."""
        return list(dict.fromkeys(["", *self.captions]))

    def content(self) -> list:
        """All that enters a training, for the name under which it is kept."""
        return [list(self.latents), list(self.captions), [m for m in self.masks if m is not None]]

    def sizes(self) -> dict[tuple[int, int], int]:
        """How many pictures there are of each latent size (height, width)."""
        found: dict[tuple[int, int], int] = {}
        for z in self.latents:
            key = tuple(z.shape[-2:])
            found[key] = found.get(key, 0) + 1
        return found

    def with_word(self, word: str, other: str) -> TuningSet:
        """Its captions with another word in this one's place, which `check_word` found in each."""
        return replace(self, captions=tuple(exchanged(text, word, other) for text in self.captions))

    def check_word(self, word: str) -> None:
        """ValueError if a caption lacks the word that the training shall teach."""
        if not word.strip():
            raise ValueError("The word to be taught is empty: choose a rare one, and write it into every caption.")
        for i, caption in enumerate(self.captions):
            if not stands_in(caption, word):
                name = self.names[i] if self.names else f"picture {i + 1}"
                raise ValueError(
                    f"The caption of {name} ({caption!r}) lacks the word {word!r}: write it into every caption."
                )


def _whole(word: str) -> re.Pattern[str]:
    """Finds a word, or several behind each other, that stand whole in a text, in whatever case."""
    parts = r"\s+".join(map(re.escape, word.split()))
    return re.compile(rf"(?<!\w){parts}(?!\w)", re.IGNORECASE)


def stands_in(text: str, word: str) -> bool:
    """Whether the whole word, or several behind each other, stand in a text."""
    return _whole(word).search(text) is not None


def exchanged(text: str, word: str, other: str) -> str:
    """The text with `other` wherever the whole word stands; a space parts it from signs beside it but commas before a
    space, since ComfyUI reads `embedding:name` from a space to the next, commas at its end left out."""

    def apart(found: re.Match[str]) -> str:
        left = "" if text[: found.start()][-1:] in ("", " ", "\n") else " "
        right = "" if re.match(r",*([ \n]|$)", text[found.end() :]) else " "
        return left + other.strip() + right

    return _whole(word).sub(apart, text)


def bucket(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) to train at: about size^2 pixels in the picture's own proportions, whole steps of 64 pixels (of a
    quarter of `size` where that is less)."""
    step, root = _step(size), math.sqrt(width / height)
    return tuple(max(step, round(size * part / step) * step) for part in (root, 1 / root))


def _step(size: int) -> int:
    return min(64, max(size // 4, 8))


def _check_proportions(width: int, height: int, side: tuple[int, int], what: str) -> None:
    """ValueError for a mask or hint whose proportions, a pixel more or less, lie in another bucket than `side`, its
    picture's (width, height): cut to that, it would show other places than the picture does."""
    half = _step(round(math.sqrt(side[0] * side[1]))) / 2
    low, high = (side[0] - half) / (side[1] + half), (side[0] + half) / (side[1] - half)
    if width + 1 < low * (height - 1) or width - 1 > high * (height + 1):
        raise ValueError(
            f"{what} has {width} x {height} pixels and its picture is cut to {side[0]} x {side[1]}: masks and hints "
            "come in one batch, which has one size, so give them and all pictures the same proportions (wire one IMAGE "
            "batch in place of a folder of mixed ones)."
        )


def folder_pictures(name: str, size: int) -> list[Found]:
    """The pictures of input/<name> cut to their buckets, sorted by name; cut one by one, since a thousand photos as
    they are fill any memory. ValueError for no folder, no picture, one that can't be read, and a caption that is no
    text."""
    root = folder_path(name)
    if not root.is_dir():
        raise ValueError(f"There is no folder {name!r} in ComfyUI's input folder: put the pictures into one there.")
    out = []
    for path in sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES):
        with opened_picture(path, f"{name}/{path.name}") as opened:
            whole = upright(opened)
            picture, see_through = whole.convert("RGB"), _see_through(whole)
        out.append(Found(path.name, _cut(picture, size, path.name), _text_beside(path), see_through))
    if not out:
        raise ValueError(f"The folder {name!r} holds no picture ({', '.join(sorted(SUFFIXES))}): put some there.")
    return out


def _see_through(picture: Image.Image) -> bool:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return False
    return picture.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _cut(picture: Image.Image, size: int, name: str) -> Image.Image:
    """A picture at its bucket's size. ValueError for one too small to be one."""
    if min(picture.size) < 8:
        raise ValueError(f"{name} has {picture.size[0]} x {picture.size[1]} pixels: replace or remove it.")
    return ImageOps.fit(picture, bucket(*picture.size, size), Image.Resampling.LANCZOS)


def _text_beside(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        return " ".join(beside.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"The caption {beside.name} is no UTF-8 text: save it as UTF-8.") from None


def batch_pictures(images: Tensor, size: int | None = None) -> list[Found]:
    """The pictures of an IMAGE [B, H, W, 3], cut to their buckets of that size; None: as they are. ValueError for
    values that aren't finite."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError("A picture holds NaN or infinite values: check what made it.")
    pixels = (images[..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    named = {f"picture {i + 1}": Image.fromarray(p) for i, p in enumerate(pixels)}
    return [Found(name, _cut(picture, size, name) if size else picture) for name, picture in named.items()]


def captions_of(typed: Sequence[str], found: Sequence[Found]) -> list[str]:
    """A caption for each picture: the .txt beside it, else its own line, else the one line for all.

    ValueError where a picture would have none, or the number of lines is another."""
    if len(typed) not in (0, 1, len(found)):
        raise ValueError(
            f"There are {len(typed)} captions for {len(found)} pictures: write one line for all, or one for each."
        )
    out = []
    for i, (name, _, beside, *_) in enumerate(found):
        caption = beside or (typed[i] if len(typed) == len(found) else typed[0] if typed else "")
        if not caption:
            raise ValueError(f"{name} has no caption: write one, or put a .txt of its name beside it.")
        out.append(caption)
    return out


def build(vae, found: Sequence[Found], lines: Sequence[str], masks) -> TuningSet:
    """The set: each picture, cut to its bucket already, encoded. masks: MASK [1 or B, H, W] or None; 1 where the loss
    counts.

    ValueError for masks of another number or of other proportions, and for a mask that is black everywhere."""
    captions = captions_of(lines, found)
    if masks is not None and len(masks) not in (1, len(found)):
        raise ValueError(f"There are {len(masks)} masks for {len(found)} pictures: give one for all, or one for each.")
    progress, latents, cut = Progress(len(found)), [], []
    for i, (name, picture, *_) in enumerate(found):
        pixels = torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]
        latents.append(encoded(vae, pixels, i)[0])
        cut.append(None if masks is None else _mask(masks[i % len(masks)], picture.size, latents[-1].shape, name))
        progress.tick(1)
    return TuningSet(tuple(latents), tuple(captions), tuple(cut), tuple(name for name, *_ in found))


def encoded(vae, pixels: Tensor, seed: int) -> Tensor:
    """IMAGE [B, H, W, 3] -> LATENT samples [B, C, ...], fp32 on the CPU, the same every time for one seed.

    Some VAEs draw from the distribution that they encode to; torch's global generators are left as they were."""
    device = torch.device(vae.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)
        return vae.encode(pixels).float().cpu().clone()


def _mask(mask: Tensor, side: tuple[int, int], shape: Sequence[int], name: str) -> Tensor:
    """A MASK [H, W] cut like its picture, on the grid of a latent of that shape [C, ..., h, w]: [1, ..., h, w]."""
    whole = Image.fromarray((mask.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    _check_proportions(*whole.size, side, f"The mask of {name}")
    fitted = np.asarray(ImageOps.fit(whole, side, Image.Resampling.BILINEAR), np.float32) / 255
    out = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(fitted)[None], tuple(shape[-2:]))
    out = out.reshape(1, *[1] * (len(shape) - 3), *shape[-2:]).expand(1, *shape[1:]).clone()
    if not bool((out > 0).any()):
        raise ValueError(f"The mask of {name} is black everywhere: paint white where the loss shall count.")
    return out


def hints_for(pictures: TuningSet, images: Tensor) -> tuple[Tensor, ...]:
    """Each picture's hint [3, 8h, 8w] in 0..1, cut and scaled as core's ControlNet does it when it draws; images: IMAGE
    [B, H, W, 3], one each.

    ValueError for another number of hints, for other proportions, and for values that aren't finite."""
    if len(images) != len(pictures):
        raise ValueError(f"There are {len(images)} hints for {len(pictures)} pictures: give one for each, in order.")
    out, scaled = [], get("utils").common_upscale
    for i, (hint, side) in enumerate(zip(batch_pictures(images), _hint_sides(pictures)), 1):
        _check_proportions(*hint.picture.size, side, f"Hint {i}")
        pixels = torch.from_numpy(np.asarray(hint.picture, np.float32) / 255)[None].movedim(-1, 1)
        out.append(scaled(pixels, *side, "nearest-exact", "center")[0])
    return tuple(out)


def _hint_sides(pictures: TuningSet) -> list[tuple[int, int]]:
    """(width, height) of each picture's hint."""
    return [(z.shape[-1] * HINT_SCALE, z.shape[-2] * HINT_SCALE) for z in pictures.latents]


def hint_notices(pictures: TuningSet, images: Tensor) -> list[str]:
    """A sentence if hints must be scaled, which is done without smoothing: what size to make them."""
    own = (images.shape[2], images.shape[1])
    sizes = sorted({f"{width} x {height}" for width, height in _hint_sides(pictures) if (width, height) != own})
    if not sizes:
        return []
    return [
        f"Notice: the hints have {own[0]} x {own[1]} pixels and are trained at {' and '.join(sizes)}, where thin lines "
        "may break: scale the pictures to that size before Hint Maker and Tuning Pictures."
    ]


def changed(name: str) -> str:
    """What ComfyUI compares to see whether a folder's pictures or captions, those of its sub-folders too, are others
    than before."""
    try:
        root = folder_path(name)
        found = sorted(p for p in root.rglob("*") if p.is_file())
        told = [(str(p.relative_to(root)), p.stat().st_mtime_ns, p.stat().st_size) for p in found]
    except (ValueError, OSError) as error:
        return str(error)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _prior_path(key: str) -> Path:
    return cache_folder("tuning") / f"prior_{key}.safetensors"


def find_prior(key: str | None) -> Tensor | None:
    """Class pictures [N, C, ..., h, w] drawn before for the same inputs, or None."""
    if key is None or not _prior_path(key).is_file():
        return None
    try:
        latents = read(_prior_path(key), "prior")[0].get("latents")
        if latents is None or latents.ndim not in (4, 5):  # 5: with frames
            raise ValueError("no latents")
        check_tensors({"latents": latents})
        with contextlib.suppress(OSError):
            os.utime(_prior_path(key))  # the longest unused go first
        return latents
    except OSError:  # locked, or dropped by another server on the same folder
        return None
    except ValueError:
        with contextlib.suppress(OSError):
            _prior_path(key).unlink()
        return None


def keep_prior(key: str | None, latents: Tensor, limit: int = STORE_BYTES) -> None:
    """Put class pictures where `find_prior` looks, and drop the longest unused of the folder, trainings too, beyond
    `limit` bytes. A full disk is no error."""
    if key is not None:
        with contextlib.suppress(OSError):
            write(_prior_path(key), {"latents": latents.contiguous().clone()}, None)
            trim(cache_folder("tuning"), limit)
