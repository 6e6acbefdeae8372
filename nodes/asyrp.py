"""Asyrp Sampler: edits along directions in the bottleneck of a frozen net."""

from __future__ import annotations

from ..engine import h_space
from ..engine.comfy import sigma_to_time, time_to_sigma
from ..engine.record import check_belongs as check_inversion
from ..samplers.tuning.h_direction import Direction
from ..samplers.window import SigmaWindow
from .base import MODEL, Boolean, Box, Choice, Float, Output, Socket
from .h_space import CATEGORY, DIRECTION
from .report import text_result

ASYMMETRIC, SYMMETRIC = "asymmetric (the paper's)", "symmetric"
ONE_CALL, TWO_CALLS = "one call of two rows", "two calls"
BY_HAND, MEASURED = "by hand", "measured"


def window_of(model, t_edit: float, levels: tuple[float, float] | None = None) -> SigmaWindow:
    """Where directions act: down to t_edit, or to the first of the `levels` that were measured."""
    return SigmaWindow(float("inf"), levels[0] if levels else time_to_sigma(model)(t_edit))


def sampler_of(
    model,
    directions,
    way=ASYMMETRIC,
    t_edit=0.5,
    t_boost=0.0,
    null_branch=True,
    rescale=True,
    calls=ONE_CALL,
    inversion=None,
    levels: tuple[float, float] | None = None,
):
    """SAMPLER along (direction, strength) pairs, each checked against the MODEL. t_edit, t_boost: share of the time;
    levels: both in sigma, in their place."""
    for direction, _ in directions:
        h_space.check_belongs(direction, model)
    if inversion is not None:
        check_inversion(inversion, model)
    boost = levels[1] if levels else time_to_sigma(model)(t_boost)
    return h_space.asyrp_sampler(
        directions,
        inversion=inversion,
        window=window_of(model, t_edit, levels),
        boost=boost,
        symmetric=way == SYMMETRIC,
        null_branch=null_branch,
        two_calls=calls == TWO_CALLS,
        rescale=rescale,
    )


def idle(model, directions, sigmas, t_edit: float, levels: tuple[float, float] | None = None) -> str:
    """A notice where strengths are set and no step of the run lies where they act."""
    if not any(s for _, s in directions) or h_space.acts(directions, sigmas, window_of(model, t_edit, levels)):
        return ""
    return (
        " Notice: nothing is edited, since the whole run lies below t_edit or below the level that the direction was "
        "trained down to: lower t_edit, or begin at more noise."
    )


def measured(model, direction: Direction, inversion, vae) -> tuple[float, float]:
    """(s_edit, s_boost) of the inverted picture; without one those that the direction was trained with."""
    h_space.check_belongs(direction, model)
    if inversion is None:
        if "boost" not in direction.metadata:
            raise ValueError(
                "Levels are measured on an inverted picture, or by h-Space Train with t_edit 0: wire inversion "
                "and vae, or set the levels by hand."
            )
        return direction.edit, float(direction.metadata["boost"])
    if vae is None:
        raise ValueError("Levels are measured on decoded pictures: wire vae, or set the levels by hand.")
    check_inversion(inversion, model)
    return h_space.measured_levels(model, vae, inversion, float(direction.metadata.get("text_cosine", 1.0)))


STRENGTH = Float(
    "strength", 1.0, "How far along the direction; below 0 the other way. 0 edits nothing.", -20.0, 20.0, 0.05
)


