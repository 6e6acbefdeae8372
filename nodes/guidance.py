"""What the guidance boxes share: the inputs that scale, place and limit a term, and how a term is attached."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from ..engine import comfy, terms
from ..engine.gradients import attention_notice
from ..engine.streamed import settled
from ..samplers.guidance.terms import Guidance
from .base import Choice, Float, Input, Int, Socket, span
from .report import model_unchanged, text_result

CATEGORY = "NullText/guidance"
NETWORK, DECODER, LATENT = "through network and decoder (exact)", "through decoder only", "on the latent (no decoder)"
MODES = {NETWORK: "network", DECODER: "decoder", LATENT: "latent"}
_COST = {
    "network": "one more forward and one backward of network and decoder per step",
    "decoder": "one forward and one backward of the decoder per step",
    "latent": "one forward and one backward of the small network per step, no decoder",
}
_MEANING = {
    NETWORK: "exact, the most expensive (backward through network and decoder)",
    DECODER: "cheaper, the network taken as linear",
    LATENT: "cheapest, needs a classifier or image-text model trained on noisy latents",
}

SPAN = span("the guidance")
BOUND = Float(
    "bound",
    0.0,
    "0: no limit, as published. Above 0: limits each push; lower is safer and weaker. 1 allows a push as large as the "
    "estimate is still uncertain at that noise level. Where the limit acts at most steps, more scale changes little; "
    "Guidance Trace says how often it acted.",
    0.0,
    100.0,
    0.05,
)
EVERY = Int(
    "every",
    1,
    "Guide every n-th step only, for speed. Multistep samplers (dpmpp_2m, lms, uni_pc) extrapolate the gaps: use "
    "euler or an ancestral sampler with more than 1.",
    1,
    100,
)
VARIANCE = Float(
    "variance",
    1.0,
    "The variance of clean latents in model space (about 1 for SD 1.x, SDXL). Read where the gradient goes through the "
    "decoder alone, and by a bound above 0.",
    0.001,
    100.0,
    0.05,
)
IMAGE_TEXT = Socket(
    "image_text", "IMAGE_TEXT", "From Image-Text Model (CLIP): a model that maps pictures and texts into one space."
)


def scale(default: float, most: float, tooltip: str) -> Input:
    """The scale of a term."""
    text = "Multiplies the log-likelihood of the target. 0: the untouched model. Acts after CFG, apart from cfg. "
    return Float("scale", default, text + tooltip, -most, most, 0.1)


def gradient_mode(*names: str) -> Input:
    """The gradient-mode widget with these ways, the first the default."""
    return Choice(
        "gradient_mode", names, f"Where the gradient comes from. {'; '.join(f'{n}: {_MEANING[n]}' for n in names)}."
    )


def strength(model, scale, start_percent, end_percent, bound, every, variance=1.0) -> dict:
    """How much and when a term acts, from a box's widgets, as `Guidance` names it; a span that ends where it begins
    holds no step. ValueError for one that ends before."""
    window = comfy.window(model, start_percent, end_percent)
    return {"scale": scale, "window": window, "bound": bound or None, "every": every, "variance": variance}


def term(log_likelihood, name: str, mode: str, acts: dict, *, modules=(), patchers=(), probabilities=None):
    """A Term of the engine. acts: of `strength`; modules, patchers: what must be on the device when it is evaluated."""
    return terms.Term(Guidance(log_likelihood, mode, name=name, **acts), tuple(modules), probabilities, tuple(patchers))


def attached(model, made: terms.Term, lines: list[str]):
    """The node's result: the guided clone, with what was done and what it costs; the same MODEL at scale 0."""
    g = made.guidance
    if g.scale == 0:
        return model_unchanged("the scale is 0", model)
    if not g.window[0] > g.window[1]:
        return model_unchanged("start_percent and end_percent are the same", model)
    names = [t.guidance.name for t in terms.terms_of(model)]
    if g.name in names:  # so that the trace can tell them apart
        number = next(n for n in count(2) if f"{g.name} ({n})" not in names)
        g = replace(g, name=f"{g.name} ({number})")
        made = replace(made, guidance=g)
    lines = [*lines, f"Cost: {_COST[g.mode]}" + (f", on every {g.every}. step" if g.every > 1 else "") + "."]
    notice = attention_notice() if g.mode == "network" else None
    if g.mode == "network":
        model = settled(model)
    return text_result("\n".join([*lines, notice] if notice else lines), terms.attach(model, [made]))
