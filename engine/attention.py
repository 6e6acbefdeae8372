"""Attention controllers inside ComfyUI's networks: which layers there are, and the hook on a cloned MODEL.

One `Hook` per MODEL stands in the attention-replacement slot of every layer and serves all edits of this pack that were
attached to that MODEL. A slot that another pack's patch holds is refused. Where no controller asks anything the layer
runs the engine's own attention on the call as it came. joint_attention.py is the same for transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from ..samplers.attention.layers import QKV, Controller, Layer, Moment, Needs, attend
from .comfy import get
from .joint_attention import JOINT_FAMILIES, are_joint, attach_jointly, joint_places
from .rows import PairEdit, Place, Places, WordEdit, check_joined, in_order, jobs_for, layer_at, moment_of
from .words import KEY, shifted, words_of

_CONTEXT = "nulltext_context"
#: the engine's classes whose networks fill texts with zeros in front, up to so many tokens
_FILLED = {"Flux2": 512}


def unet_places(model) -> Places:
    """(block, number, depth) -> Place, in the order the network runs them; empty for what is no UNet with
    cross-attention layers."""
    unet = getattr(model.model, "diffusion_model", None)
    blocks = [(name, getattr(unet, f"{name}_blocks", None)) for name in ("input", "output")]
    found, scale = [], 1
    if all(b is not None for _, b in blocks) and hasattr(unet, "middle_block"):
        numbered = [("input", i, b) for i, b in enumerate(unet.input_blocks)] + [("middle", 0, unet.middle_block)]
        for name, number, block in numbered + [("output", i, b) for i, b in enumerate(unet.output_blocks)]:
            for module in block:
                kind = type(module).__name__
                if kind == "SpatialTransformer":
                    found += [((name, number, depth), scale) for depth in range(len(module.transformer_blocks))]
                elif kind == "Downsample":
                    scale *= 2
                elif kind == "Upsample":
                    scale //= 2
    return Places({key: Place(index, scale) for index, (key, scale) in enumerate(found)})


def attention_places(model) -> Places:
    """The layers that edits can reach. ValueError that names the families which work, for another network."""
    places = unet_places(model) or joint_places(model)
    if not places:
        raise ValueError(
            "Attention edits work on SD1, SD2 and SDXL and, on an engine that opens their attention, on "
            f"{JOINT_FAMILIES}; not on this model's network ({type(model.model.diffusion_model).__name__})."
        )
    return places


def any_asks(controllers: Sequence[Controller], places: Places, latent: tuple[int, int], moment: Moment) -> bool:
    """Whether some layer would be asked for anything now."""
    layers = [layer_at(places, key, cross, 1, latent, moment) for key in places for cross in (True, False)]
    return any(c.needs(layer) is not Needs.NOTHING for c in controllers for layer in layers)


class Hook:
    """Stands in the replacement slot of all layers; holds no state but what its edits keep."""

    def __init__(self, edits: Sequence[PairEdit | WordEdit], places: Places):
        self.edits, self.places = in_order(edits), places
        self._attention = get("ldm.modules.attention")
        self._told = "transformer_options" in inspect.signature(self._attention.CrossAttention.forward).parameters

    def __deepcopy__(self, memo):
        return self  # cloning a MODEL copies its options deeply; the edits must stay the ones that nodes hold

    def note_context(self, n, context, value, extra):
        """attn2 patch, in front of all others: the text embedding as the engine gives it, for the replacement that
        follows in the same layer."""
        extra[_CONTEXT] = context
        return n, context, value

    def self_attention(self, q, k, v, extra):
        return self._attend(QKV(q, k, v), extra, cross=False)

    def cross_attention(self, q, k, v, extra):
        return self._attend(QKV(q, k, v), extra, cross=True)

    def _layer(self, qkv: QKV, extra: dict, cross: bool, moment: Moment) -> Layer:
        block, number = extra["block"]
        latent, key = tuple(extra["original_shape"][2:]), (block, number, extra.get("block_index", 0))
        layer = layer_at(self.places, key, cross, extra["n_heads"], latent, moment)
        if layer.tokens != qkv.q.shape[1] or extra["original_shape"][0] != qkv.q.shape[0]:
            raise ValueError(
                f"The attention layer {block} {number} does not see the picture's {layer.grid[0]}x{layer.grid[1]} "
                "grid: a patch that cuts or merges tokens (HyperTile, ToMe) can't be combined with attention edits."
            )
        return layer

    def _backend(self, extra):
        options = {"attn_precision": extra.get("attn_precision")}
        if self._told:
            options["transformer_options"] = extra
        return lambda c: self._attention.optimized_attention(c.q, c.k, c.v, extra["n_heads"], **options)

    def _attend(self, qkv: QKV, extra: dict, cross: bool) -> Tensor:
        layer, context = self._layer(qkv, extra, cross, moment_of(extra)), extra.get(_CONTEXT)
        jobs, source = jobs_for(self.edits, qkv, (layer,), extra, context)
        if cross and jobs and qkv.k.shape[1] != context.shape[1]:
            raise ValueError(
                f"Another patch on this MODEL gives the cross-attention {qkv.k.shape[1]} tokens where the prompt has "
                f"{context.shape[1]}, so that attention edits can't tell the words apart: take one of the two out."
            )
        return attend(qkv, layer, jobs, self._backend(extra), source)


def _hook_of(patch) -> Hook | None:
    owner = getattr(patch, "__self__", None)
    return owner if isinstance(owner, Hook) else None


def attach(model, edits: Sequence[PairEdit | WordEdit], kinds: Sequence[str] = ("attn2",)):
    """A clone of the MODEL with these edits on its attention (attn1: self, attn2: cross; joint attention is both),
    beside those it already has.

    ValueError for a network that edits can't reach, and when another patch owns one of the layers: named, with its
    owner."""
    places = attention_places(model)
    for edit in edits:
        check_joined(getattr(edit, "conditioning", []))
    if are_joint(places):
        return attach_jointly(model, edits, places)
    clone = model.clone()
    replaced = clone.model_options["transformer_options"].get("patches_replace", {})
    earlier, held = None, set()
    for kind in ("attn1", "attn2"):
        for key, patch in replaced.get(kind, {}).items():
            if hook := _hook_of(patch):
                earlier = hook
                held.add(kind)
            elif kind in kinds and any(key in (place, place[:2]) for place in places):
                owner = patch if hasattr(patch, "__qualname__") else type(patch)
                which = "self" if kind == "attn1" else "cross"
                raise ValueError(
                    f"The {which}-attention of layer {key[0]} {key[1]} already belongs to another patch "
                    f"({getattr(owner, '__module__', '?')}.{owner.__qualname__}): take one of the two out."
                )
    hook = Hook([*(earlier.edits if earlier else []), *edits], places)
    for block, number in dict.fromkeys(place[:2] for place in places):
        if "attn1" in kinds or "attn1" in held:
            clone.set_model_attn1_replace(hook.self_attention, block, number)
        if "attn2" in kinds or "attn2" in held:
            clone.set_model_attn2_replace(hook.cross_attention, block, number)
    patches = clone.model_options["transformer_options"].setdefault("patches", {})
    noted = [p for p in patches.get("attn2_patch", []) if _hook_of(p) is None]
    patches["attn2_patch"] = [hook.note_context, *noted]
    return clone


def as_read(model, conditioning: list) -> list:
    """The CONDITIONING as the MODEL's network reads it: FLUX.2's fills a short text with zeros in front, and its words
    stand behind them. Elsewhere the same object."""
    least = _FILLED.get(type(model.model).__name__, 0)
    if all(embedding.shape[1] >= least for embedding, _ in conditioning):
        return conditioning
    found = []
    for embedding, extra in conditioning:
        missing = max(least - embedding.shape[1], 0)
        records = words_of([[embedding, extra]])
        moved = {KEY: [shifted(record, missing) for record in records]} if records else {}
        found.append([torch.nn.functional.pad(embedding, (0, 0, missing, 0)), {**extra, **moved}])
    return found


def prompts_of(conditioning: list, what: str = "This node") -> list[dict]:
    """The words of every prompt row of a CONDITIONING. ValueError naming the Prompt node for a plain one."""
    found = []
    for embedding, extra in conditioning:
        words = words_of([[embedding, extra]])
        if not words:
            raise ValueError(
                f"{what} speaks of words, and this conditioning does not carry them: encode the text with the node "
                '"Prompt (with words)" (NullText_Prompt) in place of CLIP Text Encode.'
            )
        found += [words[min(i, len(words) - 1)] for i in range(len(embedding))]
    return found
