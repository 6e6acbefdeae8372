"""What the training nodes share: their inputs, the loss figure, the preview and the lines of their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..engine import comfy, files, folders, weights
from ..engine.fingerprint import fingerprint
from ..engine.training import Outcome, duration, own_weight
from ..samplers.measure.charts import captioned_grid, line_chart, smoothed, stacked, straight
from ..samplers.tuning.loop import Loop
from ..samplers.tuning.objective import LEVELS as KNOWN_LEVELS
from ..samplers.tuning.objective import WEIGHTS, Objective
from .base import Boolean, Choice, Float, Input, Int, Output, Socket, Text
from .report import temporary

PRESET, OWN = "as the preset", "the model's own"
CATEGORY = "NullText/tuning"
TRAINING = "nulltext_training"  # the metadata entry that names a training: its own file may be written anew

FIXED_DRAWS = 16  #: fixed (picture, level, noise) triples on which the fixed loss is measured

PICTURES = Socket("pictures", "TUNING_SET", "The pictures to learn, from Tuning Pictures.")
CLIP = Socket("clip", "CLIP", "Encodes the captions.")
VAE = Socket("vae", "VAE", "Decodes the sample pictures that the node shows while it trains and at the end.").optional()
TRAIN_STEPS = Int("steps", 0, "Optimiser steps in all; 0: as the preset. More steps go on from fewer.", 0, 100_000)
BATCH = Int("batch", 0, "Pictures a step; 0: as the preset.", 0, 64)
RANK = Int("rank", 0, "Rank of the low-rank factors: how much they can hold; 0: as the preset.", 0, 256)
LEVELS = Choice(
    "levels",
    [OWN, *KNOWN_LEVELS],
    "How noise levels are drawn. The model's own: uniform over its time steps, as in the papers, or a flow's "
    "logit-normal.",
)
WEIGHT = Choice(
    "loss_weight",
    [OWN, *WEIGHTS],
    "How much each noise level counts. The model's own: what it was trained with (eps, v or flow). min-SNR: less "
    "at low noise, gamma 5.",
)
DROPOUT = Float(
    "caption_dropout", 0.0, "Share of captions left out, so that the empty prompt learns too. The papers: 0."
)
CHECKPOINT = Boolean(
    "checkpointing",
    False,
    "Compute the network's blocks a second time in backward: less memory, up to two fifths more time. Off: still done "
    "where the memory is too small for less, and the report says so.",
)
LOOK_EVERY = Int(
    "sample_every", 100, "Steps between two sample pictures, drawn with what is trained so far; 0: none.", 0, 10_000
)


LOSS_OUTPUTS = (
    Output("LOSS_MAP", "The loss of each step, for core's Plot Loss Graph.", "loss"),
    Output("IMAGE", "The loss as a figure.", "loss_figure"),
    Output("STRING", "What was done.", "report"),
)


def file_name(default: str, folder: str) -> Input:
    return Text(
        "file_name", default, f"Name of the file in models/{folder}; sub-folders are made. A number is added if taken."
    )


def preset_choice(presets: Mapping, default: str, tooltip: str) -> Input:
    return Choice("preset", list(presets), tooltip, default=default)


def objective_of(model, weight: str) -> Objective:
    """The loss of a MODEL's noise family with a weight of `WEIGHT`'s names."""
    return Objective(comfy.process_of(model), own_weight(model) if weight == OWN else weight)


def training_key(model, *inputs) -> str | None:
    """The name under which a training is kept. None for models whose patches can't be told apart."""
    return files.cache_key(model, fingerprint(model), "tuning", *inputs)


def unkept(key: str | None) -> list[str]:
    """The line of a report for a training that can't be found again, for it has no `training_key`."""
    why = "the model carries patches whose content can't be told, so the training is not kept"
    return [f"Notice: {why}."] if key is None else []


def loss_figure(loop: Loop, title: str = "loss of each step, and on fixed pictures, levels and noises") -> Tensor:
    """IMAGE of the curve: the mean over neighbours, and the fixed loss, straight between where it was measured."""
    steps, values = [s for s, _ in loop.curve], [v for _, v in loop.curve]
    steps, smooth = [0, *steps], [float("nan"), *smoothed(values)]
    lines = {"loss": smooth} | ({"on fixed levels and noises": straight(loop.fixed, steps)} if loop.fixed else {})
    return line_chart(title, lines, steps, height=220)


