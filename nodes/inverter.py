"""Null-Text Inverter: inversion and its correction for guided editing in one box."""

from __future__ import annotations

from ..engine import record
from ..engine.comfy import sigmas_of
from ..samplers.inversion.corrections import negative_prompt
from ..samplers.inversion.record import Inversion
from ..samplers.inversion.table import BY_TITLE, PIVOTS
from .base import SIGMAS, Box, Choice, optional
from .early import early
from .inversion import COMPARED, EULER_PIVOTS, ITERATIONS, OUTPUTS, PATCHED, PICTURE, SHOWS, USE_CACHE, WALK, invert
from .null_text import (
    CFG,
    CHECKPOINTING,
    EMPTY,
    FOR_ALL,
    INNER,
    PER_STEP,
    RATE,
    TOWARDS,
    check_start,
    corrected,
    refuse_cfg_1,
)
from .replay import Inverting, cost_line, error_line, looked_at, noise_line, reconstructed, replay, untouched

NULL_TEXT, NEGATIVE_PROMPT, OVERWRITE, NONE, GLOBAL = (
    "null-text",
    "negative prompt",
    "direct overwrite",
    "none",
    "global null-text",
)
#: pivots that come back by plain Euler steps, which guidance drives off and a correction brings back
_CORRECTABLE = [title for title, name in BY_TITLE.items() if not PIVOTS[name].needs]


def as_negative_prompt(inversion: Inversion, cfg: float) -> Inversion:
    """Negative-prompt inversion: the source prompt in the null branch, no optimisation."""
    if cfg == 1:
        refuse_cfg_1()
    source = record.source_conditioning(inversion)
    embeddings = negative_prompt(inversion.conditioning, inversion.steps, inversion.shape[0])
    notes = {**inversion.metadata, **record.null_notes(source)}
    return inversion.replace(null_embeddings=embeddings, correction="negative_prompt", cfg=cfg, metadata=notes)


def uncorrected(inversion: Inversion, cfg: float, correction: str = "none") -> Inversion:
    """The pivot as it is, to be sampled at `cfg` ("overwrite": by nodes that set the source branch back to its
    trajectory)."""
    return inversion.replace(null_embeddings=None, correction=correction, cfg=cfg)


def check_cfg(correction: str, cfg: float) -> None:
    """ValueError for cfg 1 with a correction of the null branch, which is not asked there."""
    if cfg == 1 and correction in (NULL_TEXT, GLOBAL, NEGATIVE_PROMPT):
        refuse_cfg_1()


class NullTextInverter(Inverting, Box):
    ID, TITLE, CATEGORY = "NullText_Inverter", "Null-Text Inverter", "NullText/inversion"
    SEARCH_ALIASES = [
        "null text inversion",
        "unsampler",
        "invert image",
        "negative prompt inversion",
        "direct inversion",
    ]
    DESCRIPTION = (
        "One box: inverts a picture and corrects the inversion for guided editing, by null-text optimisation, by the "
        "negative-prompt shortcut, or by direct overwrite. Cost with null-text: at most N + N x (inner steps + 2) "
        "forwards (global null-text: inner steps + 3) and N x inner steps backwards; without optimisation N forwards. "
        "N more where the reconstruction, the report or a VAE is wired (direct overwrite never)."
    )
    INPUTS = (
        PATCHED,
        SHOWS,
        EMPTY,
        PICTURE,
        Choice(
            "correction",
            [NULL_TEXT, NEGATIVE_PROMPT, OVERWRITE, NONE, GLOBAL],
            "null-text: optimises the empty prompt until the picture comes back under guidance; slow. negative prompt: "
            "puts the source prompt in its place, without optimisation. direct overwrite: for Prompt-to-Prompt and "
            "MasaCtrl, which sample the source beside the edit and set it back to the stored path at each step; "
            "nothing is optimised. none: the inversion as it is. global null-text: one embedding for all steps, for "
            "comparison.",
        ),
        *WALK,
        CFG,
        *INNER,
        Choice("pivot", _CORRECTABLE, EULER_PIVOTS, "DDIM"),
        ITERATIONS("Iterations of the fixed point (each costs N calls). Not read for DDIM."),
        CHECKPOINTING,
        USE_CACHE,
        *optional(SIGMAS, COMPARED, RATE, TOWARDS),
    )
    OUTPUTS = OUTPUTS

    @classmethod
    def VALIDATE_INPUTS(cls, correction=None, cfg=None):
        return early(cls, check_cfg, correction=correction, cfg=cfg)

    def run(
        self,
        model,
        positive,
        negative,
        latent,
        correction,
        steps,
        scheduler,
        cfg,
        pivot,
        iterations,
        use_cache,
        sigmas=None,
        vae=None,
        unique_id=None,
        **widgets,
    ):
        sigmas = sigmas_of(model, scheduler, steps) if sigmas is None else sigmas
        check_cfg(correction, cfg)
        optimised = correction in (NULL_TEXT, GLOBAL)
        if optimised:
            check_start(widgets.get("towards_source"), positive, negative)
        conds = {"positive": positive}
        inversion, found = invert(model, conds, latent, sigmas, BY_TITLE[pivot], iterations=iterations, cache=use_cache)
        if optimised:
            widgets |= {"use_cache": use_cache, "embeddings": PER_STEP if correction == NULL_TEXT else FOR_ALL}
            return corrected(model, inversion, negative, cfg, positive, vae, **widgets)
        if correction == NEGATIVE_PROMPT:
            inversion = as_negative_prompt(inversion, cfg)
        else:
            inversion = uncorrected(inversion, cfg, "none" if correction == NONE else "overwrite")
        overwritten = correction == OVERWRITE  # its source branch is the stored path
        result = untouched(inversion) if overwritten else None
        if not overwritten and looked_at(unique_id, vae):
            result = replay(model, inversion, positive, negative)
        lines = [
            f"Inverted with {pivot}, correction {correction}, {inversion.steps} steps, "
            f"{inversion.shape[0]} image(s), cfg {cfg:g}",
            error_line(inversion, result),
            cost_line(inversion, result, found),
            noise_line(inversion),
        ]
        return reconstructed(lines, inversion, result, vae)


NODES = (NullTextInverter,)
