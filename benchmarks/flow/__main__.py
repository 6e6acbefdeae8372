"""FlowEdit and other techniques on a flow model, the demo's twin: `make bench NAME=flow [ARGS="--quick --fresh"]`.

32 held-out one-object scenes. Nothing was tuned on them: scales and shares are the papers', cfg 5 is what the demo
model is made for, and what the workflows `*_flow` set was chosen on another picture. Reconstructions are in dB against
the autoencoder's own decode of the source latent. Every scene is edited twice by one word, another object colour and
another background: an edit succeeds when the probe reads the new attribute, and the rest is what lies outside the
region that differs between the two drawings, in dB against the decoded source. What draws noise is run with 3 seeds;
its spread is the best seed's share less the worst's. The controls: the source as it is, guidance without its
correction, RF-Inversion's noise without its hold, the same calls without RePaint's jumps, the same noises without a
classifier, and the bound of `match` without a disturbance.

FlowEdit and the edit by inversion make the same number of network rows a picture (84): FlowEdit walks 21 of 32 steps
with both prompts guided, the inversion walks 28 of 42 steps up at cfg 1 and down guided.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import mean

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ...demo.classifiers import PAIRS
from ...samplers.networks.latent_classifier import LatentClassifier
from ..edits import CHANGES, rest_cell
from ..from_image.cartoon import median
from ..from_image.fill import filling
from ..harness import READ, Bench, table
from . import ways
from .ways import CFG, SEED, SEEDS, STEPS, WALKED, Batch, Lab

#: way -> network rows of a scene at full length (a backward counts two), for the predicted time
ROWS = {
    "untouched": 0,
    "ddim_cfg1": 2 * STEPS,
    "ddim_cfg5": 3 * STEPS,
    "exact_cfg5": 8 * STEPS + 4,
    "null_text_cfg5": 42 * STEPS // 4,
    "inversion": STEPS + 4 * WALKED,
    "flow_edit": SEEDS * 8 * 21,
    "sdedit": SEEDS * 4 * 20,
    "rf_inversion": (SEEDS + 1) * 5 * 28,
    "fill": 4 * 105 // 2,
    "guidance": 4 * 25,
    "disturbance": 6 * 30,
}
#: what edits: run once, and with each seed
SINGLE = ("untouched", "inversion", "exact_cfg5", "null_text_cfg5", "rf_not_held")
DRAWN = ("flow_edit", "sdedit", "rf_inversion")


def edit_figures(runs: list[list[dict]], kinds=CHANGES) -> tuple[float, float, float | None, int]:
    """(share of successes, its spread over the seeds, mean dB of the rest, edits of a seed that had one) of one list of
    scenes per seed."""
    shares = [mean(row[k]["success"] for row in rows for k in kinds) for rows in runs]
    rest = [row[k]["background"] for rows in runs for row in rows for k in kinds]
    rest = [value for value in rest if value is not None]
    return mean(shares), max(shares) - min(shares), mean(rest) if rest else None, len(rest) // len(runs)


def edits_of(rows: dict[str, list[dict]]) -> dict[str, list[list[dict]]]:
    """{way: one list of scenes per seed} of what edits."""
    found = {name: [rows[name]] for name in SINGLE}
    return found | {name: [rows[f"{name} {seed}"] for seed in range(SEEDS)] for name in DRAWN}


def figures_of(rows: dict[str, list[dict]]) -> dict[str, float]:
    figures = {
        f"flow_psnr_{name}": mean(r["psnr"] for r in rows[name])
        for name in ("ddim_cfg1", "ddim_cfg5", "exact_cfg5", "null_text_cfg5")
    }
    for name, runs in edits_of(rows).items():
        success, spread, rest, _ = edit_figures(runs)
        figures |= {f"flow_edit_success_{name}": success, f"flow_rest_psnr_{name}": rest}
        figures |= {f"flow_edit_spread_{name}": spread} if len(runs) > 1 else {}
    for key in ("repaint_seam", "straight_seam", "repaint_fill", "straight_fill"):
        figures[f"flow_{key}"] = mean(r[key] for r in rows["fill"])
    for key in ("guided", "unguided"):
        figures[f"flow_class_share_{key}"] = mean(r[key] for r in rows["guidance"])
    for key in ("backd", "bound_alone"):
        figures[f"flow_texture_drop_{key}"] = median(torch.tensor([r[key] for r in rows["disturbance"]]))
        figures[f"flow_colour_kept_{key}"] = mean(r[f"{key}_colour"] for r in rows["disturbance"])
    return figures


def tables(rows: dict[str, list[dict]], figures: dict[str, float]) -> str:
    lines = []
    for name, runs in edits_of(rows).items():
        for kinds in (CHANGES[:1], CHANGES[1:], CHANGES):
            success, spread, rest, measured = edit_figures(runs, kinds)
            cell = rest_cell(f"{rest or 0:.2f}", measured, len(kinds) * len(runs[0]))
            lines.append([name, " and ".join(kinds), success, spread if len(runs) > 1 else "-", cell])
    edits = table(("edit", "change", "success", "spread", "rest in dB"), lines)
    others = table(("figure", "measured"), [[k, v] for k, v in figures.items() if "_edit_" not in k])
    return f"{edits}\n\n{others}"


def seconds_per_row(lab: Lab, b: Batch) -> float:
    """Of a network call on a whole batch."""
    lab.denoise(b.latent, 0.5, b.source)
    start = time.perf_counter()
    lab.denoise(b.latent, 0.5, b.source)
    return (time.perf_counter() - start) / len(b.latent)


def main(argv: list[str]) -> None:
    bench = Bench("flow", __doc__.splitlines()[0], argv, read=(*READ, "diffusion_models/nulltext_flow.safetensors"))
    n, size = (4, 4) if bench.quick else (32, 8)
    torch.set_num_threads(1)
    lab, fills = Lab(n, bench.quick), filling(n // 2, SEED + 9, times=60)
    each = seconds_per_row(lab, lab.batch(list(range(size))))
    whole = 32 * sum(ROWS.values()) * each / 60
    print(f"Predicted: a full run is about {whole:.0f} minutes of one core on this machine now.", flush=True)
    with safe_open(PAIRS, "pt") as file:
        classifier = LatentClassifier.build(load_file(PAIRS), file.metadata())
    measured: dict[str, Callable[[Batch], list[dict]]] = {
        "untouched": lambda b: b.judged(None),
        "ddim_cfg1": lambda b: ways.ddim(b, 1.0),
        "ddim_cfg5": lambda b: ways.ddim(b, CFG),
        "exact_cfg5": ways.exact,
        "inversion": ways.inversion,
        **{f"{name} {seed}": partial(getattr(ways, name), seed=seed) for name in DRAWN for seed in range(SEEDS)},
        "rf_not_held": lambda b: ways.rf_inversion(b, 0, held=False),
        "guidance": lambda b: ways.guidance(b, classifier),
        "disturbance": ways.disturbance,
        "fill": lambda b: ways.fill(b, fills[torch.arange(b.first, min(b.first + size, len(fills)))]),
        "null_text_cfg5": ways.null_text,
    }
    share = {"fill": 0.5, "null_text_cfg5": 0.25}  # of the scenes: the dear ones
    rows = {}
    for name, way in measured.items():
        items = range(round(share.get(name, 1) * n))
        rows[name] = bench.each(name, items, lambda part, way=way: way(lab.batch(part)), size)
    figures = figures_of(rows)
    bench.finish(tables(rows, figures), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
