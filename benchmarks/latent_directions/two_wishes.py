"""Two wishes that the image-text model knows, at once: stripes behind an object, and a red object made blue, by the two
LoRAs' predictions mixed. Part of `make bench NAME=latent_directions`.

Held-out scenes of red objects on plain backgrounds, judged by both probes; the weights are those that did best on
training scenes. Kept: the object's shape and place. Beside the mixture stands each LoRA alone at its own weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...demo import probe, scenes
from ..harness import Bench
from .dclip import EARLY, JUDGED, JUDGES, LATE, STRIPES, THROUGHOUT, Edit, Mix, Ways, good, plain_scenes, tuned

RED, BLUE = map(scenes.COLOURS.index, ("red", "blue"))
RECOLOUR = Edit("a red shape", "a blue shape", "colour", RED, BLUE, 0.3)
#: predictions mixed throughout share a whole, so that each counts half; in spans of its own each counts fully
MIXES = {"throughout, weights 1.8 and 1": Mix((1.8, 1.0), THROUGHOUT)} | {
    f"{first} first, weights {weights[0]:g} and {weights[1]:g}": Mix(weights, spans)
    for first, spans in (("stripes", (EARLY, LATE)), ("blue", (LATE, EARLY)))
    for weights in ((1.4, 1.0), (1.8, 1.0), (1.8, 1.5), (2.5, 1.5))
}


def red_scenes(n: int, split: str, seed: int) -> scenes.Scenes:
    return plain_scenes(n, split, seed, colour=RED)


def judged(judge, images: Tensor, truth: scenes.Scenes) -> list[float]:
    """Shares with stripes, with a blue object, with both; mean share of the object's shape and place kept."""
    reading = probe.read(judge, images)
    striped, blue = reading.texture == STRIPES.after, reading.at_place("colour") == BLUE
    kept = sum(right.float() for right in probe.right(reading, truth, ("shape", "place")).values())
    return [*(float(done.float().mean()) for done in (striped, blue, striped & blue)), float(kept.mean()) / 2]


@torch.inference_mode()
def measure(bench: Bench, seed: int) -> tuple[dict[str, float], list[list]]:
    """The figures, and lines for the table. seed: the training seed of the stripes that are mixed."""
    n, few, steps = (4, 2, 6) if bench.quick else (64, 16, 20)
    loras = [tuned(bench, STRIPES, seed)[0], tuned(bench, RECOLOUR)[0]]
    judges = {name: probe.load(name) for name in JUDGES}

    def seen(split: str, count: int, seed: int, mixes: dict[str, Mix]) -> dict[str, dict[str, list[float]]]:
        ways = Ways(red_scenes(count, split, seed), steps)

        def compute(names):
            found = [ways.decode(ways.mixed(loras, mixes[name])) for name in names]
            return [{name: judged(net, images, ways.truth) for name, net in judges.items()} for images in found]

        key = f"two wishes {split} {count} {steps} seed {seed} {', '.join(mixes)}"
        return dict(zip(mixes, bench.each(key, list(mixes), compute)))

    tried = seen("train", few, 53, MIXES)
    chosen = max(MIXES, key=lambda name: good(tried[name]["conv"], 2, 0.65))
    mix = MIXES[chosen]
    alone = {"stripes alone": (mix.weights[0], 0.0), "blue alone": (0.0, mix.weights[1])}
    asked = {chosen: mix} | {name: Mix(weights, THROUGHOUT) for name, weights in alone.items()}
    rows, targets = seen("held_out", n, JUDGED, asked), dict(zip(asked, (2, 0, 1)))  # of `judged`
    lines = [
        [f"DiffusionCLIP, stripes and a blue object, {name}", judge, row[targets[name]], row[3]]
        for name, found in rows.items()
        for judge, row in found.items()
    ]
    both = rows[chosen]["query"]
    figures = {
        "dclip_two_wishes": both[2],
        "dclip_two_wishes_kept": both[3],
        "dclip_two_wishes_first_judge": rows[chosen]["conv"][2],
        "dclip_two_wishes_stripes": both[0],
        "dclip_two_wishes_blue": both[1],
        "dclip_stripes_alone": rows["stripes alone"]["query"][0],
        "dclip_blue_alone": rows["blue alone"]["query"][1],
        "dclip_blue_alone_kept": rows["blue alone"]["query"][3],
    }
    return figures, lines
