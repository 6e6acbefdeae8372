"""make mutants: break the algorithms of samplers/ one line at a time and ask the tests whether they notice.

A mutation is an entry of mutations.txt. Each is applied in a temporary copy, never in this folder, and its tests run
there in a forked child: killed when one fails or the time is up, SURVIVED when all pass. The same tests must pass on
the unbroken copy first. Status 0: at most MOST survive, each with a written reason. The last line is JSON.

    make mutants ARGS="--quick 10 --seed 3"     a sample of ten, the same for the same seed
    make mutants ARGS="--only repaint"          those with that text in their file or name
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("__init__.py", "samplers", "engine", "nodes", "demo", "tests")
#: before the first fork, so that no mutation pays for it; the last ones are what torch's comparisons load
IMPORTED_ONCE = (
    "pytest",
    "numpy",
    "torch",
    "torch.utils.checkpoint",
    "safetensors.torch",
    "PIL.ImageOps",
    "anyio",
    "torch.fx.experimental.symbolic_shapes",
    "torch.distributed.tensor",
)
MOST = 3
#: tests in tests/samplers/ of a file beside test_<file>.py
MORE_TESTS = {
    "layers": ("test_maps", "test_branches"),
    "cfg": ("test_clip", "test_window"),
    "controllers": ("test_layers", "test_branches"),
    "corrections": ("test_null_text",),
    "disturbance": ("test_window",),
    "disturbance_schedules": ("test_disturbance", "test_window"),
    "edit_friendly": ("test_branches", "test_replay"),
    "encoder": ("test_latent_classifier",),
    "exact_pair": ("test_replay",),
    "heat": ("test_maps",),
    "lowpass": ("test_ilvr",),
    "maps": ("test_branches",),
    "pivots": ("test_replay",),
    "plan": ("test_controllers",),
    "repaint_schedules": ("test_repaint",),
    "semantic": ("test_clip",),
    "table": ("test_replay", "test_record"),
    "terms": ("test_window",),
    "walk": ("test_ode",),
    "window": ("test_layers", "test_maps", "test_controllers"),
}


@dataclass(frozen=True)
class Mutation:
    """`old` in <file>.py of samplers/ becomes `new`; the named tests should fail. survives: why none of them can."""

    file: str
    name: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    survives: str = ""

    def __str__(self):
        return f"{self.file}: {self.name}"

    def paths(self, root: Path) -> list[str]:
        names = self.tests or (f"test_{self.file}", *MORE_TESTS.get(self.file, ()))
        found = [path for name in names for path in (root / "tests" / "samplers").rglob(f"{name}.py")]
        return [str(path.relative_to(root)) for path in found]

    def source(self, root: Path) -> Path:
        """The file of samplers/ that is mutated, whatever its family."""
        return next((root / "samplers").rglob(f"{self.file}.py"))


def read(text: str) -> list[Mutation]:
    """Entries divided by empty lines: 'file: name', '- old' and '+ new' lines, then 'tests: ...', 'survives: ...'."""
    entries = []
    for block in re.split(r"\n{2,}", "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()):
        head, *lines = block.splitlines()
        old, new = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
        more = dict(line.split(": ", 1) for line in lines if line[0] not in "-+")
        entries.append(Mutation(*head.split(": ", 1), old, new, tuple(more.pop("tests", "").split()), **more))
    return entries


def faults(entries: list[Mutation], root: Path) -> list[str]:
    """One sentence for each entry that can't be used: its old text must stand in its file exactly once."""
    found = []
    for entry in entries:
        count = entry.source(root).read_text(encoding="utf-8").count(entry.old)
        if count != 1:
            found.append(f"'{entry}' is stale: its old text stands {count} times in the file; bring it up to date.")
        if entry.old == entry.new or not entry.paths(root) or sum(str(entry) == str(e) for e in entries) > 1:
            found.append(f"'{entry}' changes nothing, has no test file, or has the name of another entry.")
    return found


