"""Where trainings are kept, so that the same training is not done twice and one that was stopped goes on.

A training is named by the hash of all that enters it (`files.cache_key`); its number of steps stands beside the name.
So more steps go on from fewer, and a graph queued again finds its last state. The folders lie in ComfyUI's user
folder under nulltext and are kept below `STORE_BYTES` each: the longest unused go first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..samplers.record_file import write
from ..samplers.tuning.loop import PAUSE, Loop, Report
from ..samplers.tuning.objective import Step
from ..samplers.tuning.walks import Walks
from .comfy import check_interrupt
from .files import SUFFIX, cache_folder, trim

STORE_BYTES = 4 * 2**30
_log = logging.getLogger("nulltext")


class Store:
    """The states of one training, in a folder of that kind. key None: nothing is found and nothing is kept."""

    def __init__(self, key: str | None, kind: str = "tuning"):
        self.key, self.kind = key, kind
        self._own: Path | None = None  # what this run wrote last, replaced by its next save

    def _path(self, step: int) -> Path:
        return cache_folder(self.kind) / f"{self.key}_{step}{SUFFIX}"

    def steps(self) -> list[int]:
        """The numbers of steps at which a state lies there, rising."""
        if self.key is None:
            return []
        try:
            found = [p.stem.rpartition("_")[2] for p in cache_folder(self.kind).glob(f"{self.key}_*{SUFFIX}")]
        except OSError:  # no folder can be made
            return []
        return sorted(int(step) for step in found if step.isdecimal())

    def resume(self, loop: Loop) -> int:
        """Bring a fresh loop to the furthest state within its number of steps; that state's step, 0 if there is none.

        A damaged file is dropped."""
        for step in reversed(self.steps()):
            if step > loop.settings.steps:
                continue
            path = self._path(step)
            try:
                loop.load(path)
            except OSError as error:  # locked, or dropped by another server on the same folder
                _log.warning("a saved training can't be opened now: %s", error)
                continue
            except ValueError as error:
                _log.warning("a damaged saved training is dropped: %s", error)
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            with contextlib.suppress(FileNotFoundError):  # another server on the same folder dropped it
                os.utime(path)
            return loop.step
        return 0

    def save(self, loop: Loop, state: tuple[dict[str, Tensor], dict[str, str]] | None = None) -> None:
        """Keep the loop's state of now, or an earlier `state` of it, in place of what this run kept before.

        What goes wrong, a full disk for one, is told in the log alone."""
        if self.key is None:
            return
        try:
            state = loop.state() if state is None else state
            path = self._path(int(state[1]["step"]))
            write(path, *state)
            if self._own not in (None, path):
                self._own.unlink(missing_ok=True)
            self._own = path
            trim(path.parent, STORE_BYTES)
        except (OSError, RuntimeError) as error:
            _log.warning("the training could not be kept for going on later: %s", error)

    def drop(self) -> None:
        """Keep none of its states any longer."""
        for step in self.steps():
            with contextlib.suppress(OSError):
                self._path(step).unlink(missing_ok=True)


def run_resumable(loop: Loop, step: Step, key: str | None, on_step: Callable[[Report], None] | None = None) -> int:
    """Run the loop to its end, from where an earlier run of that key was stopped; the step it began at.

    A run that is stopped leaves its state, or, of `Walks`, one of the last times it stood between two of them: in the
    middle of one there is nothing to go on from. A run that ends leaves its last state, without the optimiser's moments
    (the key holds the number of steps: none follow), so that it is found at its end. key None: neither."""
    store = Store(key, "training")
    begun, walks, between, due = store.resume(loop), isinstance(step, Walks), None, 0.0

    def watched(report: Report) -> None:
        nonlocal between, due
        if on_step is not None:
            on_step(report)
        now = time.perf_counter()
        if key is not None and walks and step.between and now >= due:
            old, between = between, None  # half overwritten it would be no state at all
            between = loop.state(None if old is None else old[0])
            ended = time.perf_counter()
            due = ended + PAUSE * (ended - now)

    try:
        loop.run(step, on_step=watched, tick=check_interrupt)
    except BaseException:
        if between is not None if walks else loop.step > begun:
            store.save(loop, between)
        raise
    if key is not None and loop.step > begun:
        store.drop()
        tensors, strings = loop.state(None if between is None else between[0])
        store.save(loop, ({k: v for k, v in tensors.items() if not k.startswith("optimiser/")}, strings))
    return begun
