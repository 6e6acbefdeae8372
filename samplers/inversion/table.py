"""The pivots by name, and what each can do. A new pivot is one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import pivots
from .edit_friendly import invert_edit_friendly
from .exact_pair import invert_exact_pair


@dataclass(frozen=True)
class PivotKind:
    """invert: (denoise, x0 [B, C, ...], sigmas, *, process, callback, tick and what `takes` names) -> Pivot."""

    title: str  #: what a user calls it; empty: no box offers it
    invert: Callable[..., pivots.Pivot]
    takes: tuple[str, ...] = ()  #: of "iterations", "gamma" and "noise"
    calls: Callable[[int, int], int] = lambda steps, iterations: steps  #: the most network calls
    needs: str = ""  #: the field of the record that its own way back reads; empty: plain Euler steps bring it back
    followable: bool = True  #: whether its levels lie on one path from noise to image

    @property
    def seeded(self) -> bool:
        """Whether a seed changes it."""
        return "noise" in self.takes


def _random(denoise, x0, sigmas, *, process, noise, callback=None, tick=None) -> pivots.Pivot:
    return pivots.random_pivot(x0, sigmas, process=process, noise=noise)


PIVOTS = {
    "ddim": PivotKind("DDIM", pivots.invert_ddim),
    "ddim_lower": PivotKind("DDIM, lower level", pivots.invert_ddim_lower),
    "fixed_point": PivotKind(
        "fixed point", pivots.invert_fixed_point, ("iterations",), lambda steps, iterations: steps * (1 + iterations)
    ),
    "exact_pair": PivotKind(
        "exact pair",
        invert_exact_pair,
        ("iterations", "gamma"),
        lambda steps, iterations: steps + iterations,
        needs="pair",
    ),
    "edit_friendly": PivotKind(
        "edit-friendly DDPM", invert_edit_friendly, ("noise",), needs="residuals", followable=False
    ),
    "random": PivotKind("", _random, ("noise",), lambda steps, iterations: 0, followable=False),
}
#: title -> name of those that boxes offer
BY_TITLE = {kind.title: name for name, kind in PIVOTS.items() if kind.title}
