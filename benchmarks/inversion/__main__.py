"""Inversion, null-text optimisation and edits on the demo model: `make bench NAME=inversion [ARGS="--quick --fresh"]`.

32 held-out one-object scenes, 50 steps; PSNR in pixels against the autoencoder's own decode of the source latent, mean
of the pictures' dB. Every scene is edited twice, by one word each: another object colour, another background colour.
Backgrounds are compared with the decoded source. Calls and seconds are per picture, in batches. The ways stand in
ways.py, what a call costs in cost.py.
"""

from __future__ import annotations

import os
import sys
import time
from statistics import mean

import torch

from ...samplers.measure.metrics import psnr
from ..edits import CEILING, CHANGES, judged, rest_cell
from ..harness import Bench, table
from .cost import Costs
from .ways import CFG, EDIT_FRIENDLY, PAPER_RATE, RATE, WAYS, Batch, Lab, Result

#: figure's suffix -> the way that makes the edits
EDITED = ("ddim_cfg7.5", "null_text_cfg7.5", "null_text_towards_cfg7.5", "negative_prompt_cfg7.5", "exact_cfg7.5")
EDITS = {name.removesuffix("_cfg7.5"): name for name in (*EDITED, "edit_friendly", "flow_edit", "infedit")}
NO_PSNR = ("exact_cfg7.5", "edit_friendly", "flow_edit", "infedit", "null_text_paper_rate")
PSNR = tuple(name for name in WAYS if name not in NO_PSNR)


def kept(lab: Lab, b: Batch, result: Result) -> list[dict]:
    """What is kept of a way: per scene its notes, "psnr", and {"success", "background"} by change."""
    out: list[dict] = [dict(result.notes) for _ in range(len(b.latent))]
    if result.reconstruction is not None:
        values = psnr(lab.decode(result.reconstruction), b.decoded).clamp(max=CEILING)
        for item, value in zip(out, values.tolist()):
            item["psnr"] = value
    for edit, context in zip(b.edits, b.targets) if result.edit else ():
        for item, value in zip(out, judged(lab.judge, edit, lab.decode(result.edit(context)), b.decoded)):
            item[edit.kind] = value
    return out


def share(name: str) -> float:
    """The part of the scenes that a way is run on: all, but for the row that only the table shows."""
    return 0.25 if name == "null_text_paper_rate" else 1.0


def predicted(lab: Lab, indices: list[int], n: int, threads: int) -> float:
    """Seconds at most for all ways over n scenes, from single calls of this machine now."""
    torch.set_num_threads(threads)
    b, rows, costs = lab.batch(indices), len(indices), Costs()
    costs.measure(lab.denoise, b.latent, b.null, lab.sigmas)
    start = time.perf_counter()
    lab.decode(b.latent)
    decode = (time.perf_counter() - start) / rows
    pictures = sum(share(name) * (1 + len(CHANGES) * (name in EDITS.values())) for name in WAYS) * decode
    forwards, backwards = (sum(share(name) * calls[k] for name, (_, calls) in WAYS.items()) for k in range(2))
    per_step = (forwards * costs.of("forward", rows) + backwards * costs.of("backward", rows)) / rows
    return n * (pictures + (len(lab.sigmas) - 1) * per_step)


def edit_figures(rows: list[dict], changes=CHANGES) -> tuple[float, float | None, int]:
    """Share of successes, mean background PSNR, and how many edits had a background to measure."""
    edits = [row[change] for row in rows for change in changes]
    background = [e["background"] for e in edits if e["background"] is not None]
    return mean(e["success"] for e in edits), mean(background) if background else None, len(background)


def figures_of(rows: dict[str, list[dict]]) -> dict[str, float | None]:
    """The JSON line from {way: a row per scene}."""
    null = rows["null_text_cfg7.5"]
    figures: dict[str, float | None] = {f"psnr_{name}": mean(r["psnr"] for r in rows[name]) for name in PSNR}
    figures["latent_error_exact_cfg7.5"] = max(r["error"] for r in rows["exact_cfg7.5"])
    for name in ("null_text", "null_text_towards"):
        figures[f"network_calls_{name}"] = mean(r["forwards"] + r["backwards"] for r in rows[f"{name}_cfg7.5"])
    figures["seconds_null_text"] = mean(r["seconds"] for r in null)
    figures["seconds_per_forward"] = mean(r["forward"] for r in null)
    figures["seconds_per_backward"] = mean(r["backward"] for r in null)
    figures["null_text_overhead"] = sum(r["seconds"] for r in null) / sum(r["expected"] for r in null)
    for method, name in EDITS.items():
        figures[f"edit_success_{method}"], figures[f"background_psnr_{method}"], _ = edit_figures(rows[name])
    return figures


def tables(rows: dict[str, list[dict]], figures: dict) -> str:
    bars = {"psnr_null_text_cfg7.5": ">= 38", "latent_error_exact_cfg7.5": "<= 0.001", "null_text_overhead": "<= 1.15"}
    lines = [[k, v, bars.get(k, "")] for k, v in figures.items() if not k.startswith(("edit_", "background_"))]
    lines += [["  above psnr_ddim_cfg7.5", figures["psnr_null_text_cfg7.5"] - figures["psnr_ddim_cfg7.5"], ">= 15"]]
    paper = rows["null_text_paper_rate"]
    same = rows["null_text_cfg7.5"][: len(paper)]
    lines += [
        [f"null-text at the authors' rate {PAPER_RATE:g}, first {len(paper)}", mean(r["psnr"] for r in paper), ""],
        ["  its calls", mean(r["forwards"] + r["backwards"] for r in paper), ""],
        [f"null-text at {RATE:g}, the same scenes", mean(r["psnr"] for r in same), ""],
        ["  its calls", mean(r["forwards"] + r["backwards"] for r in same), ""],
        ["edit-friendly, back with the source prompt", mean(r["psnr"] for r in rows["edit_friendly"]), ""],
    ]
    edits = []
    for method, name in EDITS.items():
        line = [method]
        for changes in (CHANGES[:1], CHANGES[1:], CHANGES):
            success, background, n = edit_figures(rows[name], changes)
            line += [success, rest_cell(f"{background or 0:.2f}", n, len(changes) * len(rows[name]))]
        edits.append(line)
    header = ["edit", *(f"{k} {what}" for k in (*CHANGES, "both") for what in ("success", "rest in dB"))]
    note = (
        f"Edits at cfg {CFG:g}; edit-friendly as its authors (source cfg, target cfg, share of the steps) "
        f"{EDIT_FRIENDLY}. No attention control: words alone."
    )
    return "\n\n".join([table(("figure", "measured", "to reach"), lines), table(header, edits), note])


def main(argv: list[str]) -> None:
    bench = Bench("inversion", __doc__.splitlines()[0], argv)
    n, steps, size = (4, 5, 4) if bench.quick else (32, 50, 16)
    lab, rows = Lab(n, steps), {}
    lab.batch(list(range(size)))
    # on cores that others use too, threads wait for each other and one is quicker
    expected, threads = min((predicted(lab, list(range(size)), n, k), k) for k in {1, os.cpu_count() or 1})
    torch.set_num_threads(threads)
    print(
        f"Predicted: at most {expected / 60:.1f} minutes on {threads} thread(s), less what an earlier run kept.",
        flush=True,
    )
    costs = Costs()
    for name, (way, _) in WAYS.items():

        def compute(indices, way=way):
            b = lab.batch(indices)
            return kept(lab, b, way(b, costs))

        rows[name] = bench.each(name, range(round(share(name) * n)), compute, size)
    figures = figures_of(rows)
    bench.finish(tables(rows, figures), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
