"""Where a worker's rows run: on a ComfyUI of its own, or on one that already runs at an address."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec
import requests
import websocket

from . import engines
from .client import TOO_LARGE, Client, Result
from .pictures import File
from .plan import upstream

SERVER_FAILED = ("server", "timeout")  # kinds of errors that another try may not have


@dataclass
class Outcome:
    """What one try of a row left: files by node id as (name on the server, content), files that nodes wrote
    elsewhere, what nodes showed."""

    error: str | None = None
    error_type: str | None = None
    files: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    more: list[tuple[str, bytes]] = field(default_factory=list)
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)  # ids of the nodes that were not served from an earlier row's run
    seconds: float = 0.0  # of the server's work alone


class Place(Protocol):
    """What a worker asks of the place where its rows run."""

    name: str

    def run(self, workflow: dict, files: list[File], timeout: float) -> Outcome: ...

    def restart(self) -> None: ...

    def close(self) -> None: ...


class TooLarge(Exception):
    """A file that the server takes from nobody."""


class Served:
    """A server that is there; `client` talks to it."""

    client: Client
    name = ""

    def __init__(self) -> None:
        self.sent: set[tuple[str, str]] = set()

    def run(self, workflow: dict, files: list[File], timeout: float) -> Outcome:
        """Upload what is not there yet, queue, read everything back. What breaks on the way is the server's failure."""
        try:
            for file in files:
                self._send(*file)
            return self._outcome(self.client.run(workflow, timeout=timeout))
        except FileNotFoundError as error:
            return Outcome(f"A file of the row is gone: {error}", "file")
        except TooLarge as error:
            return Outcome(str(error), "file")
        except (requests.RequestException, websocket.WebSocketException, OSError, ValueError) as error:
            return Outcome(f"The server does not answer as it should: {str(error)[:300]}", "server")

    def _send(self, url: str, name: str, folder: str) -> None:
        """Upload a file that is not there yet. TooLarge, FileNotFoundError."""
        if (name, folder) in self.sent:
            return
        with fsspec.open(url, "rb") as file:
            content = file.read()
        try:
            self.client.upload(content, name, folder)
        except requests.HTTPError as error:
            if error.response.status_code == TOO_LARGE:
                raise TooLarge(f"The server takes no file as large as {name} ({len(content)} bytes).") from None
            raise
        self.sent.add((name, folder))

    def _outcome(self, result: Result) -> Outcome:
        error = "The run was interrupted." if result.interrupted else result.error
        if error and result.where:
            error = f"{result.where}: {error}"
        outcome = Outcome(error, result.error_type or ("server" if error else None), seconds=result.seconds)
        outcome.ran = result.ran - set(result.cached)  # new servers tell of nodes that they have cached, too
        for key, shown in result.outputs.items():
            pictures = zip(_records(shown.get("images")), result.files.get(key, ()))
            found = [(record["filename"], content) for record, content in pictures]
            for name, group in shown.items():  # latents, sound: what is no preview
                kept = [f for f in _records(group) if name != "images" and f.get("type") != "temp"]
                found += [(record["filename"], self.client.view(record)) for record in kept]
            if found:
                outcome.files[key] = found
        outcome.shown = result.outputs
        return outcome


def _records(group: Any) -> list[dict[str, str]]:
    """The files that a list of a node's output names."""
    return [f for f in group if isinstance(f, dict) and "filename" in f] if isinstance(group, list) else []


@dataclass
class Written:
    """A file that nodes wrote without showing it: by which nodes, all that these depend on, and the file's state."""

    writers: set[str]
    nodes: dict[str, dict]
    state: tuple[int, int]


def _writers(workflow: dict, path: Path) -> set[str]:
    """The nodes that may have written a file: those with an input by whose last part its name begins."""
    found = set()
    for key, node in workflow.items():
        texts = [value for value in node["inputs"].values() if isinstance(value, str)]
        names = [text.replace("\\", "/").rpartition("/")[2].removesuffix(path.suffix) for text in texts]
        found |= {key} if any(name and path.name.startswith(name) for name in names) else set()
    return found


