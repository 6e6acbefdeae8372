"""Does the demo's ControlNet put the object where and as its mask says? `make bench NAME=controlnet`.

Judged on the object masks of held-out scenes (colours and shapes in pairs that no training saw), 20 Euler steps, cfg 5,
the hint in both branches as core's Apply ControlNet (Advanced) has it. The captions say neither place nor size, or
nothing. The object is found by its colours (`demo/control.found`), which the caption names, or the probe reads where
there is none. Ceiling: the drawn scenes through the autoencoder. Published for another task (ADE20K, 512 px):
IoU .35, the originals .58.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from ...demo import captions, control, probe, scenes
from ...demo.model import empty_rows
from ...samplers.tuning import controlnet
from ..harness import READ, Bench, table
from ..lab import Demo, some
from .curve import Curve, held_out_judge, jump, save_plot, seconds_per_step

STEPS, CFG, BATCH = 20, 5.0, 16
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ATTRIBUTES = ("colour", "shape", "background", "texture")


def truth_of(n: int) -> scenes.Scenes:
    """n held-out scenes of one object whose colour the background does not have."""
    return some(n, 71, keep=lambda s: s.colour[:, 0] != s.background)


@torch.no_grad()
def judged(judge, images, truth: scenes.Scenes, named: bool) -> list[dict]:
    """One row a picture: overlap with the scene's mask, and what the probe reads; named: the caption says the
    colours."""
    reading, masks = probe.read(judge, images), scenes.draw(truth)[1]
    colour, ground = truth.colour[:, 0], truth.background
    if not named:
        colour, ground = reading.at_place("colour"), reading.background
    right = probe.right(reading, truth, (*ATTRIBUTES, "place"))
    iou = control.object_iou(images, masks, colour, ground)
    return [{"iou": float(iou[i]), **{k: int(v[i]) for k, v in right.items()}} for i in range(len(truth))]


def mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


@torch.no_grad()
def start_losses(demo: Demo, n: int) -> dict[str, float]:
    """The loss of a v-prediction at step 0: the locked model, with zero convolutions, with an ordinary start."""
    drawn = some(n, 72)
    image, masks = scenes.draw(drawn)
    x0, context, hint = demo.encode(image), demo.context(drawn), control.hint_of(masks)
    t = torch.linspace(0, 999, n).long()
    s = demo.table[t][:, None, None, None]
    a, noise = (1 + s * s).rsqrt(), torch.randn(x0.shape, generator=torch.Generator().manual_seed(73))
    x, target, unet = a * (x0 + s * noise), a * noise - s * a * x0, demo.net.unet
    skeleton = control.ControlNet(unet)
    shapes = {k: v.shape for k, v in skeleton.state_dict().items()}
    out = {"locked model alone": float(F.mse_loss(unet(x, t, context), target))}
    for name, zero in (("zero convolutions", True), ("ordinary convolutions", False)):
        weights = controlnet.initial(shapes, unet.state_dict(), zero_conv=zero)
        added = torch.func.functional_call(skeleton, weights, (x, hint, t, context))
        out[name] = float(F.mse_loss(unet(x, t, context, control=added), target))
    return out


def sudden_convergence(bench: Bench, demo: Demo, truth: scenes.Scenes) -> list[dict]:
    """How well the hint is followed after so many optimiser steps of a training from zero."""
    run = Curve(demo, bench.quick)
    judge = held_out_judge(demo, truth[:2] if bench.quick else truth, control.object_iou, 2 if bench.quick else 12, CFG)
    return bench.each("curve", run.marks, lambda marks: [run.at(mark, judge) for mark in marks])


@torch.no_grad()
def main(argv=None) -> None:
    asked = list(sys.argv[1:] if argv is None else argv)
    others = [word for word in asked if word != "--curve"]
    bench = Bench("controlnet", __doc__.splitlines()[0], others, read=(*READ, "controlnet/*.safetensors"))
    n, steps = (16, 5) if bench.quick else (128, STEPS)
    demo, truth = Demo(), truth_of(n)
    led = control.load(demo.net.unet)
    masks = scenes.draw(truth)[1]
    rows = captions.token_rows(*control.sparing(truth))[0]

    def way(key: str, token_rows, strength: float, named: bool, count: int = n) -> list[dict]:
        def compute(indices):
            i = torch.tensor(indices)
            made = control.generate(
                demo.net,
                demo.autoencoder,
                led,
                token_rows[i],
                control.hint_of(masks[i]),
                steps,
                CFG,
                1000 + indices[0],
                strength,
            )
            return judged(demo.judge, made, truth[i], named)

        return bench.each(key, range(count), compute, BATCH)

    def ceiling(indices):
        i = torch.tensor(indices)
        return judged(demo.judge, demo.decode(demo.encode(scenes.draw(truth[i])[0])), truth[i], True)

    ways = {
        "the scenes through the autoencoder": bench.each("ceiling", range(n), ceiling, BATCH),
        "hint, caption without place and size": way("strength 1", rows, 1.0, True),
        "hint, no caption": way("empty", empty_rows(n), 1.0, False),
        "no hint, caption without place and size": way("strength 0", rows, 0.0, True),
    }
    names = ("iou", "place", *ATTRIBUTES)
    lines = [[name, *(mean(found, key) for key in names)] for name, found in ways.items()]
    few = min(n, 32)
    by_strength = [
        [s, mean(way(f"strength {s:g}", rows, s, True, n if s in (0.0, 1.0) else few)[:few], "iou")] for s in STRENGTHS
    ]
    start = bench.once("start", lambda: start_losses(demo, 64))
    curve = sudden_convergence(bench, demo, truth[:16]) if "--curve" in asked else bench.kept.get("curve", [])
    _, hinted, empty, free = ways.values()
    kept = {f"kept_{a}": mean(hinted, a) - mean(free, a) for a in ATTRIBUTES}
    figures = {
        "hint_iou": mean(hinted, "iou"),
        "hint_iou_empty_captions": mean(empty, "iou"),
        "place_read": mean(hinted, "place"),
        "iou_without_hint": mean(free, "iou"),
        **kept,
        **{f"start_loss_{k.replace(' ', '_')}": v for k, v in start.items()},
        "seconds_per_step": bench.once("seconds", lambda: seconds_per_step(demo, 1 if bench.quick else 3)),
        "n": n,
        "sudden_convergence": [[row["step"], round(row["iou"], 4)] for row in curve] or None,
    }
    text = [
        table(["128 px scenes" if not bench.quick else "quick", *names], lines),
        table(["strength", f"IoU of {few}"], by_strength),
        table(["at the start", "loss"], list(start.items())),
    ]
    if curve:
        points = [[row["step"], row["iou"], row["loss"]] for row in curve]
        text += [table(["optimiser steps", "IoU", "training loss"], points) + f"\n{jump(curve)}"]
        save_plot(curve)
    else:
        text += ["sudden convergence: add --curve to train it anew and print it"]
    bench.finish("\n\n".join(text), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
