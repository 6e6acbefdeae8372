"""Attention controllers inside ComfyUI's UNets: which layers there are, and the hook on a cloned MODEL.

One `Hook` per MODEL stands in the attention-replacement slot of every layer and serves all edits of this pack that were
attached to that MODEL. A slot that another pack's patch holds is refused. Where no controller asks anything the layer
runs the engine's own attention on the call as it came.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from torch import Tensor

from ..samplers.attention.layers import QKV, Ask, Controller, Layer, Moment, attend
from .comfy import get
from .rows import CALL, Call, PairEdit, WordEdit, check_joined, pair_jobs
from .words import words_of

_CONTEXT = "nulltext_context"


@dataclass(frozen=True)
class Place:
    """One transformer block of the UNet: its place among all of them, and how much smaller than the latent it works."""

    index: int
    scale: int


def unet_places(model) -> dict[tuple[str, int, int], Place]:
    """(block, number, depth) -> Place, in the order the network runs them.

    ValueError for a model without cross-attention layers of its own (SD3, Flux and other joint-attention models)."""
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
    if not found:
        raise ValueError(
            "Attention edits need a model whose image layers look at the words in cross-attention of their own "
            "(SD1, SD2, SDXL); joint-attention models such as SD3 and Flux are not supported yet."
        )
    return {key: Place(index, scale) for index, (key, scale) in enumerate(found)}


def layer_at(places: dict, key: tuple[str, int, int], cross: bool, heads: int, latent: tuple, moment: Moment) -> Layer:
    """The Layer a controller is asked about, for one transformer block at one latent size."""
    place, scales = places[key], tuple(sorted({p.scale for p in places.values()}))
    grid = tuple(ceil(side / place.scale) for side in latent)
    return Layer(*key, place.index, len(places), cross, heads, grid, tuple(latent), moment, scales)


def any_asks(controllers: Sequence[Controller], places: dict, latent: tuple[int, int], moment: Moment) -> bool:
    """Whether some layer would be asked for anything now."""
    layers = [layer_at(places, key, cross, 1, latent, moment) for key in places for cross in (True, False)]
    return any(c.asks(layer) is not Ask.NOTHING for c in controllers for layer in layers)


class Hook:
    """Stands in the replacement slot of all layers; holds no state but what its edits keep."""

    def __init__(self, edits: Sequence[PairEdit | WordEdit], places: dict[tuple[str, int, int], Place]):
        # replacing comes before re-weighting, as the paper wraps it
        self.edits = sorted(edits, key=lambda edit: isinstance(edit, WordEdit))
        self.places = places
        self._attention = get("ldm.modules.attention")
        self._told = "transformer_options" in inspect.signature(self._attention.CrossAttention.forward).parameters

    def __deepcopy__(self, memo):
        return self  # cloning a MODEL copies its options deeply; the edits must stay the ones that nodes hold

    def note_context(self, n, context, value, extra):
        """attn2 patch: the text embedding, for the replacement that follows in the same layer."""
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
        call: Call | None = extra.get(CALL)
        order = extra["cond_or_uncond"]
        moment = call.moment if call else Moment(float(extra["sigmas"].max()))
        layer = self._layer(qkv, extra, cross, moment)
        asking = [
            e for e in self.edits if isinstance(e, PairEdit) and call and e.controller.asks(layer) is not Ask.NOTHING
        ]
        jobs, source = pair_jobs([e.controller for e in asking], qkv, layer, call, order) if asking else ([], None)
        roles = [call.roles[i][0] if call else "negative" if i else "target" for i in order]
        for edit in (e for e in self.edits if isinstance(e, WordEdit) and cross):
            edit.begin(extra)
            if edit.controller.asks(layer) is not Ask.NOTHING and _CONTEXT in extra:
                jobs += [(edit.controller, rows) for rows in edit.rows(extra[_CONTEXT], roles)]
        return attend(qkv, layer, jobs, self._backend(extra), source)


def _hook_of(patch) -> Hook | None:
    owner = getattr(patch, "__self__", None)
    return owner if isinstance(owner, Hook) else None


def attach(model, edits: Sequence[PairEdit | WordEdit], kinds: Sequence[str] = ("attn2",)):
    """A clone of the MODEL with these edits on its attention (attn1: self, attn2: cross), beside those it already has.

    ValueError for joint-attention models, and when another patch owns one of the layers: named, with its owner."""
    places = unet_places(model)
    for edit in edits:
        check_joined(getattr(edit, "conditioning", []))
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
    patches["attn2_patch"] = [*noted, hook.note_context]
    return clone


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
