"""Guidance Trace: what a guided run did, step by step, as one picture."""

from __future__ import annotations

import torch

from ..engine import terms
from ..engine.comfy import decode, latent_out
from ..samplers.measure.charts import captioned_grid, line_chart, stacked
from .base import LATENT, MODEL, VAE, Box, Int, Output
from .report import text_result


class GuidanceTrace(Box):
    ID, TITLE, CATEGORY = "NullText_GuidanceTrace", "Guidance Trace", "NullText/guidance"
    SEARCH_ALIASES = ["trace", "loss plot", "class probability", "x0 prediction", "guidance debug"]
    DESCRIPTION = (
        "Shows the last run of a guided MODEL: the estimate x0 at each step as a strip, the log-likelihood, the size "
        "of the push, and the class or caption probabilities. Wire the same MODEL that the sampler got, and the "
        "sampler's result so that this comes after it. While sampling it costs no more than a copy of latent and "
        "estimate per step."
    )
    OUTPUT_NODE = True
    INPUTS = (
        MODEL("The guided MODEL, the very one that the sampler used."),
        LATENT("The sampler's result: it makes this node wait for the run."),
        VAE("Decodes the estimates for the strip."),
        Int("pictures", 8, "How many of the steps the strip shows, evenly spread.", 2, 32),
        Int("item", 1, "Which picture of the batch is shown; the first four are kept.", 1, 4),
    )
    OUTPUTS = (
        Output("IMAGE", "Strip and charts in one picture.", "image"),
        Output("STRING", "The same numbers as a table.", "table"),
    )

    def run(self, model, latent, vae, pictures, item):
        record = terms.trace_of(model)
        if record is None:
            raise ValueError(
                "This model has no guidance of this pack: wire the model that comes out of CLIP, Classifier or "
                "Semantic Guidance."
            )
        if not record.steps:
            raise ValueError(
                "This model has not been sampled yet: wire the sampler's result, made with this very model, into "
                "latent."
            )
        steps, b = list(record.steps), item - 1
        if b >= len(steps[0]["denoised"]):
            raise ValueError(
                f"The run had {len(steps[0]['denoised'])} picture(s): choose item 1 to {len(steps[0]['denoised'])}."
            )
        count = min(pictures, len(steps))
        index = sorted({round(i * (len(steps) - 1) / max(count - 1, 1)) for i in range(count)})
        images = [decode(vae, latent_out(model, steps[i]["denoised"][b : b + 1].float()))[:1] for i in index]
        strip = captioned_grid(
            torch.cat([i.cpu() for i in images]), [f"{i + 1}: s {steps[i]['sigma']:.3g}" for i in index], len(index)
        )
        charts, width = [strip], max(strip.shape[2], 512)
        names = list(dict.fromkeys(name for s in steps for name in s["terms"]))
        nan = float("nan")

        def series(key):
            return {n: [float(s["terms"][n][key][b]) if n in s["terms"] else nan for s in steps] for n in names}

        if names:
            size = {"width": width, "height": 180}
            charts.append(line_chart("log-likelihood before the push", series("log_likelihood"), **size))
            charts.append(line_chart("push, in stds of the estimate", series("rms"), low=0.0, **size))
        for name, (classes, rows) in terms.probabilities_of(model).items():
            lines = {c: [float(p[b, k]) for p in rows] for k, c in _top(classes, rows, b)}
            charts.append(line_chart(f"probabilities: {name}", lines, width=width, height=220, low=0.0, high=1.0))
        table = _table(steps, names, b)
        notice = "" if names else "Notice: no guidance term acted in that run (scale, window). "
        text = " ".join([f"{notice}{len(steps)} steps.", *terms.bounds_said(model)])
        return text_result(f"{text}\n{table}", stacked(charts), table)


def _top(classes: list[str], rows: list[torch.Tensor], b: int, most: int = 8) -> list[tuple[int, str]]:
    """The classes that were likely at any step, in their own order."""
    peak = torch.stack([p[b] for p in rows]).amax(0)
    keep = sorted(peak.argsort(descending=True)[:most].tolist())
    return [(k, classes[k]) for k in keep]


def _table(steps: list[dict], names: list[str], b: int) -> str:
    """The numbers of picture b step by step; a star marks a push that the bound shrank."""
    rows = ["step  sigma     " + "  ".join(f"{n}: log p / push" for n in names)]
    for i, s in enumerate(steps):
        cells = []
        for n in names:
            t = s["terms"].get(n)
            star = "*" if t and float(t["limited"][b]) else ""
            cells.append(f"{float(t['log_likelihood'][b]):.4g} / {float(t['rms'][b]):.3g}{star}" if t else "-")
        rows.append(f"{i + 1:4d}  {s['sigma']:<8.4g}  " + "  ".join(cells))
    return "\n".join(rows)


NODES = (GuidanceTrace,)
