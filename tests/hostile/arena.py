"""The attacked server: what is sent to it, and the verdict on what comes back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import requests
from nulltext.batch import engines
from nulltext.batch.client import Client, Result
from nulltext.tests.hostile import cases
from nulltext.tests.workflows import renamed

PACK = engines.PACK
SECONDS, LONG, PATIENCE, MEMORY = 25.0, 240.0, 10.0, 3 * 2**30
LONGEST = 8000  #: letters of an address: the engine itself refuses those of 8,190 and more before any route sees them
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
    return renamed(graph, {key: f"{key}-{tag}" for key in graph})


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
        self.references: dict[str, tuple[str, float]] = {}  #: pixels and seconds of a run that nobody stops

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
        elif answer.status_code == 400 and len(answer.request.url) > LONGEST:
            said = answer.text[:200]
        elif answer.status_code == 400:
            said = answer.json().get("error", "")
            verdict = "raw" if RAW.search(said) or not 15 < len(said) <= 500 else "refused"
        elif "NaN" in answer.text or "Infinity" in answer.text:
            verdict = "nonfinite"
        if seconds > 10 or grown > MEMORY:
            verdict = "hang"
        return {"verdict": verdict, "said": said}

    def _interrupt(self, case) -> dict:
        if case.told not in self.references:
            whole = self.client.run(fresh(case.graph), timeout=LONG).check()
            self.references[case.told] = pixels(whole), whole.seconds
        reference, seconds = self.references[case.told]
        heard = [self._stopped(case.graph, moment * seconds) for moment in case.moments]
        again = pixels(self.client.run(fresh(case.graph), timeout=LONG).check())
        verdict = "ok" if again == reference else "mismatch"
        return {"verdict": verdict, "said": "", "heard": [each for each in heard if each is not None]}

    def _stopped(self, graph: dict, after: float) -> float | None:
        """Seconds until an interrupt was heard; None where the run ended before it came."""
        asked = []

        def stop():
            asked.append(time.monotonic())
            self.client.post("/interrupt")

        timer = threading.Timer(after, stop)
        timer.start()
        result = self.client.run(fresh(graph), timeout=LONG)
        ended = time.monotonic()
        timer.cancel()
        timer.join()
        return ended - asked[0] if result.interrupted and asked else None


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


@contextlib.contextmanager
def arena(tree: Path, engine: engines.Engine | None = None) -> Iterator[Arena]:
    """A server on `tree` with the hostile nodes in it."""
    engines.plant(tree)
    (tree / "custom_nodes" / "nulltext_hostile.py").write_text(cases.source().read_text())
    with engines.running(engine or engines.embedded(), tree) as server:
        yield Arena(server)
