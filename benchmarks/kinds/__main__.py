"""Which way of editing a picture for which kind of edit: `make bench NAME=kinds [ARGS="--quick --fresh"]`.

64 held-out one-object scenes, 16 a kind: the object's colour or shape, the background's colour or texture; 20 steps.
Per way and kind: the share of edits in which a probe reads the new attribute, the PSNR of what lies outside the region
that may change, against the decoded source, and the network rows of a picture (forwards and backwards, the inversion's
too). +- is the standard error over the edits. Everything at cfg 7.5, but for edit-friendly, which runs at its authors'
numbers, and a second row of the exact pair. Prompt-to-Prompt alone has its settings per kind (attention/runs.py, chosen
on training scenes for direct overwriting at cfg 5), local blend with them; null-text gets the same. plain: DDIM
inversion and the edited prompt, no more.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from statistics import mean, stdev

import torch
from torch import Tensor

from ...demo.scenes import Scenes
from ...samplers.attention.controllers import MutualSelf
from ...samplers.attention.layers import StepWindow
from ...samplers.core import apply_cfg
from ...samplers.guidance.proximal import proximal_cond
from ...samplers.inversion.direct_edit import sample_flow_edit, sample_infedit
from ...samplers.ode import sample_euler
from ..attention.runs import options_of
from ..edits import KINDS, Edit, judged, other_value, rest_cell
from ..harness import Bench, table
from ..inversion import ways
from ..inversion.cost import Meter
from ..inversion.ways import CFG, Batch
from ..lab import Demo, InEngine, some

SEED, QUANTILE = 91, 0.7
EXACT_CFG = 3.0  # at which exact inversion is published (EDICT, 2211.12446)
BATCH = 8
Way = Callable[["Group"], tuple[Tensor, float]]


def counting(steps: int) -> Demo:
    """The demo model whose `denoise` counts its rows."""
    lab = Demo(steps)
    lab.denoise = Meter(lab.denoise)
    return lab


class Group:
    """Some scenes, to be edited in one kind."""

    def __init__(self, lab: Demo, engine: InEngine, kind: str, truth: Scenes, seed: int):
        self.lab, self.engine, self.seed = lab, engine, seed
        self.edit = Edit(kind, truth, truth.changed(kind, other_value(truth, kind, seed)))

    def batch(self) -> Batch:
        """Made anew for every way, whose rows hold its own inversion then."""
        return Batch(self.lab, self.edit.before, [self.edit], self.seed)

    def each(self) -> list[Edit]:
        return [Edit(self.edit.kind, self.edit.before[i], self.edit.after[i]) for i in range(len(self.edit.before))]


def chosen(kind: str, n: int) -> Scenes:
    """n held-out scenes; a texture is drawn on plain backgrounds."""
    keep = (lambda truth: truth.texture == 0) if kind == "texture" else (lambda truth: truth.texture >= 0)
    return some(n, SEED + KINDS.index(kind), keep)


def along(way: Callable[[Batch], ways.Result]) -> Way:
    """One of the inversion bench's ways; the rows of the reconstruction, which it makes too, are not the edit's."""

    def run(group: Group) -> tuple[Tensor, float]:
        b, lab = group.batch(), group.lab
        lab.denoise.forget()
        result = way(b)
        before = lab.denoise.rows
        made = result.edit(b.targets[0])
        unread = 0 if result.reconstruction is None else lab.denoise.rows - before
        return lab.decode(made), (lab.denoise.rows - unread) / len(b.latent)

    return run


def proximal(group: Group) -> tuple[Tensor, float]:
    b, lab = group.batch(), group.lab
    lab.denoise.forget()

    def denoise(x, sigma):
        cond, uncond = (lab.denoise(x, sigma, e) for e in (b.targets[0], b.source))
        return apply_cfg(proximal_cond(cond, uncond, QUANTILE, "l0"), uncond, CFG)

    made = sample_euler(denoise, b.pivot[0], b.sigmas)
    return lab.decode(made), lab.denoise.rows / len(made)


def diffedit(group: Group) -> tuple[Tensor, float]:
    b, lab = group.batch(), group.lab
    lab.denoise.forget()
    made, _ = ways.diffedit(b, lab.denoise, CFG)
    return lab.decode(made), lab.denoise.rows / len(made)


def by_attention(edited: Callable[[InEngine, Edit, object], tuple[Tensor, float]], null_text: bool = False) -> Way:
    """A way of the engine's guider, edit by edit, from the inversion of each picture; null-text in one batch."""

    def run(group: Group) -> tuple[Tensor, float]:
        engine, lab, edits, rows = group.engine, group.lab, group.each(), 0.0
        with torch.inference_mode():
            inversions = [engine.invert(edit.source, edit.image) for edit in edits]
        if null_text:
            b, path = group.batch(), torch.cat([made.trajectory.clone() for made in inversions], 1).float()
            found = ways.optimised(b, b.of(b.source), path)
            rows = (found.stats.forward_rows + found.stats.backward_rows) / len(edits)
            inversions = [
                dataclasses.replace(
                    made, null_embeddings=found.embeddings[:, i : i + 1], cfg=CFG, correction="null_text"
                )
                for i, made in enumerate(inversions)
            ]
        with torch.inference_mode():
            made = [edited(engine, edit, inversion) for edit, inversion in zip(edits, inversions)]
        own = len(lab.sigmas) - 1 + mean(each for _, each in made)
        return torch.cat([image for image, _ in made]), rows + own

    return run