def loss_map(loop: Loop) -> dict[str, list[float]]:
    """Core's LOSS_MAP."""
    return {"loss": [value for _, value in loop.curve]}


def strip(vae, looks: Sequence[tuple[int, Tensor]], most: int = 8) -> Tensor | None:
    """IMAGE of the sample pictures beside one another, at most so many, evenly spread."""
    if vae is None or not looks:
        return None
    count = min(most, len(looks))
    shown = [looks[round(i * (len(looks) - 1) / max(count - 1, 1))] for i in range(count)]
    images = [comfy.decode(vae, samples)[:1] for _, samples in shown]
    return captioned_grid(torch.cat(images), [f"step {step}" for step, _ in shown], len(shown))


def preview(loop: Loop, vae):
    """What `training.train` shows while it runs: the last sample picture over the curve, and the time left."""
    decoded: dict[int, Tensor] = {}

    def draw(report, left, looks):
        title = f"step {report.step} of {report.steps}, {duration(left)} left, loss {report.loss:.4g}"
        chart = loss_figure(loop, title)
        if vae is None or not looks:
            return chart
        step, samples = looks[-1]
        if step not in decoded and not comfy.decode_fits(vae, samples):
            return chart
        if step not in decoded:
            decoded.clear()
            decoded[step] = comfy.decode(vae, samples)[:1]
        return stacked([decoded[step], chart])

    return draw


def shown(vae, outcome: Outcome, figure: Tensor) -> dict[str, list]:
    """The ui lists for the node's panel: the sample pictures over the curve."""
    pictures = strip(vae, outcome.looks)
    return {"images": temporary(figure if pictures is None else stacked([pictures, figure]))}


def training_line(loop: Loop, outcome: Outcome, began_at: int) -> str:
    """What was done, how long it took, and the fixed loss before and after."""
    if outcome.stopped:
        return f"Notice: {outcome.stopped}"
    if not outcome.made:
        return f"Found the finished training of {loop.step} steps: nothing was trained."
    went_on = f", going on from step {began_at}" if began_at else ""
    said = (
        f"Trained {outcome.made} steps in {duration(outcome.seconds)} "
        f"({outcome.seconds / outcome.made:.2f} s each){went_on}."
    )
    if loop.fixed:
        first, last = loop.fixed[min(loop.fixed)], loop.fixed[max(loop.fixed)]
        said += f" Loss on fixed levels and noises {first:.4g} before, {last:.4g} after."
    if outcome.memory is not None:
        said += f" About {outcome.memory / 1e9:.1f} GB of memory, told before the start."
    if outcome.again:
        said += " That did not fit without checkpointing, so it was turned on: steps take longer."
    if outcome.peak:
        said += f" In use at most: {outcome.peak / 1e9:.1f} GB."
    return said


def free_path(kind: str, name: str, key: str | None, steps: int = 0) -> Path:
    """Where the file goes: this name, or with a number behind where another training's file has it, or this very one's
    of more than so many steps (0: of any number)."""
    path = folders.model_file(kind, name)
    stem, number = path.stem, 2
    while path.exists() and not _own_file(path, key, steps):
        path = path.with_name(f"{stem}_{number}.safetensors")
        number += 1
    return path


def _own_file(path: Path, key: str | None, steps: int) -> bool:
    if key is None:
        return False
    told = files.metadata(path)
    made = told.get("ss_steps", "")
    return told.get(TRAINING) == key and not (steps and made.isdecimal() and int(made) > steps)


def metadata(model, key: str | None, captions: Sequence[str], loop: Loop, **more) -> dict[str, str]:
    """Strings for the file: the base model's fingerprint, what it learnt and how, some under sd-scripts' names too."""
    told = {
        **weights.base_of(model),
        TRAINING: key or "",
        "nulltext_captions": json.dumps(list(dict.fromkeys(captions))[:200], ensure_ascii=False),
        "ss_steps": str(loop.step),
        "ss_learning_rate": repr(loop.settings.lr),
        "ss_optimizer": loop.settings.optimiser,
        "ss_seed": str(loop.seed),
    }
    return told | {k: str(v) for k, v in more.items()}
