"""Sampling from a picture, on the demo model and on mixtures with known answers: `make bench NAME=from_image`.

Here ILVR's constraint, DiffEdit's mask and SDEdit's curve. Everything is kept as it is made: a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo import probe, scenes
from ...samplers.core import VE, gaussian, guided
from ...samplers.ode import sample_ancestral
from ...samplers.picture.diffedit import difference_map, edit_mask, normalised
from ...samplers.picture.lowpass import bicubic_low_pass, dct_low_pass
from ...samplers.picture.sdedit import sdedit_sigmas
from ..guidance.ways import kid_of
from ..harness import Bench, kept_pictures, table
from ..lab import Demo, some
from . import conditional
from .cartoon import EDIT_CFG, measure_cartoon
from .fill import measure_fill
from .mixtures import ALL, KIN, TUNING, UNSEEN
from .strips import error_chart, folder, ilvr, ilvr_strip, sdedit_strip


@torch.no_grad()
def measure_ilvr(bench: Bench, demo: Demo) -> dict[str, float]:
    """Largest |phi(result) - phi(reference)| of a run that is conditioned to its end, by the filter."""

    def compute(phi):
        z = demo.encode(scenes.draw(some(4, 33, lambda s: s.texture > 0))[0])
        wanted = some(4, 34, lambda s: s.texture == 0)
        return float((phi(ilvr(demo, z, wanted, phi, 1.0, 5 if bench.quick else 30)) - phi(z)).abs().max())

    return {
        "ilvr_constraint_error": bench.once("ilvr", lambda: compute(dct_low_pass(4))),
        "ilvr_constraint_error_bicubic": bench.once("ilvr, bicubic", lambda: compute(bicubic_low_pass(4))),
    }


def average_precision(score: Tensor, truth: Tensor) -> float:
    """Area under precision against recall of one map, both flat."""
    hits = truth[score.argsort(descending=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum().clamp(min=1))


def intersection_over_union(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def measure_diffedit(bench: Bench, demo: Demo) -> dict[str, float]:
    n = 4 if bench.quick else 32
    truth = some(n, 35, lambda s: s.size[:, 0] > 0)
    other = (truth.colour[:, 0] + 1 + torch.arange(n) % (len(scenes.COLOURS) - 1)) % len(scenes.COLOURS)

    @torch.no_grad()
    def compute(items):
        index = torch.tensor(items)
        part = truth[index]
        image, masks = scenes.draw(part)
        z = demo.encode(image)
        source, target = demo.pair(part)[0], demo.pair(part.changed("colour", other[index]))[0]
        both, noise = lambda x, s: (source(x, s), target(x, s)), gaussian(z, 300 + items[0])
        h = difference_map(both, z, demo.at(0.5), process=VE, noise=noise, maps=10)
        inside = F.avg_pool2d(masks[:, :1], 8)[:, 0] > 0.5
        rows = []
        for one, score, where in zip(edit_mask(h).bool(), normalised(h), inside):
            oracle = max(intersection_over_union(score >= t, where) for t in score.unique())
            rows.append(
                [average_precision(score.flatten(), where.flatten()), intersection_over_union(one, where), oracle]
            )
        return rows

    rows = bench.each("diffedit", range(n), compute, batch=8)
    ap, iou, oracle = (sum(column) / len(rows) for column in zip(*rows))
    found = [["average precision", ap], ["IoU", iou], ["best threshold's IoU", oracle]]
    print(table(("DiffEdit's mask", "measured"), found))
    return {"diffedit_ap": ap, "diffedit_iou_over_oracle": iou / oracle}


def strokes(part: scenes.Scenes) -> Tensor:
    """A scribble of each scene: flat colours, no texture, in blocks of 8 pixels."""
    flat, _ = scenes.draw(part.changed("texture", 0).changed("style", 1))
    return F.interpolate(F.avg_pool2d(flat, 8), scale_factor=8)


def measure_sdedit(bench: Bench, demo: Demo) -> list[list]:
    """[t0, rms to the scribble, KID to real scenes (None without the feature net)] for rising t0."""
    n = 8 if bench.quick else 32
    truth = some(n, 36, lambda s: s.texture > 0, style=0)

    @torch.no_grad()
    def redraw(items: list[int], t0: float) -> dict[str, Tensor]:
        part = truth[torch.tensor(items)]
        z = demo.encode(strokes(part))
        sigmas, noise = sdedit_sigmas(demo.at, t0, 5 if bench.quick else 20).float(), gaussian(z, 400 + items[0])
        x = VE.noised(z, sigmas[0], noise())
        denoise = guided(*demo.pair(part), EDIT_CFG)
        return {"image": demo.decode(sample_ancestral(denoise, x, sigmas, process=VE, noise=noise))}

    guide = strokes(truth)
    net = probe.load("features") if probe.FEATURES.exists() else None
    real = scenes.draw(some(8 * n, 37, lambda s: s.texture > 0, style=0))[0]
    curve, made = [], {}
    for t0 in (0.2, 0.4, 0.6, 0.8, 1.0):
        image = kept_pictures(bench, f"sdedit {t0}", n, lambda items, t0=t0: redraw(items, t0), 16)["image"]
        made[t0] = image
        far = float((image - guide).square().mean((1, 2, 3)).sqrt().mean())
        value, error = (None, None) if net is None else kid_of(net.features(image), net.features(real))
        curve.append([t0, far, value, error])
    print(table(("SDEdit t0", "rms to the scribble", "KID to scenes", "its error"), curve))
    curve = [[v if v is None else round(v, 5) for v in point[:3]] for point in curve]
    sdedit_strip(bench, guide, made, curve)
    return curve


def measure_conditional(bench: Bench) -> dict[str, float]:
    n = 500 if bench.quick else 4000
    rows = conditional.measured(bench, n)
    ratios = {name: conditional.ratios(rows, name) for name in rows}
    columns = list(rows)
    for title, cells in (("error", rows), ("over 250/10/10", ratios)):
        marks = dict.fromkeys(KIN, " (kin of one tuned by)") | dict.fromkeys(TUNING, " (tuned by)")
        lines = [[m + marks.get(m, ""), *(cells[way][m] for way in columns)] for m in ALL]
        print(table((title, *columns), lines))
    for name in rows:
        print(f"{name}: {rows[name]['calls']} calls, worst of the unseen {conditional.worst_unseen(rows, name):.2f}")
    shown = [name for name in rows if rows[name]["calls"] not in (0, 2410)]
    error_chart({name: ratios[name] for name in shown}, UNSEEN, folder(bench) / "repaint_error.jpg")
    return conditional.figures(rows)


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    bench = Bench("from_image", __doc__, argv)
    print(
        f"about {'1 minute' if bench.quick else '20 minutes'} on one CPU core; what is kept is not computed again",
        flush=True,
    )
    figures = measure_conditional(bench)
    demo = Demo()
    figures |= measure_fill(bench, demo)
    figures |= measure_ilvr(bench, demo)
    ilvr_strip(bench, demo)
    figures |= measure_diffedit(bench, demo) | measure_cartoon(bench, demo)
    figures["sdedit_curve"] = measure_sdedit(bench, demo)
    lines = [[key, value] for key, value in figures.items() if not isinstance(value, list)]
    bench.finish(table(("figure", "measured"), lines), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
