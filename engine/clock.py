"""When a hook is called: in which run, and where in its schedule. One `Clock` for each patched MODEL.

The newer engine hands each call its run's schedule (`sample_sigmas`): another schedule is another run, and so is a
return to its first level. A rise to a lower level is not: a sampler may climb inside a run, as RePaint does. The older
engine tells no schedule; there every rise of sigma counts as a new run.
"""

from __future__ import annotations

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
        self.levels: list[float] = []  # those that this run stands below or on, falling

    def tick(self, sigma: float, sigmas: Tensor | None = None) -> bool:
        """Note a call at sigma; whether it is the first of a run. sigmas: the schedule that the engine tells."""
        run = sigmas if sigmas is not None and len(sigmas) > 1 else self.known
        rises = not self.levels or sigma > self.levels[-1] * (1 + ROUNDING)
        at_top = run is None or not self.levels or sigma >= self.levels[0] * (1 - ROUNDING)
        new = run is not self._run or (rises and at_top)
        if new:
            self.levels.clear()
        self._run = run
        self.levels = [level for level in self.levels if level > sigma * (1 + ROUNDING)] + [sigma]
        return new

    @property
    def schedule(self) -> Tensor | None:
        """The run's sigmas, None where nobody told them."""
        return self._run

    @property
    def seen(self) -> Sequence[float] | Tensor:
        """The run's sigmas; where nobody told them, the levels seen so far and 0."""
        return self._run if self._run is not None else [*self.levels, 0.0]
