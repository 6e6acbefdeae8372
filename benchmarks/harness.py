"""What every benchmark shares: results kept per item so that a run resumes, the predicted time, a table, one JSON line.

bench = Bench("inversion", description, argv)      # --quick, --fresh
rows = bench.each("ddim", items, compute, batch=8)  # compute(list of items) -> list of JSON values
bench.finish(table, figures)                        # prints the table, then the figures as the last line
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUTPUT = ROOT / "output" / "bench"
WEIGHTS, CODE = "weights", "code"  # under these keys a run keeps the hashes of what it measured and how


#: what most tables are measured on; the further UNets only where a bench says so
READ = ("*.safetensors", "checkpoints/*.safetensors")


def weights(folder: Path = ROOT / "models", read: Sequence[str] = READ) -> str:
    """A hash of the tensors (not the metadata) of the pack's files of weights that fit these patterns."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in read for path in folder.glob(pattern)}):
        with open(path, "rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            digest.update(path.name.encode() + file.read())
    return digest.hexdigest()[:16]


def code(name: str, folder: Path = HERE) -> str:
    """A hash of a bench's code, and of the code of the other benches, the edits and the lab that it imports: its
    settings stand there. Comments do not count, nor what runs every bench."""
    found, ahead = {"harness": []}, [name]
    while ahead:
        name = ahead.pop()
        if name not in found:
            paths = sorted((folder / name).rglob("*.py")) or sorted(folder.glob(f"{name}.py"))
            found[name] = [path.read_text(encoding="utf-8") for path in paths]
            ahead += re.findall(r"^\s*from \.\.(\w+)", "\n".join(found[name]), re.MULTILINE)
    trees = [(name, [ast.dump(ast.parse(text)) for text in found[name]]) for name in sorted(found)]
    return hashlib.sha256(repr(trees).encode()).hexdigest()[:16]


class Bench:
    """One run of one benchmark. `make bench` holds the compute lock meanwhile: a training in the background waits."""

    def __init__(self, name: str, description: str, argv: Sequence[str] | None = None, read: Sequence[str] = READ):
        parser = argparse.ArgumentParser(prog=f"make bench NAME={name}", description=description)
        parser.add_argument("--quick", action="store_true", help="a few items and steps: does it run at all")
        parser.add_argument("--fresh", action="store_true", help="forget what an earlier run kept")
        self.args = parser.parse_args(argv)
        self.name, self.quick = name, self.args.quick
        OUTPUT.mkdir(parents=True, exist_ok=True)
        self.path = OUTPUT / f"{name}{'.quick' if self.quick else ''}.json"
        if self.args.fresh:
            self.path.unlink(missing_ok=True)
        self.kept: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        now = {WEIGHTS: weights(read=read), CODE: code(name)}
        for key, value in now.items():
            if self.kept and self.kept.get(key) != value:
                print(f"  the kept results are of other {key}: beginning anew", flush=True)
                self.kept = {}
        self.kept |= now

    def _save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.kept))
        temporary.replace(self.path)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """compute()'s JSON value, kept under `key`."""
        if key not in self.kept:
            start = time.perf_counter()
            self.kept[key] = compute()
            self._save()
            print(f"  {key}: {time.perf_counter() - start:.1f} s", flush=True)
        return self.kept[key]

    def each(self, key: str, items: Sequence, compute: Callable[[list], list], batch: int = 1) -> list:
        """One JSON value per item, computed in batches; what an earlier run kept is not computed again. After the first
        batch the time that is left is predicted."""
        done: list = self.kept.setdefault(key, [])
        start, first = time.perf_counter(), len(done)
        while len(done) < len(items):
            done.extend(compute(list(items[len(done) : len(done) + batch])))
            self._save()
            each = (time.perf_counter() - start) / (len(done) - first)
            print(f"  {key}: {len(done)}/{len(items)}, {each * (len(items) - len(done)):.0f} s to go", flush=True)
        return done[: len(items)]

    def finish(self, table: str, figures: dict[str, Any]) -> None:
        """Print the table, write the figures beside the kept results, print them as the last line."""
        print(table)
        line = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()})
        self.path.with_suffix(".figures.json").write_text(line + "\n")
        print(line)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table; floats with three digits."""
    cells = [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of function(), after one run that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ratio(a: Callable[[], Any], b: Callable[[], Any], repeats: int = 7) -> float:
    """Median of time(a)/time(b) over interleaved repeats: absolute times drift on a busy machine, ratios less."""
    a()
    b()
    out = []
    for _ in range(repeats):
        t = [time.perf_counter()]
        for function in (a, b):
            function()
            t.append(time.perf_counter())
        out.append((t[1] - t[0]) / (t[2] - t[1]))
    return statistics.median(out)


def kept_pictures(
    bench: Bench, key: str, n: int, make: Callable[[list[int]], dict[str, Tensor]], batch: int
) -> dict[str, Tensor]:
    """make(indices) -> {name: images [B, 3, 128, 128] in 0..1} for all n items, each batch kept as a file.

    Making pictures is what costs; what reads them (a probe) may come or change later."""
    folder = OUTPUT / f"{bench.path.stem}.pictures"
    if key not in bench.kept:
        for old in folder.glob(f"{key} *"):
            old.unlink()

    def compute(items):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key} {items[0]:04d}.safetensors"
        made = {name: (image.clamp(0, 1) * 255).round().byte().contiguous() for name, image in make(items).items()}
        save_file(made, path)
        return [path.name] * len(items)

    files = dict.fromkeys(bench.each(key, range(n), compute, batch))
    parts = [load_file(folder / name) for name in files]
    return {name: torch.cat([part[name] for part in parts]).float() / 255 for name in parts[0]}
