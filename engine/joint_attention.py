"""Attention controllers inside ComfyUI's transformers (SD3, Flux, Chroma, Qwen-Image), whose attention is joint.

The engine lets a patch stand around every block, and lets the call's own transformer options name a function that
stands in for the attention. The patch gives the block a copy of the options with that function in it: nothing is
changed outside of the block, and nothing is left to undo after an error. Which conditioning a call carries is noted
around the network. Engines of before 2025 have neither: there the edits are refused.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..samplers.attention.joint import attend_jointly
from ..samplers.attention.layers import QKV, Ask, Layer, Moment, attend
from .comfy import get
from .rows import PairEdit, Place, Places, WordEdit, in_order, jobs_for, layer_at, moment_of

_CONTEXT, _SEEN, _KEY, _OVERRIDE = "nulltext_context", "nulltext_seen", "nulltext", "optimized_attention_override"
#: the network's class -> its lists of blocks, with our word for them; text stands before the picture in all
_BLOCKS = {
    "OpenAISignatureMMDITWrapper": {"joint_blocks": "double"},
    "Flux": {"double_blocks": "double", "single_blocks": "single"},
    "Chroma": {"double_blocks": "double", "single_blocks": "single"},
    "QwenImageTransformer2DModel": {"transformer_blocks": "double"},
}


def joint_places(model) -> Places:
    """("double" or "single", number, 0) -> Place; empty for a network that is not one of these.

    ValueError where the network is, and the engine does not open its attention."""
    network = getattr(model.model, "diffusion_model", None)
    lists = _BLOCKS.get(type(network).__name__, {})
    found = [(name, i, block) for of, name in lists.items() for i, block in enumerate(getattr(network, of))]
    if found and not _opens(found[0][2]):
        raise ValueError(
            "This ComfyUI keeps the attention of SD3, Flux, Chroma and Qwen-Image closed: update it for attention "
            "edits on them; here they work on SD1, SD2 and SDXL."
        )
    return Places({(name, i, 0): Place(index, network.patch_size) for index, (name, i, _) in enumerate(found)})


def are_joint(places: Places) -> bool:
    """Whether these places are a transformer's blocks and not a UNet's layers."""
    return any(name in ("double", "single") for name, _, _ in places)


def _opens(block) -> bool:
    """Whether the engine's attention asks the call's options for a stand-in, and this block hands them on."""
    inner = getattr(importlib.import_module(type(block).__module__), "_block_mixing", None)
    told = [inspect.signature(f).parameters for f in (type(block).forward, inner) if f is not None]
    hands_on = any("transformer_options" in parameters for parameters in told)
    return hands_on and hasattr(get("ldm.modules.attention"), "wrap_attn")


class JointHook:
    """Serves all edits on one MODEL; holds no state but what its edits keep."""

    def __init__(self, edits: Sequence[PairEdit | WordEdit], places: Places):
        self.edits, self.places = in_order(edits), places

    def __deepcopy__(self, memo):
        return self  # cloning a MODEL copies its options deeply; the edits must stay the ones that nodes hold

    def note_call(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more
    ):
        """Around the network: the text embedding and the picture's shape, for the attention inside."""
        options = {**(transformer_options or {}), _CONTEXT: c_crossattn, _SEEN: {"shape": tuple(x.shape)}}
        return executor(x, t, c_concat, c_crossattn, control, options, **more)

    def attention(self, place: tuple[str, int], options: dict, plain, q, k, v, heads, mask=None, **more) -> Tensor:
        """One attention call of a block; plain: what would run without us."""
        seen = options[_SEEN]
        split = more.get("skip_reshape", False)  # [rows, heads, tokens, dim], else [rows, tokens, heads*dim]
        tokens, text = q.shape[2 if split else 1], seen["text"]
        layers = self._layers(place, heads, seen["shape"], tokens, text, moment_of(options))
        if all(e.controller.asks(layer) is Ask.NOTHING for e in self.edits for layer in layers):
            self._begin(layers[0].moment, options)
            return plain(q, k, v, heads, mask=mask, **more)
        # SD3 gives q and k flat and v with its heads apart
        qkv = QKV(*((t.transpose(1, 2) if split else t).flatten(2) for t in (q, k, v)))
        jobs, source = jobs_for(self.edits, qkv, layers, options, options[_CONTEXT])
        if not jobs:
            return plain(q, k, v, heads, mask=mask, **more)
        if mask is not None:
            raise ValueError(
                "A patch on this model gives its attention a mask (a reference picture with a strength, for one), "
                "which attention edits can't be combined with: take one of the two out."
            )
        flat = {name: value for name, value in more.items() if name not in ("skip_reshape", "skip_output_reshape")}

        def backend(c: QKV) -> Tensor:
            return plain(c.q, c.k, c.v, heads, **flat)

        if len(layers) == 1:
            out = attend(qkv, layers[0], jobs, backend, source)
        else:
            # all keys are read: the picture's stand behind the words
            jobs = [(c, replace(rows, length=0, source_length=0)) for c, rows in jobs]
            out = attend_jointly(qkv, *layers, jobs, backend, source)
        if more.get("skip_output_reshape"):
            out = out.unflatten(2, (heads, -1)).transpose(1, 2)
        return out

    def _begin(self, moment: Moment, options: dict) -> None:
        for edit in self.edits:
            if isinstance(edit, WordEdit):
                edit.begin(moment, options)

    def _layers(self, place, heads, shape, tokens, text, moment) -> tuple[Layer, ...]:
        """The call as controllers of cross- and of self-attention are asked about it; a block's second attention, where
        the picture looks at itself alone (SD3.5 medium), is of the latter kind only."""
        key = (*place, 0)
        cross, own = (layer_at(self.places, key, kind, heads, shape[-2:], moment) for kind in (True, False))
        if tokens == own.tokens:
            return (replace(own, depth=1),)
        if tokens < text + own.tokens or (len(shape) == 5 and shape[2] != 1):
            raise ValueError(
                f"The attention of block {place[0]} {place[1]} does not see the picture's {own.grid[0]}x{own.grid[1]} "
                "grid: attention edits need a picture, not a video, and no patch that cuts or merges tokens."
            )
        return replace(cross, text=text), replace(own, text=text)


