"""Prompt-to-prompt, re-weighting and attention maps on the demo model, through the pack's own nodes in the embedded
engine: `make bench NAME=attention`.

64 held-out edits of rendered scenes (colour, shape, background, texture; every other texture edit is a refine), each
from the inversion of the picture. plain: the same noise, the prompt simply changed; p2p: prompt-to-prompt with the
source overwritten by the stored trajectory; null_text_p2p: the same with null-text optimisation, on every fourth edit
of each kind. An edit succeeds when the probe reads the new attribute (until there is a probe: when the pixels have the
new colour). Background: outside the region that truly
differs between the scene and the redrawn one, dilated by a latent cell; PSNR against the autoencoder's own decode.
"""
from __future__ import annotations

import sys
import time

import torch

from ..demo import captions, scenes
from ..samplers.core import euler_step
from ..samplers.metrics import masked_mse, to_psnr
from . import _engine as engine
from ._scene_edits import KINDS, Edit, best_judge, edits
from .harness import Bench, ratio, table

CFG = 5.0
#: per kind of edit, chosen on training scenes
PLANS = {
    "colour": {"cross_steps": 0.8, "self_steps": 0.4, "blend": True},
    "shape": {"cross_steps": 0.2, "self_steps": 0.0, "blend": True},
    "background": {"cross_steps": 0.4, "self_steps": 0.2, "keep": True},
    "texture": {"cross_steps": 0.2, "self_steps": 0.0, "keep": True},
}
FACTORS = (0.0, 0.5, 1.0, 2.0, 3.0)


class Lab:
    """Model, prompts and the runs that are compared."""

    def __init__(self, steps: int, inner: int):
        from ..nodes.bridge.engine import sigmas_of

        self.model, self.clip, self.vae = engine.load()
        self.steps, self.inner = steps, inner
        self.sigmas = sigmas_of(self.model, "normal", steps)
        self.empty = self.prompt("")

    def prompt(self, text: str) -> list:
        return engine.prompt(self.clip, text)

    def invert(self, edit: Edit):
        from ..nodes.bridge.invert import invert

        latent = {"samples": engine.encode(self.vae, edit.image)}
        return invert(self.model, {"positive": self.prompt(edit.source)}, latent, self.sigmas, "ddim", cache=False)[0]

    def optimise(self, inversion):
        from ..nodes.bridge.null_text import optimise

        return optimise(self.model, inversion, None, self.empty, CFG, inner=self.inner, cache=False)[0]

    def plain(self, edit: Edit, inversion):
        """The edited prompt from the inverted noise."""
        from ..nodes.bridge.denoiser import sample_with

        def body(run):
            denoise, x = run.guided("positive", "negative", CFG), inversion.x_T.clone()
            for s, s_next in zip(self.sigmas[:-1], self.sigmas[1:]):
                x = euler_step(x, denoise(x, s), s, s_next)
            return x

        conds = {"positive": self.prompt(edit.edited), "negative": self.empty}
        x = sample_with(self.model, conds, torch.zeros(inversion.shape), self.sigmas, body)
        return engine.decode(self.vae, self.model.get_model_object("latent_format").process_out(x))

    def guider(self, edit: Edit, inversion, **changes):
        from ..nodes.prompt_to_prompt import prepare

        options = {"edit": "auto", **PLANS[edit.kind], **changes}
        blend, keep = options.pop("blend", False), options.pop("keep", False)
        if blend:
            options |= {"blend_words": ", ".join(dict.fromkeys(edit.words)), "blend_threshold": 0.2}
        if keep:
            options["keep_words"] = edit.words[0]
        return prepare(
            "bench", self.model, self.prompt(edit.edited), self.empty, CFG, None, inversion, (), False, **options
        )[0]

    def p2p(self, edit: Edit, inversion, **changes):
        """(image, calls per step)"""
        from ..nodes.bridge.prompt_to_prompt import run_guider

        result = run_guider(self.guider(edit, inversion, **changes), None, inversion.sigmas, 0)
        return engine.decode(self.vae, result.edits), result.rows / self.steps


def score(edit: Edit, judge, image, own) -> dict:
    """Success, and the background's PSNR against the autoencoder's own decode (None without a background)."""
    outside = edit.background()
    error = float(masked_mse(image, own, 1 - outside)[0]) if float(outside.mean()) > 0.02 else None
    return {"success": judge.done(edit, image), "mse": error}


def measure_edits(bench: Bench, lab: Lab, items: list[Edit], judge) -> list[dict]:
    """Per edit: plain, p2p and, for some, null_text_p2p."""

    def compute(indices):
        return [one(items[i], i % 16 < 4) for i in indices]

    def one(edit: Edit, thorough: bool) -> dict:
        began = time.perf_counter()
        inversion = lab.invert(edit)
        inverted = time.perf_counter() - began
        own = engine.decode(lab.vae, engine.encode(lab.vae, edit.image))
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
        return row

    with torch.inference_mode():
        return bench.each("edits", range(len(items)), compute)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def summary(rows: list[dict], name: str) -> tuple[float, float]:
    """Share of successes; PSNR of the mean background error, which one perfect picture can't make infinite."""
    mine = [row[name] for row in rows if name in row]
    errors = [r["mse"] for r in mine if r["mse"] is not None]
    return mean(r["success"] for r in mine if r["success"] is not None), float(
        to_psnr(torch.tensor(mean(errors)).clamp(min=1e-10))
    )


