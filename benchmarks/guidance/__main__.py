"""Guidance towards one class of the demo scenes: unconditional, spherical, contrastive, classifier; and the CFG table.

    make bench NAME=guidance [ARGS="--quick --fresh"]

The published comparison (Kitichotkul & Inkaew, CIFAR-10 airplanes, 1000 steps): KID .0618 contrastive, .0653 spherical,
.1184 unconditional; 90, 117 and 20 minutes per 100. Here: 256 pictures of 25 DDIM steps each, from the same start
noises, for "a red circle", in a window of sigma that each network can see through (ways.py); the scale of each
loss is searched over the same five values on other noises (KID of 64 pictures). All run without a bound on the push, as
published; the classifier also with the bound that the demo's workflow sets. Before it: the law of scale 1 on an exact
mixture at the node's defaults, and how often a bound acts (bound.py).
"""

from __future__ import annotations

import sys

import torch

from ...demo import captions, probe, scenes
from ...samplers.measure.charts import line_chart, to_picture
from ..harness import OUTPUT, Bench, ratio, table
from .bound import BOUND_HEAD, EXACT_HEAD, PICTURES, WORKFLOW_BOUND, N, demo_shares, exact_table
from .ways import CLASSIFIER_BOUND, Lab, Way, gain_of, kid_of, seconds_100, share

SCALES = (3.0, 10.0, 30.0, 100.0, 300.0)
CLASSIFIER_SCALES = (3.0, 10.0, 20.0, 40.0)
BOUNDED_SCALES = (20.0, 40.0, 60.0, 80.0)
WEIGHTS = (0.0, 0.3, 1.0, 2.0, 4.0, 6.0)
BATCH = 16
CONDITIONAL = "caption alone (w 0)"
BOUNDED = "classifier_bounded"


def search(bench: Bench, name: str, term, scales, lab: Lab, reference, n: int) -> list[list]:
    """[name, scale, KID, error, class share] of each scale, on noises that the comparison doesn't use; `term` makes
    the guidance of a scale."""
    tried = []
    for scale in scales:
        way = Way((term(scale),))
        rows = bench.each(f"search {kept_as(name, way)}", range(5000, 5000 + n), lab.compute(way), BATCH)
        tried.append([name, scale, *kid_of(rows, reference), share(rows)])
    return tried


def kept_as(name: str, way: Way) -> str:
    """The key of a way's results: what was kept with another scale or bound is not taken for it."""
    return " ".join([name, *(f"scale {t.scale:g} bound {t.bound or 0:g}" for t in way.terms)])


def agreement(lab: Lab, truth: scenes.Scenes, images) -> list[float]:
    """Per picture the share of colour, shape, background and texture that the probe reads as the caption says."""
    right = probe.right(probe.read(lab.judge, images), truth, ("colour", "shape", "background", "texture"))
    return torch.stack([*right.values()]).float().mean(0).tolist()


