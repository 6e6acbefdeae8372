"""What the guidance nodes share: the inputs by which a term is scaled, windowed and bounded, and how a term is
attached."""

from __future__ import annotations

from dataclasses import replace

from ..engine import guide
from ..samplers.guidance.terms import Guidance
from . import fields as base
from .report import text_result

NETWORK, DECODER, LATENT = "through network and decoder (exact)", "through decoder only", "on the latent (no decoder)"
MODES = {NETWORK: "network", DECODER: "decoder", LATENT: "latent"}
COST = {
    "network": "one more forward and one backward of network and decoder per step",
    "decoder": "one forward and one backward of the decoder per step",
    "latent": "one forward and one backward of the small network per step, no decoder",
}

SCALE_TIP = "Multiplies the log-likelihood of the target. 0: the untouched model. Acts after CFG, apart from cfg. "
START = base.share(0.0, "Where the guidance begins, as ComfyUI counts: 0 is noise, 1 the finished picture.")
END = base.share(1.0, "Where the guidance ends.")
BOUND = base.number(
    0.0,
    0.0,
    100.0,
    0.05,
    "0: no limit, as published. Above 0: the largest push per step and picture, in units of how uncertain the "
    "estimate still is at that noise level. A limit that acts at most steps makes the scale mean little; Guidance "
    "Trace says how often it acted.",
)
EVERY = base.whole(
    1,
    1,
    100,
    "Guide every n-th step only, for speed. Multistep samplers (dpmpp_2m, lms, uni_pc) extrapolate the "
    "gaps: use euler or an ancestral sampler with more than 1.",
)
VARIANCE = base.number(
    1.0,
    0.001,
    100.0,
    0.05,
    "Only for the way through the decoder alone: the variance of clean latents in model space (about 1 for SD 1.x, "
    "SDXL).",
)


def modes(*names: str):
    """The gradient-mode widget with these ways, the first the default."""
    said = {
        NETWORK: "exact, dearest (network and decoder backward)",
        DECODER: "cheaper, the network taken as linear",
        LATENT: "cheapest, needs a classifier or tower trained on noisy latents",
    }
    return base.choice(
        list(names), "Where the gradient comes from. " + "; ".join(f"{n}: {said[n]}" for n in names) + "."
    )


def term(
    log_likelihood,
    name: str,
    mode: str,
    scale: float,
    window,
    bound: float,
    every: int,
    variance: float = 1.0,
    *,
    modules=(),
    patchers=(),
    probabilities=None,
) -> guide.Term:
    """A Term from a node's widgets; bound 0 means none."""
    guidance = Guidance(log_likelihood, mode, scale, window, every, bound or None, variance, name)
    return guide.Term(guidance, tuple(modules), probabilities, tuple(patchers))


def attached(model, made: guide.Term, said: list[str]):
    """The node's result: the guided clone, with what was done and what it costs; the same MODEL at scale 0."""
    g = made.guidance
    if g.scale == 0:
        return text_result("Notice: the scale is 0, so the model is passed on unchanged.", model)
    names = [t.guidance.name for t in guide.terms_of(model)]
    if g.name in names:  # told apart in the trace
        g = replace(g, name=f"{g.name} ({names.count(g.name) + 1})")
        made = replace(made, guidance=g)
    said = [*said, f"Cost: {COST[g.mode]}" + (f", on every {g.every}. step" if g.every > 1 else "") + "."]
    notice = guide.attention_notice() if g.mode == "network" else None
    return text_result("\n".join([*said, notice] if notice else said), guide.attach(model, [made]))
