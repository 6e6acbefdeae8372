"""Classifier-free guidance as its paper writes it, beside ComfyUI's cfg, with a schedule over sigma."""

from __future__ import annotations

from ..engine import guide
from ..engine.cfg_scale import set_cfg_scale
from ..engine.comfy import sigma_range, sigmas_of
from ..samplers.guidance.cfg import SHAPES, ScheduleOfW, from_w
from . import fields as base
from .plots import line_chart
from .report import text_result


class CFGConvention:
    ID = "NullText_CFGConvention"
    TITLE = "CFG (paper's w, scheduled)"
    CATEGORY = "NullText/guidance"
    SEARCH_ALIASES = [
        "classifier-free guidance",
        "guidance weight",
        "w",
        "cfg schedule",
        "guidance interval",
        "Ho Salimans",
    ]
    DESCRIPTION = base.describe(
        "Classifier-free guidance in the convention of its paper (Ho & Salimans, arXiv 2207.12598): w = 0 is the "
        "prompt alone, ComfyUI's cfg is 1 + w. w may run over the steps or act in a span only. The sampler's own "
        "cfg is replaced.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL", "FLOAT", "IMAGE")
    RETURN_NAMES = ("model", "cfg", "curve")
    OUTPUT_TOOLTIPS = (
        "The clone that guides with this w, whatever cfg the sampler is given.",
        "ComfyUI's cfg at the start: 1 + w.",
        "cfg over sigma.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "w": base.number(
                    2.0,
                    -1.0,
                    100.0,
                    0.1,
                    "The paper's guidance weight. 0: the prompt alone (cfg "
                    "1). The paper's best FID is near 0.3, its best IS near "
                    "4.",
                ),
                "shape": base.choice(
                    list(SHAPES),
                    "How w runs from start to end: constant, or linear or cosine in log sigma towards w_end.",
                ),
                "w_end": base.number(2.0, -1.0, 100.0, 0.1, "w at the end of the span; a constant w ignores it."),
                "start_percent": base.share(0.0, "Where w begins to act; before it the prompt alone (w = 0)."),
                "end_percent": base.share(1.0, "Where w ceases to act; after it the prompt alone (w = 0)."),
            }
        }

    def run(self, model, w, shape, w_end, start_percent, end_percent):
        low, high = sigma_range(model)
        start, end = guide.window(model, start_percent, end_percent)
        # log sigma needs finite ends: the model's own, reached where the span has none
        start, end = min(start, high * 1.0001), end if shape == "constant" else max(end, low * 0.5)
        schedule = ScheduleOfW(w, w_end, start, end, shape)

        def cfg(sigma: float) -> float:
            return from_w(schedule(sigma))

        levels = [float(s) for s in sigmas_of(model, "karras", 40) if s > 0]
        chart = line_chart("cfg = 1 + w over the run", {"cfg": [cfg(s) for s in levels]}, x_label="step of 40 (karras)")
        whole = (start_percent, end_percent) == (0, 1)
        span = "" if whole else f", from {start_percent:g} to {end_percent:g} of the run only"
        said = f"w = {w:g} is ComfyUI's cfg {from_w(w):g}"
        if shape != "constant":
            said += f"; at the end of the span w = {w_end:g}, cfg {from_w(w_end):g} ({shape})"
        said += span + ". The sampler's cfg is not used."
        return text_result(said, set_cfg_scale(model, cfg), from_w(w), chart)


NODES = (CFGConvention,)
