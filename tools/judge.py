"""Does a picture show what it should? For pictures of the demo model, whose scenes two probes can read.

A node of an API file that saves a picture may say what it must show, and how closely it must keep the rest:

    "_meta": {"title": "Edit", "shows": "green circle, striped blue background", "keeps": 25}

`shows` names a colour and a shape, a place ("on the right"), "nothing" for a background alone, a texture and a colour
before "background", or any of these; the probes must read all of them, in three of four pictures of a batch. A list of
such texts divides the batch among them, in order. `keeps` is the least PSNR in dB
outside the source's object, which is grown by one latent cell, against the picture titled Autoencoder if the workflow
saves one, else against the source.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ..batch.client import Result
from ..demo import probe, scenes
from ..samplers.measure.charts import from_picture
from ..samplers.measure.metrics import masked_mse, to_psnr
from . import inputs, workflows

AUTOENCODER = "Autoencoder"
SIDE, CELL = 128, 8  # pixels of a scene, of a latent cell
SHARE = 0.75  # of a batch that must be right


@functools.cache
def probes() -> tuple[torch.nn.Module, ...]:
    """The judges: two nets of different build."""
    return probe.load("conv"), probe.load("query")


def tensor(picture: Image.Image) -> torch.Tensor:
    """[1, 3, 128, 128] in 0..1."""
    picture = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return from_picture(picture).movedim(-1, 1)


def wanted(shows: str) -> dict[str, str]:
    """{attribute: value} of a `shows` text. ValueError for words that no probe reads."""
    found = {"object": "nothing"} if "nothing" in shows else {}
    words = [w for w in re.findall(r"[a-z]+", shows) if w not in ("a", "an", "on", "in", "and", "the", "nothing")]
    where = [("shape", scenes.SHAPES, words), ("place", scenes.PLACES, words)]
    for i, word in enumerate(words):
        if word == "background":
            where += [("background", scenes.BACKGROUNDS, words[:i][-1:]), ("texture", scenes.TEXTURES, words[:i][-2:])]
        elif word in scenes.SHAPES:
            where += [("colour", scenes.COLOURS, words[:i][-1:])]
    found |= {kind: word for kind, values, near in where for word in near if word in values}
    read = [word for word in words if word == "background" or word in found.values()]
    if not found or read != words:
        said = "name a colour, a shape, a place, a texture, a background"
        raise ValueError(f"The probes can't read all of {shows!r}: {said}.")
    return found


@torch.no_grad()
def _read(picture: Image.Image) -> dict[str, str]:
    """What both probes see together, by the mean of their probabilities."""
    logits = [probe.split_logits(net(tensor(picture)).float()) for net in probes()]
    seen = {kind: torch.stack([each[kind].softmax(-1) for each in logits]).mean(0)[0] for kind in logits[0]}
    present, place = seen["present"][:, 1].max(0)
    there = bool(present > 0.5)
    return {
        "object": "something" if there else "nothing",
        "colour": scenes.COLOURS[int(seen["colour"][place].argmax())] if there else "none",
        "shape": scenes.SHAPES[int(seen["shape"][place].argmax())] if there else "none",
        "place": scenes.PLACES[int(place)] if there else "none",
        "background": scenes.BACKGROUNDS[int(seen["background"].argmax())],
        "texture": scenes.TEXTURES[int(seen["texture"].argmax())],
    }


def seen(picture: Image.Image) -> str:
    """The object that the probes see, as "green circle"; "no object"."""
    read = _read(picture)
    return f"{read['colour']} {read['shape']}" if read["object"] == "something" else "no object"


def place(picture: Image.Image) -> str:
    """Where the probes see an object: one of demo/scenes.py's places; empty where they see none."""
    found = _read(picture)["place"]
    return "" if found == "none" else found


def wrong(picture: Image.Image, shows: str) -> list[str]:
    """What the probes read otherwise than the text says, as "colour red, not green"."""
    read = _read(picture)
    return [f"{kind} {read[kind]}, not {value}" for kind, value in wanted(shows).items() if read[kind] != value]


@functools.cache
def _object(name: str) -> torch.Tensor:
    """[1, 1, 128, 128], 1 on the objects of a shipped picture and within a latent cell of them."""
    masks = scenes.draw(inputs.scene(name))[1].amax(1, keepdim=True)
    return F.max_pool2d(masks, 2 * CELL + 1, 1, CELL)


def background(source: str, before: Image.Image, after: Image.Image) -> float | None:
    """PSNR in dB of two pictures outside the object of the shipped picture `source` (a file name); None for others."""
    name = next((known for known in sorted(inputs.PICTURES, reverse=True) if Path(source).name.startswith(known)), None)
    if name is None:
        return None
    return float(to_psnr(masked_mse(tensor(before), tensor(after), _object(name))))


def compared(workflow: workflows.Workflow, result: Result, source: Sequence[Image.Image]) -> Image.Image | None:
    """What a result is measured against: the picture titled Autoencoder, else the first source; None without either."""
    named = workflows.titles(workflow)
    coded = [picture for key, found in result.pictures.items() if named[key] == AUTOENCODER for picture in found]
    return next(iter([*coded, *source]), None)


def verdict(meta: dict[str, Any], pictures: Sequence[Image.Image], source: str, before: Image.Image | None) -> str:
    """Why a node's pictures may not be shipped, in one sentence; empty if they may. `meta` is the node's."""
    shows = meta.get("shows") or []
    texts = [shows] if isinstance(shows, str) else shows
    for i, text in enumerate(texts):
        part = [picture for k, picture in enumerate(pictures) if k * len(texts) // len(pictures) == i]
        faults = [wrong(picture, text) for picture in part]
        right = sum(not found for found in faults)
        if right < SHARE * len(part) or not part:
            said = "; ".join(sorted({fault for found in faults for fault in found}))
            return f"{right} of {len(part)} pictures show {text!r} ({said})"
    if meta.get("keeps"):
        kept = None if before is None else background(source, before, pictures[0])
        if kept is None or kept < meta["keeps"]:
            said = "can't be measured" if kept is None else f"is kept to {kept:.1f} dB"
            return f"the background {said}, and {meta['keeps']} dB are asked for"
    return ""
