"""Prompt-to-Prompt's edits (Hertz et al. 2208.01626) and MasaCtrl's mutual self-attention (Cao et al. 2304.08465).

* Replace, Refine (section 3, eq. "Edit"):  M*_tgt = a Edit(M_src) + (1 - a) M_tgt, a per token and step; which source
  token a target token looks at is a `TokenMap` (alignment.py): both are the same edit with another map.
* Re-weight (eq. "Edit" of its paragraph, and the authors' AttentionReweight around another edit):  inside the
  cross-attention window  M*[:, j] = c_j Edit(M_src)[:, j], outside it the target's own M; the rows are not normalised
  again, c may be negative. `ReplaceCross` with `factors` is this. `Reweight` is ours, for any MODEL and any step:
  M*[:, j] = c_j M[:, j] on whatever map stands there.
* Self-attention replacement:  M*_tgt = M_src for the first steps. As M_src V_tgt is attention with the source's Q
  and K, it costs no explicit probabilities.
* Mutual self-attention:  the target's Q on the source's K and V in later steps and layers.

Departures: the authors replace self-attention up to 32x32 query tokens at 512 pixels; here the limit is the larger
of that and a quarter of the latent's pixels. MasaCtrl's first layer, 10 of 16 at SD1, is the same fraction of any
network's layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .alignment import TokenMap
from .indices import constant
from .layers import ALWAYS, QKV, Controller, Moment, Needs, StepWindow, Window


class ReplaceCross(Controller):
    """Replace and Refine: the target's cross-attention taken from the source along one TokenMap per prompt, times a
    factor per column where there is one (re-weighting).

    `windows[p]` maps a column of prompt p to its own window; columns that are not named use `window`. `factors[p]` is
    {column: factor}; a factor acts in its column's window and nowhere else."""

    def __init__(
        self,
        maps: Sequence[TokenMap],
        window: Window,
        windows: Sequence[dict[int, Window]] = (),
        factors: Sequence[dict[int, float]] = (),
    ):
        self.maps, self.window = list(maps), window
        self.windows = list(windows) or [{} for _ in self.maps]
        self.factors = list(factors) or [{} for _ in self.maps]

    def _columns(self, prompt: int, moment: Moment) -> list[bool]:
        inside = moment in self.window
        open_ = [inside] * len(self.maps[prompt].columns)
        for column, window in self.windows[prompt].items():
            open_[column] = moment in window
        return open_

    def needs(self, layer):
        if layer.cross and any(any(self._columns(p, layer.moment)) for p in range(len(self.maps))):
            return Needs.PROBABILITIES
        return Needs.NOTHING

    def edit(self, target, source, rows, layer):
        parts = []
        for i, prompt in enumerate(rows.prompt):
            alpha = constant(self._columns(prompt, layer.moment), target.device, torch.bool)
            edited = _weighted(self.maps[prompt].apply(source[i], target[i]), self.factors[prompt])
            parts.append(torch.where(alpha, edited, target[i]))
        return torch.stack(parts)


def _weighted(probabilities: Tensor, factors: dict[int, float]) -> Tensor:
    """Probabilities [..., tokens] with some columns times a factor; without a factor they are returned as they are."""
    if not factors:
        return probabilities
    factor = probabilities.new_ones(probabilities.shape[-1])
    for column, value in factors.items():
        factor[column] = value
    return probabilities * factor


class Reweight(Controller):
    """Columns of the cross-attention times a factor, whosever map it is; `factors[p]` of prompt p: {column: factor}."""

    def __init__(self, factors: Sequence[dict[int, float]], window: Window = ALWAYS):
        self.factors = [{j: c for j, c in f.items() if c != 1} for f in factors]
        self.window = window

    def needs(self, layer):
        return (
            Needs.PROBABILITIES if layer.cross and any(self.factors) and layer.moment in self.window else Needs.NOTHING
        )

    def edit(self, target, source, rows, layer):
        return torch.stack([_weighted(target[i], self.factors[prompt]) for i, prompt in enumerate(rows.prompt)])


class ReplaceSelf(Controller):
    """The source's self-attention, up to `max_tokens` query tokens (None: see the head of the file)."""

    def __init__(self, window: Window, max_tokens: int | None = None):
        self.window, self.max_tokens = window, max_tokens

    def needs(self, layer):
        limit = self.max_tokens or max(32**2, layer.latent[0] * layer.latent[1] // 4)
        return (
            Needs.EXCHANGE
            if not layer.cross and layer.tokens <= limit and layer.moment in self.window
            else Needs.NOTHING
        )

    def exchange(self, target, source, layer):
        return QKV(source.q, source.k, target.v)


class MutualSelf(Controller):
    """MasaCtrl: the target's queries on the source's keys and values, conditional and unconditional rows alike."""

    unconditional = True

    def __init__(self, window: Window | None = None, first_layer: float = 10 / 16):
        self.window, self.first_layer = window or StepWindow(4 / 50, 1, points=0), first_layer

    def needs(self, layer):
        late = layer.index >= int(round(self.first_layer * layer.count, 6))
        return Needs.EXCHANGE if not layer.cross and late and layer.moment in self.window else Needs.NOTHING

    def exchange(self, target, source, layer):
        return QKV(target.q, source.k, source.v)
