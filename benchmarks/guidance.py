"""Guidance towards one class of the demo scenes: unconditional, spherical, contrastive, classifier; and the CFG table.

    make bench NAME=guidance [ARGS="--quick --fresh"]

The published comparison (Kitichotkul & Inkaew, CIFAR-10 airplanes, 1000 steps): KID .0618 contrastive, .0653 spherical,
.1184 unconditional; 90, 117 and 20 minutes per 100. Here: 256 pictures of 25 DDIM steps each, from the same start
noises, for "a red circle"; the scale of each loss is searched over the same six values on other noises (KID of 64
pictures).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..demo import captions, probe, scenes
from ..nodes.plots import line_chart
from ._guidance import Lab, Way, kid_of, seconds_100, share
from .harness import OUTPUT, Bench, ratio, table

SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
CLASSIFIER_SCALES = (1.0, 2.0, 4.0, 8.0)
WEIGHTS = (0.0, 0.3, 1.0, 2.0, 4.0, 6.0)
BATCH = 16


def best_scale(bench: Bench, lab: Lab, distance: str, reference, n: int) -> tuple[float, list]:
    """The scale with the least KID over `SCALES`, on noises that the comparison doesn't use."""
    tried = []
    for scale in SCALES[1:4:2] if bench.quick else SCALES:
        rows = bench.each(
            f"search {distance} {scale:g}",
            range(5000, 5000 + n),
            lab.compute(Way((lab.clip(distance, scale),))),
            BATCH,
        )
        value, error = kid_of(rows, reference)
        tried.append([distance, scale, value, error, share(rows)])
    return min(tried, key=lambda row: row[2])[1], tried


