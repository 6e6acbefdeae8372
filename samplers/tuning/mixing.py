"""Several models' predictions as one (DiffusionCLIP's degrees and multi-attribute transfer, Kim et al. 2110.02711):

    D = sum_i r_i(s) D_i / sum_i r_i(s)         degree r of one attribute: (1 - r) D_0 + r D_1

with weights that a window over sigma switches. Departures: a level where no weight acts is the first model's, and what
several weights leave of 1 is the original's (the authors divide by their sum).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core import Denoise
from ..window import ALWAYS, SigmaWindow


@dataclass(frozen=True)
class Share:
    """How much of a model's prediction counts, and at which levels."""

    weight: float
    window: SigmaWindow = ALWAYS

    def at(self, sigma) -> float:
        return self.weight if sigma in self.window else 0.0


def check_shares(shares: Sequence[Share | Rest]) -> None:
    """ValueError where the weights of some level can't be normalised: a sum of 0 or below."""
    edges = {edge for share in shares for edge in (share.window.start, share.window.end)}
    for edge in edges:
        found = [share.at(edge) for share in shares]
        if any(found) and not sum(found) > 0:
            raise ValueError(
                f"The weights of the mixed models sum to {sum(found):g} at sigma {edge:.3g}: the sum must be above 0."
            )


def mixed(models: Sequence[Denoise], shares: Sequence[Share | Rest]) -> Denoise:
    """D = sum r_i D_i / sum r_i of several denoisers. Models of weight 0 are not asked: r = (1, 0) is the first
    to the bit. ValueError for weights that `check_shares` refuses."""
    if len(models) != len(shares):
        raise ValueError(f"{len(models)} models are mixed by as many weights; got {len(shares)}.")
    check_shares(shares)

    def denoise(x, sigma):
        weights = [share.at(sigma) for share in shares]
        asked = [(w, model) for w, model in zip(weights, models) if w]
        if not asked:
            return models[0](x, sigma)
        total = sum(w for w, _ in asked)
        return sum((w / total) * model(x, sigma) for w, model in asked)

    return denoise


@dataclass(frozen=True)
class Rest:
    """What the tuned models' weights leave of 1 to the original. Nothing where several of them sum to more than 1; one
    alone may go beyond, and the edit is carried on."""

    others: tuple[Share, ...]
    window: SigmaWindow = ALWAYS

    def at(self, sigma) -> float:
        weights = [share.at(sigma) for share in self.others]
        rest = 1 - sum(weights)
        if abs(rest) < 1e-9:  # .7 + .2 + .1 are 1 but for rounding
            return 0.0
        return rest if sum(map(bool, weights)) < 2 else max(rest, 0.0)


def degrees(*shares: Share) -> list[Share | Rest]:
    """The original's share and those of the tuned models: for one of weight r, (1 - r, r)."""
    return [Rest(shares), *shares]