class BlockPatch:
    """Stands around one block."""

    def __init__(self, hook: JointHook, place: tuple[str, int]):
        self.hook, self.place = hook, place

    def __deepcopy__(self, memo):
        return self

    def __call__(self, args: dict, extra: dict):
        options = args["transformer_options"]
        if _SEEN not in options:  # not asked by way of the MODEL: nobody knows whose rows these are
            return extra["original_block"](args)
        if "txt" in args:
            options[_SEEN]["text"] = args["txt"].shape[1]
        before = options.get(_OVERRIDE)

        def stand_in(attention, q, k, v, heads, mask=None, **more):
            def plain(*tensors, **how):
                return before(attention, *tensors, **how) if before else attention(*tensors, **how)

            return self.hook.attention(self.place, options, plain, q, k, v, heads, mask, **more)

        inside = {**options, _OVERRIDE: stand_in}
        return extra["original_block"]({**args, "transformer_options": inside})


def attach_jointly(model, edits: Sequence[PairEdit | WordEdit], places: Places):
    """A clone of the MODEL with these edits, beside those it already has. ValueError when another patch owns a block,
    or an edit reads maps of layers that this network does not have."""
    for edit in edits:
        chosen = getattr(edit.controller, "layers", None)
        if chosen is not None and not any(chosen.names_block(*place) for place in places):
            raise ValueError(
                f'A transformer has no layers "{", ".join(chosen.names)}": use auto or all, or blocks such as '
                + " and ".join(f"{name}.{i}" for name, i, _ in (list(places)[0], list(places)[-1]))
                + "."
            )
    clone = model.clone()
    replaced = clone.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
    names = {(f"{name}_block", i): (name, i) for name, i, _ in places}
    earlier = None
    for slot, patch in replaced.items():
        if isinstance(patch, BlockPatch):
            earlier = patch.hook
        elif slot in names:
            owner = patch if hasattr(patch, "__qualname__") else type(patch)
            raise ValueError(
                f"Block {slot[0]} {slot[1]} already belongs to another patch "
                f"({getattr(owner, '__module__', '?')}.{owner.__qualname__}): take one of the two out."
            )
    hook = JointHook([*(earlier.edits if earlier else []), *edits], places)
    for (name, number), place in names.items():
        clone.set_model_patch_replace(BlockPatch(hook, place), "dit", name, number)
    kinds = get("patcher_extension")
    wrappers = clone.model_options["transformer_options"].setdefault("wrappers", {})
    wrappers.setdefault(kinds.WrappersMP.APPLY_MODEL, {})[_KEY] = [hook.note_call]
    return clone
