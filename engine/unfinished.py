"""Training runs that were stopped: their state lies in ComfyUI's user folder, and the same run goes on from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..samplers.record_file import write
from ..samplers.tuning.loop import Loop
from .comfy import folder


@contextlib.contextmanager
def resumable(loop: Loop, key: str | None) -> Iterator[list]:
    """Go on from what an earlier run of that key left, and leave the last of what is put into the list (a
    `loop.state()`) when this one is stopped. A run that ends leaves nothing. key None: neither."""
    path = None if key is None else folder("user") / "nulltext" / "training" / f"{key}.safetensors"
    if path is not None and path.is_file():
        with contextlib.suppress(ValueError):  # a damaged one is begun anew
            loop.load(path)
    states: list = []
    try:
        yield states
    except BaseException:
        if path is not None and states:
            write(path, *states[-1])
        raise
    if path is not None:
        path.unlink(missing_ok=True)
