"""make serve: a ComfyUI with this pack, its demo checkpoint and its workflows, left running until Ctrl-C."""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import time

from ..batch import engines
from . import workflows


def port_or_free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return engines.free_port()
    return port


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make serve", description=__doc__)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--engine", choices=("embedded", "checkout"), default="embedded")
    options = parser.parse_args(arguments)
    engines.end_like_ctrl_c()
    tree = engines.ROOT / "output" / "server"
    try:
        engine = engines.embedded() if options.engine == "embedded" else engines.checkout()
        shelf = tree / "user" / "default" / "workflows" / "NullText"
        shelf.mkdir(parents=True, exist_ok=True)
        for name in workflows.names():
            if (page := workflows.FOLDER / f"{name}.json").exists():
                shutil.copy(page, shelf)
        with engines.running(engine, tree, port=port_or_free(options.port)) as server:
            print(
                f"{engine.title} runs at {server.address}\n"
                f"Open a workflow: drop a file of {workflows.FOLDER} on the page.\n"
                f"Pictures go to {tree / 'output'}. Ctrl-C stops it.",
                flush=True,
            )
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
