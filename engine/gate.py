"""What every wire of every box passes before a network or a file sees it: one check a kind of value.

`checked` looks at one value, `finite` at what a box gives back; matching.py at what the values of one box have to do
with each other. What has one clear meaning is brought to it (a grey picture to RGB, a mask into 0..1); the rest is
refused in one sentence that names the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..samplers.core import check_descending
from ..samplers.finite import all_finite, extent
from ..samplers.inversion.record import Inversion

LONGEST_MESSAGE = 500
#: beyond this a value overflows inside a network; latents stay below 100
LARGEST_LATENT = 1e6


def short(text: str, most: int = LONGEST_MESSAGE) -> str:
    """The text on one line, in at most so many characters: its beginning and its end, which says what to do."""
    text = text if len(text) < 10_000 else text[:5000] + text[-5000:]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 5]} ... {text[-tail:]}"


def _wired(value) -> str:
    """What is wired, in words."""
    kind = type(value).__name__
    return "nothing" if value is None else f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _tensor(name: str, value, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"The input {name} must be {what}; {_wired(value)} is wired.")
    if value.numel() == 0:
        raise ValueError(f"The input {name} is empty (shape {list(value.shape)}): wire {what}.")
    if value.is_complex():
        raise ValueError(f"The input {name} holds complex numbers: wire {what}.")
    if not all_finite(value):
        raise ValueError(f"The input {name} holds NaN or infinite values: look for the node before it that makes them.")
    return value


def picture(name: str, value) -> Tensor:
    """IMAGE [B, H, W, 3] in 0..1; grey and RGBA pictures become RGB."""
    image = _tensor(name, value, "an IMAGE")
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or not image.is_floating_point():
        raise ValueError(
            f"The input {name} has shape {list(value.shape)} ({_dtype(value)}): an IMAGE is [batch, height, width, "
            "3] with numbers from 0 to 1."
        )
    if min(image.shape[1:3]) < 2:
        raise ValueError(
            f"The input {name} is {image.shape[2]} x {image.shape[1]} pixels: wire a picture, or resize it."
        )
    if image.shape[-1] != 3:
        image = image.expand(*image.shape[:3], 3) if image.shape[-1] == 1 else image[..., :3]
    return _between(image.to(torch.float32))


def _between(values: Tensor) -> Tensor:
    """The values held to 0..1; the same object where they are."""
    low, high = extent(values)
    return values.clamp(0, 1) if low < 0 or high > 1 else values


def mask(name: str, value) -> Tensor:
    """MASK [B, H, W] in 0..1."""
    found = _tensor(name, value, "a MASK")
    flat = found.squeeze(1) if found.ndim == 4 and found.shape[1] == 1 else found
    flat = flat[None] if flat.ndim == 2 else flat
    if flat.ndim != 3:
        raise ValueError(f"The input {name} has shape {list(found.shape)}: a MASK is [batch, height, width].")
    return _between(flat if flat.is_floating_point() else flat.to(torch.float32))


def latent(name: str, value) -> dict:
    """LATENT, whose samples are [B, C, ...] finite floating point numbers; its noise mask is checked like a MASK."""
    if not isinstance(value, dict) or not isinstance(value.get("samples"), Tensor):
        raise ValueError(f"The input {name} must be a LATENT; {_wired(value)} is wired, which holds no samples.")
    samples = _tensor(name, value["samples"], "a LATENT")
    if not 3 <= samples.ndim <= 5 or not samples.is_floating_point():
        raise ValueError(
            f"The input {name} has samples of shape {list(samples.shape)} ({_dtype(samples)}): a LATENT is [batch, "
            "channels, height, width] in floating point numbers."
        )
    largest = max(map(abs, extent(samples)))
    if largest > LARGEST_LATENT:
        raise ValueError(
            f"The input {name} holds values up to {largest:.3g}, which no VAE makes: look for the "
            "node before it that makes them."
        )
    noise_mask = value.get("noise_mask")
    if noise_mask is None:
        return value
    kept = _tensor(f"{name} (its noise mask)", noise_mask, "a MASK")
    kept = kept if kept.is_floating_point() else kept.to(torch.float32)
    count = 1 if kept.ndim < 3 else len(kept)
    video = samples.ndim == 5 and len(samples) == 1 and kept.ndim < 5  # a mask for each of its pictures
    if kept.ndim < 2 or count not in (1, len(samples)) and not video:
        raise ValueError(
            f"The input {name} holds {len(samples)} latents with {count} noise masks: give one, or one for each."
        )
    held = _between(kept)
    return value if held is noise_mask else {**value, "noise_mask": held}


def schedule(name: str, value) -> Tensor:
    """SIGMAS [N + 1], finite, falling strictly, 0 or above at the end."""
    sigmas = _tensor(name, value, "SIGMAS")
    try:
        check_descending(sigmas)
    except ValueError as error:
        raise ValueError(f"The input {name} is no schedule. {error}") from None
    return sigmas


def conditioning(name: str, value) -> list:
    """CONDITIONING: one or more [embedding [B, T, D], extras], every number finite."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(e, list | tuple) and len(e) == 2 and isinstance(e[1], dict) for e in value
    ):
        raise ValueError(f"The input {name} must be a CONDITIONING; {_wired(value)} is wired.")
    if not value:
        raise ValueError(f"The input {name} is a CONDITIONING without an entry: wire a text encode node.")
    for embedding, extra in value:
        embedding = _tensor(name, embedding, "a CONDITIONING")
        if embedding.ndim != 3 or not embedding.is_floating_point():
            raise ValueError(
                f"The input {name} has a text embedding of shape {list(embedding.shape)} ({_dtype(embedding)}): it is "
                "[batch, tokens, width]; wire a text encode node."
            )
        for key, each in extra.items():
            whole = all_finite(each) if isinstance(each, Tensor) else True
            if not whole or isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"The input {name} holds NaN or infinite values in its {key}: make the prompt again.")
    return list(value)


