"""A small HTTP client of a ComfyUI server: queue a workflow, follow its progress, read back images, texts and errors.

It speaks the addresses that every ComfyUI answers (`/prompt`, `/history`, `/view`, `/ws`). `make demo` and the tests
use it, so that both do what a user's own script would do.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import websocket
from PIL import Image

TOO_LARGE = 413  # the status of an answer to a body that is larger than the server takes
SILENCE = 5.0  # seconds without a word about the prompt, after which the server is asked whether it still has it

#: on_progress(node id, value, total) is called for every step that a node reports
OnProgress = Callable[[str, int, int], None]


@dataclass
class Result:
    """What one queued workflow left behind. `outputs` is the server's: {node id: {"images": [..], "text": [..]}}."""

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(
        default_factory=dict
    )  # by node id: the pictures' files as the server made them
    error: str | None = None  # one sentence of the node, or of the server's validation
    where: str | None = None  # the class of the node that failed
    error_type: str | None = None  # the exception's class name; "validation" before anything ran
    interrupted: bool = False
    cached: tuple[str, ...] = ()  # ids of nodes that did not run again
    ran: set[str] = field(default_factory=set)  # ids of nodes that ran
    steps: int = 0  # progress ticks seen
    seconds: float = 0.0
    _read: dict[str, list[Image.Image]] = field(default_factory=dict, repr=False)

    @property
    def pictures(self) -> dict[str, list[Image.Image]]:
        """The pictures by node id, RGB."""
        for key, files in self.files.items():
            if key not in self._read:
                self._read[key] = [Image.open(io.BytesIO(each)).convert("RGB") for each in files]
        return self._read

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, in the order of the node ids."""
        return [picture for key in _in_order(self.pictures) for picture in self.pictures[key]]

    @property
    def texts(self) -> list[str]:
        """All texts that nodes show, in the order of the node ids."""
        return [str(text) for key in _in_order(self.outputs) for text in self.outputs[key].get("text", ())]

    @property
    def ok(self) -> bool:
        return self.error is None and not self.interrupted

    def check(self) -> Result:
        """Itself; RuntimeError with the readable reason if the workflow failed."""
        if self.interrupted:
            raise RuntimeError("The run was interrupted.")
        if self.error is not None:
            raise RuntimeError(f"{self.where}: {self.error}" if self.where else self.error)
        return self


def _in_order(keys) -> list[str]:
    return sorted(keys, key=lambda key: (0, int(key), "") if str(key).isdigit() else (1, 0, str(key)))


class Client:
    """A session with the server at `address` ("http://127.0.0.1:8188"). `alive` says whether its process still runs,
    `patience` for how many seconds it may be out of reach while a workflow runs."""

    def __init__(self, address: str, alive: Callable[[], bool] = lambda: True, patience: float = 240.0):
        self.address, self.alive, self.patience = address.rstrip("/"), alive, patience
        self.id = uuid.uuid4().hex
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy has no business on the loopback

    def get(self, path: str, timeout: float = 60, **params) -> requests.Response:
        return self._http.get(self.address + path, params=params, timeout=timeout)

    def post(self, path: str, body: Any = None, timeout: float = 60, **kwargs) -> requests.Response:
        return self._http.post(self.address + path, json=body, timeout=timeout, **kwargs)

    def object_info(self) -> dict[str, Any]:
        """Every node's inputs, outputs and description, by class id."""
        return self.get("/object_info").json()

    def cancel(self, prompt_id: str, timeout: float = 5) -> None:
        """Take a prompt out of the queue, and interrupt it if it runs. What others run there goes on."""
        self.post("/queue", {"delete": [prompt_id]}, timeout=timeout)
        if self._queued(prompt_id, timeout, ("queue_running",)):
            self.post("/interrupt", {"prompt_id": prompt_id}, timeout=timeout)  # an older server reads no body

    def upload(self, picture: Image.Image | str | Path | bytes, name: str | None = None, folder: str = "") -> str:
        """Put a picture, or the content of a file, into the server's input folder or a folder in it; the name to give
        to LoadImage."""
        if isinstance(picture, bytes):
            content, name = picture, name or f"{uuid.uuid4().hex}.png"
        elif isinstance(picture, Image.Image):
            data, name = io.BytesIO(), name or f"{uuid.uuid4().hex}.png"
            picture.save(data, format="PNG")
            content = data.getvalue()
        else:
            content, name = Path(picture).read_bytes(), name or Path(picture).name
        answer = self._http.post(
            self.address + "/upload/image",
            files={"image": (name, content)},
            data={"overwrite": "true", "subfolder": folder},
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json()["name"]

    def queue(self, workflow: dict[str, Any], graph: dict[str, Any] | None = None) -> tuple[str | None, Result]:
        """(prompt id, Result); the id is None if the server refused the workflow, and the Result says why.

        `graph` is the workflow as the page would open it: the server writes it into the pictures that it saves."""
        more = {} if graph is None else {"extra_data": {"extra_pnginfo": {"workflow": graph}}}
        answer = self.post("/prompt", {"prompt": workflow, "client_id": self.id, **more})
        result = Result()
        try:
            body = answer.json()
        except requests.JSONDecodeError:
            body = None
        if isinstance(body, dict):
            result.error, result.where = _refusal(body)
            if result.error and answer.status_code in (200, 400):  # 200: some of the outputs are refused
                result.error_type = "validation"
                return body.get("prompt_id"), result
            if body.get("prompt_id") and not result.error:
                return body["prompt_id"], result
        result.error, result.where = f"The server answered {answer.status_code}: {answer.text[:200]}", None
        result.error_type = "validation" if answer.status_code == TOO_LARGE else "server"
        return None, result

    def run(
        self,
        workflow: dict[str, Any],
        on_progress: OnProgress | None = None,
        timeout: float = 600,
        graph: dict[str, Any] | None = None,
    ) -> Result:
        """Queue a workflow in API format, wait for its end, read everything back. A failed workflow does not raise."""
        start = time.monotonic()
        socket = websocket.create_connection(
            f"{self.address.replace('http', 'ws', 1)}/ws?clientId={self.id}", timeout=30, http_no_proxy=["*"]
        )
        try:
            prompt_id, result = self.queue(workflow, graph)
            if prompt_id is None:
                return result
            entry = self._follow(socket, prompt_id, result, on_progress, start + timeout)
        finally:
            socket.close()
        result.seconds = time.monotonic() - start
        if entry is not None:
            self._read(entry, result)
        return result

    def _follow(
        self, socket, prompt_id: str, result: Result, on_progress: OnProgress | None, deadline: float
    ) -> dict | None:
        """The history entry of the prompt once it has ended; None if it never did (the Result says why)."""
        socket.settimeout(1)
        messages, entry = _Messages(prompt_id, result, on_progress), None
        reached = asked = time.monotonic()
        while True:
            quiet = broken = lost = False
            try:
                messages.take(*socket.recv_data())
            except websocket.WebSocketTimeoutException:
                quiet = True
            except (websocket.WebSocketException, OSError):
                broken = True  # the history alone tells
                time.sleep(0.2)
            now = time.monotonic()
            if messages.ended or quiet or broken:
                if entry is not None:
                    return entry
                timeout = min(60.0, max(1.0, deadline - now))
                try:
                    entry = self._history(prompt_id, timeout)
                    if entry is None and now - max(asked, messages.last) > SILENCE:
                        known, asked = self._queued(prompt_id, timeout), now
                        entry = self._history(prompt_id, timeout)  # it may have ended in between
                        lost = entry is None and not known
                    reached = now
                except (requests.ConnectionError, requests.JSONDecodeError):
                    pass  # gone, or a proxy answers for it
                except requests.Timeout:
                    reached = now  # busy, or deaf: the deadline decides
                if entry is not None and not quiet:
                    return entry  # else what was told in the meantime is still to be read
            failure = None
            if not self.alive():
                failure = "The server process ended while the workflow ran."
            elif lost:
                failure = "The server has lost the workflow: it was started anew, or its queue was cleared."
            elif now - max(reached, messages.last) > self.patience:
                failure = f"The server was out of reach for {self.patience:.0f} s while the workflow ran."
            if failure is not None:
                result.error, result.error_type = failure, "server"
                return None
            if now > deadline:
                with contextlib.suppress(requests.RequestException):  # a server that hangs takes no interrupt
                    self.cancel(prompt_id)
                result.error = "The workflow took longer than its time limit and was interrupted."
                result.error_type = "timeout"
                return None

    def _history(self, prompt_id: str, timeout: float) -> dict | None:
        return self.get(f"/history/{prompt_id}", timeout).json().get(prompt_id)

    def _queued(
        self, prompt_id: str, timeout: float, parts: tuple[str, ...] = ("queue_running", "queue_pending")
    ) -> bool:
        """Whether a prompt stands in these parts of the server's queue."""
        queue = self.get("/queue", timeout).json()
        return any(item[1] == prompt_id for part in parts for item in queue.get(part) or ())

    def _read(self, entry: dict, result: Result) -> None:
        result.outputs = entry.get("outputs", {})
        for what, body in (entry.get("status") or {}).get("messages", ()):
            if what == "execution_error":
                result.error = str(body["exception_message"]).strip()
                result.where = str(body["node_type"])
                result.error_type = str(body["exception_type"]).rsplit(".", 1)[-1]
            elif what == "execution_interrupted":
                result.interrupted = True
        for key, output in result.outputs.items():
            files = [f for f in output.get("images", ()) if isinstance(f, dict) and "filename" in f]
            if files:
                result.files[key] = [self.view(f) for f in files]

    def view(self, file: dict[str, str]) -> bytes:
        """The file that an output record {"filename", "subfolder", "type"} names."""
        answer = self.get(
            "/view", filename=file["filename"], subfolder=file.get("subfolder", ""), type=file.get("type", "output")
        )
        answer.raise_for_status()
        return answer.content


class _Messages:
    """What the server's socket tells of one prompt, written into its Result."""

    def __init__(self, prompt_id: str, result: Result, on_progress: OnProgress | None):
        self.prompt_id, self.result, self.on_progress = prompt_id, result, on_progress
        self.node, self.ended, self.last = "?", False, time.monotonic()

    def take(self, kind: int, data: bytes) -> None:
        if kind == websocket.ABNF.OPCODE_BINARY:
            self.last = time.monotonic()  # a preview
        elif kind == websocket.ABNF.OPCODE_TEXT and data:
            message = json.loads(data)
            self._text(message.get("type"), message.get("data") or {})

    def _text(self, what: str, body: dict[str, Any]) -> None:
        if not str(what).startswith(("progress", "execut")) or body.get("prompt_id", self.prompt_id) != self.prompt_id:
            return
        self.last = time.monotonic()
        if what == "progress":
            self.result.steps += 1
            if self.on_progress is not None:
                self.on_progress(str(body.get("node") or self.node), int(body["value"]), int(body["max"]))
        elif what == "executing":
            self.node = body.get("node") or self.node
            if body.get("node") is None:
                self.ended = True
            else:
                self.result.ran.add(str(self.node))
        elif what == "executed":  # with a result of its own, or served by an equal node of this run
            self.result.ran.add(str(body.get("node")))
        elif what == "execution_cached":
            self.result.cached = tuple(body.get("nodes", ()))
        elif what in ("execution_error", "execution_interrupted", "execution_success"):
            self.ended = True


def _refusal(body: dict) -> tuple[str | None, str | None]:
    """(sentence, node class) from an answer of POST /prompt; (None, None) if all of it was accepted."""
    errors = body.get("node_errors") or {}
    for node in errors.values():
        for error in node.get("errors", ()):
            details = str(error.get("details") or "")
            sentence = str(error.get("message") or error.get("type"))
            return (f"{sentence}: {details}" if details else sentence)[:2000], node.get("class_type")
    error = body.get("error")
    if isinstance(error, dict):
        details = str(error.get("details") or "")
        error = f"{error.get('message') or error.get('type')}" + (f": {details}" if details else "")
    return (str(error)[:2000], None) if error else (None, None)
