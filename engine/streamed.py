"""Weights that lie still: what gradients need where the engine streams a model's weights (dynamic VRAM, the way of
newer engines on NVIDIA's and the newest AMD cards).

Such weights come and go while the network runs, and what backward needs is gone by then. The engine's own way out,
which it takes for prompts with hooks, is a second patcher: its weights are read from the file again and loaded whole,
and the patches, options and hooks of the first go with it. It lasts as long as somebody holds it: a run, or a guided
MODEL.
"""

from __future__ import annotations

import copy
from typing import Any

from .comfy import get

_WAY_OUT = (
    "ComfyUI streams this network's weights (dynamic VRAM), and gradients can't pass through streamed weights: load it "
    "with a node of ComfyUI's own, or start ComfyUI with --disable-dynamic-vram."
)
#: where a VAE and a CLIP keep their network
_STAGES = ("first_stage_model", "cond_stage_model")


def is_streamed(patcher) -> bool:
    """Whether the engine streams the weights of this patcher's model."""
    asked = getattr(patcher, "is_dynamic", None)
    return asked is not None and bool(asked())


def settled(given: Any) -> Any:
    """A MODEL, VAE, CLIP or CLIP_VISION that gradients can pass through: the same object, or, where its weights are
    streamed, one like it whose weights lie still. The given one stays as it is.

    ValueError for a model that its loader can't read again."""
    patcher = getattr(given, "patcher", given)
    if not is_streamed(patcher):
        return given
    if patcher is given:
        return _still(patcher)
    stage = next((name for name in _STAGES if hasattr(given, name)), None)
    if stage is None:
        return _still_vision(given)
    other = copy.copy(given)
    other.patcher = _still(patcher)
    setattr(other, stage, other.patcher.model)
    return other


def _still(patcher):
    try:
        return patcher.clone(disable_dynamic=True)
    except (RuntimeError, TypeError) as error:  # of a loader that can't be asked again
        raise ValueError(_WAY_OUT) from error


def _still_vision(vision):
    """The engine knows no loader of a CLIP_VISION: it is made anew of its own weights."""
    made = type(vision)(vision.config)
    made.model.load_state_dict({name: value.detach().cpu() for name, value in vision.model.state_dict().items()})
    whole = get("model_patcher").ModelPatcher
    made.patcher = whole(made.model, load_device=made.load_device, offload_device=vision.patcher.offload_device)
    return made
