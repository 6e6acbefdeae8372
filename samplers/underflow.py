"""Gradients through an fp16 network at a size that fp16 can hold (loss scaling of 1710.03740, per call)."""

from __future__ import annotations

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


def keep_from_underflow(net):
    """The same net(*tensors) -> D, whose gradients pass its fp16 inside at a size that fp16 can hold.

    A loss's gradient at D is often below 1e-7, where fp16 ends: it is brought to 1 on the way in and back on the way
    out, for every input that asks for a gradient. One backward at a time."""

    def call(*inputs):
        scale = torch.ones(())

        def enlarge(gradient):
            nonlocal scale
            largest = gradient.abs().max()
            scale = torch.where(largest > 0, 1 / largest, torch.ones_like(largest))
            return scale

        wrapped = [
            _Scaled.apply(t, lambda _: 1 / scale) if isinstance(t, Tensor) and t.requires_grad else t for t in inputs
        ]
        return _Scaled.apply(net(*wrapped), enlarge)

    return call