class OwnServer(Served):
    """A server of this process: on a temporary tree that ends with it, restarted as often as needed."""

    def __init__(self, engine: str, folder: str | None, models: str | None, cache: str | None, common: list[File]):
        super().__init__()
        if models and not Path(models := str(Path(models).expanduser())).is_dir():
            raise engines.EngineError(f"{socket.gethostname()} has no folder {models}: --models must name one there.")
        self.engine = engines.embedded() if engine == "embedded" else engines.checkout(folder)
        self.name, self.common = engine, {(name, place) for _, name, place in common}
        sweep()
        self.tree = shelf() / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        engines.plant(self.tree)
        self.extra: list[str] = []
        models = models or (str(self.engine.folder / "models") if self.engine.folder else None)
        if models and Path(models).is_dir():
            kinds = "".join(f"  {p.name}: {p.name}\n" for p in sorted(Path(models).iterdir()) if p.is_dir())
            paths = self.tree / "models.yaml"
            paths.write_text(f"own:\n  base_path: {Path(models).resolve()}\n{kinds}")
            self.extra = ["--extra-model-paths-config", str(paths)] if kinds else []
        if cache:
            Path(cache).expanduser().mkdir(parents=True, exist_ok=True)
            (self.tree / "user" / "nulltext").symlink_to(Path(cache).expanduser().resolve(), target_is_directory=True)
        self.server: engines.Server | None = None
        self.restart()

    def restart(self) -> None:
        """A fresh server in place of the one that is there. EngineError if three in a row don't start."""
        for left in (2, 1, 0):
            if self.server is not None:
                self.server.kill()
            self.sent.clear()
            self._cleared()
            try:
                self.server = engines.Server(self.engine, self.tree, extra=self.extra).wait()
                self.client = self.server.client
                break
            except engines.EngineError:
                if not left:
                    raise

    def _cleared(self) -> None:
        """Remove what nodes made: a fresh server remembers nothing that would need it."""
        for path in self._made():
            path.unlink()
        self._shown, self._written = set(), {}

    def run(self, workflow: dict, files: list[File], timeout: float) -> Outcome:
        with contextlib.suppress(OSError):
            self._forget(workflow)
        outcome = super().run(workflow, files, timeout)
        with contextlib.suppress(OSError):
            self._tidy(outcome, files, workflow)
        return outcome

    def _forget(self, workflow: dict) -> None:
        """Remove what nodes wrote without showing it if they will write it anew, so that its name is free again."""
        for path, written in list(self._written.items()):
            if written.nodes != upstream(workflow, written.writers):
                del self._written[path]
                path.unlink(missing_ok=True)

    def _made(self) -> list[Path]:
        """Files in the tree's models and output folders; links of the user's own are none."""
        found = [path for top in ("models", "output") for path in (self.tree / top).rglob("*")]
        return [path for path in found if path.is_file() and not path.is_symlink()]

    def _tidy(self, outcome: Outcome, files: list[File], workflow: dict) -> None:
        """Collect what nodes wrote without showing it (a LoRA), then clear what no later row needs.

        The server answers for a node that need not run again with the files of the last run, so those stay."""
        shown = [f for out in outcome.shown.values() for group in out.values() for f in _records(group)]
        held = self._shown if outcome.error else set()  # a row that failed changes nothing of what is still known
        held = held | {self.tree / f.get("type", "output") / f.get("subfolder", "") / f["filename"] for f in shown}
        for path in self._made():
            if path in held:
                self._written.pop(path, None)
                continue
            old, state = self._written.pop(path, None), (path.stat().st_mtime_ns, path.stat().st_size)
            made = path not in self._shown and (old is None or old.state != state)
            again = old is not None and not made and not old.writers & outcome.ran
            if (made or again) and not outcome.error:
                outcome.more.append((path.relative_to(self.tree).as_posix(), path.read_bytes()))
            writers = _writers(workflow, path) if made else old.writers if again else set()
            if writers:
                self._written[path] = Written(writers, upstream(workflow, writers), state)
            else:
                path.unlink()
        self._shown = held
        for path in (self.tree / "temp").rglob("*"):
            if path.is_file() and path not in held:
                path.unlink()
        for _, name, folder in files:
            if (name, folder) not in self.common:
                (self.tree / "input" / folder / name).unlink(missing_ok=True)
                self.sent.discard((name, folder))

    def close(self) -> None:
        if self.server is not None:
            self.server.stop()
        shutil.rmtree(self.tree, ignore_errors=True)


