"""How many servers a machine's memory holds: measured on the first row, by a server that has its GPU alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .worker import Settings, Worker

ROOM = 0.9  # of a GPU's memory: the rest is left to the driver and to what a later row takes more

LEAST = 500.0  # MB: what any server of a GPU takes


def used() -> tuple[float, float] | None:
    """(MB used, MB in all) of the GPU that this process may use; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    command = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    command += ["-i", which] if which else []
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        now, whole = said.splitlines()[0].split(",")
        return float(now), float(whole)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


@contextmanager
def peak(every: float = 0.5) -> Iterator[list[float]]:
    """A list that grows by the MB used, until the end of the block."""
    seen, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            if (now := used()) is not None:
                seen.append(now[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def fits(base: float, most: float, whole: float) -> int:
    """How many servers fit on a GPU, if one took it from `base` MB used to `most` MB of `whole`."""
    return max(1, int((ROOM * whole - base) // max(most - base, LEAST)))


def portion(workers: int, gpus: float) -> float:
    """Of a GPU for each of so many workers, so that all of them find room."""
    return 1 / math.ceil(workers / gpus)


def measured(row: str, settings: Settings) -> int:
    """Servers for one GPU, by what the first row takes; the row is done with it."""
    before = used()
    if before is None:
        return 1
    with peak() as seen:
        worker = Worker(settings)
        try:
            worker.done(json.loads(row))
        finally:
            worker.place.close()
    return fits(before[0], max(seen, default=before[1]), before[1])


def share(workers: int | None, row: str, settings: Settings) -> tuple[int, float]:
    """(workers, GPUs for each) on the Ray that runs: as many as are asked for, else as many as fit."""
    import ray

    there = ray.cluster_resources()
    gpus = there.get("GPU", 0)
    if not gpus:
        return workers or 1, 0.0
    if workers is None:
        each = ray.get(ray.remote(num_gpus=1, num_cpus=1)(measured).remote(row, settings))
        each = max(1, min(each, int(there.get("CPU", 1) // gpus)))  # and a core for each
        return int(gpus) * each, 1 / each
    return workers, portion(workers, gpus)
