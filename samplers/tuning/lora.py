"""LoRA: low-rank adaptation (Hu et al. 2106.09685), a trained change of a layer that leaves its weight alone.

    W x  ->  W x + strength * (alpha/r) * up (down x),      down [r, in], up [out, r]

A convolution's down has the layer's own kernel, stride, padding and dilation and r output channels, up is 1 x 1
(LoCon). up begins at 0, so training begins at the bare model. Departure: both factors are kept apart from the layer and
their product is added to its OUTPUT; the sum equals W + (alpha/r) up down but for rounding. Biases are not trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: how the down factor begins: diffusers' (peft "gaussian"), normal of std 1/r; kohya's, uniform within 1/sqrt(in)
INITS = ("diffusers", "kohya")
_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def _convolution(layer: nn.Module):
    return next((f for kind, f in _CONVOLUTIONS.items() if isinstance(layer, kind)), None)


def adaptable(layer: nn.Module) -> bool:
    """Whether a low-rank change of this layer is defined: a Linear, or an ungrouped convolution padded with zeros."""
    if _convolution(layer) is not None:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def geometry(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """The numbers of a convolution that `LowRank` holds; none of a Linear."""
    if _convolution(layer) is None:
        return {}
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}


def largest_rank(layer: nn.Module) -> int:
    """min(in, out) of the layer's weight seen as a matrix [out, in * kernel]: no change has a higher rank."""
    out, *inside = layer.weight.shape
    return min(out, math.prod(inside))


class _Recast(torch.autograd.Function):
    """function(x in the weight's dtype, weight). Backward keeps x as it came, which several layers share, and casts it
    again; the numbers are those of autograd."""

    @staticmethod
    def forward(ctx, x, weight, function):
        ctx.save_for_backward(x, weight)
        ctx.function = function
        return function(x.to(weight.dtype), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        asked = ctx.needs_input_grad[:2]
        if ctx.function is F.linear:
            x, weight = ctx.saved_tensors
            by_x = (gradient @ weight).to(x.dtype) if asked[0] else None
            by_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2).to(weight.dtype) if asked[1] else None
            return by_x, by_weight, None
        with torch.enable_grad():
            given = [t.detach().requires_grad_(needed) for t, needed in zip(ctx.saved_tensors, asked)]
            out = ctx.function(given[0].to(given[1].dtype), given[1])
        found = iter(torch.autograd.grad(out, [t for t in given if t.requires_grad], gradient))
        return *(next(found) if needed else None for needed in asked), None


@dataclass(frozen=True, eq=False)
class LowRank:
    """The factors of one layer. down [r, in, *kernel], up [out, r, 1, ...]; alpha/r is the scale of their product.

    Holds nothing of the layer but the numbers of its convolution."""

    down: Tensor
    up: Tensor
    alpha: float
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self, x: Tensor) -> Tensor:
        """What to add to the layer's output for its input x, in x's dtype; computed in the factors' dtype."""
        inwards = apply = F.linear
        if self.stride:
            apply = (F.conv1d, F.conv2d, F.conv3d)[self.down.ndim - 3]
            inwards = lambda x, down: apply(x, down, None, self.stride, self.padding, self.dilation)  # noqa: E731
        inner = _Recast.apply(x, self.down, inwards)
        return (apply(inner, self.up) * self.scale).to(x.dtype)

    def trained(self) -> dict[str, Tensor]:
        """What there is to train, by part."""
        return {"down": self.down, "up": self.up}

    def stored(self) -> dict[str, Tensor]:
        """The parts under the names of LoRA files."""
        parts = {"lora_up.weight": self.up, "lora_down.weight": self.down}
        return parts | {"alpha": torch.tensor(float(self.alpha))}

    def to(self, *where) -> LowRank:
        """The same on a device, in a dtype or both, not trained any more."""
        return dataclasses.replace(self, down=self.down.detach().to(*where), up=self.up.detach().to(*where))

    def weight(self) -> Tensor:
        """The same change as a change of the layer's weight [out, in, *kernel]."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).reshape(self.up.shape[0], *self.down.shape[1:])


def low_rank(
    layer: nn.Module,
    rank: int,
    alpha: float | None = None,
    init: str = "diffusers",
    *,
    generator: torch.Generator,
    name: str = "the layer",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LowRank:
    """Fresh factors for a layer, up = 0, down drawn from `generator` (a CPU one: the same on every device).

    alpha: None for rank (scale 1, diffusers); kohya's default is 1. ValueError for a layer that is not `adaptable` and
    for a rank below 1 or above `largest_rank`."""
    if init not in INITS:
        raise ValueError(f"There is no start of the factors {init!r}: choose one of {', '.join(INITS)}.")
    if not adaptable(layer):
        raise ValueError(f"A low-rank change of {name} ({type(layer).__name__}) is not defined: leave it out.")
    if not 1 <= rank <= largest_rank(layer):
        raise ValueError(f"Rank {rank} does not fit {name}, whose weight has rank {largest_rank(layer)}: lower it.")
    out, *inside = layer.weight.shape
    if init == "diffusers":
        down = torch.randn((rank, *inside), generator=generator) / rank
    else:  # kaiming with a = sqrt(5)
        bound = math.prod(inside) ** -0.5
        down = (torch.rand((rank, *inside), generator=generator) * 2 - 1) * bound
    with torch.inference_mode(False):
        down = down.to(device=device, dtype=dtype).clone().requires_grad_()
        up = torch.zeros((out, rank, *(1 for _ in inside[1:])), device=device, dtype=dtype).requires_grad_()
    return LowRank(down, up, float(rank if alpha is None else alpha), **geometry(layer))


def low_rank_all(
    layers: Iterable[tuple[str, nn.Module]],
    rank: int,
    alpha: float | None = None,
    init: str = "diffusers",
    *,
    seed: int,
    **where,
) -> dict[str, LowRank]:
    """Fresh factors for layers by name, in the layers' order, from one seed. Refuses like `low_rank`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return {n: low_rank(layer, rank, alpha, init, generator=generator, name=n, **where) for n, layer in layers}


class LayerChange(Protocol):
    """A trained change of one layer: low-rank factors here, or whole weights (`whole.py`)."""

    def delta(self, x: Tensor) -> Tensor: ...

    def trained(self) -> dict[str, Tensor]: ...

    def stored(self) -> dict[str, Tensor]: ...

    def to(self, *where) -> LayerChange: ...


def parameters(changes: Mapping[str, LayerChange]) -> dict[str, Tensor]:
    """What there is to train, by name: <layer>.<part>, as <layer>.down and <layer>.up."""
    return {f"{name}.{part}": value for name, change in changes.items() for part, value in change.trained().items()}


@torch.no_grad()
def put(factors: Mapping[str, LowRank], values: Mapping[str, Tensor]) -> None:
    """Set the factors to values by the names of `parameters` (a loop's `result`)."""
    for name, p in parameters(factors).items():
        p.copy_(values[name])
