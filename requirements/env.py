"""Makes .venv what requirements/env.txt says, and nothing when it already is: `python3.11 requirements/env.py
[--browser]`.

Runs on a bare Python 3.11 with pip. uv does the work; where it is absent, pip puts it into .cache/uv of this folder,
which needs no rights and touches no other environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "env.txt"
VENV = ROOT / ".venv"
STAMP = VENV / "lock.sha256"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def works(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def uv() -> str:
    """The command of a working uv."""
    own = ROOT / ".cache" / "uv" / "bin" / "uv"
    for command in ("uv", str(own)):
        if works(command, "--version"):
            return command
    print("installing uv into .cache/uv ...", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", ROOT / ".cache" / "uv", "uv"]
    subprocess.run(pip, check=True)
    return str(own)


def environment() -> None:
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version[:4].encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted and works(VENV / "bin" / "python", "-c", "import sys"):
        return
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            f"The environment is pinned for Python 3.11, this is {sys.version.split()[0]}: "
            "run `make PYTHON=/path/to/python3.11 ...`."
        )
    command = uv()
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH", "CONDA_PREFIX")}
    print("making the environment in .venv (about 6 GB, once) ...", file=sys.stderr, flush=True)
    if not works(VENV / "bin" / "python", "-c", "import sys; assert sys.version_info[:2] == (3, 11)"):
        subprocess.run([command, "venv", "--quiet", "--clear", "--python", sys.executable, VENV], check=True, env=env)
    STAMP.unlink(missing_ok=True)
    subprocess.run([command, "pip", "sync", "--python", VENV / "bin" / "python", LOCK], check=True, env=env)
    STAMP.write_text(wanted)


def browser() -> None:
    """Chromium for the browser tests, from the system's packages; one line of advice where it can't be installed."""
    if any(shutil.which(name) for name in BROWSERS):
        return
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing chromium from the system's packages ...", file=sys.stderr, flush=True)
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-q", "chromium"]
        if works("apt-get", "update") and not subprocess.run(install, env=env, stdout=subprocess.DEVNULL).returncode:
            return
    print(
        "No Chromium: the browser tests are skipped. Install it, for example with `sudo apt-get install chromium`.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    try:
        environment()
        if "--browser" in sys.argv:
            browser()
    except subprocess.CalledProcessError as error:
        sys.exit(f"The environment could not be made: {' '.join(map(str, error.cmd))} ended with {error.returncode}.")
