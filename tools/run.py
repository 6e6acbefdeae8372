"""make demo: start a ComfyUI without a screen, queue the shipped workflows as a user's script would, keep what they
show.

    python tools run [NAME ...] [--all] [--image FILE --prompt TEXT --edit TEXT --checkpoint FILE] [--engine checkout]

A line for each workflow, as "2 of 5 null-text: 42.7 dB, green circle, 38 s": how well the picture comes back (or its
background stays), what a probe sees on the edit, how long it took. Everything lands under output/: each picture as the
server saved it, with its workflow inside; one contact sheet; figures.json; reports.txt with all that the nodes say. The
exit code is 1, with the reason in one line each, if anything failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from ..batch import engines
from ..batch.client import Client, Result
from ..demo import turn
from ..engine.files import read_picture
from . import litegraph, notes, results, workflows

#: what `make demo` runs: one picture, five ways to change it
DEMO = ("edit_photo", "null_text", "prompt_to_prompt_photo", "diffedit", "repaint")
#: what runs on a picture or words of one's own, and the same on a checkpoint of one's own
OWN = ("edit_photo", "null_text", "direct_edit")
OWN_REAL = ("edit_photo_sd", *OWN[1:])
LIMIT = 3600  # seconds for a workflow on the demo model; how long a real one takes, nobody knows
#: where the words of one's own go: the `text` of nodes with this title, or a widget of this name
SOURCE, EDITED = ("Source prompt", "source_prompt"), ("Edited prompt", "edited_prompt")


class Bar:
    """A progress bar per workflow on a terminal: node, steps, seconds. Elsewhere it draws nothing."""

    def __init__(self, name: str, titles: dict[str, str], width: int = 28):
        self.name, self.titles, self.width = name, titles, width
        self.start, self.live, self.last = time.monotonic(), sys.stderr.isatty(), 0.0

    def __call__(self, node: str, value: int, total: int) -> None:
        now = time.monotonic()
        if self.live and (now - self.last > 0.1 or value >= total):
            self.last = now
            full = self.width * value // max(total, 1)
            self._show(
                f"{self.name} [{'#' * full}{'.' * (self.width - full)}] {value}/{total} "
                f"{now - self.start:.0f} s  {self.titles.get(node, node)}"
            )

    def end(self) -> None:
        """Wipe the bar: a line says the rest."""
        if self.live:
            self._show("")
            print("\r", end="", file=sys.stderr, flush=True)

    def _show(self, line: str) -> None:
        print(f"\r{line[:118]:<118}", end="", file=sys.stderr, flush=True)


def queue(
    client: Client,
    name: str,
    workflow: workflows.Workflow,
    infos: dict[str, Any],
    label: str = "",
    limit: float = LIMIT,
) -> Result:
    """Run one workflow with a progress bar that begins with `label` (else the name); its graph goes into the pictures.
    RuntimeError says why if it failed."""
    progress = Bar(label or name, workflows.titles(workflow))
    graph = litegraph.to_ui(workflow, infos, notes.note(name, workflow))
    result = client.run(workflow, progress, timeout=limit, graph=graph)
    progress.end()
    return result.check()


def prepared(path: Path, side: int) -> Image.Image:
    """A user's picture, upright, its middle cut to a square of `side` pixels. ValueError if it is no picture."""
    picture = read_picture(path)
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    return picture.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge))


def own(
    workflow: workflows.Workflow,
    name: str,
    image: str | None,
    prompt: str | None,
    edit: str | None,
    checkpoint: str | None,
    side: int = 512,
) -> workflows.Workflow:
    """The workflow on a user's own picture, words and checkpoint, which draws at `side` pixels by the nodes' defaults.
    ValueError if it has no place for one of them."""
    workflow = json.loads(json.dumps(workflow))
    named = workflows.titles(workflow)
    for (title, widget), text in ((SOURCE, prompt), (EDITED, edit)):
        places = [(key, "text") for key, said in named.items() if said == title and "text" in workflow[key]["inputs"]]
        places += [(key, widget) for key, node in workflow.items() if isinstance(node["inputs"].get(widget), str)]
        if text is not None and not places:
            raise ValueError(f"{name} has no node titled {title!r} and no widget {widget}.")
        for key, place in places if text is not None else ():
            workflow[key]["inputs"][place] = text
    for node in workflow.values():
        if "shows" in node.get("_meta", {}):  # that is said of the shipped picture and words
            node["_meta"] |= {"shows": "", "keeps": 0}
        if checkpoint is not None:
            real(node, checkpoint, side, workflows.runs_here(name))
        if image is not None and node["class_type"] in workflows.PICTURES:
            node["inputs"]["image"] = image
            if "size" in node["inputs"]:
                node["inputs"]["size"] = 0  # it comes in the size that was asked for
    return workflow


