"""make demo: start a ComfyUI without a screen, queue the shipped workflows as a user's script would, keep what they
show.

    python tools run [NAME ...] [--all] [--image FILE --prompt TEXT --edit TEXT --checkpoint FILE] [--engine checkout]

Everything lands under output/: each picture, one contact sheet (source | reconstruction | edits), figures.json. The
exit code is 1, with the reason in one line each, if anything failed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..demo import turn
from ..samplers.measure import charts, metrics
from . import engines, sheet, workflows
from .client import Client, Result

#: what `make demo` runs: the road, and one workflow of each further technique
DEMO = (
    "null_text",
    "invert_image",
    "direct_edit",
    "prompt_to_prompt",
    "prompt_to_prompt_photo",
    "attention_map",
    "attention_reweight",
    "disturbance_picture",
    "repaint",
    "ilvr",
    "sdedit",
    "diffedit",
    "blended_diffusion",
    "classifier_guidance",
    "clip_guidance",
    "semantic_guidance",
    "image_classifier",
)
#: what runs on a picture of one's own: workflows with a "Source prompt" and an "Edited prompt"
OWN = ("null_text", "invert_image", "direct_edit")
SOURCE, EDITED, RECONSTRUCTION, AUTOENCODER = "Source prompt", "Edited prompt", "Reconstruction", "Autoencoder"


class Bar:
    """A progress bar per workflow: node, steps, seconds. Off a terminal, one line at the end."""

    def __init__(self, name: str, titles: dict[str, str], width: int = 28):
        self.name, self.titles, self.width = name, titles, width
        self.start, self.live, self.last = time.monotonic(), sys.stderr.isatty(), 0.0

    def __call__(self, node: str, value: int, total: int) -> None:
        now = time.monotonic()
        if self.live and (now - self.last > 0.1 or value >= total):
            self.last = now
            full = self.width * value // max(total, 1)
            self._show(
                f"{self.name:<28} [{'#' * full}{'.' * (self.width - full)}] {value}/{total} "
                f"{now - self.start:5.1f} s  {self.titles.get(node, node)}",
                "\r",
            )

    def end(self, result: Result) -> None:
        mark = "done" if result.ok else "FAILED"
        self._show(f"{self.name:<28} {mark}: {result.steps} steps in {time.monotonic() - self.start:.1f} s", "\n")

    def _show(self, line: str, end: str) -> None:
        print(
            ("\r" if self.live else "") + f"{line[:118]:<118}".rstrip(" " if end == "\n" else ""),
            end=end,
            file=sys.stderr,
            flush=True,
        )


def titles(workflow: workflows.Workflow) -> dict[str, str]:
    """What a person calls each node: its title, else its class."""
    return {key: node.get("_meta", {}).get("title") or node["class_type"] for key, node in workflow.items()}


def queue(
    client: Client, name: str, workflow: workflows.Workflow, bar: Callable[[str, dict[str, str]], Bar] = Bar
) -> Result:
    """Run one workflow with a progress bar. RuntimeError with the readable reason if it failed."""
    progress = bar(name, titles(workflow))
    result = client.run(workflow, progress, timeout=3600)
    progress.end(result)
    return result.check()


def source_pictures(workflow: workflows.Workflow) -> list[Image.Image]:
    """The shipped pictures that the workflow loads."""
    found = [
        workflows.FOLDER / "inputs" / workflow[key]["inputs"]["image"].removesuffix(workflows.SAMPLE)
        for key in workflows.of_class(workflow, *workflows.PICTURES)
    ]
    return [Image.open(path).convert("RGB") for path in found if path.is_file()]


def prepared(path: Path, side: int) -> Image.Image:
    """A user's picture, its middle cut to a square of `side` pixels. ValueError if it is no picture."""
    try:
        picture = Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} can't be read as a picture: {error}") from None
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
) -> workflows.Workflow:
    """The workflow on a user's own picture, words and checkpoint. ValueError if it has no place for one of them."""
    workflow = json.loads(json.dumps(workflow))
    named = titles(workflow)
    for title, text in ((SOURCE, prompt), (EDITED, edit)):
        nodes = [key for key, said in named.items() if said == title and "text" in workflow[key]["inputs"]]
        if text is not None and not nodes:
            raise ValueError(f"{name} has no node titled {title!r}.")
        for key in nodes if text is not None else ():
            workflow[key]["inputs"]["text"] = text
    for node in workflow.values():
        if checkpoint is not None and "ckpt_name" in node["inputs"]:
            node["inputs"]["ckpt_name"] = checkpoint
        if image is not None and node["class_type"] in workflows.PICTURES:
            node["inputs"]["image"] = image
    return workflow


