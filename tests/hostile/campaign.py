"""make hostile: the attacks over HTTP on a real server, resumable and replayable, and the figures of them as JSON.

make hostile                              1,000 cases of seed 0; goes on where it stopped
make hostile ARGS="--seed 3 --cases 200"  others
make hostile ARGS="--case 123"            one case again, with what came of it
make hostile ARGS="--minutes 8"           as many as fit
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
import threading
import time
import uuid
from pathlib import Path

import requests
from nulltext.batch import engines
from nulltext.batch.client import Client, Result
from nulltext.tests.hostile import cases

ROOT = Path(__file__).resolve().parents[2]
PACK = engines.PACK
OUT = ROOT / "output" / "hostile"
WEIGHTS = "*.safetensors"
#: where nodes that train put what they made
SAVED = ("tree/loras/", "tree/embeddings/", "tree/controlnet/")
SECONDS, PATIENCE, MEMORY = 25.0, 10.0, 3 * 2**30
#: what torch and Python say, and no sentence of ours
RAW = re.compile(
    r"Traceback|NoneType|object has no attribute|must match|size of tensor|shapes cannot|mat1|expected (scalar|input)|"
    r"not subscriptable|unsupported operand|dtype|KeyError|index out of|out of range|invalid shape|positional arg|"
    r"keyword arg|not callable|unhashable|cannot (convert|reshape|unpack)|Errno|codec can't|convolution|RuntimeError"
)


class Attacker(Client):
    """The client, which sends NaN as a page's script would, and keeps where an error came from."""

    def post(self, path, body=None, **kwargs):
        content = {"data": json.dumps(body), "headers": {"Content-Type": "application/json"}}
        return super().post(path, None, **content, **kwargs)

    def _read(self, entry, result):
        super()._read(entry, result)
        for what, body in (entry.get("status") or {}).get("messages", ()):
            if what == "execution_error":
                result.traceback = "".join(map(str, body.get("traceback", ())))


def fresh(graph: dict) -> dict:
    """The graph under node ids of its own, so that nothing of it is served from the cache."""
    tag = uuid.uuid4().hex[:6]
    alias = {key: f"{key}-{tag}" for key in graph}

    def moved(value):
        linked = isinstance(value, list) and len(value) == 2 and str(value[0]) in alias
        return [alias[str(value[0])], value[1]] if linked else value

    return {
        alias[k]: {**node, "inputs": {name: moved(v) for name, v in node["inputs"].items()}}
        for k, node in graph.items()
    }


def pixels(result: Result) -> str:
    return hashlib.sha256(b"".join(each.tobytes() for each in sorted_images(result))).hexdigest()


def sorted_images(result: Result):
    return [p for key in sorted(result.pictures, key=lambda k: k.split("-")[0]) for p in result.pictures[key]]