def p2p(engine: InEngine, edit: Edit, inversion) -> tuple[Tensor, float]:
    return engine.edited(edit.edited, inversion, CFG, **options_of(edit))


def masactrl(engine: InEngine, edit: Edit, inversion) -> tuple[Tensor, float]:
    """At the node's settings."""
    from ...engine.pair_guider import prompt_to_prompt_guider, run_guider, source_of

    mutual = MutualSelf(StepWindow(0.08, 1.0, points=0), 0.625)
    more = {"inversion": inversion, "keep_source": False}
    edited = [engine.prompt(edit.edited)]
    guider = prompt_to_prompt_guider(engine.model, source_of(inversion), edited, engine.nothing, CFG, [mutual], **more)
    result = run_guider(guider, None, inversion.sigmas, 0)
    return engine.decode(result.edits), result.rows


WAYS: dict[str, Way] = {
    "plain": along(lambda b: ways.ddim(b, CFG)),
    "null-text + P2P, set per kind": by_attention(p2p, null_text=True),
    "direct + P2P, set per kind": by_attention(p2p),
    "MasaCtrl": by_attention(masactrl),
    "negative prompt": along(ways.negative),
    "proximal": proximal,
    "exact pair": along(ways.exact),
    f"exact pair, cfg {EXACT_CFG:g}": along(lambda b: ways.exact(b, EXACT_CFG)),
    "edit-friendly": along(ways.edit_friendly),
    "FlowEdit": along(lambda b: ways.direct(b, sample_flow_edit)),
    "InfEdit": along(lambda b: ways.direct(b, sample_infedit)),
    "DiffEdit": diffedit,
}


def spread(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error."""
    if not values:
        return None, None
    return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def told(values: list[float], digits: int) -> str:
    value, error = spread(values)
    if value is None:
        return "none"
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def figures_of(rows: list[dict]) -> dict[str, float | None]:
    """success, kept, their standard errors and rows of some edits of one way."""
    found: dict[str, float | None] = {}
    for name, key in (("success", "success"), ("kept", "background")):
        values = [row[key] for row in rows if row[key] is not None]
        found[name], found[f"{name}_error"] = spread(values)
    return {**found, "rows": mean(row["rows"] for row in rows)}


def measured(group: Group, way: Way) -> list[dict]:
    b = group.batch()
    image, rows = way(group)
    return [{**found, "rows": float(rows)} for found in judged(group.lab.judge, group.edit, image, b.decoded)]


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    bench = Bench("kinds", __doc__.splitlines()[0], argv)
    n, steps = (2, 4) if bench.quick else (16, 20)
    lab, engine = counting(steps), InEngine(steps)
    truth = {kind: chosen(kind, n) for kind in KINDS}
    rows: dict[str, dict[str, list[dict]]] = {}
    for upto in range(min(n, BATCH), n + 1, BATCH):  # a run that is stopped has as many scenes of every way
        for name, way in WAYS.items():
            rows[name] = {}
            for kind in KINDS:

                def compute(items, way=way, kind=kind):
                    return measured(Group(lab, engine, kind, truth[kind][torch.tensor(items)], SEED + items[0]), way)

                with torch.no_grad():
                    rows[name][kind] = bench.each(f"{name}, {kind}", range(upto), compute, BATCH)
        shown, figures = result(rows)
        if upto < n:
            print(shown, flush=True)
    bench.finish(shown, figures)


def result(rows: dict[str, dict[str, list[dict]]]) -> tuple[str, dict]:
    """The table and the figures of {way: {kind: a row per edit}}."""
    lines, figures = [], {}
    for name, kinds in rows.items():
        everything = {**kinds, "all": [row for part in kinds.values() for row in part]}
        line = [name]
        for kind, part in everything.items():
            figures |= {f"{key} {name}, {kind}": value for key, value in figures_of(part).items()}
            dB = [row["background"] for row in part if row["background"] is not None]
            kept = rest_cell(told(dB, 1), len(dB), len(part))
            line.append(f"{told([row['success'] for row in part], 2)}; {kept}")
        lines.append([*line, round(mean(row["rows"] for row in everything["all"]))])
    return table(["way: success; kept dB", *KINDS, "all", "rows"], lines), figures


if __name__ == "__main__":
    main(sys.argv[1:])
