"""make test: lint, then every test. Where no path is named, the tests that talk to a server run beside the others.

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
#: what runs beside the others, about as long as they: a server and who asks it are busy in turn
BESIDE = (("tests/server", "tests/demo"), ("tests/browser", "tests/hostile", "tests/benchmarks"))
NO_TESTS = 5  # pytest's exit status where nothing was selected


@contextlib.contextmanager
def beside(command: list, statuses: list[int]):
    """The command runs while the body does; then what it printed follows and its exit status joins the list.

    It steps back a little: it waits for servers now and then, and the body, which never waits, would be the last."""
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, preexec_fn=lambda: os.nice(5)
        )
        try:
            yield
        except BaseException:
            run.send_signal(signal.SIGINT)
            raise
        finally:
            statuses.append(run.wait())
            output.seek(0)
            print(f"{' '.join(map(str, command[3:]))}:\n{output.read()}", flush=True)


def side_by_side(command: list) -> int:
    """Every test on two cores. Returns an exit status."""
    statuses: list[int] = []
    with contextlib.ExitStack() as running:
        for paths in BESIDE:
            running.enter_context(beside([*command, *paths], statuses))
        apart = [f"--ignore={path}" for paths in BESIDE for path in paths]
        statuses.append(subprocess.run([*command, "tests", *apart], cwd=ROOT).returncode)
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
