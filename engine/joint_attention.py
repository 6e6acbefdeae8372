"""Attention controllers inside ComfyUI's transformers whose attention is joint (`JOINT_FAMILIES`).

The engine lets a patch stand around every block, and lets the call's own transformer options name a function that
stands in for the attention. The patch gives the block a copy of the options with that function in it: nothing is
changed outside of the block, and nothing is left to undo after an error. Lumina's networks, Z-Image among them, take
no patch; there the whole call's options have the function, and say at which block it is. Which conditioning a call
carries is noted around the network. Engines of before 2025 have neither: there the edits are refused.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..samplers.attention.joint import attend_jointly
from ..samplers.attention.layers import QKV, Layer, Moment, Needs, attend
from .comfy import get
from .rows import CALL, PairEdit, Place, Places, WordEdit, in_order, jobs_for, layer_at, moment_of

JOINT_FAMILIES = "SD3, Flux, FLUX.2, Chroma, Qwen-Image, Lumina 2 and Z-Image"

_CONTEXT, _SEEN, _KEY, _OVERRIDE = "nulltext_context", "nulltext_seen", "nulltext", "optimized_attention_override"
#: the network's class -> its lists of blocks, with our word for them; text stands before the picture in all
_BLOCKS = {
    "OpenAISignatureMMDITWrapper": {"joint_blocks": "double"},
    "Flux": {"double_blocks": "double", "single_blocks": "single"},
    "Chroma": {"double_blocks": "double", "single_blocks": "single"},
    "QwenImageTransformer2DModel": {"transformer_blocks": "double"},
    "NextDiT": {"layers": "single"},
}
#: those that no patch can stand around: the whole network is given the stand-in, which is told each block's number
_WITHOUT_PATCHES = ("NextDiT",)


def joint_places(model) -> Places:
    """("double" or "single", number, 0) -> Place; empty for a network that is not one of these.

    ValueError where the network is, and the engine does not open its attention."""
    network = getattr(model.model, "diffusion_model", None)
    lists = _BLOCKS.get(type(network).__name__, {})
    found = [(name, i, block) for of, name in lists.items() for i, block in enumerate(getattr(network, of))]
    if found and not (_opens(found[0][2]) and _tells_its_blocks(network)):
        raise ValueError(
            f"This ComfyUI keeps the attention of {JOINT_FAMILIES} closed: update it for attention edits on them; here "
            "they work on SD1, SD2 and SDXL."
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


def _tells_its_blocks(network) -> bool:
    """Whether a network without patches says in the call's options at which block it is; others need not."""
    if type(network).__name__ not in _WITHOUT_PATCHES:
        return True
    runs = [getattr(type(network), name, None) for name in ("forward", "_forward")]
    return any("block_index" in f.__code__.co_consts for f in runs if f is not None)