def agreement(lab: Lab, truth: scenes.Scenes, images) -> list[float]:
    """Per picture the share of colour, shape, background and texture that the probe reads as the caption says."""
    reading = probe.read(lab.judge, images)
    right = [reading.at_place(k) == getattr(truth, k)[:, 0] for k in ("colour", "shape")]
    right += [getattr(reading, k) == getattr(truth, k) for k in ("background", "texture")]
    return torch.stack(right).float().mean(0).tolist()


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
            images, _ = lab.sample(Way(caption=True, cfg=1 + w), indices, token_rows[part])
            return [
                {"f": f, "a": a}
                for f, a in zip(lab.features(images), agreement(lab, truth[part], images), strict=True)
            ]

        rows = bench.each(f"cfg w {w:g}", range(n), compute, BATCH)
        value, error = kid_of(rows, reference)
        agree = sum(row["a"] for row in rows) / n
        lines.append([w, 1 + w, value, error, agree])
        kids.append(
            {"w": w, "kid": round(value, 6), "error": round(error, 6), "agreement": round(agree, 4), "n": n}
        )
    return lines, kids


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    bench = Bench("guidance", __doc__.splitlines()[0], argv)
    steps, n, n_search, n_cfg = (4, 16, 16, 16) if bench.quick else (25, 256, 64, 96)
    lab = Lab(steps)
    one = bench.once(
        "seconds of one batch", lambda: lab.sample(Way((lab.clip("spherical", 10.0),)), list(range(BATCH)))[1]
    )
    searched = 2 * len(SCALES) * n_search + len(CLASSIFIER_SCALES) * n_search
    total = (6 * n + searched + 2 * len(WEIGHTS) * n_cfg) / BATCH * one
    print(f"Predicted: {total / 60:.0f} minutes without what an earlier run kept.", flush=True)

    real = scenes.draw(lab.scenes(2 * n, 51))[0]
    reference = torch.tensor(bench.once("real scenes", lambda: lab.features(real)))
    with torch.no_grad():
        passed = torch.cat(
            [lab.autoencoder.decode(lab.autoencoder.encode(p)).clamp(0, 1) for p in real[:n].split(32)]
        )
    through = torch.tensor(bench.once("real scenes through the autoencoder", lambda: lab.features(passed)))
    floor = bench.once(
        "floor", lambda: [{"f": f, "in": True, "s": 0.0} for f in lab.features(scenes.draw(lab.scenes(n, 53))[0])]
    )

    ways, search = {"unconditional": Way()}, []
    for distance in ("spherical", "contrastive"):
        scale, tried = best_scale(bench, lab, distance, reference, n_search)
        search += tried
        ways[distance] = Way((lab.clip(distance, scale),))
    trials = []
    for scale in CLASSIFIER_SCALES[1::2] if bench.quick else CLASSIFIER_SCALES:
        rows = bench.each(
            f"search classifier {scale:g}",
            range(5000, 5000 + n_search),
            lab.compute(Way((lab.classify(scale),))),
            BATCH,
        )
        trials.append(["classifier", scale, *kid_of(rows, reference), share(rows)])
    enough = [t for t in trials if t[4] >= 0.9] or [max(trials, key=lambda t: t[4])]
    ways["classifier"] = Way((lab.classify(min(enough, key=lambda t: t[2])[1]),))
    ways["conditional (w 0)"] = Way(caption=True)
    search += trials

    lines, figures, results = [], {}, {}
    for name, way in ways.items():
        rows = results[name] = bench.each(name, range(n), lab.compute(way), BATCH)
        value, error = kid_of(rows, reference)
        scale = way.terms[0].scale if way.terms else ""
        lines.append([name, scale, value, error, kid_of(rows, through)[0], share(rows), seconds_100(rows)])
    lines.append(["other real scenes", "", *kid_of(floor, reference), kid_of(floor, through)[0], 1.0, 0.0])

    kids = {}
    for name in ("unconditional", "spherical", "contrastive", "classifier", "conditional (w 0)"):
        value, error = kid_of(results[name], reference)
        kids[name] = {"kid": round(value, 6), "error": round(error, 6)}
    for name in ("unconditional", "spherical", "contrastive"):
        figures[f"kid_{name}"] = kids[name]
    for name in ("unconditional", "spherical", "contrastive", "classifier"):
        figures[f"seconds_{name}"] = round(seconds_100(results[name]), 2)
    figures |= {
        "class_share_unguided": share(results["unconditional"]),
        "class_share_classifier": share(results["classifier"]),
        "class_share_clip": max(share(results["spherical"]), share(results["contrastive"])),
    }

    few = list(range(4))
    ways_of_clip = [Way((lab.clip(d, 10.0),)) for d in ("contrastive", "spherical")]
    times = bench.once(
        "interleaved",
        lambda: ratio(
            *(lambda way=way: lab.sample(way, few) for way in ways_of_clip), repeats=3 if bench.quick else 7
        ),
    )
    figures["gradient_modes_seconds"] = bench.once(
        "gradient modes",
        lambda: {
            "none": round(lab.sample(Way(), few)[1] / 4 * 100, 1),
            "latent": round(lab.sample(ways_of_clip[1], few)[1] / 4 * 100, 1),
            **{
                mode: round(lab.sample(Way((lab.clip_decoded(mode, 10.0),)), few)[1] / 4 * 100, 1)
                for mode in ("decoder", "network")
            },
        },
    )
    cfg_lines, figures["cfg_kid"] = cfg_table(bench, lab, n_cfg)
    low = min(figures["cfg_kid"], key=lambda row: row["kid"])
    save_plot(figures["cfg_kid"])

    head = ("way", "scale", "KID", "error", "KID to AE scenes", "class share", "seconds per 100")
    text = "\n\n".join(
        [
            f"{n} pictures of {steps} steps, class '{lab.name}', KID against {len(reference)} real scenes",
            table(head, lines),
            table(("search", "scale", "KID", "error", "class share"), search),
            table(("w", "cfg", "KID", "error", "caption agreement"), cfg_lines),
            f"CFG: the least KID is at w = {low['w']:g} ({low['kid']:.4f} +- {low['error']:.4f}, N = {low['n']}).",
            verdict(kids, times),
        ]
    )
    bench.finish(text, figures)


def verdict(kids: dict[str, dict], times: float) -> str:
    """What the numbers say about the order, with errors."""
    u, s, c = (kids[k] for k in ("unconditional", "spherical", "contrastive"))
    guided, plain = kids["classifier"]["kid"], kids["conditional (w 0)"]["kid"]

    def beyond(a, b):
        return (a["kid"] - b["kid"]) / ((a["error"] ** 2 + b["error"] ** 2) ** 0.5 or 1)

    return (
        f"KID below unconditional by: spherical {beyond(u, s):.1f}, contrastive {beyond(u, c):.1f} standard errors; "
        f"contrastive below spherical by {beyond(s, c):.1f}. Time of contrastive over spherical (interleaved): "
        f"{times:.3f}. Classifier guidance's KID over that of the unguided caption ({plain:.4f}): "
        f"{guided / plain if plain > 0 else float('nan'):.2f} times."
    )


def save_plot(rows: list[dict]) -> Path:
    """KID and caption agreement over w, as output/bench/guidance_cfg.png."""
    from PIL import Image

    chart = line_chart(
        "CFG: KID (scaled to its largest) and caption agreement over w",
        {
            "KID / max": [r["kid"] / max(max(q["kid"] for q in rows), 1e-9) for r in rows],
            "agreement": [r["agreement"] for r in rows],
        },
        [r["w"] for r in rows],
        low=0.0,
        x_label="w",
    )
    path = OUTPUT / "guidance_cfg.png"
    Image.fromarray((chart[0] * 255).byte().numpy()).save(path)
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
