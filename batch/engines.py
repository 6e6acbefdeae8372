"""Starts and stops the two ComfyUI engines on a temporary tree, so that no user's models, outputs or packs are touched.

The tree holds `custom_nodes/ComfyUI-NullText` (a link to this pack, whatever the clone's folder is called), the model
folders, `input/`, `output/` and `server.log`. Servers listen on the loopback only, on a free port, and end with their
parent.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from .client import Client

ROOT = Path(__file__).resolve().parent.parent
PACK = "ComfyUI-NullText"
START_SECONDS = 240  # a cold start on a busy machine takes half a minute


class EngineError(RuntimeError):
    """An engine that can't be started; the message says why, in words for the person who asked for it."""


@dataclass(frozen=True)
class Engine:
    name: str  # "embedded" or "checkout"
    title: str
    command: tuple[str, ...]
    tree_option: str
    folder: Path | None = None

    def arguments(self, tree: Path, port: int) -> list[str]:
        own = {
            "embedded": ["--disable-known-models"],
            "checkout": ["--disable-api-nodes", "--database-url", f"sqlite:///{tree}/user/comfyui.db"],
        }[self.name]
        device = [] if gpu() else ["--cpu"]
        return [*self.command, self.tree_option, str(tree), "--port", str(port), "--disable-auto-launch", *own, *device]


def gpu() -> bool:
    """Whether to let the engine look for an accelerator. NULLTEXT_DEVICE=cpu forbids it, =gpu insists."""
    wish = os.environ.get("NULLTEXT_DEVICE", "")
    return wish == "gpu" or (wish != "cpu" and (sys.platform == "darwin" or shutil.which("nvidia-smi") is not None))


def embedded() -> Engine:
    """The pip package `comfyui` of the interpreter that runs this."""
    script = Path(sys.executable).with_name("comfyui")
    if not script.exists():
        raise EngineError(f"{sys.executable} has no ComfyUI: run `make env` first and use the interpreter in .venv.")
    return Engine("embedded", "the pip package comfyui", (sys.executable, str(script)), "--cwd")


def checkout(folder: str | Path | None = None) -> Engine:
    """The ComfyUI checkout that COMFYUI_PATH names, on its own interpreter (COMFYUI_PYTHON, else its venv or .venv)."""
    folder = folder or os.environ.get("COMFYUI_PATH")
    if not folder:
        raise EngineError(
            "Which ComfyUI checkout? Set COMFYUI_PATH to its folder: COMFYUI_PATH=~/ComfyUI make demo ..."
        )
    folder = Path(folder).expanduser().resolve()
    if not (folder / "main.py").is_file():
        raise EngineError(f"COMFYUI_PATH={folder} is not a ComfyUI checkout: it has no main.py.")
    named = os.environ.get("COMFYUI_PYTHON")
    candidates = (
        [Path(named)]
        if named
        else [folder / name / part for name in ("venv", ".venv") for part in ("bin/python", "Scripts/python.exe")]
    )
    python = next((path for path in candidates if path.exists()), None)
    if python is None:
        missing = f"COMFYUI_PYTHON={named} is not there" if named else f"COMFYUI_PATH={folder} has no venv or .venv"
        raise EngineError(f"{missing}: name the interpreter of that ComfyUI in COMFYUI_PYTHON.")
    title, command = f"ComfyUI {_version(folder)} from COMFYUI_PATH", (str(python), str(folder / "main.py"))
    return Engine("checkout", title, command, "--base-directory", folder)


def _version(folder: Path) -> str:
    with contextlib.suppress(OSError, IndexError):
        return (folder / "comfyui_version.py").read_text().split('"')[1]
    return "of unknown version"


def pack_folder() -> Path:
    """Where this pack lies on this machine: a worker on another machine than the command's finds its own copy."""
    if (ROOT / "nodes").is_dir():
        return ROOT
    found = importlib.util.find_spec("nulltext")
    if found is None or not found.origin:
        raise EngineError(
            f'{socket.gethostname()} has no copy of this pack: copy its folder there and pip install ".[batch]" in it.'
        )
    return Path(found.origin).parent


def plant(tree: Path, checkpoint: Path | None = None, link: bool = True) -> Path:
    """Lay the tree of a server: the pack's link, the model folders, one more checkpoint."""
    models = [f"models/{name}" for name in ("checkpoints", "loras", "vae", "controlnet")]
    for name in ("custom_nodes", *models, "input", "output", "temp", "user"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    pack = tree / "custom_nodes" / PACK
    if pack.is_symlink() and (not link or pack.resolve() != pack_folder().resolve()):
        pack.unlink()  # of another clone, or of one that is gone
    if link and not pack.exists():
        pack.symlink_to(pack_folder(), target_is_directory=True)
    if checkpoint is not None:
        target = tree / "models" / "checkpoints" / checkpoint.name
        target.unlink(missing_ok=True)
        target.symlink_to(checkpoint.resolve())
    return tree


def end_like_ctrl_c() -> None:
    """Let a polite `kill` of a script end it as Ctrl-C does: the server stopped, the temporary tree gone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_with_parent() -> None:
    """Linux: ask the kernel to stop the server when its parent dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Server:
    """A running engine; `client` talks to it. Use `running`, which stops it on every way out."""

    def __init__(
        self,
        engine: Engine,
        tree: Path,
        port: int | None = None,
        extra: Iterable[str] = (),
        variables: dict[str, str] | None = None,
    ):
        self.engine, self.tree, self.port = engine, tree, port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = tree / "server.log"
        # An engine reads settings from COMFYUI_* variables; those of the caller are not meant for this server.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("COMFYUI_", "PYTHONPATH", "PYTHONHOME"))}
        env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tree / "temp"), **env}
        env |= {"PYTHONUNBUFFERED": "1", **(variables or {})}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*engine.arguments(tree, self.port), *extra],
                cwd=tree,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        atexit.register(self.stop)
        self.client = Client(self.address, self.alive)

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float = START_SECONDS) -> Server:
        """Wait until the server answers; EngineError with the end of its log otherwise."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if self.client.get("/system_stats").ok:
                    return self
            time.sleep(0.2)
        why = f"did not answer within {seconds:.0f} s" if self.alive() else f"ended with code {self.process.returncode}"
        raise EngineError(f"The server ({self.engine.title}) {why}. The end of its log:\n{self.tail()}")

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """End it without asking: a server that hangs hears nothing."""
        atexit.unregister(self.stop)
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        atexit.unregister(self.stop)
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def running(
    engine: Engine,
    tree: Path | None = None,
    *,
    checkpoint: Path | None = None,
    port: int | None = None,
    extra: Iterable[str] = (),
    link: bool = True,
    variables: dict[str, str] | None = None,
) -> Iterator[Server]:
    """A server that answers, on `tree` or on a temporary one, stopped at the end whatever happens.

    `extra` are more arguments, `variables` more environment; link=False leaves custom_nodes/ empty."""
    with contextlib.ExitStack() as stack:
        if tree is None:
            tree = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nulltext-")))
        server = Server(engine, plant(tree, checkpoint, link), port, extra, variables)
        stack.callback(server.stop)
        yield server.wait()
