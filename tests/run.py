"""make test: lint, then every test. Where no path is named, the tests that talk to a server run beside the others.

Arguments go to pytest: make test ARGS="tests/samplers -k ddim"."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVER = ("tests/server", "tests/browser", "tests/hostile")
NO_TESTS = 5  # pytest's exit status where nothing was selected


def side_by_side(command: list) -> int:
    """Every test on two cores: what the server's tests print follows what the others print. Returns an exit status."""
    others = [*command, "tests", *(f"--ignore={path}" for path in SERVER)]
    with tempfile.TemporaryFile("w+") as output:
        beside = subprocess.Popen([*command, *SERVER], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            first = subprocess.run(others, cwd=ROOT).returncode
            print(f"now what {' and '.join(SERVER)} say, which run beside:", flush=True)
        except BaseException:
            beside.send_signal(signal.SIGINT)
            raise
        finally:
            second = beside.wait()
            output.seek(0)
            print(output.read(), flush=True)
    ended = {first, second}
    return 0 if ended == {0} else NO_TESTS if ended == {NO_TESTS} else max(ended - {0, NO_TESTS}, default=0)


def main(arguments: list[str]) -> int:
    compute = runpy.run_path(str(ROOT / "demo" / "turn.py"))["compute"]
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
