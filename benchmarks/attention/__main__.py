"""Prompt-to-prompt, re-weighting and attention maps on the demo model, through the pack's own nodes in the embedded
engine: `make bench NAME=attention`.

64 held-out edits (edits.py), each from the inversion of the picture. plain: the same noise, the prompt simply changed;
p2p: prompt-to-prompt with the source overwritten by the stored trajectory; null_text_p2p: the same with null-text
optimisation, on every fourth edit of each kind. Background: PSNR against the autoencoder's own decode.
"""

from __future__ import annotations

import sys
import time

import torch

from ...demo import captions, probe, scenes
from ...samplers.core import euler_step
from ...samplers.measure.metrics import to_psnr
from ..edits import KINDS, Edit, colour_amount, edits, log_odds, rest_cell
from ..harness import Bench, ratio, table
from ..lab import some
from .runs import CFG, Runs, options_of

FACTORS = (0.0, 0.5, 1.0, 2.0, 3.0)
FEWEST = 328  # pixels of a background that is measured: 2 % of a picture


def score(edit: Edit, judge, image, own) -> dict:
    """Success, and the background's PSNR against the autoencoder's own decode (None without a background)."""
    return {"success": bool(edit.done(judge, image)[0]), "mse": edit.background(image, own, FEWEST)[0]}


def measure_edits(bench: Bench, lab: Runs, items: list[Edit], judge) -> list[dict]:
    """Per edit: plain, p2p and, for some, null_text_p2p."""

    def compute(indices):
        return [one(items[i], i % 16 < 4) for i in indices]

    def one(edit: Edit, thorough: bool) -> dict:
        began = time.perf_counter()
        inversion = lab.invert(edit.source, edit.image)
        inverted = time.perf_counter() - began
        own = lab.decode(lab.encode(edit.image))
        plain = score(edit, judge, lab.plain(edit, inversion), own)
        began = time.perf_counter()
        image, calls = lab.p2p(edit, inversion)
        row = {"kind": edit.kind, "plain": plain, "p2p": score(edit, judge, image, own), "calls": calls}
        row["direct_seconds"] = inverted + time.perf_counter() - began
        if thorough:
            began = time.perf_counter()
            corrected = lab.optimise(inversion)
            image, _ = lab.p2p(edit, corrected)
            row["null_text_seconds"] = inverted + time.perf_counter() - began
            row["null_text_p2p"] = score(edit, judge, image, own)
            row["p2p_of_these"] = row["p2p"]
        return row

    with torch.inference_mode():
        return bench.each("edits", range(len(items)), compute)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def summary(rows: list[dict], name: str) -> tuple[float, float, int]:
    """Share of successes; PSNR of the mean background error, which one perfect picture can't make infinite; how many
    pictures had a background to measure."""
    mine = [row[name] for row in rows if name in row]
    errors = [r["mse"] for r in mine if r["mse"] is not None]
    success = mean(r["success"] for r in mine if r["success"] is not None)
    return success, float(to_psnr(torch.tensor(mean(errors)).clamp(min=1e-10))), len(errors)


def line(kind: str, rows: list[dict], name: str) -> list:
    """The table's row of one way over the edits of one kind."""
    n, (success, dB, measured) = len([row for row in rows if name in row]), summary(rows, name)
    return [kind, name, n, success, rest_cell(f"{dB:.1f}", measured, n)]


def times(rows: list[dict]) -> dict[str, float]:
    """Mean seconds per edit, inversion included; "of these": the direct way on the edits that null-text had too."""
    these = [row for row in rows if "null_text_seconds" in row]
    return {
        "p2p_direct_seconds": mean(row["direct_seconds"] for row in rows),
        "p2p_direct_seconds_of_these": mean(row["direct_seconds"] for row in these),
        "p2p_null_text_seconds": mean(row["null_text_seconds"] for row in these),
    }


def measure_reweight(bench: Bench, lab: Runs, n: int, judge) -> tuple[float, float]:
    """Share of prompts where a colour word's attribute grows with its factor (rank correlation >= 0.8): the amount of
    colour at the object's place; and, beside it, the probe's log-odds of the colour, which saturate."""
    from ...engine.sampler import core_sampler, sample_latent
    from ...nodes.attention import AttentionReweight

    truth = some(n, 41)
    texts = captions.captions(truth)

    def strengths(i: int, factor: float) -> tuple[float, float]:
        positive = lab.prompt(texts[i])
        word = scenes.COLOURS[int(truth.colour[i, 0])]  # a background never has its object's colour
        out = AttentionReweight().run(lab.model, positive, f"{word}: {factor}", 0.0, 1.0)["result"][0]
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        made = sample_latent(out, positive, lab.nothing, CFG, core_sampler("euler"), lab.sigmas, latent, 500 + i)
        image = lab.decode(made["samples"])
        odds = log_odds(judge, image, int(truth.colour[i, 0]), int(truth.place[i, 0]))
        return float(colour_amount(image, truth[i])[0]), odds

    def compute(indices):
        return [[strengths(i, factor) for factor in FACTORS] for i in indices]

    with torch.inference_mode():
        rows = bench.each("reweight", range(n), compute)
    return tuple(mean(rank_correlation(values) >= 0.8 for values in column) for column in zip(*(zip(*r) for r in rows)))


def rank_correlation(values: list[float]) -> float:
    """Spearman's, against rising order."""
    ranks = torch.tensor(values).argsort().argsort().double()
    return float(torch.corrcoef(torch.stack([ranks, torch.arange(len(values)).double()]))[0, 1])