def keep(folder: Path, name: str, workflow: workflows.Workflow, result: Result, source: list[Image.Image]) -> sheet.Row:
    """Save a workflow's pictures under their titles; its row of the contact sheet."""
    row, named = sheet.Row(name.replace("_", " ")), titles(workflow)
    row.cells = [("source", picture) for picture in source[:1]]
    for key in sorted(result.pictures, key=int):
        pictures = result.pictures[key]
        for i, picture in enumerate(pictures):
            title = named[key] + (f" {i + 1}" if len(pictures) > 1 else "")
            file = "".join(c if c.isalnum() else "_" for c in f"{name}_{key}_{title}".lower())
            picture.save(folder / f"{file}.png")
            row.cells.append((title, picture))
    return row


def figures(workflow: workflows.Workflow, result: Result, row: sheet.Row) -> dict[str, object]:
    """What was measured: steps, seconds, PSNR of each reconstruction, what the nodes report."""
    found: dict[str, object] = {"steps": result.steps, "seconds": round(result.seconds, 2)}
    pictures = dict(row.cells)
    against = next((picture for title, picture in row.cells if title.startswith(AUTOENCODER)), pictures.get("source"))
    for title, picture in row.cells:
        if title.startswith(RECONSTRUCTION) and against is not None and against.size == picture.size:
            a, b = (charts.from_picture(one).movedim(-1, 1) for one in (against, picture))
            ratio = float(metrics.psnr(a, b))
            found[f"psnr_{title.lower().replace(' ', '_')}_db"] = "exact" if ratio == math.inf else round(ratio, 2)
    if result.texts:
        found["reports"] = result.texts
    return found


def said(found: dict[str, object]) -> str:
    """The figures of one workflow in one line."""
    return ", ".join(f"{key} {value}" for key, value in found.items() if key != "reports")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows to run (default: the demo's own choice)")
    parser.add_argument("--all", action="store_true", help="every shipped workflow that needs no other checkpoint")
    parser.add_argument("--image", type=Path, help="a picture of your own")
    parser.add_argument("--prompt", help="what that picture shows")
    parser.add_argument("--edit", help="what it should show instead")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint file of your own (a Stable Diffusion model)")
    parser.add_argument("--size", type=int, help="side of your picture in pixels (512; 128 with the demo checkpoint)")
    parser.add_argument(
        "--engine",
        choices=("embedded", "checkout"),
        default="embedded",
        help="checkout: the ComfyUI that COMFYUI_PATH names",
    )
    parser.add_argument("--output", type=Path, default=engines.ROOT / "output")
    options = parser.parse_args(arguments)
    for path in (options.image, options.checkpoint):
        if path is not None and not path.is_file():
            parser.error(f"there is no file {path}")
    if options.image and not (options.prompt and options.edit):
        parser.error("with IMAGE, say what it shows (PROMPT) and what it should show (EDIT)")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    engines.end_like_ctrl_c()
    mine = options.image is not None or options.checkpoint is not None
    every = [name for name in workflows.names() if workflows.runs_here(name)]
    chosen = options.names or (every if options.all else list(OWN if mine else DEMO))
    if not chosen:
        print("There is no workflow to run.", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[sheet.Row] = []
    measured: dict[str, dict] = {}
    failures: list[str] = []
    start = time.monotonic()
    try:
        engine = engines.embedded() if options.engine == "embedded" else engines.checkout()
        print(f"starting {engine.title} ...", file=sys.stderr, flush=True)
        server_of = engines.running(engine, checkpoint=options.checkpoint, inputs=engines.pictures())
        with turn.compute(), server_of as server:
            image = None
            if options.image:
                side = options.size or (512 if options.checkpoint else 128)
                image = prepared(options.image, side)
                uploaded = server.client.upload(image, "own.png")
            for name in chosen:
                try:
                    flow = workflows.load(name)
                    if mine or options.prompt or options.edit:
                        checkpoint = options.checkpoint.name if options.checkpoint else None
                        picture = uploaded if image else None
                        flow = own(flow, name, picture, options.prompt, options.edit, checkpoint)
                    result = queue(server.client, name, flow)
                    row = keep(options.output, name, flow, result, [image] if image else source_pictures(flow))
                    measured[name] = figures(flow, result, row)
                    row.line = said(measured[name])
                    rows.append(row)
                except (RuntimeError, ValueError, OSError) as error:
                    failures.append(f"{name}: {error}")
                if not server.alive():
                    failures.append(f"the server ended; the end of its log:\n{server.tail()}")
                    break
    except (engines.EngineError, ValueError) as error:
        failures.append(str(error))
    except KeyboardInterrupt:
        failures.append("stopped by hand")
    if rows:
        page = options.output / "contact_sheet.png"
        sheet.contact_sheet("ComfyUI-NullText", rows).save(page)
        (options.output / "figures.json").write_text(json.dumps(measured, indent=1) + "\n")
        for name, found in measured.items():
            print(f"\n{name}: {said(found)}")
            for text in found.get("reports", ()):
                print("    " + str(text).replace("\n", "\n    "))
        print(f"\n{len(rows)} workflows in {time.monotonic() - start:.0f} s. Pictures and contact sheet: {page}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
