"""When a technique acts: one rule for the edges of every window.

In sigma (what a box calls start_percent and end_percent) the rule is that of ComfyUI's own ControlNet and
ConditioningSetTimestepRange:

    a level is inside where  start >= sigma >= end

both edges count, so two windows that meet share the level that lies exactly on the seam. Levels are compared with a
relative tolerance of ROUNDING, since one and the same level goes through float32 and back. Departure: a window whose
start and end are one level holds nothing, so that an empty span in a box is an untouched run.

In steps (Prompt-to-Prompt) the windows are the authors' own counts: `StepWindow`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .core import Sigma

#: what float32 leaves of a level that was computed twice, with room
ROUNDING = 1e-6


@dataclass(frozen=True)
class Moment:
    """When: sigma, and its place in the schedule where that is known (`step` in [0, steps], fractional)."""

    sigma: float
    step: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class SigmaWindow:
    """start >= sigma >= end, start being the noisier edge (inf: from the first level on; end 0: to the last).

    `in` takes a sigma (a float, a 0-d tensor, or [B], whose largest counts) or a Moment."""

    start: float
    end: float

    def __contains__(self, when: Sigma | Moment) -> bool:
        sigma = when.sigma if isinstance(when, Moment) else when
        sigma = float(sigma.max() if isinstance(sigma, Tensor) else sigma)
        return self.start > self.end and self.end * (1 - ROUNDING) <= sigma <= self.start * (1 + ROUNDING)


@dataclass(frozen=True)
class StepWindow:
    """Steps int(start (N + points)) <= k < int(end (N + points)): points 1 as the authors count cross-attention, 0
    self."""

    start: float
    end: float
    points: int = 1

    def __contains__(self, moment: Moment) -> bool:
        if moment.step is None or moment.steps is None:
            raise ValueError("A window in steps needs the schedule's steps; this moment only knows its sigma.")
        total = moment.steps + self.points
        # the products are rounded before they are cut: 0.29 * 100 is 28.999999999999996
        return int(round(self.start * total, 6)) <= int(moment.step + 1e-4) < int(round(self.end * total, 6))


Window = StepWindow | SigmaWindow
ALWAYS = SigmaWindow(float("inf"), 0.0)
