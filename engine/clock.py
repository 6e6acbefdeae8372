"""When a hook is called: in which run, and where in its schedule. One `Clock` for each patched MODEL.

The newer engine hands each call its run's schedule (`sample_sigmas`): another schedule is another run, and so is a
return to its first level. A rise to a lower level is not: a sampler may climb inside a run, as RePaint does. The older
engine tells no schedule; there every rise of sigma counts as a new run, and a run is over once its conditions are gone,
which the engine makes anew for every run.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

from ..samplers.window import ROUNDING


class Clock:
    """sigmas: the run's schedule where it is known beforehand, for an engine that does not tell it."""

    def __init__(self, sigmas: Tensor | None = None):
        self.known = sigmas
        self.restart()

    def restart(self) -> None:
        """Forget the run: the next call begins one."""
        self._run: Tensor | None = None
        self._told = False  # the engine tells the schedule
        self.climbs = False  # the latest call goes on rising from a run's only one, as an inversion's steps do
        self.levels: list[float] = []  # those that this run stands below or on, falling
        #: weakly: a MODEL that holds conditions keeps their control nets loaded, and every clone copies them
        self._met: list[weakref.ref] = []

    def tick(self, sigma: float, sigmas: Tensor | None = None) -> bool:
        """Note a call at sigma; whether it is the first of a run. sigmas: the schedule that the engine tells."""
        self._told = sigmas is not None and len(sigmas) > 1
        run = sigmas if self._told else self.known
        over = not self._told and bool(self._met) and all(ref() is None for ref in self._met)
        rises = not self.levels or sigma > self.levels[-1] * (1 + ROUNDING)
        at_top = run is None or not self.levels or sigma >= self.levels[0] * (1 - ROUNDING)
        new = over or run is not self._run or (rises and at_top)
        self.climbs = rises and len(self.levels) == 1
        if new:
            self.levels.clear()
            self._met.clear()
        self._run = run
        self.levels = [level for level in self.levels if level > sigma * (1 + ROUNDING)] + [sigma]
        return new

    def meet(self, conds: Sequence[dict] | None) -> bool:
        """Note the processed conditions of the call at hand, after its tick; whether they show that it is the first of
        a run: a run meets all that it has at its first level."""
        condition = next((value for c in conds or () for value in c.get("model_conds", {}).values()), None)
        if self._told or condition is None or any(ref() is condition for ref in self._met):
            return False
        new = len(self.levels) > 1
        if new:
            self.levels, self._met = self.levels[-1:], []
        self._met = [ref for ref in self._met if ref() is not None] + [weakref.ref(condition)]
        return new

    @property
    def schedule(self) -> Tensor | None:
        """The run's sigmas, None where nobody told them."""
        return self._run

    @property
    def seen(self) -> Sequence[float] | Tensor:
        """The run's sigmas; where nobody told them, the levels seen so far and 0."""
        return self._run if self._run is not None else [*self.levels, 0.0]
