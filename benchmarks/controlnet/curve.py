"""Sudden convergence: the demo's ControlNet trained anew, and how well the hint is followed after so many optimiser
steps.

`--curve` asks for it, since it trains 900 steps of 16; it stops and goes on like the rest of a bench, and what is kept
is printed by every later run.
The steps are those of `demo/control.py`, at a constant rate, so that no schedule bends the curve.
"""

from __future__ import annotations

import torch

from ...demo import captions, control, scenes
from ...demo.latents import Latents, generator
from ...samplers.measure.charts import line_chart, to_picture
from ...samplers.tuning.loop import Loop, Settings
from ..harness import OUTPUT, seconds
from ..lab import Demo

MARKS = (0, 25, 50, 100, 150, 200, 300, 400, 600, 900)
BATCH, POOL, RATE = 16, 512, 3e-4
STATE = OUTPUT / "controlnet.curve.safetensors"


class Curve:
    """A training that goes on from mark to mark. quick: two steps of two pictures."""

    def __init__(self, demo: Demo, quick: bool):
        self.demo, self.marks = demo, (0, 1, 2) if quick else MARKS
        self.batch, self.pool = (2, 4) if quick else (BATCH, POOL)
        self.control = control.Control(demo.net.unet)
        settings = Settings(steps=self.marks[-1], lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
        self.loop = Loop(dict(self.control.named_parameters()), settings)
        self.state = STATE.with_stem(STATE.stem + ".quick") if quick else STATE

    def at(self, mark: int, judge) -> dict[str, float]:
        """Trained up to this mark; judge(control) -> overlap with the hints. Keeps the state for the next one."""
        if mark == 0:
            self.state.unlink(missing_ok=True)
        elif self.loop.step == 0 and self.state.exists():
            self.loop.load(self.state)
        device = torch.device("cpu")
        draws = generator(device, 1000 + mark)  # each stretch has its own scenes, whether or not it was stopped before
        latents = Latents(self.pool, self.demo.autoencoder, draws, whole=True) if mark > self.loop.step else None

        def step(_):
            if self.loop.step % 8 == 7:
                latents.refresh(min(self.batch, self.pool))
            return {"loss": control.hinted_loss(self.demo.net, self.control, *latents.take(self.batch), draws)}

        begun = len(self.loop.curve)
        self.loop.run(step, until=mark)
        self.loop.save(self.state)
        stretch = [loss for _, loss in self.loop.curve[begun:]]
        loss = sum(stretch) / len(stretch) if stretch else float("nan")
        return {"step": mark, "iou": judge(self.control), "loss": loss}


def seconds_per_step(demo: Demo, repeats: int = 3) -> float:
    """Median seconds of one training step of `BATCH` scenes, forward, backward and AdamW, on this machine's CPU."""
    run, draws = Curve(demo, False), generator(torch.device("cpu"), 1)
    given = Latents(BATCH, demo.autoencoder, draws, whole=True).take(BATCH)

    def step():
        run.loop.run(
            lambda _: {"loss": control.hinted_loss(demo.net, run.control, *given, draws)}, until=run.loop.step + 1
        )

    return seconds(step, repeats)


def jump(rows: list[dict]) -> str:
    """Between which two marks the overlap rises most, in words."""
    steepest = max(zip(rows, rows[1:]), key=lambda pair: pair[1]["iou"] - pair[0]["iou"])
    a, b = steepest
    return f"steepest from step {a['step']} to {b['step']}: IoU {a['iou']:.3f} to {b['iou']:.3f}"


def save_plot(rows: list[dict]) -> None:
    """The overlap over the steps, as output/bench/controlnet_curve.png."""
    overlap = {"IoU": [row["iou"] for row in rows]}
    title = "ControlNet from zero: overlap with held-out masks"
    steps = [row["step"] for row in rows]
    to_picture(line_chart(title, overlap, steps, low=0.0, high=1.0, x_label="optimiser steps")).save(
        OUTPUT / "controlnet_curve.png"
    )


def held_out_judge(demo: Demo, truth: scenes.Scenes, overlap, steps: int, cfg: float):
    """control -> mean overlap(images) on the truth's masks, captions without place and size."""
    masks = scenes.draw(truth)[1]
    rows = captions.token_rows(*control.sparing(truth))[0]

    def judge(led) -> float:
        made = control.generate(demo.net, demo.autoencoder, led, rows, control.hint_of(masks), steps, cfg, 1000)
        return float(overlap(made, masks, truth.colour[:, 0], truth.background).mean())

    return judge
