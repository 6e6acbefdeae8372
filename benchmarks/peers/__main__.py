"""Work and quality beside the authors' own code: `make bench NAME=peers [ARGS="--quick --fresh"]`.

This side's column; the other was measured apart, on the demo model's earlier weights (docs/benchmarks.md). Held-out
one-object scenes, 50 steps.
Null-text optimisation at cfg 7.5, at the papers' rate, at the nodes' default, at that with few updates a step, and at
both rates from a start towards the source prompt:
backwards per picture, the reconstruction in dB, and the region that prompt-to-prompt keeps when the colour is changed.
DiffEdit at depth 0.8, its climb no higher than that: network rows of mask, climb and edit, the mask's IoU with what the
drawings change. RePaint: fill and seam of the nodes' schedule of about 100 calls beside plain ones of the paper's kind,
and the standard error of their differences.
"""

from __future__ import annotations

import dataclasses
from statistics import mean, stdev

import torch

from ...demo import scenes
from ...samplers.core import VE, gaussian, guided
from ...samplers.inversion.null_text import optimise_null_text, paper_schedule, start_towards
from ...samplers.measure.metrics import psnr
from ...samplers.picture.repaint_schedules import PRESETS, Schedule, data_scale, sample_repaint_scheduled
from ...samplers.picture.sdedit import sdedit_sigmas
from ..edits import CEILING, CELL, judged, rest_cell
from ..from_image.conditional import calls_of
from ..from_image.fill import FILL_CFG, filling, holes, seam_and_fill_of
from ..harness import Bench, table
from ..inversion import ways
from ..inversion.cost import Meter
from ..inversion.ways import CFG, PAPER_RATE, RATE, TOWARDS, Batch, Lab
from ..lab import InEngine

#: of null-text optimisation: Adam's rate, the most updates of a step, where it starts between empty and source prompt
LOOPS = {
    "paper": (PAPER_RATE, 10, 0.0),
    "default": (RATE, 10, 0.0),
    "2_updates": (RATE, 2, 0.0),
    "1_update": (RATE, 1, 0.0),
    "paper_towards": (PAPER_RATE, 10, TOWARDS),
    "towards": (RATE, 10, TOWARDS),
}
EDIT_CFG = 5.0  # of DiffEdit
FILLED = 64  #: scenes: on 16 the schedules can't be told apart
#: about 100 calls: the nodes' preset, and a plain schedule of the paper's kind with shorter jumps
FILLS = {"default": PRESETS["paper, 105 calls (25/5/5)"], "plain": Schedule(20, 1, 5)}


def null_text(lab: Lab, engine: InEngine, at: int, rate: float, inner: int, towards: float) -> dict:
    """One scene: backwards, dB, and dB of what prompt-to-prompt keeps beside its edit of the colour."""
    b: Batch = lab.batch([at])
    edit = b.edits[0]
    with torch.inference_mode():
        inversion = engine.invert(edit.source, scenes.draw(edit.before)[0])
    sigmas, path = inversion.sigmas.float().clone(), inversion.trajectory.float().clone()
    with torch.enable_grad():
        schedule = paper_schedule(len(sigmas) - 1, inner, rate=rate)
        start = start_towards(b.null, b.source, towards)
        found = optimise_null_text(
            lab.denoise, b.of(b.source), path, sigmas, start, cfg=CFG, process=VE, schedule=schedule
        )
    held = dataclasses.replace(inversion, null_embeddings=found.embeddings, cfg=CFG, correction="null_text")
    with torch.inference_mode():
        picture, rows = engine.edited(edit.edited, held, CFG)
        kept = judged(lab.judge, edit, picture, b.decoded)[0]
        value = min(float(psnr(lab.decode(found.reconstruction), b.decoded)[0]), CEILING)
    return {"backwards": found.stats.backward_rows, "psnr": value, "kept": kept["background"], "p2p_rows": rows}


