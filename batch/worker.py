"""A worker: takes rows one by one, gives each to its server, and writes what comes back where no other row writes.

A row's record is written last. Whoever dies before that leaves nothing that counts, and whoever finds a record there
does not run the row again; so every row has one record, however often it was begun.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .pictures import File
from .places import SERVER_FAILED, Outcome, Place
from .plan import MARK, bare, title
from .store import Store, plain

DONE, FAILED, BEGUN, RESULTS = "rows", "failed", "begun", "results"


@dataclass
class Settings:
    """What every worker is told."""

    out: str
    workflow: dict[str, Any]
    place: Callable[[], Place]
    files: list[File] = field(default_factory=list)  # what every row needs on the server
    timeout: float = 3600.0  # seconds of a row that says none itself
    tries: int = 4
    run: str = ""  # the command's own name: tries are counted anew by the next one


class Worker:
    """One server and the rows that Ray gives it. Ray Data makes one in every actor."""

    def __init__(self, settings: Settings):
        self.settings, self.store = settings, Store(settings.out)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.place = settings.place()
        self.free_since = time.monotonic()

    def __call__(self, item: dict[str, Any]) -> dict[str, str]:
        """{"row": JSON} -> {"record": JSON}."""
        record = self.done(json.loads(str(item["row"])))
        self.free_since = time.monotonic()
        return {"record": json.dumps(record)}

    def done(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row's record: the one that is there, or that of a run now."""
        name = f"{row['id']}.json"
        if self.store.there(f"{DONE}/{name}"):
            return json.loads(self.store.read(f"{DONE}/{name}"))
        workflow = copy.deepcopy(self.settings.workflow)
        for key, entry, value in row["set"]:
            workflow[key]["inputs"][entry] = value
        begun = time.monotonic()
        record = {part: row[part] for part in ("row", "key", "id")}
        record |= {"worker": self.name, "server": self.place.name, "tries": 0, "error": None, "server_seconds": 0.0}
        record |= {"outputs": {}, "report": [], "figures": {}}
        try:
            outcome = self._tried(row, workflow, record)
            record |= {"error": outcome.error, "server_seconds": outcome.seconds}
            if outcome.error is None:
                record |= self._kept(row, workflow, outcome)
        except Exception as error:  # whatever it is, this row alone fails by it
            record["error"] = f"{type(error).__name__}: {error}"[:4000]
        record |= {"seconds": time.monotonic() - begun, "waited": begun - self.free_since, "ended": time.time()}
        self.store.write(f"{FAILED if record['error'] else DONE}/{name}", json.dumps(record).encode())
        self.store.remove(f"{BEGUN}/{name}")
        return record

    def _tried(self, row: dict[str, Any], workflow: dict[str, Any], record: dict[str, Any]) -> Outcome:
        """Run until the server gives an answer of its own, as often as the settings allow.

        The count lies in a file, so that a row which takes its whole worker with it is not begun for ever."""
        name = f"{BEGUN}/{row['id']}.json"
        record["tries"] = tries = self._begun(name)
        outcome = Outcome("Every worker that began this row ended with it.", "server")
        while tries < self.settings.tries:
            record["tries"] = tries = tries + 1
            self.store.write(name, json.dumps({"run": self.settings.run, "tries": tries}).encode(), False)
            files = [*self.settings.files, *map(tuple, row["files"])]
            outcome = self.place.run(bare(workflow), files, row["timeout"] or self.settings.timeout)
            if outcome.error_type not in SERVER_FAILED:
                return outcome
            self.place.restart()
        return Outcome(f"{outcome.error} ({tries} tries)", "server")

    def _begun(self, name: str) -> int:
        """How often this command began a row. A file that lost its content with a machine counts for nothing."""
        if not self.store.there(name):
            return 0
        try:
            said = json.loads(self.store.read(name))
            return said["tries"] if said["run"] == self.settings.run else 0
        except (ValueError, KeyError, TypeError):
            return 0

    def _kept(self, row: dict[str, Any], workflow: dict, outcome: Outcome) -> dict[str, Any]:
        """Write the row's files; for its record: where they lie and what the nodes told."""
        folder = f"{RESULTS}/{plain(row['key'])}-{row['id'][:MARK]}"
        record = {"outputs": {}, "report": [], "figures": {}}
        named, paths = names(workflow), {f"{folder}/report.txt"}
        for key in outcome.files.keys() | outcome.shown.keys():  # a node that others made on the server has no title
            named.setdefault(key, f"node_{plain(key)}")

        def write(path: str, content: bytes, key: str) -> None:
            while path in paths:  # "Edit 1" beside the first of two pictures of "Edit"
                head, dot, end = path.rpartition(".")
                path = f"{head}_node_{plain(key)}{dot}{end}"
            paths.add(path)
            self.store.write(path, content)
            record["outputs"].setdefault(named.get(key, key), []).append(path)

        for key, files in outcome.files.items():
            for i, (file, content) in enumerate(files, 1):
                end = file.rpartition(".")[2].lower()
                write(f"{folder}/{named[key]}{f'_{i}' if len(files) > 1 else ''}.{end}", content, key)
        for file, content in outcome.more:
            write(f"{folder}/{file}", content, "files")
        for key, shown in outcome.shown.items():
            record["report"] += [f"{named[key]}: {text}" for text in shown.get("text", ())]
            record["figures"] |= {f"{named[key]}.{name}": v for name, v in figures(shown).items()}
        if record["report"]:
            self.store.write(f"{folder}/report.txt", "\n\n".join(record["report"]).encode(errors="replace"))
        return record


def names(workflow: dict[str, Any]) -> dict[str, str]:
    """A name for the files of each node: its title, with its id where another node has the same."""
    said = {key: plain(title(node)) for key, node in workflow.items()}
    all_names = list(said.values())
    return {key: name if all_names.count(name) == 1 else f"{name}_{plain(key)}" for key, name in said.items()}


def figures(shown: dict[str, Any]) -> dict[str, float | list[float]]:
    """The numbers that a node tells beside its texts and files: {"psnr": 31.2}."""
    found = {}
    for name, values in shown.items():
        try:
            numbers = [float(value) for value in values if not isinstance(value, bool)]
        except (TypeError, ValueError):
            continue
        if name != "text" and numbers and len(numbers) == len(values):
            found[name.removeprefix("nulltext_")] = numbers[0] if len(numbers) == 1 else numbers
    return found
