"""What the values of one box have to do with each other: a mask for each latent, prompts and schedules made for the
model that is wired."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..samplers.core import FLOW
from .comfy import process_of

ROUNDED = 1 + 1e-4  #: a flow's sigma of 1 with the rounding of its shift (1.0000001 at shift 2.14)
SMALLEST_ENCODED = 8  #: pixels; a VAE makes no cell of fewer

#: of which values a mask must be one for all, or one for each, the first that is there
_MASKED = {"latent": "latent", "inversion": "latent", "images": "picture", "edited": "edit", "edit": "edit"}
_PICTURES = ("LATENT", "INVERSION", "IMAGE")
#: where the networks of ComfyUI's models say how many numbers a text token has, by the name in their configuration
_TEXT_WIDTHS = ("context_dim", "context_in_dim", "text_dim", "cap_feat_dim", "joint_attention_dim")


def together(values: Mapping[str, tuple[str, Any]]) -> None:
    """ValueError where the values of one box, {name: (kind, value)}, can't belong together: masks that are not one for
    each latent (or for each frame of one video), a prompt or a schedule made for another model."""
    masked = next((name for name in _MASKED if name in values and values[name][0] in _PICTURES), "")
    of, shape = (_MASKED[masked], _shape(*values[masked])) if masked else ("", (None,))
    counted, video = shape[0], len(shape) == 5 and shape[0] == 1 < shape[2]
    for kind, value in values.values():
        if kind == "MASK" and counted is not None and len(value) not in (1, counted) and not video:
            raise ValueError(
                f"There are {len(value)} masks for {counted} {of}{'s' * (counted != 1)}: give one, or one for each."
            )
    encoded = any(kind == "VAE" for kind, _ in values.values())
    for name, (kind, value) in values.items():
        if kind == "IMAGE" and encoded and min(value.shape[1:3]) < SMALLEST_ENCODED:
            raise ValueError(
                f"The input {name} is {value.shape[2]} x {value.shape[1]} pixels, too small for a VAE: resize it."
            )
    model = next((value for kind, value in values.values() if kind == "MODEL"), None)
    for name, (kind, value) in values.items() if model is not None else ():
        if kind == "CONDITIONING":
            check_width(model, name, value)
            check_area(model, name, value)
            for embedding, _ in value if of == "latent" else ():
                if len(embedding) not in (1, counted):
                    raise ValueError(
                        f"The input {name} holds {len(embedding)} prompts for {counted} latent{'s' * (counted != 1)}: "
                        "give one, or one for each."
                    )
        elif kind == "SIGMAS":
            check_flow(model, name, value)
        elif kind == "VAE":
            check_vae(model, value)


def _shape(kind: str, value) -> tuple[int, ...]:
    return tuple((value["samples"] if kind == "LATENT" else value).shape)


def check_area(model, name: str, value: list) -> None:
    """ValueError for a part of the picture given in two sides, where the model's latents have frames: the engine reads
    three from it and ends in an IndexError."""
    sides = getattr(model.get_model_object("latent_format"), "latent_dimensions", 2)
    for _, told in value:
        area = told.get("area") or ()
        if area and area[0] == "percentage" and len(area) // 2 < sides == 3:
            raise ValueError(
                f"The prompt on {name} is for a part of a picture, and this model's latents have frames: take "
                "ConditioningSetAreaPercentageVideo in place of Conditioning (Set Area with Percentage)."
            )


def check_vae(model, vae) -> None:
    """ValueError for a VAE whose latents are not the model's."""
    channels = model.get_model_object("latent_format").latent_channels
    theirs = getattr(vae, "latent_channels", channels)
    if theirs != channels:
        raise ValueError(
            f"The VAE makes latents of {theirs} channels, the model works on {channels}: wire the VAE "
            "that belongs to the model."
        )


def check_flow(model, name: str, sigmas: Tensor) -> None:
    """ValueError for a schedule above 1 on a flow model, whose noise levels are shares."""
    if float(sigmas[0]) > ROUNDED and process_of(model) is FLOW:
        raise ValueError(
            f"The input {name} starts at sigma {float(sigmas[0]):.4g}, and this is a flow model, whose schedules lie "
            "between 1 and 0: make the sigmas with the model that samples."
        )


def text_width(model) -> int | None:
    """How many numbers a token of this MODEL's text embedding has; None where its configuration doesn't tell."""
    config = getattr(getattr(getattr(model, "model", None), "model_config", None), "unet_config", None) or {}
    params = (config.get("context_embedder_config") or {}).get("params") or {}
    for value in (*(config.get(key) for key in _TEXT_WIDTHS), params.get("in_features")):
        if isinstance(value, int) and value > 0:
            return value
    return None


def check_width(model, name: str, value: list) -> None:
    """ValueError for a prompt that another kind of model's text encoder made."""
    width = text_width(model)
    for embedding, _ in value if width else ():
        if embedding.shape[-1] != width:
            raise ValueError(
                f"The prompt on {name} was made for another model: its tokens have {embedding.shape[-1]} numbers, and "
                f"this model reads {width}. Encode it with the CLIP that belongs to the model."
            )