def real(node: dict[str, Any], checkpoint: str, side: int, made_for_demo: bool) -> None:
    """Set a node for a checkpoint of one's own: its size, and back to the defaults what the demo model asked for."""
    inputs, small = node["inputs"], workflows.DEMO_SIDE
    if made_for_demo:
        inputs |= notes.defaults(node)
    inputs |= {key: side for key in ("width", "height", "size") if inputs.get(key) == small}
    if node["class_type"] == workflows.PICTURES[0]:
        inputs["size"] = side
    if "ckpt_name" in inputs:
        inputs["ckpt_name"] = checkpoint


def file(text: str) -> Path:
    return Path(text).expanduser()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows to run (default: the demo's own choice)")
    parser.add_argument("--all", action="store_true", help="every shipped workflow that needs no other checkpoint")
    parser.add_argument("--image", type=file, help="a picture of your own")
    parser.add_argument("--prompt", help="what that picture shows")
    parser.add_argument("--edit", help="what it should show instead")
    parser.add_argument("--checkpoint", type=file, help="a checkpoint file of your own (a Stable Diffusion model)")
    parser.add_argument("--size", type=int, help="side of your picture in pixels (512; 128 with the demo checkpoint)")
    parser.add_argument(
        "--engine",
        choices=("embedded", "checkout"),
        default="embedded",
        help="checkout: the ComfyUI that COMFYUI_PATH names",
    )
    parser.add_argument("--output", type=file, default=engines.ROOT / "output")
    options = parser.parse_args(arguments)
    for path in (options.image, options.checkpoint):
        if path is not None and not path.is_file():
            parser.error(f"there is no file {path}")
    if options.image and not (options.prompt and options.edit):
        parser.error("with IMAGE, say what it shows (PROMPT) and what it should show (EDIT)")
    options.side = options.size or (512 if options.checkpoint else workflows.DEMO_SIDE)
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    engines.end_like_ctrl_c()
    mine = any((options.image, options.checkpoint, options.prompt, options.edit))
    every = [name for name in workflows.names() if workflows.runs_here(name)]
    chosen = options.names or (
        every if options.all else list((OWN_REAL if options.checkpoint else OWN) if mine else DEMO)
    )
    try:
        image = prepared(options.image, options.side) if options.image else None
        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    kept = results.Kept(options.output, options.checkpoint.stem if options.checkpoint else "the demo model")
    start = time.monotonic()
    try:
        engine = engines.embedded() if options.engine == "embedded" else engines.checkout()
        print(f"starting {engine.title} ...", file=sys.stderr, flush=True)
        # one thread, make's own choice, is enough for the demo model alone
        pinned = options.checkpoint and os.environ.get("OMP_NUM_THREADS", "1") == "1"
        threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)} if pinned else None
        server_of = engines.running(engine, checkpoint=options.checkpoint, variables=threads)
        with turn.compute(), server_of as server:
            run_all(server, chosen, options, image, kept)
    except (engines.EngineError, ValueError) as error:
        kept.failures.append(str(error))
    except KeyboardInterrupt:
        kept.failures.append("stopped by hand")
    if kept.rows:
        page = kept.write()
        print(
            f"{len(kept.rows)} workflows in {time.monotonic() - start:.0f} s. Look at {page}; the nodes' reports: "
            f"{kept.folder / results.REPORTS}"
        )
    for failure in kept.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if kept.failures else 0


def run_all(
    server: engines.Server,
    chosen: list[str],
    options: argparse.Namespace,
    image: Image.Image | None,
    kept: results.Kept,
) -> None:
    """Run each workflow, print its line, keep what it leaves."""
    infos = server.client.object_info()
    if image:
        uploaded = server.client.upload(image, "own.png")
    for number, name in enumerate(chosen, 1):
        head = f"{number} of {len(chosen)} {name.replace('_', '-')}"
        try:
            flow = workflows.load(name)
            if options.image or options.checkpoint or options.prompt or options.edit:
                checkpoint = options.checkpoint.name if options.checkpoint else None
                words = options.prompt, options.edit
                flow = own(flow, name, uploaded if image else None, *words, checkpoint, options.side)
            limit = math.inf if options.checkpoint else LIMIT
            result = queue(server.client, name, flow, infos, head, limit)
            source = [image] if image else workflows.source_pictures(flow)
            results.keep(kept.folder, name, flow, result)
            kept.figures[name] = found = results.figures(flow, result, source)
            kept.rows.append(results.row(name, flow, result, source))
            kept.rows[-1].line = results.said(found)
            print(f"{head}: {results.said(found)}", flush=True)
        except (RuntimeError, ValueError, OSError) as error:
            print(f"{head}: failed", flush=True)
            kept.failures.append(f"{name}: {error}")
        if not server.alive():
            kept.failures.append(f"the server ended; the end of its log:\n{server.tail()}")
            break


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
