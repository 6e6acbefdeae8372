"""An interrupt is heard inside a network, too: before each of its blocks, and on the way back through it.

Loops look once a network call; at large sizes, and in the backward pass of a whole run, one call is long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from .comfy import check_interrupt, each_module


def _before(_module, _inputs) -> None:
    check_interrupt()


def _after(_module, _inputs, output) -> None:
    first = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(first, Tensor) and first.requires_grad:
        first.register_hook(lambda _: check_interrupt())


@contextlib.contextmanager
def heard(*modules: nn.Module) -> Iterator[None]:
    """While it lasts, the engine's own exception is raised inside these networks, forward and backward, soon after the
    user asks to stop. A block is an entry of a list of modules. No hook stays."""
    blocks = {id(b): b for each in each_module(*modules) if isinstance(each, nn.ModuleList) for b in each}
    with contextlib.ExitStack() as undo:
        for block in blocks.values():
            undo.callback(block.register_forward_pre_hook(_before).remove)
            undo.callback(block.register_forward_hook(_after).remove)
        yield