class JointHook:
    """Serves all edits on one MODEL; holds no state but what its edits keep."""

    def __init__(self, edits: Sequence[PairEdit | WordEdit], places: Places, multiple: int = 0):
        """multiple: of a network without patches, which fills texts and pictures up to a multiple of so many tokens."""
        self.edits, self.places, self.multiple = in_order(edits), places, multiple

    def __deepcopy__(self, memo):
        return self  # cloning a MODEL copies its options deeply; the edits must stay the ones that nodes hold

    def note_call(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more
    ):
        """Around the network: the text embedding and the picture's shape, for the attention inside."""
        options = {**(transformer_options or {}), _CONTEXT: c_crossattn, _SEEN: {"shape": tuple(x.shape)}}
        if self.multiple:
            options[_SEEN]["text"] = c_crossattn.shape[1]
            options[_OVERRIDE] = self.stand_in(options.get(_OVERRIDE), _numbered)
        return executor(x, t, c_concat, c_crossattn, control, options, **more)

    def stand_in(self, before, told):
        """What stands in for the attention; before: what stood there. told(keywords of the call) -> (place, the call's
        options), or None where the call is no block's."""

        def call(attention, q, k, v, heads, mask=None, **more):
            def plain(*tensors, **how):
                return before(attention, *tensors, **how) if before else attention(*tensors, **how)

            found = told(more)
            if found is None:
                return plain(q, k, v, heads, mask=mask, **more)
            return self.attention(*found, plain, q, k, v, heads, mask, **more)

        return call

    def attention(self, place: tuple[str, int], options: dict, plain, q, k, v, heads, mask=None, **more) -> Tensor:
        """One attention call of a block; plain: what would run without us."""
        seen = options[_SEEN]
        split = more.get("skip_reshape", False)  # [rows, heads, tokens, dim], else [rows, tokens, heads*dim]
        tokens, text = q.shape[2 if split else 1], seen["text"]
        layers = self._layers(place, heads, seen["shape"], tokens, text, options)
        if all(e.controller.needs(layer) is Needs.NOTHING for e in self.edits for layer in layers):
            self._begin(layers[0].moment, options)
            return plain(q, k, v, heads, mask=mask, **more)
        # SD3 gives q and k flat and v with its heads apart
        qkv = QKV(*((t.transpose(1, 2) if split else t).flatten(2) for t in (q, k, v)))
        order = self._order(text, layers[0].tokens, tokens)
        qkv = qkv if order is None else QKV(*(t[:, order] for t in qkv))
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
        if order is not None:
            out = out[:, order.argsort()]
        if more.get("skip_output_reshape"):
            out = out.unflatten(2, (heads, -1)).transpose(1, 2)
        return out

    def _begin(self, moment: Moment, options: dict) -> None:
        for edit in self.edits:
            if isinstance(edit, WordEdit):
                edit.begin(moment, options)

    def _order(self, text: int, picture: int, tokens: int) -> Tensor | None:
        """The order of the tokens that edits are made in: words, picture, then what fills both up; None where they
        stand so. ValueError where something else stands among them."""
        if not self.multiple:
            return None
        filled, whole = (-(-n // self.multiple) * self.multiple for n in (text, picture))
        if tokens != filled + whole:
            raise ValueError(
                f"The attention sees {tokens} tokens, and the prompt and the picture have {filled} and {whole}: "
                "attention edits on this model need a picture alone, without a reference beside it."
            )
        parts = [torch.arange(text), torch.arange(filled, tokens), torch.arange(text, filled)]
        return None if filled == text else torch.cat(parts)

    def _layers(self, place, heads, shape, tokens, text, options) -> tuple[Layer, ...]:
        """The call as controllers of cross- and of self-attention are asked about it; a block's second attention, where
        the picture looks at itself alone (SD3.5 medium), is of the latter kind only."""
        key = (*place, 0)
        cross, own = (layer_at(self.places, key, kind, heads, shape[-2:], moment_of(options)) for kind in (True, False))
        if tokens == own.tokens:
            return (replace(own, depth=1),)
        if tokens < text + own.tokens or (len(shape) == 5 and shape[2] != 1):
            raise ValueError(
                f"The attention of block {place[0]} {place[1]} does not see the picture's {own.grid[0]}x{own.grid[1]} "
                "grid: attention edits need a picture, not a video, and no patch that cuts or merges tokens."
            )
        # what fills a text up stands behind the picture, so that the lengths do not tell the source's
        source = options[CALL].lengths[0] if self.multiple and CALL in options else 0
        return replace(cross, text=text, source_text=source), replace(own, text=text, source_text=source)


def _numbered(more: dict) -> tuple[tuple[str, int], dict] | None:
    """The block that the network says it is at, of a network without patches; None in what runs before its blocks."""
    options = more.get("transformer_options") or {}
    number = options.get("block_index")
    return None if number is None or _SEEN not in options else (("single", number), options)


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
        stand_in = self.hook.stand_in(options.get(_OVERRIDE), lambda _: (self.place, options))
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
    network, kinds = model.model.diffusion_model, get("patcher_extension").WrappersMP
    multiple = (getattr(network, "pad_tokens_multiple", None) or 1) * (type(network).__name__ in _WITHOUT_PATCHES)
    names = {} if multiple else {(f"{name}_block", i): (name, i) for name, i, _ in places}
    wrappers = clone.model_options["transformer_options"].setdefault("wrappers", {}).setdefault(kinds.APPLY_MODEL, {})
    earlier = [edit for noted in wrappers.get(_KEY, []) for edit in noted.__self__.edits]
    for slot, patch in replaced.items():
        if slot in names and not isinstance(patch, BlockPatch):
            owner = patch if hasattr(patch, "__qualname__") else type(patch)
            raise ValueError(
                f"Block {slot[0]} {slot[1]} already belongs to another patch "
                f"({getattr(owner, '__module__', '?')}.{owner.__qualname__}): take one of the two out."
            )
    hook = JointHook([*earlier, *edits], places, multiple)
    for (name, number), place in names.items():
        clone.set_model_patch_replace(BlockPatch(hook, place), "dit", name, number)
    wrappers[_KEY] = [hook.note_call]
    return clone
