"""Classifier-free guidance as its paper writes it, beside ComfyUI's cfg, with a schedule over sigma."""

from __future__ import annotations

from ..engine.comfy import sigma_range, sigmas_of, window
from ..engine.guider import set_cfg_scale
from ..samplers.guidance.cfg import SHAPES, ScheduleOfW, from_w
from ..samplers.measure.charts import line_chart
from .base import MODEL, Box, Choice, Float, Output, span
from .report import text_result


class CFGConvention(Box):
    ID, TITLE, CATEGORY = "NullText_CFGConvention", "CFG (paper's w, scheduled)", "NullText/guidance"
    SEARCH_ALIASES = [
        "classifier-free guidance",
        "guidance weight",
        "w",
        "cfg schedule",
        "guidance interval",
        "Ho Salimans",
    ]
    DESCRIPTION = (
        "Classifier-free guidance in the convention of its paper (Ho & Salimans, arXiv 2207.12598): w = 0 is the "
        "prompt alone, ComfyUI's cfg is 1 + w. w may change over the steps or act in a part of them only. The "
        "sampler's own cfg is replaced."
    )
    INPUTS = (
        MODEL,
        Float(
            "w",
            2.0,
            "The paper's guidance weight. 0: the prompt alone (cfg 1). The paper's best FID is near 0.3, its best IS "
            "near 4.",
            -1.0,
            100.0,
            0.1,
        ),
        Choice(
            "shape",
            list(SHAPES),
            "How w runs from start to end: constant, or linear or cosine in log sigma towards w_end.",
        ),
        Float("w_end", 2.0, "w at the end of the span; a constant w ignores it.", -1.0, 100.0, 0.1),
        *span("the guidance", at_start="Before it the prompt alone (w = 0).", at_end="After it the prompt alone."),
    )
    OUTPUTS = (
        Output("MODEL", "The clone that guides with this w, whatever cfg the sampler is given.", "model"),
        Output("FLOAT", "ComfyUI's cfg at the start: 1 + w.", "cfg"),
        Output("IMAGE", "cfg over sigma.", "curve"),
    )

    def run(self, model, w, shape, w_end, start_percent, end_percent):
        low, high = sigma_range(model)
        start, end = window(model, start_percent, end_percent)
        schedule = ScheduleOfW(w, w_end, start, end, shape, highest=high, lowest=max(low * 0.5, 1e-4))

        def cfg(sigma: float) -> float:
            return from_w(schedule(sigma))

        levels = [float(s) for s in sigmas_of(model, "karras", 40) if s > 0]
        chart = line_chart("cfg = 1 + w over the run", {"cfg": [cfg(s) for s in levels]}, x_label="step of 40 (karras)")
        everywhere = (start_percent, end_percent) == (0, 1)
        when = "" if everywhere else f", from {start_percent:g} to {end_percent:g} of the run only"
        text = f"w = {w:g} is ComfyUI's cfg {from_w(w):g}"
        if shape != "constant":
            text += f"; at the end of the span w = {w_end:g}, cfg {from_w(w_end):g} ({shape})"
        text += when + ". The sampler's cfg is not used."
        return text_result(text, set_cfg_scale(model, cfg), from_w(w), chart)


NODES = (CFGConvention,)