class Arena:
    """The attacked server, and what is counted about it."""

    def __init__(self, server: engines.Server):
        self.server = server
        self.client = Attacker(server.address, server.alive)
        self.infos = self.client.object_info()
        self.references: dict[str, str] = {}

    def rss(self) -> int:
        with open(f"/proc/{self.server.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def attack(self, case: cases.Case) -> dict:
        """What came of the case: {"verdict": "ok", "refused", "aside", or what must not be, "said", "seconds"}."""
        began = time.monotonic()
        try:
            found = {"route": self._route, "interrupt": self._interrupt}.get(case.kind, self._prompt)(case)
        except requests.RequestException as error:
            found = {"verdict": "death" if not self.server.alive() else "hang", "said": str(error)[:300]}
        if not self.server.alive():
            found["verdict"] = "death"
        return {"case": case.number, "kind": case.kind, "told": case.told, **found, "seconds": time.monotonic() - began}

    def _prompt(self, case) -> dict:
        result = self.client.run(fresh(cases.probed(case.graph, self.infos)), timeout=SECONDS)
        if result.error_type == "timeout":
            return {"verdict": "slow" if self._ended() else "hang", "said": "ran until its time limit"}
        return judged(result)

    def _ended(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not self.client.get("/queue").json()["queue_running"]:
                return True
            time.sleep(0.1)
        return False

    def _route(self, case) -> dict:
        before, began = self.rss(), time.monotonic()
        answer = self.client.get(f"/nulltext/{case.route}", **case.query)
        seconds, grown = time.monotonic() - began, self.rss() - before
        verdict = "ok" if answer.status_code == 200 else "refused"
        said = ""
        if answer.status_code not in (200, 400) or len(answer.content) > 2**21:
            verdict, said = "raw", answer.text[:200]
        elif answer.status_code == 400:
            said = answer.json().get("error", "")
            verdict = "raw" if RAW.search(said) or not 15 < len(said) <= 500 else "refused"
        elif "NaN" in answer.text or "Infinity" in answer.text:
            verdict = "nonfinite"
        if seconds > 10 or grown > MEMORY:
            verdict = "hang"
        return {"verdict": verdict, "said": said}

    def _interrupt(self, case) -> dict:
        name = case.told
        if name not in self.references:
            self.references[name] = pixels(self.client.run(fresh(case.graph), timeout=240).check())
        asked = []

        def stop():
            asked.append(time.monotonic())
            self.client.interrupt()

        timer = threading.Timer(case.after, stop)
        timer.start()
        result = self.client.run(fresh(case.graph), timeout=240)
        ended = time.monotonic()
        timer.cancel()
        timer.join()
        again = pixels(self.client.run(fresh(case.graph), timeout=240).check())
        found = {"verdict": "ok" if again == self.references[name] else "mismatch", "said": ""}
        if result.interrupted and asked:
            found["heard"] = ended - asked[0]
        return found


def judged(result: Result) -> dict:
    """The verdict on a prompt that ended."""
    probes = [flag for out in result.outputs.values() for flag in out.get("nonfinite", ())]
    if result.ok:
        return {"verdict": "nonfinite" if any(probes) else "ok", "said": ""}
    said, where = result.error or "", result.where or ""
    found = {"said": f"{where}: {said[:600]}"}
    if result.error_type in ("validation", "server"):
        return {"verdict": "refused", **found}  # the engine's own words, before anything ran
    ours = where.startswith("NullText_") or f"/{PACK}/" in getattr(result, "traceback", "")
    if where.startswith("Hostile") or not ours:
        return {"verdict": "aside", **found}
    sound = result.error_type == "ValueError" and 20 <= len(said) <= 500 and "\n" not in said and not RAW.search(said)
    if not sound:
        found["traceback"] = getattr(result, "traceback", "")[-1500:]
    return {"verdict": "refused" if sound else "raw", **found}


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


@contextlib.contextmanager
def arena(tree: Path, engine: engines.Engine | None = None):
    """A server on `tree` with the hostile nodes in it."""
    engines.plant(tree)
    (tree / "custom_nodes" / "nulltext_hostile.py").write_text(cases.source().read_text())
    with engines.running(engine or engines.embedded(), tree) as server:
        yield Arena(server)


def figures(rows: list[dict], more: dict) -> dict:
    """The JSON of a campaign."""
    count = lambda verdict: sum(r["verdict"] == verdict for r in rows)
    heard = sorted(r["heard"] for r in rows if "heard" in r)
    worst = heard[min(len(heard) - 1, math.ceil(0.99 * len(heard)) - 1)] if heard else 0.0
    return {
        "cases": len(rows),
        "deaths": count("death"),
        "hangs": count("hang"),
        "raw": count("raw"),
        "nonfinite": count("nonfinite"),
        "interrupts": len(heard),
        "interrupt_mismatches": count("mismatch"),
        "interrupt_seconds_p99": round(worst, 3),
        **more,
        "by_verdict": {v: count(v) for v in sorted({r["verdict"] for r in rows})},
        "found": [r["case"] for r in rows if r["verdict"] in ("death", "hang", "raw", "nonfinite", "mismatch")],
    }


def leaks() -> int:
    """Nodes that give a MODEL or a GUIDER and keep what they were made of over ten loads."""
    command = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-q", "tests/nodes/test_reload.py"]
    said = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NULLTEXT_ROUNDS": "10"}, capture_output=True, text=True
    )
    failed = re.search(r"(\d+) failed", said.stdout)
    return int(failed[1]) if failed else int(said.returncode != 0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make hostile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--case", type=int)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--engine", choices=("embedded", "checkout"), default="embedded")
    parser.add_argument("--load", action="store_true", help="also 4 clients x 50 prompts at once")
    parser.add_argument("--no-reload", action="store_true", help="leave the reload test out")
    options = parser.parse_args(arguments)
    OUT.mkdir(parents=True, exist_ok=True)
    journal = OUT / f"{options.engine}_{options.seed}.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    rows = [] if options.case is not None else rows
    done, deadline = {row["case"] for row in rows}, time.monotonic() + 60 * options.minutes
    numbers = [options.case] if options.case is not None else [n for n in range(options.cases) if n not in done]
    engine, memory, more = getattr(engines, options.engine)(), [], {"escapes": 0, "weights_changed": 0}
    while numbers and time.monotonic() < deadline:
        with contextlib.ExitStack() as stack:
            folder = OUT / f"tree_{uuid.uuid4().hex[:8]}"
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir()
            before = hashes(folder)
            ring = stack.enter_context(arena(folder, engine))
            while numbers and time.monotonic() < deadline and ring.server.alive():
                row = ring.attack(cases.make(options.seed, numbers.pop(0), ring.infos))
                rows.append(row)
                if ring.server.alive():
                    memory.append(ring.rss())
                if options.case is None:
                    with journal.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                print(f"{row['case']:5} {row['verdict']:9} {row['seconds']:5.1f}s {row['told'][:110]}", flush=True)
                if row["verdict"] in ("raw", "death", "hang", "nonfinite", "mismatch"):
                    print(f"      {row['said'][:400]}", flush=True)
                    print(row.get("traceback", ""), flush=True) if options.case is not None else None
                if row["verdict"] == "hang":
                    break
            if options.load and not numbers and ring.server.alive():
                from nulltext.tests.hostile import load

                more |= load.run(ring)
            more["escapes"] += len(escaped(folder))
            more["weights_changed"] += len(changed(before, hashes(folder)))
    third = memory[len(memory) // 3 :] or [1]
    size = max(1, len(third) // 5)
    more["rss_drift"] = round(sum(third[-size:]) / sum(third[:size]) - 1, 4)
    more["leak_models"] = 0 if options.no_reload or options.case is not None else leaks()
    said = figures(rows, more)
    (OUT / f"{options.engine}_{options.seed}.json").write_text(json.dumps(said, indent=1))
    print(json.dumps(said, indent=1))
    return int(bool(said["found"]) or bool(more["escapes"] or more["weights_changed"]))
