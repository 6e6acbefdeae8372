"""make serve: a ComfyUI with this pack, its demo checkpoint and its workflows, left running until Ctrl-C."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import sys
import time
import webbrowser
from pathlib import Path

from ..batch import engines
from . import blueprint, workflows

#: what the page opens with: the first of these that ships
FIRST = ("edit_photo", "direct_edit")


def on_a_desktop() -> bool:
    """Whether a browser can be opened: a person at a terminal, with a screen."""
    screen = sys.platform in ("darwin", "win32") or any(os.environ.get(k) for k in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and screen


def port_or_free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            other = engines.free_port()
            print(f"Port {port} is taken: {other} is used.", flush=True)
            return other
    return port


def put(files: list[Path], shelf: Path, record: Path) -> None:
    """Lay files on a shelf where they are not there yet, or as they were put there last (`record`): what the user saved
    under a name of ours stays."""
    shelf.mkdir(parents=True, exist_ok=True)
    known = json.loads(record.read_text()) if record.exists() else {}
    for file in files:
        place, content = shelf / file.name, file.read_bytes()
        old = hashlib.sha256(place.read_bytes()).hexdigest() if place.exists() else None
        if old in (None, known.get(place.name)):
            place.write_bytes(content)
            known[place.name] = hashlib.sha256(content).hexdigest()
    record.write_text(json.dumps(known, indent=1))


def port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return number


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make serve", description=__doc__)
    parser.add_argument("--port", type=port, default=8188)
    parser.add_argument("--engine", choices=("embedded", "checkout"), default="embedded")
    options = parser.parse_args(arguments)
    engines.end_like_ctrl_c()
    tree = engines.ROOT / "output" / "server"
    try:
        engine = engines.embedded() if options.engine == "embedded" else engines.checkout()
        user, names = tree / "user" / "default", workflows.names()
        pages = [page for name in names if (page := workflows.FOLDER / f"{name}.json").exists()]
        put(pages, user / "workflows" / "NullText", tree / "workflows_put.json")
        # for a ComfyUI that does not look for them in packs yet
        put([blueprint.path(name) for name in blueprint.names()], user / "subgraphs", tree / "subgraphs_put.json")
        start = time.monotonic()
        print(
            f"Starting {engine.title}. It loads PyTorch and every node: about 20 s, longer the first time.\n"
            f"What it says meanwhile: {tree / 'server.log'}",
            flush=True,
        )
        with engines.running(engine, tree, port=port_or_free(options.port)) as server:
            first = next((name for name in FIRST if name in names), names[0])
            address = f"{server.address}/?nulltext={first}"
            print(
                f"It is ready after {time.monotonic() - start:.0f} s. Open\n\n    {address}\n\n"
                f"which shows “{workflows.title(first)}”: press Queue, then choose your own picture.\n"
                "The other workflows: Workflows in the page's menu, folder NullText.\n"
                f"Pictures go to {tree / 'output'}. Ctrl-C stops it.",
                flush=True,
            )
            if on_a_desktop():
                webbrowser.open(address)
            while server.alive():
                time.sleep(0.5)
            raise engines.EngineError(f"The server ended. The end of its log:\n{server.tail()}")
    except KeyboardInterrupt:
        return 0
    except engines.EngineError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