def child(copy: Path, tests: list[str], log: Path, limit: float) -> None:
    """In the forked process: run a copy's tests and leave with pytest's exit status. Does not return."""
    status = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit)
        os.chdir(copy)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        import pytest

        status = int(pytest.main(["-c", "tests/pytest.ini", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(status)


def judge(copy: Path, tests: list[str], limit: float) -> tuple[str, str]:
    """('killed' | 'SURVIVED', the test that failed or why) of the copy as it stands; SystemExit if no test ran."""
    log = copy / "mutant.log"
    log.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        child(copy, tests, log, limit)
    try:
        status = os.waitpid(pid, 0)[1]
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    if os.WIFSIGNALED(status):
        ended = os.WTERMSIG(status)
        return "killed", f"ran past {limit:g} s" if ended == signal.SIGALRM else f"ended by signal {ended}"
    if os.WEXITSTATUS(status) == 0:
        return "SURVIVED", ""
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    failed = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py::\S+)", said, re.MULTILINE)
    if os.WEXITSTATUS(status) == 1 and failed:
        return "killed", failed[1]
    raise SystemExit(f"The tests could not be run, which is no verdict: correct the entry.\n{said[-3000:]}")


def run(entries: list[Mutation], root: Path, limit: float) -> dict:
    """Judge the entries one after the other in a copy; prints a line each and gives the figures."""
    survivors, wrong, began = [], [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder, "pack")
        leave = lambda at, names: [n for n in names if n == "__pycache__" or Path(at) == root and n not in COPIED]
        shutil.copytree(root, copy, ignore=leave)
        everything = sorted({path for entry in entries for path in entry.paths(root)})
        verdict, why = judge(copy, everything, 10 * limit)
        if verdict != "SURVIVED":
            raise SystemExit(f"The tests must pass before anything is broken, and they do not: {why}.")
        print(f"unbroken: {len(everything)} test files pass, {time.monotonic() - began:.0f} s", flush=True)
        for i, entry in enumerate(entries, 1):
            start, path = time.monotonic(), entry.source(copy)
            before = path.read_text(encoding="utf-8")
            path.write_text(before.replace(entry.old, entry.new), encoding="utf-8")
            verdict, why = judge(copy, entry.paths(root), limit)
            path.write_text(before, encoding="utf-8")
            if verdict == "SURVIVED":
                survivors.append(entry)
            elif entry.survives:
                wrong.append(f"'{entry}' is killed now: take its reason out")
            print(f"{i:3}/{len(entries)} {verdict:8} {entry} [{why}] {time.monotonic() - start:.1f} s", flush=True)
    print(f"\n{len(survivors)} of {len(entries)} survive{':' if survivors else '.'}")
    for entry in survivors:
        print(f"  {entry}: {entry.survives or 'UNEXPLAINED'}")
    explained = sum(bool(entry.survives) for entry in survivors)
    if explained < len(survivors):
        wrong.append("a mutation survives without a reason: write the test that is missing")
    if len(survivors) > MOST:
        wrong.append(f"more than {MOST} survive")
    for line in wrong:
        print(f"FAILED: {line}", file=sys.stderr)
    return {
        "mutations": len(entries),
        "survivors": len(survivors),
        "survivors_explained": explained,
        "seconds": round(time.monotonic() - began),
        "passed": not wrong,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", type=int, metavar="N", help="a seeded sample of N mutations")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations with this text in their file or name")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of the sample")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one mutation's tests; past it: killed")
    parser.add_argument("--root", type=Path, default=ROOT, help="the pack to break a copy of")
    parser.add_argument("--list", type=Path, default=Path(__file__).with_name("mutations.txt"))
    options = parser.parse_args(arguments)
    entries = read(options.list.read_text(encoding="utf-8"))
    for fault in faults(entries, options.root):
        raise SystemExit(fault)
    entries = [entry for entry in entries if options.only in str(entry)]
    random.Random(options.seed).shuffle(entries)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child must not wait for its parent's threads
    os.environ.setdefault("NULLTEXT_DEVICE", "cpu")
    sys.dont_write_bytecode = True  # a mutation may keep a file's size and second: no child may read another's
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    with runpy.run_path(str(ROOT / "demo" / "turn.py"))["compute"]():
        figures = run(entries[: options.quick], options.root, options.limit)
    print(json.dumps(figures))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
