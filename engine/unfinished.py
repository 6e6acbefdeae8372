"""Training runs that were stopped: their state lies in ComfyUI's user folder, and the same run goes on from it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from ..samplers.record_file import write
from ..samplers.tuning.diffusion_clip import Walks
from ..samplers.tuning.loop import Loop, Report
from ..samplers.tuning.objective import Step
from .comfy import check_interrupt
from .files import SUFFIX, cache_folder, trim
from .training_store import STORE_BYTES

_log = logging.getLogger("nulltext")


def run_resumable(loop: Loop, step: Step, key: str | None, on_step: Callable[[Report], None] | None = None) -> int:
    """Run the loop to its end, from where an earlier run of that key was stopped; the step it began at.

    A run that is stopped leaves its state, or, of `Walks`, that of the last time it stood between two of them: in the
    middle of one there is nothing to go on from. A run that ends leaves nothing. key None: neither."""
    if key is not None:
        with contextlib.suppress(ValueError, OSError):  # none, or a damaged one: begun anew
            loop.load(_path(key))
    begun, walks, between = loop.step, isinstance(step, Walks), None

    def watched(report: Report) -> None:
        nonlocal between
        if on_step is not None:
            on_step(report)
        if key is not None and walks and step.between:
            between = loop.state()

    try:
        loop.run(step, on_step=watched, tick=check_interrupt)
    except BaseException:
        if key is not None and (between is not None if walks else loop.step > begun):
            _keep(key, lambda: between if walks else loop.state())
        raise
    if key is not None:
        with contextlib.suppress(OSError):
            _path(key).unlink(missing_ok=True)
    return begun


def _path(key: str) -> Path:
    return cache_folder("training") / f"{key}{SUFFIX}"


def _keep(key: str, state: Callable[[], tuple]) -> None:
    """Write a state. What goes wrong here is told in the log alone: the run is stopped for a reason of its own."""
    try:
        write(_path(key), *state())
        trim(_path(key).parent, STORE_BYTES)
    except (OSError, RuntimeError) as error:
        _log.warning("the stopped training could not be kept for going on later: %s", error)
