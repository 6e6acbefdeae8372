"""make test: lint, then every test. Where no path is named, groups of them run side by side.

Arguments go to pytest: make test ARGS="tests/samplers -k ddim"."""

from __future__ import annotations

import concurrent.futures
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TUNING = ("text_directions", "text_direction_inputs", "tuning_nodes", "tuning_files", "training_families", "train_lora")
#: a process each, in the order in which they begin: those that wait for servers between those that compute. What one
#: names inside of another's path is left to it
GROUPS = (
    ("tests/server",),
    ("tests/nodes",),
    ("tests/browser",),
    ("tests/nodes/test_beside.py",),
    tuple(f"tests/server/test_{name}.py" for name in ("api_page", "batch", "batch_servers")),
    tuple(f"tests/nodes/test_{name}.py" for name in (*TUNING, "controlnet", "controlnet_composes")),
    ("tests",),
    ("tests/hostile",),
    ("tests/benchmarks", "tests/demo"),
)
AT_ONCE = 3  #: groups: a server and who asks it are busy in turn; of four, two cores take a fifth more for each
NO_TESTS = 5  # pytest's exit status where nothing was selected


def selected(command: list, group: tuple[str, ...]) -> list:
    """The command for a group: its paths without those inside of them that another names."""
    others = [path for other in GROUPS if other is not group for path in other]
    inside = [f"--ignore={path}" for path in others if any(path.startswith(f"{own}/") for own in group)]
    return [*command, *group, *inside]


def side_by_side(command: list) -> int:
    """Every test, so many groups at once; what each printed follows its end. Returns an exit status."""
    running: list[subprocess.Popen] = []

    def one(group: tuple[str, ...]) -> int:
        whole = selected(command, group)
        with tempfile.TemporaryFile("w+") as output:
            run = subprocess.Popen(whole, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            running.append(run)
            run.wait()
            output.seek(0)
            print(f"{' '.join(map(str, whole[3:]))}:\n{output.read()}", flush=True)
        return run.returncode

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            statuses = set(pool.map(one, GROUPS))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for run in running:
                run.send_signal(signal.SIGINT)
            raise
    bad = statuses - {0, NO_TESTS}
    return bad.pop() if bad else NO_TESTS if statuses == {NO_TESTS} else 0


def main(arguments: list[str]) -> int:
    compute = runpy.run_path(str(ROOT / "demo" / "turn.py"))["compute"]
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # some forty processes start here; torch compiles for seconds
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".cache" / "bytecode"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NULLTEXT_DEVICE", "cpu")
    python = Path(sys.executable)
    lint = subprocess.run([python, "-m", "ruff", "check", "--quiet", str(ROOT)]).returncode
    lint |= subprocess.run([python, "-m", "ruff", "format", "--check", "--quiet", str(ROOT)]).returncode
    print(f"ruff: {'clean' if lint == 0 else 'see above (make it right: ruff check --fix, ruff format)'}", flush=True)
    named = any((ROOT / argument.split("::")[0]).exists() for argument in arguments)
    command = [python, "-m", "pytest", "-c", "tests/pytest.ini", *arguments]
    with compute():
        tests = subprocess.run(command, cwd=ROOT).returncode if named else side_by_side(command)
    if lint:
        print("FAILED: ruff has findings, or a file is not formatted", file=sys.stderr)
    return tests or lint


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
