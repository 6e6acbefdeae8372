"""make test: lint, then every test. Where no path is named, groups of them run side by side.

Arguments go to pytest: make test ARGS="tests/samplers -k ddim"."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: groups of about one length that run side by side, a process each, for a server and who asks it are busy in turn; what
#: one names inside of another's path is left to it
GROUPS = (
    ("tests/server", "tests/demo"),
    ("tests/nodes",),
    (
        "tests/hostile",
        *(f"tests/server/test_{name}.py" for name in ("api_page", "batch", "batch_servers")),
        "tests/nodes/test_text_directions.py",
    ),
    ("tests/browser", *(f"tests/nodes/test_{name}.py" for name in ("beside", "controlnet", "repaint"))),
    ("tests",),
)
NO_TESTS = 5  # pytest's exit status where nothing was selected


@contextlib.contextmanager
def beside(command: list, statuses: list[int]):
    """The command runs while the body does; then what it printed follows and its exit status joins the list."""
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        except BaseException:
            run.send_signal(signal.SIGINT)
            raise
        finally:
            statuses.append(run.wait())
            output.seek(0)
            print(f"{' '.join(map(str, command[3:]))}:\n{output.read()}", flush=True)


def selected(command: list, group: tuple[str, ...]) -> list:
    """The command for a group: its paths without those inside of them that another names."""
    others = [path for other in GROUPS if other is not group for path in other]
    inside = [f"--ignore={path}" for path in others if any(path.startswith(f"{own}/") for own in group)]
    return [*command, *group, *inside]


def side_by_side(command: list) -> int:
    """Every test on two cores. Returns an exit status."""
    statuses: list[int] = []
    *others, last = (selected(command, group) for group in GROUPS)
    with contextlib.ExitStack() as running:
        for other in others:
            running.enter_context(beside(other, statuses))
        statuses.append(subprocess.run(last, cwd=ROOT).returncode)
    bad = [status for status in statuses if status not in (0, NO_TESTS)]
    return bad[0] if bad else NO_TESTS if set(statuses) == {NO_TESTS} else 0


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