def cfg_table(bench: Bench, lab: Lab, n: int) -> tuple[list, list]:
    """KID against other real scenes, and caption agreement, over the paper's w (cfg = 1 + w), full captions."""
    truth = scenes.sample(n, torch.Generator().manual_seed(61), "held_out", two=0.0)
    real = scenes.draw(scenes.sample(4 * n, torch.Generator().manual_seed(62), "held_out", two=0.0))[0]
    reference = torch.tensor(bench.once("cfg reference", lambda: lab.features(real)))
    token_rows = captions.token_rows(*captions.phrases(truth))[0]
    lines, kids = [], []
    for w in WEIGHTS[::3] if bench.quick else WEIGHTS:

        def compute(indices, w=w):
            part = torch.tensor(indices)
            images = lab.sample(Way(caption=True, cfg=1 + w), indices, token_rows[part])[0]
            return [
                {"f": f, "a": a} for f, a in zip(lab.features(images), agreement(lab, truth[part], images), strict=True)
            ]

        rows = bench.each(f"cfg w {w:g}", range(n), compute, BATCH)
        value, error = kid_of(rows, reference)
        agree = sum(row["a"] for row in rows) / n
        lines.append([w, 1 + w, value, error, agree])
        kids.append({"w": w, "kid": round(value, 6), "error": round(error, 6), "agreement": round(agree, 4), "n": n})
    return lines, kids


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    bench = Bench("guidance", __doc__.splitlines()[0], argv)
    steps, n, n_search, n_cfg = (4, 16, 16, 16) if bench.quick else (25, 256, 64, 96)
    lab = Lab(steps)
    one = bench.once(
        "seconds of one batch", lambda: lab.sample(Way((lab.clip("spherical", 10.0),)), list(range(BATCH)))[1]
    )
    tried = (8, 2) if bench.quick else (2 * len(SCALES) + 2 * len(CLASSIFIER_SCALES), len(WEIGHTS))
    shown = 2 * len(WORKFLOW_BOUND) * PICTURES
    total = (6 * n + tried[0] * n_search + 2 * tried[1] * n_cfg + shown) / BATCH * one + 0.1 * 6 * n
    print(f"Predicted: {total / 60:.0f} minutes without what an earlier run kept.", flush=True)

    def passed_on(real):
        parts = [lab.slim.decode(lab.slim.encode(p)).clamp(0, 1) for p in real.split(32)]
        return lab.features(torch.cat(parts))

    exact_lines, exact = bench.once("exact classifier", exact_table)
    bound_lines, bound_shares = demo_shares(bench, lab)

    real = scenes.draw(lab.scenes(2 * n, 51))[0]
    reference = torch.tensor(bench.once("real scenes", lambda: lab.features(real)))
    with torch.no_grad():
        through = torch.tensor(bench.once("real scenes through the autoencoder", lambda: passed_on(real[:n])))
    floor = torch.tensor(bench.once("floor", lambda: lab.features(scenes.draw(lab.scenes(n, 53))[0])))

    ways, searched = {"unconditional": Way()}, []
    for name, term, scales in (
        *((d, lambda k, d=d: lab.clip(d, k), SCALES) for d in ("spherical", "contrastive")),
        ("classifier", lab.classify, CLASSIFIER_SCALES),
        (BOUNDED, lambda k: lab.classify(k, CLASSIFIER_BOUND), BOUNDED_SCALES),
    ):
        tried = search(bench, name, term, scales[1::2] if bench.quick else scales, lab, reference, n_search)
        searched += tried
        if name in ("classifier", BOUNDED):  # the least KID among the scales that reach the class
            tried = [t for t in tried if t[4] >= 0.9] or [max(tried, key=lambda t: t[4])]
        ways[name] = Way((term(min(tried, key=lambda t: t[2])[1]),))
    ways[CONDITIONAL] = Way(caption=True)

    lines, figures, results, kids = [], {}, {}, {}
    for name, way in ways.items():
        rows = results[name] = bench.each(kept_as(name, way), range(n), lab.compute(way), BATCH)
        value, error = kid_of(rows, reference)
        kids[name] = {"kid": round(value, 6), "error": round(error, 6)}
        scale = way.terms[0].scale if way.terms else ""
        shares = share(rows), share(rows, "in2")
        lines.append([name, scale, value, error, kid_of(rows, through)[0], *shares, seconds_100(rows)])
    lines.append(["other real scenes", "", *kid_of(floor, reference), kid_of(floor, through)[0], 1.0, 1.0, 0.0])

    for name in ("unconditional", "spherical", "contrastive", "classifier", BOUNDED):
        figures[f"kid_{name}"] = kids[name]
        figures[f"seconds_{name}"] = round(seconds_100(results[name]), 2)
    figures["kid_caption_w0"] = kids[CONDITIONAL]
    figures |= {
        "class_share_exact_scale1": exact,
        "class_share_unguided": share(results["unconditional"]),
        "class_share_classifier": share(results["classifier"]),
        "class_share_classifier_bounded": share(results[BOUNDED]),
        "class_share_classifier_second_judge": share(results["classifier"], "in2"),
        "class_share_clip": max(share(results["spherical"]), share(results["contrastive"])),
    }

    figures |= {f"bound_share_{name}": round(value, 4) for name, value in bound_shares.items()}
    gains = {name: gain_of(results["unconditional"], results[name], reference) for name in ("spherical", "contrastive")}
    gains["order"] = gain_of(results["spherical"], results["contrastive"], reference)
    figures |= {f"kid_gain_{name}_standard_errors": round(value, 2) for name, value in gains.items()}

    few = list(range(4))
    ways_of_clip = [Way((lab.clip(d, 10.0),)) for d in ("contrastive", "spherical")]
    times = bench.once(
        "interleaved",
        lambda: ratio(*(lambda way=way: lab.sample(way, few) for way in ways_of_clip), repeats=3 if bench.quick else 7),
    )
    modes = {"none": Way(), "latent": ways_of_clip[1]}
    modes |= {mode: Way((lab.clip_decoded(mode, 10.0),)) for mode in ("decoder", "network")}
    figures["gradient_modes_seconds"] = bench.once(
        "gradient modes", lambda: {k: round(lab.sample(way, few)[1] / len(few) * 100, 1) for k, way in modes.items()}
    )
    cfg_lines, figures["cfg_kid"] = cfg_table(bench, lab, n_cfg)
    low = min(figures["cfg_kid"], key=lambda row: row["kid"])
    save_plot(figures["cfg_kid"])

    head = ("way", "scale", "KID", "error", "KID to AE scenes", "class share", "2nd judge", "seconds per 100")
    text = "\n\n".join(
        [
            f"{n} pictures of {steps} steps, class '{lab.name}', KID against {len(reference)} real scenes",
            table(head, lines),
            f"An exact classifier on a Gaussian mixture, {N} samples:\n" + table(EXACT_HEAD, exact_lines),
            f"With the bounds of the demo's workflows and without, {PICTURES} pictures:\n"
            + table(BOUND_HEAD, bound_lines),
            table(("search", "scale", "KID", "error", "class share"), searched),
            table(("w", "cfg", "KID", "error", "caption agreement"), cfg_lines),
            f"CFG: the least KID is at w = {low['w']:g} ({low['kid']:.4f} +- {low['error']:.4f}, N = {low['n']}).",
            verdict(kids, gains, times),
        ]
    )
    bench.finish(text, figures)


