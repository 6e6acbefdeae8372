"""Whole weights: a trained change of a layer's own weight and bias, as large as they are.

    f(x; W, b)  ->  f(x; W, b) + f(x; dW, db)

for every layer that is linear in its weights: Linear, convolutions, group and layer normalisation. dW and db begin at
0, so training begins at the bare model. As in `lora.py` the change is added to the layer's OUTPUT and the layer is left
alone; the sum equals f(x; W + dW, b + db) but for rounding. DiffusionCLIP (2110.02711) tunes a net so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lora import adaptable

#: (x, weight, bias) -> the layer's output with them in place of its own
Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def changeable(layer: nn.Module) -> bool:
    """Whether a change of this layer's weights is one of its output: `adaptable` layers and affine normalisations."""
    return adaptable(layer) or isinstance(layer, nn.GroupNorm | nn.LayerNorm) and layer.weight is not None


def _apply(layer: nn.Module) -> Apply:
    """The layer's own function, which keeps nothing of the layer but its numbers."""
    if isinstance(layer, nn.Linear):
        return F.linear
    if isinstance(layer, nn.GroupNorm):
        return lambda x, w, b, n=layer.num_groups, eps=layer.eps: F.group_norm(x, n, w, b, eps)
    if isinstance(layer, nn.LayerNorm):
        return lambda x, w, b, shape=layer.normalized_shape, eps=layer.eps: F.layer_norm(x, shape, w, b, eps)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[layer.weight.ndim - 3]
    return partial(convolve, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


@dataclass(frozen=True, eq=False)
class Whole:
    """The change of one layer: weight of the layer's weight's shape, bias of its bias's (None: it has none)."""

    weight: Tensor
    bias: Tensor | None
    apply: Apply

    def delta(self, x: Tensor) -> Tensor:
        """What to add to the layer's output for its input x, in x's dtype; computed in the change's dtype."""
        return self.apply(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)

    def trained(self) -> dict[str, Tensor]:
        """What there is to train, by part."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def stored(self) -> dict[str, Tensor]:
        """The parts under the names of LoRA files."""
        return {"diff": self.weight} | ({} if self.bias is None else {"diff_b": self.bias})

    def to(self, *where) -> Whole:
        """The same on a device, in a dtype or both, not trained any more."""
        moved = {name: value.detach().to(*where) for name, value in self.trained().items()}
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Shift:
    """The change of one layer's bias alone. spread: whether dimensions of x follow the one that the bias has."""

    bias: Tensor
    spread: bool

    def delta(self, x: Tensor) -> Tensor:
        """What to add to the layer's output for its input x, in x's dtype; it broadcasts."""
        bias = self.bias.to(x.dtype)
        return bias.reshape(-1, *(1 for _ in x.shape[2:])) if self.spread else bias

    def trained(self) -> dict[str, Tensor]:
        """What there is to train, by part."""
        return {"bias": self.bias}

    def stored(self) -> dict[str, Tensor]:
        """The part under the name of LoRA files."""
        return {"diff_b": self.bias}

    def to(self, *where) -> Shift:
        """The same on a device, in a dtype or both, not trained any more."""
        return dataclasses.replace(self, bias=self.bias.detach().to(*where))


def unchanged(layer: nn.Module, device: torch.device | str | None = None, name: str = "the layer") -> Whole:
    """A change of nothing yet, in fp32. ValueError for a layer that is not `changeable`."""
    if not changeable(layer):
        raise ValueError(
            f"A change of the whole weights of {name} ({type(layer).__name__}) is not defined: leave it out."
        )
    with torch.inference_mode(False):
        weight, bias = (
            None if own is None else torch.zeros(own.shape, device=device).requires_grad_()
            for own in (layer.weight, layer.bias)
        )
    return Whole(weight, bias, _apply(layer))


def unshifted(layer: nn.Module) -> Shift:
    """A change of nothing yet to the bias of a `changeable` layer that has one, in fp32."""
    with torch.inference_mode(False):
        bias = torch.zeros(layer.bias.shape).requires_grad_()
    return Shift(bias, not isinstance(layer, nn.Linear | nn.LayerNorm))


def unchanged_all(
    layers: Iterable[tuple[str, nn.Module]], device: torch.device | str | None = None
) -> dict[str, Whole]:
    """Changes of nothing yet for layers by name, in the layers' order. Refuses like `unchanged`."""
    return {name: unchanged(layer, device, name) for name, layer in layers}
