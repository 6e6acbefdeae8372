"""Gradients through an fp16 network at a size that fp16 can hold (loss scaling of 1710.03740, per call)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


class _Scaled(torch.autograd.Function):
    """Identity forward; backward multiplies by what `factor(gradient)` says."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor(gradient), None


def _brought_back(inputs, factor: Callable[[], Tensor]) -> list:
    """The inputs; what asks for a gradient gets it times factor()."""
    return [_Scaled.apply(t, lambda _: factor()) if isinstance(t, Tensor) and t.requires_grad else t for t in inputs]


def _to_one(gradient: Tensor) -> Tensor:
    """The factor that brings its largest number to 1; 1 where it is 0 throughout."""
    largest = gradient.abs().max()
    return torch.where(largest > 0, 1 / largest, torch.ones_like(largest))


def keep_from_underflow(net):
    """The same net(*tensors) -> D, whose gradients pass its fp16 inside at a size that fp16 can hold.

    A loss's gradient at D is often below 1e-7, where fp16 ends: it is brought to 1 on the way in and back on the way
    out, for every input that asks for a gradient. One backward at a time."""

    def call(*inputs):
        scale = torch.ones(())

        def enlarge(gradient):
            nonlocal scale
            scale = _to_one(gradient)
            return scale

        return _Scaled.apply(net(*_brought_back(inputs, lambda: 1 / scale)), enlarge)

    return call


@contextlib.contextmanager
def keep_trained_from_underflow(parameters: Iterable[Tensor]) -> Iterator[Callable]:
    """wrap(net): a net whose gradients to those leaf tensors, which it uses inside, pass fp16 at a size it can hold.

    What reaches the last call's D is brought to 1, what reaches those before it in a chain is multiplied by the same
    number, and each tensor's whole gradient is brought back. All forward calls come before their one backward."""
    scale: Tensor | None = None

    def enlarge(gradient):
        nonlocal scale
        scale = _to_one(gradient) if scale is None else scale
        return scale

    def wrap(net):
        def call(*inputs):
            nonlocal scale
            scale = None
            each = _brought_back(inputs, lambda: 1 / scale)
            return _Scaled.apply(net(*each), enlarge)

        return call

    with contextlib.ExitStack() as undo:
        for p in parameters:
            undo.callback(p.register_hook(lambda g: g if scale is None else g / scale.to(g.device)).remove)
        yield wrap
