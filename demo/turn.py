"""One heavy job at a time on a small machine: `make test`, `demo` and `bench` take the lock that training waits for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / ".training" / "compute.lock"
HELD = "NULLTEXT_COMPUTE_LOCK"  # set for what the holder starts, so that nothing waits for its own parent


@contextlib.contextmanager
def compute() -> Iterator[None]:
    """Hold the lock; says so if another job has it first."""
    if os.environ.get(HELD):
        yield
        return
    import fcntl

    LOCK.parent.mkdir(exist_ok=True)
    with open(LOCK, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another job of this folder to finish ...", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.environ[HELD] = "1"
        try:
            yield
        finally:
            del os.environ[HELD]
