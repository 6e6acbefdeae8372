"""Gradients through ComfyUI's networks, whose weights are made in inference mode and can't be saved for backward.

Inside `grad_mode` every parameter and buffer is an ordinary tensor on the same storage (no copy, no extra memory),
frozen, so that gradients flow to what the caller asks for and never to the weights. Afterwards, on errors and
interrupts too, the very same parameter objects are back: nothing about the model has changed.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_checkpointed

from .comfy import each_module, get, load_models, with_patch
from .interrupts import heard

# Blocks whose activations are recomputed instead of kept when `checkpoint` is asked for: of UNets, SD3, Flux and
# HunyuanVideo, AuraFlow, Lumina 2, Wan, Qwen-Image, PixArt, HunyuanDiT, HiDream.
_BLOCKS = ("ResBlock", "BasicTransformerBlock", "JointBlock", "DoubleStreamBlock", "SingleStreamBlock")
_BLOCKS += ("MMDiTBlock", "DiTBlock", "JointTransformerBlock", "WanAttentionBlock", "QwenImageTransformerBlock")
_BLOCKS += ("PixArtMSBlock", "HunYuanDiTBlock", "HiDreamImageBlock")
_ATTENTION = ("optimized_attention", "optimized_attention_masked")  # ComfyUI's, by its names


def normal(value):
    """An ordinary copy of tensors made in inference mode, through lists, dicts and ComfyUI's condition objects.

    Other objects (control nets, hooks) are passed on as they are."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {k: normal(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(normal(v) for v in value) if type(value) in (list, tuple) else value
    if isinstance(getattr(value, "cond", None), Tensor | list):
        out = copy.copy(value)
        out.cond = normal(value.cond)
        return out
    return value


def normal_options(options: dict) -> dict:
    """model_options in ordinary tensors. The run's schedule stays the object that it is: by it hooks tell runs apart
    (clock.py), and nothing is multiplied by it."""
    out, told = normal(options), options.get("transformer_options", {})
    if "sample_sigmas" in told:
        out["transformer_options"]["sample_sigmas"] = told["sample_sigmas"]
    return out


def bring(device, patchers=(), modules=()) -> None:
    """Make networks ready: patchers by the engine's loader, each on its own device and none of their weights moved by
    hand (part of them may stay in main memory); small networks of this pack, among `modules`, onto `device`, their
    weights ordinary frozen tensors. Before `grad_mode`, which hands back the weights that it found."""
    device, each = torch.device(device), {id(p): p for p in patchers}.values()
    away = [p for p in each if not any(_lies_on(w, p.load_device) for w in p.model.parameters())]
    if away:
        load_models(away)
    of_engine = {id(module) for p in each for module in p.model.modules()}
    for module in modules:
        if id(module) not in of_engine and not any(_lies_on(p, device) for p in module.parameters()):
            with torch.inference_mode(False):
                module.to(device)


def _lies_on(weight: Tensor, device) -> bool:
    device = torch.device(device)
    return weight.device.type == device.type and device.index in (None, weight.device.index)


@contextlib.contextmanager
def short_of_memory(advice: str) -> Iterator[None]:
    """ValueError "Not enough GPU memory for ..." in place of torch's own error."""
    try:
        yield
    except RuntimeError as error:  # CUDA's has a class of its own, others only say it
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error):
            raise ValueError(f"Not enough GPU memory for {advice}") from None
        raise


def control_networks(conds: Iterable[list[dict] | None]) -> list[nn.Module]:
    """The networks of the control nets that processed conditions carry; a Control-LoRA's is made for the run."""
    found = []
    for control in (c.get("control") for each in conds for c in each or ()):
        while control is not None:
            found.append(getattr(control, "control_model", None))
            control = getattr(control, "previous_controlnet", None)
    return [m for m in found if isinstance(m, nn.Module)]


def for_gradients(options: dict, conds: Iterable[list[dict] | None]) -> dict:
    """model_options for gradients with these processed conditions. Another pack's attention, which may have no
    backward, is left out. What control nets and patches of a UNet's output blocks (FreeU V2) write into is copied
    first, for backward may need it."""
    transformer = dict(options.get("transformer_options", {}))
    transformer.pop("optimized_attention_override", None)
    patches = dict(transformer.get("patches", {}))
    if "output_block_patch" in patches:
        patches["output_block_patch"] = [_free_to_write(patch) for patch in patches["output_block_patch"]]
        transformer["patches"] = patches
    options = {**options, "transformer_options": transformer}
    if any("control" in c for each in conds for c in each or ()):  # it writes into the skip connections
        options = with_patch(options, "input_block_patch_after_skip", lambda h, _: h.clone())
    return options


def _free_to_write(patch: Callable) -> Callable:
    """The output block patch on copies, with copies of what it keeps for backward. (torch's own
    `allow_mutation_on_saved_tensors` now and then gives back another tensor: it tells them apart by address.)"""

    def call(h, skip, options):
        if not torch.is_grad_enabled():
            return patch(h, skip, options)
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept.detach().clone(), lambda kept: kept):
            return patch(h.clone(), skip.clone(), options)

    return call


def attention_notice() -> str | None:
    """What the user is told where ComfyUI runs another attention than PyTorch's, which stands in for gradients."""
    module = get("ldm.modules.attention")
    if module.optimized_attention is module.attention_pytorch:
        return None
    name = getattr(module.optimized_attention, "__name__", "the attention in use")
    return f"While gradients are computed, PyTorch's own attention takes the place of {name}."