def _like(article: str, *names: str) -> Callable[[str, Any], Any]:
    """A check that the value has one of these methods; what it is called in the sentence."""

    def check(name: str, value):
        if isinstance(value, str | bytes) or not any(hasattr(value, each) for each in names):
            told = _wired(value)
            raise ValueError(
                f"The input {name} must be {article}; {told} is wired"
                + (
                    ", for the file that was loaded holds none: load it by a loader of its own."
                    if value is None
                    else "."
                )
            )
        return value

    return check


def _table(article: str, *keys: str) -> Callable[[str, Any], Any]:
    """A check that the value is a table with these entries."""

    def check(name: str, value):
        if not isinstance(value, Mapping) or not set(keys) <= set(value) or "samples" in value or not value:
            raise ValueError(f"The input {name} must be {article}; {_wired(value)} is wired, or one of another kind.")
        return value

    return check


def _inversion(name: str, value) -> Inversion:
    if not isinstance(value, Inversion):
        raise ValueError(
            f"The input {name} must be an INVERSION; {_wired(value)} is wired. Use an inverting node's output."
        )
    return value


_WIRES: dict[str, Callable[[str, Any], Any]] = {
    "IMAGE": picture,
    "MASK": mask,
    "LATENT": latent,
    "SIGMAS": schedule,
    "CONDITIONING": conditioning,
    "INVERSION": _inversion,
    "MODEL": _like("a MODEL", "get_model_object"),
    "CLIP": _like("a CLIP", "tokenize", "encode_from_tokens"),
    "VAE": _like("a VAE", "decode", "encode"),
    "CLIP_VISION": _like("a CLIP_VISION", "encode_image", "model"),
    "CLASSIFIER": _like("a CLASSIFIER", "labels"),
    "IMAGE_TEXT": _like("an IMAGE_TEXT", "embed_text"),
    "H_DIRECTION": _like("an H_DIRECTION", "at"),
    "TUNING_SET": _like("a TUNING_SET", "captions"),
    "LORA_MODEL": _table("a LORA_MODEL"),
    "ATTENTION_MAPS": _table("ATTENTION_MAPS", "record", "words"),
}


def checked(kind: str, name: str, value):
    """The value of a wire of that kind, fit for use. ValueError in one sentence otherwise; kinds that this table does
    not know pass."""
    check = _WIRES.get(kind)
    return value if check is None else check(name, value)


def check_run(latent_image: Tensor, sigmas: Tensor, noise: Tensor | None = None) -> None:
    """ValueError for what a core node hands to a SAMPLER or GUIDER of ours, which no box has seen: tensors that are
    empty or not finite, sigmas that are no row."""
    for name, value in (("latent", latent_image), ("noise", noise), ("sigmas", sigmas)):
        if value is not None and (name != "sigmas" or value.numel()):  # a schedule without a step changes nothing
            _tensor(name, value, "a tensor")
    if sigmas.ndim != 1:
        raise ValueError(f"The sigmas have shape {list(sigmas.shape)}: wire a scheduler's sigmas, one row of them.")


def finite(kind: str, value, title: str):
    """What a box gives back; ValueError where a tensor of it holds NaN."""
    found = value.get("samples") if kind == "LATENT" and isinstance(value, dict) else value
    if kind in ("LATENT", "IMAGE", "MASK", "SIGMAS") and isinstance(found, Tensor) and not all_finite(found):
        raise ValueError(
            f"{title} ended in NaN or infinite values: lower its scales, cfg or strengths, or load the model in a "
            "wider precision (fp32, bf16)."
        )
    return value


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
