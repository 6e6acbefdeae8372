"""How much memory a step with gradients will need, told before the first one, and room made for it.

The network is run once on PyTorch's meta device, where tensors have shapes and no content: nothing is computed and
nothing allocated, and what the backward pass would keep is counted by its size.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .comfy import get, network_of
from .gradients import _BLOCKS, attention_by

_log = logging.getLogger("nulltext")
_SLACK = 1.15  # what the allocator and the largest single layer need on top, as a factor on the activations


@dataclass
class Kept:
    """Bytes that the backward pass keeps: inside checkpointable blocks, one entry each, and outside of them; and of the
    blocks' inputs, all that checkpointing keeps of a block."""

    outside: int = 0
    blocks: list[int] = field(default_factory=list)
    inputs: int = 0

    def bytes(self, checkpoint: bool) -> int:
        if not checkpoint or not self.blocks:
            return self.outside + sum(self.blocks)
        return self.outside + self.inputs + max(self.blocks)  # one block at a time is computed again


@contextlib.contextmanager
def counted(network: nn.Module, weights: set[int]) -> Iterator[Kept]:
    """Counts what autograd saves while the network runs forward; `weights`: storages that are there anyway."""
    kept, seen, inside, hooks = Kept(), {}, [], contextlib.ExitStack()

    def pack(tensor: Tensor) -> None:  # nothing is handed back: a result saved by its own step would live for ever
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage  # held, so that no other gets its address
            if inside:
                kept.blocks[-1] += storage.nbytes()
            else:
                kept.outside += storage.nbytes()

    def enter(_, args):
        if not inside:
            kept.blocks.append(0)
            kept.inputs += sum(a.nbytes for a in args if isinstance(a, Tensor))
        inside.append(1)

    def leave(*_):
        inside.pop()

    with hooks, torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        for module in network.modules():
            if type(module).__name__ in _BLOCKS:
                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        yield kept


class _Attention(torch.autograd.Function):
    """Attention's memory and nothing of its numbers: fused attention keeps q, k, v and its output. (On the meta device
    PyTorch has only the form that keeps every weight.)"""

    @staticmethod
    def forward(ctx, q, k, v, shape):
        out = q.new_empty(shape)
        ctx.save_for_backward(q, k, v, out)
        return out


def _attention(q, k, v, heads, *_, skip_reshape=False, skip_output_reshape=False, **__) -> Tensor:
    if skip_reshape:
        b, h, n, d = q.shape
        return _Attention.apply(q, k, v, (b, h, n, d) if skip_output_reshape else (b, n, h * d))
    return _Attention.apply(q, k, v, q.shape)


def on_meta(network: nn.Module) -> tuple[dict[str, Tensor], set[int]]:
    """The network's parameters and buffers as meta tensors by name, and their storages."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    made = {name: torch.empty_like(t, device="meta", requires_grad=False) for name, t in tensors.items()}
    return made, {t.untyped_storage()._cdata for t in made.values()}


def kept_for(
    run,
    name: str,
    rows: int = 1,
    attached: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    of_text: bool = False,
) -> Kept | None:
    """What a call of `rows` rows with the condition `name` keeps for its backward pass. None where the network can't be
    run this way. For inside `run.gradients()`.

    attached(): what is trained, put into the network on the meta device; tensors that it yields are there anyway.
    of_text: the gradient goes to the text embedding."""
    network = network_of(run.model)
    parts = run.guider.conds[name][0]["model_conds"]
    try:
        values, weights = on_meta(network)
        extra = {}
        for key, part in parts.items():
            cond = getattr(part, "cond", None)
            if isinstance(cond, Tensor):
                shape = (rows, *cond.shape[1:])
                dtype = run.compute_dtype if cond.is_floating_point() else cond.dtype
                extra["context" if key == "c_crossattn" else key] = torch.empty(shape, dtype=dtype, device="meta")
        x = torch.empty((rows, *run.latent.shape[1:]), dtype=run.compute_dtype, device="meta")
        extra["context"] = extra["context"].requires_grad_(of_text)
        with attached() as there, attention_by(_attention):
            weights |= {t.untyped_storage()._cdata for t in there or ()}
            with counted(network, weights) as kept:
                time = torch.ones(rows, device="meta", dtype=torch.float32)
                torch.func.functional_call(network, values, (x, time), extra)
    except Exception as error:  # noqa: BLE001 (an estimate never stops a run)
        _log.info("the memory can't be told before the start: %s", error)
        return None
    return kept


def needed(run, kept: Kept | None, trained: int, checkpoint: bool) -> int | None:
    """Bytes on the device for a training step: weights, `trained` (what the loop holds for what it trains,
    `Loop.memory`), and what the backward pass keeps."""
    if kept is None:
        return None
    return int(sum(p.nbytes for p in run.model.parameters()) + trained + _SLACK * kept.bytes(checkpoint))


def make_room(run, kept: Kept | None, checkpoint: bool, besides: int = 0, others: Iterable = ()) -> bool:
    """Whether to compute blocks again in backward: as asked, or because their activations would not fit.

    The engine plans for a run without gradients; here it is asked to move models that this run does not use off the
    device (text encoders, for one). besides: bytes wanted beside the activations. others: patchers that stay."""
    if kept is None:
        return checkpoint
    management = get("model_management")
    used = {id(p.model) for p in (run.patcher, *getattr(run.guider, "loaded_models", ()), *others)}
    stay = [m for m in management.current_loaded_models if m.model is not None and id(m.model.model) in used]
    wanted = besides + int(_SLACK * kept.bytes(checkpoint))
    if management.get_free_memory(run.device) < wanted:
        management.free_memory(wanted, run.device, keep_loaded=stay)
    if checkpoint or management.get_free_memory(run.device) >= wanted or not kept.blocks:
        return checkpoint
    _log.warning(
        "The gradient's activations need %.1f GB and do not fit beside the model: checkpointing is on for this run.",
        wanted / 1e9,
    )
    return True


def on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def room_for(run, name: str, rows: int, checkpoint: bool = False) -> bool:
    """`make_room` for the gradient of a call of `rows` rows with the condition `name`; whether to checkpoint."""
    if on_cpu(run.device):  # main memory is not what the engine plans for, and the first look takes seconds
        return checkpoint
    with run.gradients():
        kept = kept_for(run, name, rows, of_text=True)
    return make_room(run, kept, checkpoint)