@torch.no_grad()
def diffedit(lab: Lab, at: int) -> dict:
    """One scene: the rows of a DiffEdit of the object's colour, the mask's IoU, the largest change outside of it."""
    b: Batch = lab.batch([at])
    net, edit = Meter(lab.denoise), b.edits[0]
    out, mask = ways.diffedit(b, net, EDIT_CFG)
    truth = torch.nn.functional.max_pool2d(
        scenes.difference(edit.before, edit.after).float().view(1, 1, 128, 128), CELL
    )
    both, either = float((mask * truth).sum()), float(((mask + truth) > 0).sum())
    outside = float(((out - b.latent).abs() * (1 - mask)).max())
    return {"rows": net.rows, "iou": both / either, "outside": outside}


@torch.no_grad()
def fills(lab: Lab, plan: Schedule, items: list[int], truth: scenes.Scenes) -> list[list[float]]:
    """[seam, fill rms] of some striped or checkered scenes, half of the background filled."""
    part = truth[torch.tensor(items)]
    z, mask, levels = lab.encode(scenes.draw(part)[0]), holes(part), sdedit_sigmas(lab.at, 1.0, plan.levels).float()
    noise, scale = gaussian(z, 200 + items[0]), data_scale(z, mask)
    known = {"source": z, "mask": mask, "process": VE, "noise": noise, "schedule": plan, "scale": scale}
    made = sample_repaint_scheduled(guided(*lab.pair(part), FILL_CFG), levels[0] * noise(), levels, **known)
    return [[float(a), float(b)] for a, b in zip(*seam_and_fill_of(lab, made, z, mask))]


def main(argv: list[str] | None = None) -> None:
    bench = Bench("peers", __doc__.splitlines()[0], argv)
    n, steps = (1, 5) if bench.quick else (16, 50)
    lab, engine, figures, lines = Lab(n, steps), InEngine(steps), {}, []
    for name, loop in list(LOOPS.items())[: 2 if bench.quick else None]:
        rows = bench.each(
            f"null-text {name}", range(n), lambda at, own=loop: [null_text(lab, engine, i, *own) for i in at]
        )
        kept = [row["kept"] for row in rows if row["kept"] is not None]
        values = mean(r["backwards"] for r in rows), mean(r["psnr"] for r in rows), mean(kept) if kept else None
        for what, value in zip(("backwards", "psnr", "kept"), values):
            figures[f"null_text_{what}_{'rate_' if name == 'paper' and what != 'kept' else ''}{name}"] = value
        figures["direct_p2p_rows"] = mean(r["p2p_rows"] for r in rows) + steps  # the inversion's own rows
        lines.append([f"null-text, {name}", *values[:2], rest_cell(f"{values[2] or 0:.1f}", len(kept), n)])
    rows = bench.each("diffedit", range(n), lambda at: [diffedit(lab, i) for i in at])
    figures |= {"diffedit_rows": mean(r["rows"] for r in rows), "diffedit_iou": mean(r["iou"] for r in rows)}
    figures["diffedit_outside"] = max(r["outside"] for r in rows)
    count = n if bench.quick else FILLED
    truth, made = filling(count), {}
    plans = dict.fromkeys(FILLS, Schedule(6, 1, 2)) if bench.quick else FILLS
    for name, plan in plans.items():
        made[name] = bench.each(f"{count} fills {name}", range(count), lambda at, p=plan: fills(lab, p, at, truth), 8)
        figures[f"repaint_calls_{name}"] = calls_of(plan)
    for k, what in enumerate(("seam", "fill")):
        figures |= {f"repaint_{what}_{name}": mean(row[k] for row in rows) for name, rows in made.items()}
        apart = [a[k] - b[k] for a, b in zip(made["default"], made["plain"])]
        figures[f"repaint_{what}_apart_error"] = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else 0.0
    shown = table(("null-text", "backwards", "dB", "kept dB"), lines)
    rest = [[key, value] for key, value in figures.items() if not key.startswith("null_text")]
    bench.finish(shown + "\n\n" + table(("figure", "value"), rest), figures)


if __name__ == "__main__":
    main()
