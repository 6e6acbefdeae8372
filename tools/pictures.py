"""The two pictures of a shipped workflow: a square tile, before and after, for the page's template browser; and a strip
of source and results for help pages and gallery, whose file carries the workflow: dropped on the page, it opens it."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..batch.client import Result
from . import judge, sheet, workflows

STRIPS = workflows.FOLDER.parent / "web" / "docs" / "pictures"
SIDE, SIGNATURE = 256, 16  # pixels: of a picture, of the line under it
WORKFLOW, PROMPT = 0x010F, 0x0110  # the tags in which ComfyUI's page looks


def strip_path(name: str) -> Path:
    return STRIPS / f"{name}.webp"


def tile_path(name: str) -> Path:
    return workflows.FOLDER / f"{name}.jpg"


def before(workflow: workflows.Workflow, result: Result) -> list[Image.Image]:
    """What the result is compared with: the pictures of the node whose _meta says "before", else the source."""
    said = [key for key, node in workflow.items() if node.get("_meta", {}).get("before") and key in result.pictures]
    return result.pictures[said[0]] if said else workflows.source_pictures(workflow)[:1]


def tile(old: Sequence[Image.Image], new: Sequence[Image.Image], place: str = "") -> Image.Image:
    """Before on the left of a line, after on the right: of a single picture the same half of both, the one around
    `place` (of demo/scenes.py: "left", "right", else the middle), of a batch the first two. Without a before, all of
    the result; of two pictures, half of each."""
    if not old and len(new) in (2, 3):
        old, new = new[:1], new[1:2]
    if not old:
        return sheet.fit(sheet.tiled(new), SIDE)
    page, half = Image.new("RGB", (SIDE, SIDE), "white"), SIDE // 2
    start = {"left": 0, "right": half}.get(place, half // 2)
    for x, batch in ((0, old), (half, new)):
        if len(batch) == 1:
            page.paste(sheet.fit(batch[0], SIDE).crop((start, 0, start + half, SIDE)), (x, 0))
        for i, picture in enumerate(batch[:2] if len(batch) > 1 else ()):
            page.paste(sheet.fit(picture, half), (x, i * half))
    ImageDraw.Draw(page).rectangle((half - 1, 0, half + 1, SIDE), fill="white")
    return page


def place(old: Sequence[Image.Image], new: Sequence[Image.Image]) -> str:
    """Where the object is, before or after: the part that a tile shows."""
    return next((where for where in map(judge.place, [*old[:1], *new[:1]]) if where), "")


def strip(workflow: workflows.Workflow, result: Result) -> Image.Image:
    """What the result is compared with, one more picture, and the result; a chart or grid, which has another shape than
    the result, comes last. ValueError without any picture."""
    last = workflows.result(workflow)
    keys = [key for key in sorted(result.pictures, key=int) if key != last]
    old, new = before(workflow, result), result.pictures.get(last, [])
    more = [result.pictures[key] for key in keys if result.pictures[key] is not old][-1:]
    charts = [batch for batch in more if new and batch[0].size != new[0].size]
    shown = [old, *([] if charts else more), new, *charts]
    return sheet.side_by_side([sheet.tiled(batch) for batch in shown if batch], SIDE)


def faults(workflow: workflows.Workflow, result: Result) -> list[str]:
    """Why the pictures may not be shipped, a sentence each: what the judge finds in those that say what they show."""
    named, sources = workflows.titles(workflow), workflows.source_names(workflow)
    old = judge.compared(workflow, result, workflows.source_pictures(workflow))
    found = [
        (named[key], judge.verdict(workflow[key].get("_meta", {}), pictures, sources[0] if sources else "", old))
        for key, pictures in result.pictures.items()
    ]
    return [f"{title}: {said}" for title, said in found if said]


def signed(picture: Image.Image, name: str) -> Image.Image:
    """A strip with a line beneath that says which model drew it."""
    page = Image.new("RGB", (picture.width, picture.height + SIGNATURE), "white")
    page.paste(picture)
    text = "Drawn by the demo model" + ("" if workflows.runs_here(name) else ", not by Stable Diffusion")
    ImageDraw.Draw(page).text((2, picture.height + 2), text, "#666", ImageFont.load_default(11))
    return page


def save(name: str, workflow: workflows.Workflow, result: Result, graph: dict[str, Any]) -> None:
    """Write both. ValueError with the judge's sentences if they may not be shipped."""
    if wrong := faults(workflow, result):
        raise ValueError("the pictures are not shipped: " + "; ".join(wrong))
    old, new = before(workflow, result), result.pictures[workflows.result(workflow)]
    tile(old, new, place(old, new)).save(tile_path(name), quality=88)
    data = io.BytesIO()
    signed(strip(workflow, result), name).save(data, "WEBP", quality=85, method=6, exif=_exif(graph, workflow))
    strip_path(name).write_bytes(data.getvalue())


def _exif(graph: dict[str, Any], workflow: workflows.Workflow) -> bytes:
    exif = Image.Exif()
    exif[WORKFLOW], exif[PROMPT] = "workflow:" + json.dumps(graph), "prompt:" + json.dumps(workflow)
    return exif.tobytes()


def workflow_in(data: bytes) -> dict[str, Any]:
    """The graph that a strip's file carries."""
    with Image.open(io.BytesIO(data)) as picture:
        return json.loads(picture.getexif()[WORKFLOW].removeprefix("workflow:"))


def renew(name: str) -> None:
    """Put the workflow as it is now into a strip's file, whose picture stays as it is."""
    data = strip_path(name).read_bytes()
    graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if workflow_in(data) != graph:
        strip_path(name).write_bytes(_with_exif(data, _exif(graph, workflows.load(name))))


def _with_exif(data: bytes, exif: bytes) -> bytes:
    """A WebP file that has an EXIF chunk, with another one."""
    chunks, at = [], 12
    while at < len(data):
        kind, size = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
        chunks.append((kind, exif if kind == b"EXIF" else data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    body = b"".join(kind + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for kind, part in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