class AsyrpSampler(Box):
    ID, TITLE, CATEGORY = "NullText_AsyrpSampler", "Asyrp Sampler", CATEGORY
    SEARCH_ALIASES = ["asyrp", "h-space", "latent edit", "bottleneck", "attribute slider"]
    DESCRIPTION = (
        "A sampler that edits in the UNet's bottleneck while the net stays frozen (Asyrp, arXiv 2210.10960): the "
        "prediction is shifted along a direction, the noise is not. From noise, or from an inversion. Cost: twice the "
        "rows down to t_edit."
    )
    INPUTS = (
        MODEL(tooltip="The model that will be sampled with this sampler: the direction is checked against it."),
        DIRECTION,
        STRENGTH,
        Choice(
            "way",
            [ASYMMETRIC, SYMMETRIC],
            "Symmetric shifts the noise too, so that a step does a small part of the edit: it wants 3 to 6 times the "
            "strength, and then comes near the other.",
        ),
        Float(
            "t_edit",
            0.5,
            "The direction acts from pure noise (time 1) down to this time. The authors take 0.5 by hand, or the time "
            "that h-Space Train finds; 0: to the end.",
        ),
        Float(
            "t_boost",
            0.2,
            "Below this time each step adds fresh noise, which mends small faults (the authors take 0.2). 0: never, "
            "and an inversion comes back most faithfully.",
        ),
        Boolean("null_branch", True, "With cfg: shift the negative prompt's h too, not the positive's alone."),
        Boolean(
            "rescale",
            True,
            "With fewer steps than the direction was made with, shift further in each, as the authors do.",
        ),
        Choice("calls", [ONE_CALL, TWO_CALLS], "Two calls need less memory, and suit guiders that count their rows."),
        Socket("inversion", "INVERSION", "Start from its noise instead of the sampling node's.").optional(),
        Socket(
            "direction_2",
            "H_DIRECTION",
            "A second direction. The sum of n directions is divided by sqrt(n), as in the authors' code.",
        ).optional(),
        STRENGTH(name="strength_2").optional(),
        Socket("direction_3", "H_DIRECTION", "A third direction.").optional(),
        STRENGTH(name="strength_3").optional(),
        Choice(
            "levels",
            [BY_HAND, MEASURED],
            "By hand: t_edit and t_boost as set. Measured: both times are found on your picture, by how much the "
            "prediction (t_edit) and the noisy picture (t_boost) differ from it. The thresholds are the paper's: 0.33 "
            "x the cosine of the two texts, and 1.2, in LPIPS's units. With an inversion it needs the VAE; without "
            "one the levels of h-Space Train are taken.",
            BY_HAND,
        ).optional(),
        Socket("vae", "VAE", "Decodes the pictures on which levels are measured.").optional(),
    )
    OUTPUTS = (
        Output("SAMPLER", "For SamplerCustom and SamplerCustomAdvanced."),
        Output("SIGMAS", "The inversion's schedule; without one the direction's own, for sampling from noise."),
    )

    def run(
        self,
        model,
        direction,
        strength,
        way,
        t_edit,
        t_boost,
        null_branch,
        rescale,
        calls,
        inversion=None,
        direction_2=None,
        strength_2=1.0,
        direction_3=None,
        strength_3=1.0,
        levels=BY_HAND,
        vae=None,
    ):
        pairs = [(direction, strength), (direction_2, strength_2), (direction_3, strength_3)]
        pairs = [(d, s) for d, s in pairs if d is not None]
        own = measured(model, direction, inversion, vae) if levels == MEASURED else None
        sampler = sampler_of(model, pairs, way, t_edit, t_boost, null_branch, rescale, calls, inversion, own)
        said = f"{len(pairs)} direction(s), {way}."
        if own:
            said += " Measured: t_edit {:.2f}, t_boost {:.2f}.".format(*map(sigma_to_time(model), own))
        if not any(s for _, s in pairs):
            boosted = own[1] if own else t_boost
            what = "nothing is edited; t_boost still adds noise" if boosted else "this is plain Euler"
            said += f" Notice: every strength is 0, so that {what}."
        if inversion is not None:
            said += idle(model, pairs, inversion.sigmas, t_edit, own)
            if inversion.kind.needs:
                said += " Notice: this inversion's own way back is not Euler's, so that it will not come back exactly."
        return text_result(said, sampler, direction.sigmas if inversion is None else inversion.sigmas)


NODES = (AsyrpSampler,)
