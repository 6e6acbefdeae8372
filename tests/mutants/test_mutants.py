"""The list of mutations fits the code as it is, and the runner tells a break from a change that breaks nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LIST = """
add: the sign
- a + b
+ a - b

add: a comment
- # the sum
+ # sum
survives: a comment

add: never ends
- return
+ while True: pass
+     return
"""


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("mutants_run", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_mutation_fits_the_code_and_every_file_has_one(runner):
    entries = runner.read((HERE / "mutations.txt").read_text(encoding="utf-8"))
    assert runner.faults(entries, runner.ROOT) == []
    assert len(entries) >= 60 and sum(bool(entry.survives) for entry in entries) <= runner.MOST
    files = {path.stem for path in (runner.ROOT / "samplers").rglob("*.py")} - {"__init__"}
    assert {entry.file for entry in entries} == files


def pack(folder: Path, **changes: str) -> Path:
    for name, text in {
        "samplers/add.py": "def add(a, b):\n    return a + b  # the sum\n",
        "tests/pytest.ini": "[pytest]\naddopts = --import-mode=importlib\n",
        "tests/samplers/test_add.py": "import runpy\n\n\ndef test_add():\n"
        "    assert runpy.run_path('samplers/add.py')['add'](2, 3) == 5\n",
        **changes,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def mutants(folder: Path, text: str = LIST, *options: str) -> subprocess.CompletedProcess:
    (folder / "list.txt").write_text(text)
    start = "import run, sys; run.IMPORTED_ONCE = ('pytest',); sys.exit(run.main(sys.argv[1:]))"  # no torch: fast
    return subprocess.run(
        [sys.executable, "-c", start, "--root", folder, "--list", folder / "list.txt", "--limit", "2", *options],
        capture_output=True,
        text=True,
        cwd=HERE,
        env={**os.environ, "NULLTEXT_COMPUTE_LOCK": "1"},
    )


def test_the_runner_tells_what_is_killed_what_survives_and_what_never_ends(tmp_path):
    done = mutants(pack(tmp_path))
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert any("killed   add: the sign [test_add.py::test_add]" in line for line in said)
    assert any("SURVIVED add: a comment [" in line for line in said)
    assert any("killed   add: never ends [ran past 2 s]" in line for line in said)
    figures = json.loads(said[-1])
    assert (figures["mutations"], figures["survivors"], figures["survivors_explained"]) == (3, 1, 1)
    assert (tmp_path / "samplers/add.py").read_text().endswith("return a + b  # the sum\n")  # the folder is left alone


def test_an_unexplained_survivor_and_a_test_that_fails_unbroken_are_failures(tmp_path):
    unexplained = mutants(pack(tmp_path), LIST.replace("survives: a comment", ""), "--only", "comment")
    assert unexplained.returncode == 1 and "without a reason" in unexplained.stderr
    failing = mutants(pack(tmp_path, **{"samplers/add.py": "def add(a, b):\n    return a + b + 1  # the sum\n"}))
    assert failing.returncode == 1 and "must pass before anything is broken" in failing.stderr


def test_a_stale_entry_stops_the_run_and_is_named(tmp_path):
    stale = mutants(pack(tmp_path), LIST.replace("- a + b", "- a * b"))
    assert stale.returncode == 1 and "'add: the sign' is stale: its old text stands 0 times" in stale.stderr