def measure_reweight(bench: Bench, lab: Lab, n: int, judge) -> float:
    """Share of prompts where the strength of the word's attribute grows with its factor (rank correlation >= 0.8)."""
    from ..nodes.attention import AttentionReweight
    from ..nodes.bridge.sampler import core_sampler
    from ..nodes.bridge.sampling import sample_latent

    truth = scenes.sample(n, torch.Generator().manual_seed(41), "held_out", two=0.0)
    texts = captions.captions(truth)

    def strength(i: int, factor: float) -> float:
        positive = lab.prompt(texts[i])
        word = scenes.COLOURS[int(truth.colour[i, 0])]
        if word == scenes.BACKGROUNDS[int(truth.background[i])]:
            raise ValueError("An object never has its background's colour.")
        out = AttentionReweight().run(lab.model, positive, f"{word}: {factor}", 0.0, 1.0)["result"][0]
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        made = sample_latent(out, positive, lab.empty, CFG, core_sampler("euler"), lab.sigmas, latent, 500 + i)
        image = engine.decode(lab.vae, made["samples"])
        return judge.colour_strength(image, int(truth.colour[i, 0]), int(truth.place[i, 0]))

    def compute(indices):
        return [[strength(i, factor) for factor in FACTORS] for i in indices]

    with torch.inference_mode():
        rows = bench.each("reweight", range(n), compute)
    return mean(rank_correlation(row) >= 0.8 for row in rows)


def rank_correlation(values: list[float]) -> float:
    """Spearman's, against rising order."""
    ranks = torch.tensor(values).argsort().argsort().double()
    return float(torch.corrcoef(torch.stack([ranks, torch.arange(len(values)).double()]))[0, 1])


def measure_pointing(bench: Bench, lab: Lab, n: int) -> float:
    """Share of colour and shape words whose map has its peak inside the object's mask: held-out one-object scenes,
    noised to five levels between t = 100 and 500."""
    from ..nodes.attention import AttentionRecord
    from ..nodes.bridge.denoiser import sample_with

    truth = scenes.sample(n, torch.Generator().manual_seed(42), "held_out", two=0.0)
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

        sample_with(model, {"positive": positive}, engine.encode(lab.vae, images[i : i + 1]), levels, body)
        found = maps["record"].maps.maps()
        inside = torch.nn.functional.adaptive_avg_pool2d(masks[i : i + 1, :1], found.shape[-2:])[0, 0] > 0.25
        return [bool(inside.flatten()[m.argmax()]) for m in found]

    with torch.inference_mode():
        rows = bench.each("pointing", range(n), compute)
    return mean(hit for row in rows for hit in row)


def measure_overheads(bench: Bench, lab: Lab, edit: Edit) -> dict[str, float]:
    """Wall time of an edit, and of a re-weighted run, over the same number of plain network rows: interleaved."""
    from ..nodes.attention import AttentionReweight
    from ..nodes.bridge.denoiser import sample_with
    from ..nodes.bridge.prompt_to_prompt import run_guider

    def compute():
        inversion = lab.invert(edit)
        source, edited = lab.prompt(edit.source), lab.prompt(edit.edited)
        word = AttentionReweight().run(lab.model, edited, f"{edit.words[1]}: 2", 0.0, 1.0)["result"][0]

        def calls(model, names):
            def body(run):
                x = inversion.x_T.clone()
                for s, s_next in zip(lab.sigmas[:-1], lab.sigmas[1:]):
                    d = run.predictions(x, s, names)
                    x = euler_step(x, d[1] + CFG * (d[0] - d[1]), s, s_next)

            conds = {"positive": edited, "negative": lab.empty, "source": source}
            return lambda: sample_with(model, conds, torch.zeros(inversion.shape), lab.sigmas, body)

        # every step looks at the source, so that both have three rows in every step
        guider = lab.guider(edit, inversion, cross_steps=1.0)

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
    lab = Lab(*((8, 2) if bench.quick else (30, 10)))
    n, small = (8, 4) if bench.quick else (64, 32)
    predicted = lab.steps * (0.09 * n + 0.6 * (n // 4) + 0.2 * small)
    print(
        f"  {n} edits, {n // 4} of them with null-text, {small * len(FACTORS)} re-weighted and {2 * small} watched "
        f"pictures, "
        f"{lab.steps} steps: about {predicted:.0f} s on a free core",
        flush=True,
    )
    judge = best_judge()
    items = edits(n, 31)
    overheads = measure_overheads(bench, lab, items[0])
    pointing = measure_pointing(bench, lab, 2 * small)
    rows = measure_edits(bench, lab, items, judge)
    monotone = measure_reweight(bench, lab, small, judge)
    names = ("p2p", "plain", "null_text_p2p")
    total = {name: summary(rows, name) for name in names}
    lines = []
    for kind in (*KINDS, "all"):
        part = [row for row in rows if kind in (row["kind"], "all")]
        lines += [
            [kind, name, len([r for r in part if name in r]), *summary(part, name)]
            for name in names
            if any(name in r for r in part)
        ]
    figures = {}
    for name in ("p2p", "plain"):
        figures[f"{name}_edit_success"] = total[name][0]
    for name in ("p2p", "plain"):
        figures[f"{name}_background_psnr"] = total[name][1]
    figures |= {
        "null_text_p2p_edit_success": total["null_text_p2p"][0],
        "null_text_p2p_background_psnr": total["null_text_p2p"][1],
        "p2p_direct_seconds": mean(row["direct_seconds"] for row in rows),
        "p2p_null_text_seconds": mean(row["null_text_seconds"] for row in rows if "null_text_seconds" in row),
        "p2p_direct_calls_per_step": max(row["calls"] for row in rows),
        "reweight_monotone": monotone,
        "map_pointing_accuracy": pointing,
        "overhead_p2p": overheads["p2p"],
        "overhead_reweight": overheads["reweight"],
    }
    print(f"judged by {judge.name}")
    bench.finish(table(("kind", "method", "edits", "success", "background dB"), lines), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
