"""What a node says under itself: text and pictures that both front ends get with the node's result, and the lines that
inversion nodes have in common."""

from __future__ import annotations

import logging
import uuid

import numpy as np
from PIL import Image
from torch import Tensor

from ..engine import comfy
from ..samplers.inversion.pivots import whiteness
from ..samplers.inversion.record import Inversion
from ..samplers.measure.metrics import psnr
from .inverting import Result


def text_result(text: str, *outputs, **ui) -> dict:
    """A node's return value that shows `text` in the node; the log gets its first line.

    ui: more lists for the page, by key (web/nulltext.js reads them)."""
    logging.getLogger("nulltext").info(text.splitlines()[0] if text else "")
    return shown(text, *outputs, **ui)


def shown(text: str, *outputs, **ui) -> dict:
    """`text_result` for a text that stands in the log already."""
    return {"ui": {"text": [text], **ui}, "result": outputs}


def temporary(images: Tensor) -> list[dict[str, str]]:
    """IMAGE [B, H, W, 3] as files in ComfyUI's temporary folder, in the record that its address /view understands."""
    folder = comfy.folder("temp")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for image in images[..., :3].float().cpu().clamp(0, 1):
        name = f"nulltext_{uuid.uuid4().hex}.png"
        Image.fromarray((image.numpy() * 255).round().astype(np.uint8)).save(folder / name, compress_level=1)
        files.append({"filename": name, "subfolder": "", "type": "temp"})
    return files


def before_after(vae, before: Tensor, after: Tensor) -> tuple[str, dict[str, list]]:
    """Two LATENT samples [B, C, ...] seen through the VAE: (a line with the PSNR per image, ui lists for the page).

    The lists have the names that ComfyUI's own compare widget reads. Without a VAE: no line, no pictures."""
    if vae is None:
        return "", {}
    a, b = comfy.decode(vae, before), comfy.decode(vae, after)
    values = [f"{float(v):.1f}" for v in psnr(a, b)]
    files = {"a_images": temporary(a), "b_images": temporary(b), "nulltext_psnr": values}
    return f"PSNR {', '.join(values)} dB between the decoded source and reconstruction", files


def error_line(inversion: Inversion, result: Result) -> str:
    """How far the reconstruction lies from the source, per image, in model space."""
    scale = inversion.source.flatten(1).std(1).clamp(min=1e-8)
    parts = [f"{float(e):.2g} ({float(e / s):.1%})" for e, s in zip(result.error, scale)]
    return f"latent rms error {', '.join(parts)} of the latent's std"


def cost_line(inversion: Inversion, result: Result, found: bool) -> str:
    """Network calls and seconds, there and back."""
    there, seconds = inversion.metadata.get("calls", 0), inversion.metadata.get("seconds", 0.0)
    if found:
        return f"network calls {result.calls} back in {result.seconds:.1f} s (found in the cache: {there} calls saved)"
    calls, total = there + result.calls, seconds + result.seconds
    return f"network calls {calls} ({there} there, {result.calls} back) in {total:.1f} s"


def noise_line(inversion: Inversion) -> str:
    """Whether the noise end looks like noise."""
    ratio, neighbours = whiteness(inversion.x_T, inversion.sigmas[0])
    return f"end noise: std {ratio:.2f} of sigma (1 is right), neighbour correlation {neighbours:+.2f} (0 is white)"
