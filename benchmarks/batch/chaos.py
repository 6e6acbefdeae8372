"""Batches with real servers that are killed wherever they can be; what is left of their rows.

A three-node Ray on this machine, two workers, a workflow of two steps. Servers are killed with -9, one node is taken
away, the command itself is killed and started again; then one undisturbed worker does the same rows.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from ...batch import engines, index, places, plan, run, store, table, worker
from ...batch.pictures import Pictures
from ...tools import workflows

PICTURES = ("demo_scene.png", "demo_scene_two.png", "demo_drawing.png")
COLUMNS = ["key", "Source picture.image", "Edited prompt.text", "KSampler.seed"]
NODE = {"object_store_memory": 80 * 2**20}
PATIENCE = 600  # seconds without which nothing moves any more


def workflow(side: int = 64, steps: int = 2) -> plan.Workflow:
    """A picture redrawn by the demo model."""

    def node(kind: str, title: str = "", **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}

    draw = {"seed": 1, "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.6}
    return {
        "1": node("LoadImage", "Source picture", image=PICTURES[0]),
        "2": node("CheckpointLoaderSimple", ckpt_name=workflows.DEMO_CHECKPOINT),
        "3": node("CLIPTextEncode", "Edited prompt", clip=["2", 1], text=""),
        "4": node("ImageScale", image=["1", 0], upscale_method="area", width=side, height=side, crop="disabled"),
        "5": node("VAEEncode", pixels=["4", 0], vae=["2", 2]),
        "6": node("KSampler", model=["2", 0], positive=["3", 0], negative=["3", 0], latent_image=["5", 0], **draw),
        "7": node("VAEDecode", samples=["6", 0], vae=["2", 2]),
        "8": node("SaveImage", "Edit", images=["7", 0], filename_prefix="batch"),
    }


class Desk:
    """A folder with a workflow, pictures and a table; commands run on it."""

    def __init__(self, folder: Path, rows: int, flow: plan.Workflow | None = None):
        self.folder, self.log = folder, folder / "log.txt"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "flow.json").write_text(json.dumps(flow or workflow()))
        for name in PICTURES:
            shutil.copy(workflows.FOLDER / "inputs" / name, folder)
        self.write([[f"row {i}", PICTURES[i % 3], f"a green star {i}", i] for i in range(rows)])

    def write(self, rows: list[list]) -> None:
        with open(self.folder / "table.csv", "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])

    def planned(self) -> plan.Plan:
        place = Pictures(str(self.folder))
        flow, lines = plan.load(str(self.folder / "flow.json")), table.read(str(self.folder / "table.csv"))
        return plan.make(flow, lines, place, [place])

    def command(self, *more: str, address: str = "") -> subprocess.Popen:
        """The batch as `make batch` starts it."""
        named = {"workflow": "flow.json", "table": "table.csv", "out": "out", "cache": "cache"}
        given = [part for name, file in named.items() for part in (f"--{name}", str(self.folder / file))]
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        env |= {"RAY_ADDRESS": address} if address else {}
        argv = [sys.executable, str(engines.ROOT / "tools"), "batch", *given, "--engine", "embedded", *more]
        with open(self.log, "ab") as log:
            return subprocess.Popen(argv, env=env, stdout=log, stderr=log)

    def done(self) -> int:
        return sum(1 for _ in (self.folder / "out" / worker.DONE).glob("*.json"))

    def until(self, what: Callable[[], bool], process: subprocess.Popen) -> None:
        """Wait for it; RuntimeError with the log's end if the command ends first, or nothing happens for long."""
        deadline = time.monotonic() + PATIENCE
        while not what():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log.read_text()[-3000:])
            time.sleep(0.05)

    def lines(self) -> list[dict]:
        return index.read(store.Store(str(self.folder / "out")))

    def pictures(self, out: str = "out") -> dict[str, bytes]:
        """The content of each row's picture by the name of its folder."""
        found = (self.folder / out / worker.RESULTS).glob("*/Edit.png")
        return {path.parent.name: path.read_bytes() for path in found}

    def alone(self) -> dict[str, bytes]:
        """The pictures of one worker that nobody disturbs, without Ray."""
        made = self.planned()
        with engines.running(engines.embedded()) as server:
            place = places.Remote(server.address, mark="")  # to the bit: a picture's file holds its workflow
            settings = worker.Settings(str(self.folder / "alone"), made.workflow, lambda: place)
            one = worker.Worker(settings)
            for row in made.rows:
                one.done(json.loads(row))
        return self.pictures("alone")


def servers() -> list[psutil.Process]:
    """Servers of batches on this machine: those that stand in a tree of theirs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).parent == places.shelf() and any("comfyui" in part for part in process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def cluster() -> Iterator:
    """A Ray of three nodes on this machine: one for the command, two for workers; `workers` are the latter."""
    run.set_up_ray()
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE})
    try:
        made.workers = [made.add_node(num_cpus=2, **NODE) for _ in range(2)]
        yield made
    finally:
        made.shutdown()


def disturbed(desk: Desk, rows: int, steps: tuple[int, int, int], every: float = 0.0) -> int:
    """Run the table while a server, a node and the command are killed when so many rows are there; then again, to the
    end, with a server killed every `every` seconds (0: one). How many servers were killed."""
    kills = 0
    with cluster() as ray:
        first = desk.command("--workers", "2", address=ray.address)
        desk.until(lambda: desk.done() >= steps[0], first)
        servers()[0].kill()  # -9
        desk.until(lambda: desk.done() >= steps[1], first)
        desk.until(lambda: bool(servers()), first)
        home = {parent.pid for parent in servers()[0].parents()}
        node = next(n for n in ray.workers if n.all_processes["raylet"][0].process.pid in home)
        ray.remove_node(node, allow_graceful=False)
        desk.until(lambda: desk.done() >= steps[2], first)
        first.send_signal(signal.SIGKILL)
        first.wait()
        if desk.done() >= rows:
            raise RuntimeError("Nothing was left when the command was killed.")
        second = desk.command("--workers", "2", address=ray.address)
        last = time.monotonic()
        while second.poll() is None:
            if time.monotonic() - last > (every or PATIENCE) and desk.done() < rows and (found := servers()):
                found[0].kill()
                kills, last = kills + 1, time.monotonic()
            time.sleep(0.1)
        if second.returncode:
            raise RuntimeError(desk.log.read_text()[-3000:])
    return kills + 1


def judged(desk: Desk, rows: int) -> dict[str, int]:
    """What is lost, what is twice, and whether the pictures are those of one undisturbed worker."""
    lines = desk.lines()
    keys = Counter(line["key"] for line in lines if not line["error"])
    equal = desk.pictures() == desk.alone()
    return {
        "rows_lost": sum(f"row {i}" not in keys for i in range(rows)),
        "rows_twice": sum(n > 1 for n in keys.values()),
        "pixels_equal": int(equal and len(desk.pictures("alone")) == rows),
        "tries": max(line["tries"] or 0 for line in lines),
    }