def check_differentiable(*modules: nn.Module) -> None:
    """ValueError if weights are stored in a form that has no backward (GGUF, int8, 4-bit), or come and go while the
    network runs (newer engines' dynamic VRAM), so that those which backward needs are gone by then: of networks that
    `settled` was not asked for, or has no way for, as a ControlNet's."""
    if any("_v" in vars(child) for child in each_module(*modules)):
        raise ValueError(
            "ComfyUI streams this network's weights (dynamic VRAM), and gradients can't pass through streamed "
            "weights: start ComfyUI with --disable-dynamic-vram."
        )
    check_not_quantised(*modules)


def check_not_quantised(*modules: nn.Module) -> None:
    """ValueError if weights are stored in a form that has no backward (GGUF, int8, 4-bit)."""
    inside = each_module(*modules)
    for p in (p for child in inside for p in child._parameters.values() if p is not None):
        if not p.is_floating_point() or type(p.data) is not Tensor and not isinstance(p, nn.Parameter):
            name = next(name for module in modules for name, own in module.named_parameters() if own is p)
            raise ValueError(
                f"The weights are quantised ({name} is {str(p.dtype).removeprefix('torch.')}), and gradients can't "
                "pass through them: load the model in fp16, bf16 or fp32."
            )


def _alias(t: Tensor) -> Tensor:
    if not t.is_inference():
        return t.detach()
    out = torch.empty(0, dtype=t.dtype, device=t.device)
    return out.set_(t.untyped_storage(), t.storage_offset(), t.size(), t.stride())


@contextlib.contextmanager
def _aliased(modules: Iterable[nn.Module]) -> Iterator[None]:
    """For the duration these modules' own parameters and inference buffers are aliases; tied weights stay tied."""
    changed, made = [], {}
    try:
        for module in modules:
            for name, p in module._parameters.items():
                if p is not None:
                    if id(p) not in made:
                        made[id(p)] = nn.Parameter(_alias(p), requires_grad=False)
                    changed.append((module._parameters, name, made[id(p)], p))
                    module._parameters[name] = made[id(p)]
            for name, b in module._buffers.items():
                if b is not None and b.is_inference():
                    changed.append((module._buffers, name, _alias(b), b))
                    module._buffers[name] = changed[-1][2]
        yield
    finally:
        for table, name, ours, original in changed:
            if table.get(name) is ours:  # else a weight hook has replaced it since: left alone
                table[name] = original


def _cloned_first(_module, args):
    return (args[0].clone(), *args[1:])


def _own(value):
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


def _checkpointed(forward):
    def call(*args, **kwargs):  # some networks call their blocks by keyword alone (Flux, HunyuanVideo)
        def inner(*args, **kwargs):  # the clones lie inside: blocks write into their inputs
            return forward(*map(_own, args), **{name: _own(value) for name, value in kwargs.items()})

        return run_checkpointed(inner, *args, use_reentrant=False, **kwargs)

    return call


@contextlib.contextmanager
def _set(module, **wanted) -> Iterator[None]:
    """Those of the attributes that the module has, at these values for the duration."""
    before = {name: getattr(module, name) for name in wanted if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, wanted[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextlib.contextmanager
def attention_by(function: Callable) -> Iterator[None]:
    """`function` in the place of ComfyUI's attention for the duration, also in the files of networks that hold it under
    its name (most transformers)."""
    own = get("ldm.modules.attention")
    theirs, ldm = [own.__dict__[name] for name in _ATTENTION], own.__name__.split("modules.")[0]
    n = len(ldm)  # a step of guidance comes here, and passes some thousand names
    with contextlib.ExitStack() as undo:
        for module in [m for name, m in sys.modules.copy().items() if name[:n] == ldm and m is not None]:
            held = module.__dict__
            names = [n for n in _ATTENTION if n in held and held[n] in theirs]
            if names:
                undo.enter_context(_set(module, **dict.fromkeys(names, function)))
        yield


def _pytorch_attention() -> contextlib.AbstractContextManager:
    """PyTorch's own attention for the duration: some backends have no backward (sage, flash), and the split ones that
    CPUs get are slower both ways."""
    return attention_by(get("ldm.modules.attention").attention_pytorch)


def _engine_in_training() -> contextlib.AbstractContextManager:
    """A newer engine told that gradients are computed: else some of its kernels have no backward (rotary embeddings),
    and weights in main memory come through a buffer that the next layer overwrites before backward reads it."""
    return _set(get("model_management"), in_training=True, NUM_STREAMS=0)


@contextlib.contextmanager
def grad_mode(*modules: nn.Module, checkpoint: bool = False) -> Iterator[None]:
    """Leave inference mode with these modules (UNet, control net, decoder, text encoder) ready for backward.

    Enter it after the models are loaded: loading makes inference tensors again. Tensors from outside that meet a
    gradient must pass `normal`. checkpoint: recompute blocks in backward (less memory, up to two fifths more time).
    Raises ValueError for quantised weights and for streamed ones."""
    check_differentiable(*modules)
    with contextlib.ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(_engine_in_training())
        undo.enter_context(_pytorch_attention())
        undo.enter_context(heard(*modules))
        inside = each_module(*modules)
        undo.enter_context(_aliased(inside))
        for child in inside:
            if isinstance(child, nn.LayerNorm):  # its input is saved for backward and then written to by `x += n`
                undo.callback(child.register_forward_pre_hook(_cloned_first).remove)
            if checkpoint and type(child).__name__ in _BLOCKS and "forward" not in child.__dict__:
                undo.callback(child.__dict__.pop, "forward", None)
                child.forward = _checkpointed(child.forward)
        yield
