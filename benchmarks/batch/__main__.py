"""Batches on Ray: `make bench NAME=batch [ARGS="--quick --fresh"]`.

Three parts. 64 rows on two workers of a three-node Ray while servers, a node and the command are killed, against one
undisturbed worker. Real servers, one and two, undisturbed: their rates, and what a row costs beside its server's own
work (queue, transfer, index, the wait for the next row). Servers that only sleep: 10,000 rows on 16, 64 and 256 of
them. The 256 share 64 processes, four in each: a process of Ray Data takes 110 MB of its own, which 256 times over is
more than this machine has.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

from ...batch import store, worker
from ..harness import Bench, table
from . import chaos, simulated

SPAN = 250.0  # seconds that the simulated rows would take without any cost
THREADS = {16: 1, 64: 1, 256: 4}  # simulated servers in a process


def survival(rows: int, steps: tuple[int, int, int]) -> dict[str, int]:
    with tempfile.TemporaryDirectory(prefix="nulltext-bench-") as folder:
        desk = chaos.Desk(Path(folder), rows, chaos.workflow(128, 6))
        kills = chaos.disturbed(desk, rows, steps, every=15)
        return {**chaos.judged(desk, rows), "kills": kills}


def rates(rows: int, workers: int) -> dict[str, float]:
    """Seconds a row of the whole batch and of a server alone, and what lies between them, from the rows' records."""
    with tempfile.TemporaryDirectory(prefix="nulltext-bench-") as folder:
        desk = chaos.Desk(Path(folder), rows, chaos.workflow(128, 6))
        if desk.command("--workers", str(workers)).wait(1200):
            raise RuntimeError(desk.log.read_text()[-3000:])
        there = store.Store(str(desk.folder / "out"))
        records = [json.loads(there.read(f"{worker.DONE}/{name}")) for name in there.names(worker.DONE)]
    ended = sorted(record["ended"] for record in records)
    both = max(min(r["ended"] for r in records if r["worker"] == w) for w in {r["worker"] for r in records})
    span = [moment for moment in ended if moment >= both]  # while all workers were there
    later = [r for r in records if r["waited"] < 5 and r["ended"] > both]
    return {
        "row": (span[-1] - span[0]) / (len(span) - 1),
        "server": mean(r["server_seconds"] for r in later),
        "overhead": median(r["waited"] + r["seconds"] - r["server_seconds"] for r in later),
    }


def plot(path: Path, figures: dict[str, float]) -> None:
    """The rate against the number of workers, in rates of one worker."""
    from PIL import Image, ImageDraw

    points = [(2, figures["speedup_2_workers"])]
    points += [(n, n * figures[f"simulated_efficiency_{n}"]) for n in THREADS if f"simulated_efficiency_{n}" in figures]
    image = Image.new("RGB", (600, 400), "white")
    pen = ImageDraw.Draw(image)

    def at(n: float, rate: float) -> tuple[float, float]:
        from math import log2

        return 60 + 55 * log2(n), 360 - 40 * log2(max(rate, 1))

    pen.line((*at(1, 1), *at(256, 256)), "lightgray", 2)
    pen.line([at(1, 1), *(at(*point) for point in points)], "navy", 2)
    for n, rate in points:
        x, y = at(n, rate)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), "navy")
        pen.text((x + 8, y + 4), f"{n}: {rate:.2f}", "black")
    pen.text((60, 375), "workers (2: real servers; 16, 64, 256: simulated)", "black")
    pen.text((10, 10), "rate, in rates of one worker; gray: as many times as there are workers", "black")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def main(argv: list[str]) -> None:
    bench = Bench("batch", __doc__.splitlines()[0], argv)
    rows, many = (16, 200) if bench.quick else (64, 10_000)
    print("Predicted: a full run is about 25 minutes, most of it asleep.", flush=True)
    found: dict[int, dict] = {}
    for workers in (16,) if bench.quick else THREADS:
        each = SPAN * workers / 10_000
        work = lambda n=workers, s=each: simulated.measured(n, many, s, THREADS[n])
        found[workers] = bench.once(f"simulated {workers}", work)
    kept = bench.once("survival", lambda: survival(rows, (2, 4, 8) if bench.quick else (6, 14, 24)))
    one = bench.once("one worker", lambda: rates(rows, 1))
    two = bench.once("two workers", lambda: rates(2 * rows, 2))
    figures = {name: kept[name] for name in ("rows_lost", "rows_twice", "pixels_equal")}
    figures |= {"seconds_per_row_overhead": two["overhead"], "speedup_2_workers": one["row"] / two["row"]}
    figures |= {f"simulated_efficiency_{n}": value["efficiency"] for n, value in found.items()}
    figures["driver_mb_10000_rows"] = max(value["mb"] for value in found.values())
    figures["driver_mb_1000_rows"] = max(value["mb_tenth"] for value in found.values())
    figures["rows_lost"] += sum(value["lost"] for value in found.values())
    lines = [
        [f"{n} servers", f"{v['row']:.3f}", f"{v['server']:.3f}", f"{v['overhead']:.3f}"]
        for n, v in ((1, one), (2, two))
    ]
    real = table(("real", "seconds a row", "the server alone", "beside it"), lines)
    lines = [[n, f"{v['efficiency']:.3f}", f"{v['mb_tenth']:.0f}", f"{v['mb']:.0f}"] for n, v in found.items()]
    asleep = table(("simulated", "share of N", "driver MB at a tenth", "at the end"), lines)
    plot(bench.path.with_suffix(".jpg"), figures)
    bench.finish(f"{real}\n\n{asleep}\n\nkilled: {kept}", figures)


if __name__ == "__main__":
    main(sys.argv[1:])
