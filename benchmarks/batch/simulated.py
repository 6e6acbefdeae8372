"""Batches whose servers only sleep: what Ray, the queue and the index cost with many workers."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time

import psutil

from ...batch import index, plan, run, store, worker
from ...batch.pictures import Pictures
from ...batch.places import Outcome
from ...batch.table import Line

FLOW = {
    "1": {"class_type": "Draw", "inputs": {"seed": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Edit"}},
}


class Sleep:
    """A server that takes its time and gives a small picture."""

    name = "simulated"

    def __init__(self, seconds: float):
        self.seconds = seconds

    def run(self, workflow: dict, files: list, timeout: float) -> Outcome:
        time.sleep(self.seconds)
        return Outcome(files={"2": [("a.png", b"picture")]}, seconds=self.seconds)

    def restart(self) -> None:
        """It never ends."""

    def close(self) -> None:
        """Nothing is held."""


def measured(workers: int, rows: int, seconds: float, threads: int = 1) -> dict[str, float]:
    """Rows of `seconds` each on `workers` simulated servers, `threads` of them in a process: the share of `workers`
    times one worker's rate that is reached, the driver's memory, rows lost."""
    import ray.data

    lines = (Line(i, {"key": f"row {i}", "Draw.seed": i}) for i in range(1, rows + 1))
    made = plan.make(FLOW, lines, Pictures("/"), [])
    memory, driver = [], psutil.Process()
    with tempfile.TemporaryDirectory(prefix="nulltext-bench-") as out:
        settings = worker.Settings(out, made.workflow, functools.partial(Sleep, seconds), run="bench")
        run.start_ray(workers // threads)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.data.DataContext.get_current().wait_for_min_actors_s = 600
        first, last, ended = float("inf"), 0.0, 0
        for record in run.stream(made.rows, settings, workers // threads, [], threads=threads):
            first, last = min(first, record["ended"] - record["seconds"]), max(last, record["ended"])
            ended += 1
            if ended % max(rows // 100, 1) == 0:
                memory.append(driver.memory_info().rss / 2**20)
        ray.shutdown()
        begun = time.monotonic()
        lines, failed = index.write(store.Store(out), made)
        each = (time.monotonic() - begun) / rows
        keys = {json.loads(row)["key"] for row in made.rows}
        lost = len(keys - {line["key"] for line in index.read(store.Store(out)) if not line["error"]})
    return {
        "efficiency": rows * seconds / workers / (last - first),
        "mb_tenth": memory[len(memory) // 10],
        "mb": memory[-1],
        "lost": lost + failed + abs(rows - lines) + abs(rows - ended),
        "index_seconds": each,
    }
