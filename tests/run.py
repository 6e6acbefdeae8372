"""make test: lint, then every test, one heavy job at a time.

Arguments go to pytest: make test ARGS="tests/samplers -k ddim"."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    compute = runpy.run_path(str(ROOT / "demo" / "turn.py"))["compute"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NULLTEXT_DEVICE", "cpu")
    python = Path(sys.executable)
    lint = subprocess.run([python, "-m", "ruff", "check", "--quiet", str(ROOT)]).returncode
    lint |= subprocess.run([python, "-m", "ruff", "format", "--check", "--quiet", str(ROOT)]).returncode
    print(f"ruff: {'clean' if lint == 0 else 'see above (make it right: ruff check --fix, ruff format)'}", flush=True)
    named = any((ROOT / argument.split("::")[0]).exists() for argument in arguments)
    command = [python, "-m", "pytest", "-c", "tests/pytest.ini", *arguments, *([] if named else ["tests"])]
    with compute():
        tests = subprocess.run(command, cwd=ROOT).returncode
    if lint:
        print("FAILED: ruff has findings, or a file is not formatted", file=sys.stderr)
    return tests or lint


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