def measure_pointing(bench: Bench, lab: Runs, n: int) -> float:
    """Share of colour and shape words whose map has its peak inside the object's mask: held-out one-object scenes,
    noised to five levels between t = 100 and 500."""
    from ...engine.run import sample_with
    from ...nodes.attention import AttentionRecord

    truth = some(n, 42)
    texts, (images, masks) = captions.captions(truth), scenes.draw(truth)
    table_ = lab.model.get_model_object("model_sampling").sigmas
    levels = torch.stack([table_[t] for t in range(500, 99, -100)] + [torch.tensor(0.0)])

    def compute(indices):
        return [one(i) for i in indices]

    def one(i: int) -> list[bool]:
        positive = lab.prompt(texts[i])
        # the object's own colour word: a background never has that colour
        words = [scenes.COLOURS[int(truth.colour[i, 0])], scenes.SHAPES[int(truth.shape[i, 0])]]
        model, maps = AttentionRecord().run(lab.model, positive, ", ".join(words), "auto", 0.0, 1.0)

        def body(run):
            draws = torch.Generator().manual_seed(i)
            for s in levels[:-1]:
                noise = torch.randn(run.latent.shape, generator=draws)
                run.predictions(run.process.noised(run.latent, s, noise), s, ["positive"])

        sample_with(model, {"positive": positive}, lab.encode(images[i : i + 1]), levels, body)
        found = maps["record"].maps.maps()
        inside = torch.nn.functional.adaptive_avg_pool2d(masks[i : i + 1, :1], found.shape[-2:])[0, 0] > 0.25
        return [bool(inside.flatten()[m.argmax()]) for m in found]

    with torch.inference_mode():
        rows = bench.each("pointing", range(n), compute)
    return mean(hit for row in rows for hit in row)


def measure_overheads(bench: Bench, lab: Runs, edit: Edit) -> dict[str, float]:
    """Wall time of an edit, and of a re-weighted run, over the same number of plain network rows: interleaved."""
    from ...engine.pair_guider import run_guider
    from ...engine.run import sample_with
    from ...nodes.attention import AttentionReweight

    def compute():
        inversion = lab.invert(edit.source, edit.image)
        source, edited = lab.prompt(edit.source), lab.prompt(edit.edited)
        word = AttentionReweight().run(lab.model, edited, f"{edit.words[1]}: 2", 0.0, 1.0)["result"][0]

        def calls(model, names):
            def body(run):
                x = inversion.x_T.clone()
                for s, s_next in zip(lab.sigmas[:-1], lab.sigmas[1:]):
                    d = run.predictions(x, s, names)
                    x = euler_step(x, d[1] + CFG * (d[0] - d[1]), s, s_next)

            conds = {"positive": edited, "negative": lab.nothing, "source": source}
            return lambda: sample_with(model, conds, torch.zeros(inversion.shape), lab.sigmas, body)

        # every step looks at the source, so that both have three rows in every step
        guider = lab.guider(edit.edited, inversion, CFG, **options_of(edit, cross_steps=1.0))

        def p2p():
            run_guider(guider, None, inversion.sigmas, 0)

        repeats = 3 if bench.quick else 9
        three, two = calls(lab.model, ["positive", "negative", "source"]), calls(lab.model, ["positive", "negative"])
        return {
            "p2p": ratio(p2p, three, repeats),
            "reweight": ratio(calls(word, ["positive", "negative"]), two, repeats),
        }

    with torch.inference_mode():
        return bench.once("overheads", compute)


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    bench = Bench("attention", __doc__, argv)
    lab = Runs(*((8, 2) if bench.quick else (30, 10)))
    n, small = (8, 4) if bench.quick else (64, 32)
    predicted = lab.steps * (0.09 * n + 0.6 * (n // 4) + 0.2 * small + 1.3)
    print(
        f"  {n} edits, {n // 4} of them with null-text, {small * len(FACTORS)} re-weighted and {2 * small} watched "
        f"pictures, "
        f"{lab.steps} steps: about {predicted:.0f} s on a free core",
        flush=True,
    )
    judge = probe.load("conv")
    items = edits(n, 31)
    overheads = measure_overheads(bench, lab, items[0])
    pointing = measure_pointing(bench, lab, 2 * small)
    rows = measure_edits(bench, lab, items, judge)
    monotone, by_odds = measure_reweight(bench, lab, small, judge)
    names = ("p2p", "plain", "null_text_p2p", "p2p_of_these")  # the last: direct, on null-text's edits
    total = {name: summary(rows, name) for name in names}
    lines = []
    for kind in (*KINDS, "all"):
        part = [row for row in rows if kind in (row["kind"], "all")]
        lines += [line(kind, part, name) for name in names if any(name in row for row in part)]
    figures = {}
    for name in ("p2p", "plain"):
        figures[f"{name}_edit_success"] = total[name][0]
    for name in ("p2p", "plain"):
        figures[f"{name}_background_psnr"] = total[name][1]
    figures |= {
        "null_text_p2p_edit_success": total["null_text_p2p"][0],
        "null_text_p2p_background_psnr": total["null_text_p2p"][1],
        "p2p_background_psnr_of_these": total["p2p_of_these"][1],
        **times(rows),
        "p2p_direct_calls_per_step": max(row["calls"] for row in rows),
        "reweight_monotone": monotone,
        "reweight_monotone_by_log_odds": by_odds,
        "map_pointing_accuracy": pointing,
        "overhead_p2p": overheads["p2p"],
        "overhead_reweight": overheads["reweight"],
    }
    bench.finish(table(("kind", "method", "edits", "success", "background dB"), lines), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
