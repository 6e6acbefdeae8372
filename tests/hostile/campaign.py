"""make hostile: the attacks over HTTP on a real server, resumable and replayable, and the figures of them as JSON.

make hostile                              1,000 cases of seed 0; goes on where it stopped
make hostile ARGS="--seed 3 --cases 200"  others
make hostile ARGS="--case 123"            one case again, with what came of it
make hostile ARGS="--minutes 8"           as many as fit
make hostile ARGS="--load --soak 500"     and many clients at once, and memory over 500 ordinary prompts
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from nulltext.batch import engines
from nulltext.tests.hostile import cases, load, soak
from nulltext.tests.hostile.arena import Arena, arena

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "output" / "hostile"
#: verdicts that must not be
FOUND = ("death", "hang", "raw", "nonfinite", "mismatch")
#: figures that must be nothing
BAD = ("found", "escapes", "weights_changed", "load_unfinished", "load_lost", "load_wrong", "leak_models")
WEIGHTS = "*.safetensors"
#: where nodes that train put what they made
SAVED = ("tree/loras/", "tree/embeddings/", "tree/controlnet/")


def hashes(tree: Path) -> dict[str, str]:
    """The hash of every weights file that a server on that tree finds: the pack's and the tree's own."""
    places = {"pack": ROOT / "models", "tree": tree / "models"}
    found = ((f"{name}/{p.relative_to(at).as_posix()}", p) for name, at in places.items() for p in at.rglob(WEIGHTS))
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Weights files that are other than before, gone or new; what nodes saved in their own folders is left out."""
    return sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and (name in before or not name.startswith(SAVED))
    )


def escaped(tree: Path) -> list[str]:
    """Files that a name laid outside of ComfyUI's own folders."""
    allowed = [tree / name for name in ("output", "input", "temp", "user", "models")]
    places = [tree.parent, Path("/tmp"), ROOT, Path.home(), tree]
    found = [p for place in places for p in place.glob(f"*{cases.MARK}*")]
    found += [p for p in tree.rglob(f"*{cases.MARK}*") if not any(p.is_relative_to(a) for a in allowed)]
    return sorted({str(p) for p in found})


def figures(rows: list[dict], more: dict) -> dict:
    """The JSON of a campaign: `rows` of its journal, those of cases and those of servers that ended."""
    ended, rows = [r for r in rows if "case" not in r], [r for r in rows if "case" in r]
    count = lambda verdict: sum(r["verdict"] == verdict for r in rows)
    heard = sorted(seconds for r in rows for seconds in r.get("heard", ()))
    worst = heard[min(len(heard) - 1, math.ceil(0.99 * len(heard)) - 1)] if heard else 0.0
    return {
        "cases": len(rows),
        "deaths": count("death"),
        "hangs": count("hang"),
        "raw": count("raw"),
        "nonfinite": count("nonfinite"),
        "escapes": sum(r["escapes"] for r in ended),
        "weights_changed": sum(r["weights_changed"] for r in ended),
        "interrupts": len(heard),
        "interrupt_mismatches": count("mismatch"),
        "interrupt_seconds_p99": round(worst, 3),
        "rss_drift_attacked": soak.drift([r["rss_mb"] for r in rows if "rss_mb" in r]),
        **more,
        "by_verdict": {v: count(v) for v in sorted({r["verdict"] for r in rows})},
        "found": [r["case"] for r in rows if r["verdict"] in FOUND],
    }


def leaks() -> int:
    """Nodes that give a MODEL or a GUIDER and keep what they were made of over ten loads."""
    command = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-q", "tests/nodes/test_reload.py"]
    said = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NULLTEXT_ROUNDS": "10"}, capture_output=True, text=True
    )
    failed = re.search(r"(\d+) failed", said.stdout)
    return int(failed[1]) if failed else int(said.returncode != 0)


@contextlib.contextmanager
def ground(engine: engines.Engine) -> Iterator[Arena]:
    """A server on a tree of its own, both gone afterwards."""
    folder = OUT / f"tree_{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        with arena(folder, engine) as ring:
            yield ring
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fight(engine: engines.Engine, seed: int, numbers: list[int], deadline: float) -> Iterator[dict]:
    """A row for each case; and one for each server, what it left where nothing may change. A server that hangs or ends
    is replaced."""
    while numbers and time.monotonic() < deadline:
        with ground(engine) as ring:
            before = hashes(ring.server.tree)
            while numbers and time.monotonic() < deadline and ring.server.alive():
                row = ring.attack(cases.make(seed, numbers.pop(0), ring.infos))
                yield row | ({"rss_mb": ring.rss() / 2**20} if ring.server.alive() else {})
                if row["verdict"] == "hang":
                    break
            lost = changed(before, hashes(ring.server.tree))
            yield {"escapes": len(escaped(ring.server.tree)), "weights_changed": len(lost)}


def told(row: dict) -> str:
    """A row of a case in a line, or in more where something was found."""
    lines = [f"{row['case']:5} {row['verdict']:9} {row['seconds']:5.1f}s {row['told'][:110]}"]
    return "\n".join([*lines, f"      {row['said'][:400]}"] if row["verdict"] in FOUND else lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make hostile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--case", type=int, help="one case again")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the attacks, and each soak, end after so many")
    parser.add_argument("--engine", choices=("embedded", "checkout"), default="embedded")
    parser.add_argument("--load", action="store_true", help="also 4 clients x 50 prompts at once")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="also memory over N prompts (500)")
    parser.add_argument("--no-reload", action="store_true", help="leave the reload test out")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    engine, deadline = getattr(engines, options.engine)(), time.monotonic() + 60 * options.minutes
    if options.case is not None:
        (row, *_) = fight(engine, options.seed, [options.case], deadline)
        print(told(row), row.get("traceback", ""), sep="\n")
        return int(row["verdict"] in FOUND)
    OUT.mkdir(parents=True, exist_ok=True)
    journal = OUT / f"{options.engine}_{options.seed}.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {row.get("case") for row in rows}
    for row in fight(engine, options.seed, [n for n in range(options.cases) if n not in done], deadline):
        rows.append(row)
        with journal.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if "case" in row:
            print(told(row), flush=True)
    rest = journal.with_suffix(".parts.json")
    parts = json.loads(rest.read_text()) if rest.exists() else {}

    def once(name: str, work: Callable[[Arena], dict]) -> dict:
        """What a part of the campaign found; the next command finds it done."""
        if name not in parts:
            print(f"{name} ...", flush=True)
            with ground(engine) as ring:
                parts[name] = work(ring)
            rest.write_text(json.dumps(parts, indent=1))
        return parts[name]

    more = {}
    if options.load:
        more |= once("load", load.run)
    if options.soak:
        for name, make in (("soak", soak.ours), ("soak_core", soak.core)):
            work = lambda ring, make=make: soak.run(ring, options.soak, make, options.seed, options.minutes)
            more[name] = once(f"{name} of {options.soak} prompts", work)
        more |= {"rss_drift": more["soak"]["rss_drift"], "rss_drift_core": more["soak_core"]["rss_drift"]}
    if not options.no_reload:
        more["leak_models"] = leaks()
    said = figures(rows, more)
    (OUT / f"{options.engine}_{options.seed}.json").write_text(json.dumps(said, indent=1))
    print(json.dumps(said, indent=1))
    return int(any(said.get(name) for name in BAD))
