"""What a node shows under itself: text and pictures that both front ends get with the node's result."""

from __future__ import annotations

import logging
import uuid

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..engine import comfy, folders
from ..samplers.masks import frame_of
from ..samplers.measure import metrics


def text_result(text: str, *outputs, log: bool = True, **ui) -> dict:
    """A node's return value that shows `text` in the node; the log gets its first line, unless it has it already.

    ui: more lists for the page, by key (web/nulltext.js reads them)."""
    if log:
        logging.getLogger("nulltext").info(text.splitlines()[0] if text else "")
    return {"ui": {"text": [text], **ui}, "result": outputs}


def unchanged(why: str, what: str = "latent") -> str:
    """The notice of a node that has nothing to do and returns what it was given."""
    return f"Notice: {why}, so the {what} comes back as it is."


def nothing_to_change(why: str) -> str:
    """The report of an edit that is the source."""
    return f"Nothing to change: {why}; the source comes back as it is"


def model_unchanged(why: str, model) -> dict:
    """The result of a node that leaves the MODEL as it was."""
    return text_result(f"Notice: {why}, so the model is passed on unchanged.", model)


def temporary(images: Tensor) -> list[dict[str, str]]:
    """IMAGE [B, H, W, 3] as files in ComfyUI's temporary folder, in the record that its address /view understands."""
    folder = folders.folder("temp")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for image in images[..., :3].float().cpu().clamp(0, 1):
        name = f"nulltext_{uuid.uuid4().hex}.png"
        Image.fromarray((image.numpy() * 255).round().astype(np.uint8)).save(folder / name, compress_level=1)
        files.append({"filename": name, "subfolder": "", "type": "temp"})
    return files


#: what the page shows of two pictures: their files, a line for each, the second one's name
BEFORE_AFTER = ("a_images", "b_images", "nulltext_said", "nulltext_what")


def compared(before: Tensor, after: Tensor, mask: Tensor | None = None, what: str = "edit") -> tuple[str, dict]:
    """Two IMAGEs [B, H, W, 3], the first as many or fewer (then repeated): (a line with the PSNR per image, ui lists).

    mask [n, h, w], 1 where the picture may change: the PSNR is that outside of it, where something is outside. The
    lists have the names that ComfyUI's own compare widget reads; what: the second picture's name on the page."""
    before = torch.cat([before] * (len(after) // len(before)))
    a, b = (picture[..., :3].movedim(-1, 1) for picture in (before, after))
    values, masked = metrics.psnr_outside(a, b, mask)
    where = " outside the mask" if masked else ""
    said = [f"PSNR {float(v):.1f} dB{where}" for v in values]
    numbers = ", ".join(f"{float(v):.1f}" for v in values)
    files = dict(zip(BEFORE_AFTER, (temporary(before), temporary(after), said, [what])))
    return f"PSNR {numbers} dB{where} between source and {what}", files


def before_after(vae, before: Tensor, after: Tensor, mask: Tensor | None = None, what: str = "edit"):
    """`compared` of two LATENT samples [B, C, ...] seen through the VAE; without one: no line, no pictures.

    mask [n, F or 1, h, w]: for latents, for each of its frames or for all."""
    if vae is None:
        return "", {}
    a, b = comfy.decode(vae, before), comfy.decode(vae, after)
    if mask is not None:
        mask = mask[:, frame_of(len(a) // len(before), mask.shape[1])].flatten(0, 1)
    return compared(a, b, mask, what)
