"""Where trainings are kept, so that the same training is never done twice and one that was stopped goes on.

A training is named by the hash of all that enters it (`files.cache_key`); its number of steps stands beside the name.
So more steps go on from fewer, and a graph queued again finds its finished file. The folder lies in ComfyUI's user
folder under nulltext/tuning and is kept below `STORE_BYTES`: the longest unused go first.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from ..samplers.tuning.loop import Loop
from .files import SUFFIX, cache_folder, trim

STORE_BYTES = 4 * 2**30
_log = logging.getLogger("nulltext")


class Store:
    """The states of one training. key None: nothing is found and nothing is kept."""

    def __init__(self, key: str | None):
        self.key = key
        self._own: Path | None = None  # what this run wrote last, replaced by its next save

    def _path(self, step: int) -> Path:
        return cache_folder("tuning") / f"{self.key}_{step}{SUFFIX}"

    def steps(self) -> list[int]:
        """The numbers of steps at which a state lies there, rising."""
        if self.key is None:
            return []
        found = (p.stem.rpartition("_")[2] for p in cache_folder("tuning").glob(f"{self.key}_*{SUFFIX}"))
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
            except ValueError as error:
                _log.warning("a damaged saved training is dropped: %s", error)
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError):  # another server on the same folder dropped it
                os.utime(path)
            return loop.step
        return 0

    def save(self, loop: Loop) -> None:
        """Keep the loop's state of now in place of what this run kept before. A full disk is no error."""
        if self.key is None:
            return
        path = self._path(loop.step)
        try:
            loop.save(path)
            if self._own not in (None, path):
                self._own.unlink(missing_ok=True)
            self._own = path
            trim(cache_folder("tuning"), STORE_BYTES)
        except OSError as error:
            _log.warning("the training could not be kept for going on later: %s", error)