def shelf() -> Path:
    """Where the trees of this user's servers lie on this machine."""
    place = Path(tempfile.gettempdir()) / f"nulltext-batch-{os.getuid() if hasattr(os, 'getuid') else 0}"
    place.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
        raise engines.EngineError(f"{place} belongs to somebody else: set TMPDIR to a folder of your own.")
    return place


def sweep() -> None:
    """Remove the trees of processes that ended without a chance to do it."""
    for tree in shelf().iterdir():
        host, number, _ = [*tree.name.rsplit("-", 2), "", ""][:3]
        if host == socket.gethostname() and number.isdigit() and not _lives(int(number)):
            shutil.rmtree(tree, ignore_errors=True)


def _lives(number: int) -> bool:
    if sys.platform == "win32":  # there signal 0 is Ctrl-C
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Remote(Served):
    """A server that somebody else started. `mark` stands behind the prefixes of saved files, so that servers may share
    an output folder, where they number their files alike; by default it is this worker's own."""

    def __init__(self, address: str, patience: float = engines.START_SECONDS, mark: str | None = None):
        super().__init__()
        self.name, self.patience = address, patience
        self.mark = f"_{uuid.uuid4().hex[:8]}" if mark is None else mark
        self.client = Client(address, patience=patience)

    def run(self, workflow: dict, files: list[File], timeout: float) -> Outcome:
        own = {key: {**node, "inputs": _marked(node["inputs"], self.mark)} for key, node in workflow.items()}
        return super().run(own, files, timeout)

    def restart(self) -> None:
        """Wait until it answers again, or until the patience ends: then the row says so."""
        self.sent.clear()
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if self.client.get("/system_stats").ok:
                    return
            time.sleep(1)

    def close(self) -> None:
        """Its server is not ours to end."""


def _marked(inputs: dict[str, Any], mark: str) -> dict[str, Any]:
    prefix = inputs.get("filename_prefix")
    return {**inputs, "filename_prefix": prefix + mark} if isinstance(prefix, str) else inputs


def answering(addresses: list[str], seconds: float = 15.0) -> list[str]:
    """Those of the addresses where a server answers within so many seconds; of the others it is told that they are
    left out. EngineError where none does."""
    deadline, silent = time.monotonic() + seconds, set(addresses)
    while silent := {address for address in silent if not _answers(address)}:
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    if silent and silent == set(addresses):
        raise engines.EngineError(f"No answer from {', '.join(sorted(silent))}: start the server, or correct SERVERS.")
    for address in sorted(silent):
        print(f"No answer from {address}: the batch goes on without it.", file=sys.stderr, flush=True)
    return [address for address in addresses if address not in silent]


def _answers(address: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{address}/system_stats", timeout=5).ok
    return False


class Turns:
    """Tells each worker its server; a worker that was started again keeps the one it had. It is an actor of its own."""

    def __init__(self, addresses: list[str]):
        self.addresses, self.given = addresses, {}

    def take(self, worker: str) -> str:
        free = sorted(self.addresses, key=list(self.given.values()).count)
        return self.given.setdefault(worker, free[0])


def told(turns) -> Remote:
    """The server of this worker."""
    import ray

    return Remote(ray.get(turns.take.remote(ray.get_runtime_context().get_actor_id())))