def verdict(kids: dict[str, dict], gains: dict[str, float], times: float) -> str:
    """What the numbers say about the order; gains in standard errors of the paired difference."""
    guided, plain = kids["classifier"]["kid"], kids[CONDITIONAL]["kid"]
    return (
        f"KID below unconditional by: spherical {gains['spherical']:.1f}, contrastive {gains['contrastive']:.1f} "
        f"standard errors of the paired difference; contrastive below spherical by {gains['order']:.1f}. Time of "
        f"contrastive over spherical (interleaved): {times:.3f}. Classifier guidance's KID over that of the unguided "
        f"caption ({plain:.4f}): {guided / plain if plain > 0 else float('nan'):.2f} times."
    )


def save_plot(rows: list[dict]) -> None:
    """KID and caption agreement over w, as output/bench/guidance_cfg.png."""
    largest = max(*(row["kid"] for row in rows), 1e-9)
    lines = {"KID / max": [r["kid"] / largest for r in rows], "agreement": [r["agreement"] for r in rows]}
    title = "CFG: KID (scaled to its largest) and caption agreement over w"
    chart = line_chart(title, lines, [r["w"] for r in rows], low=0.0, x_label="w")
    to_picture(chart).save(OUTPUT / "guidance_cfg.png")


if __name__ == "__main__":
    main(sys.argv[1:])
