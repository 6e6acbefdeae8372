"""Sampling from an INVERSION: the guider, the parts for ComfyUI's own samplers, and the one-box sampler."""

from __future__ import annotations

import torch

from ..engine import record
from ..engine.guider import null_text_guider
from ..engine.noise import InversionNoise, source_latent
from ..engine.sampler import own_way_back
from ..samplers.inversion.replay import calls_back, cfg_of, first_step
from .base import INVERSION, MASK, MODEL, NEGATIVE, POSITIVE, TARGET_CFG, Box, Float, Output, optional
from .masked import MaskedEdit
from .replay import error_line, replay
from .report import nothing_to_change, text_result
from .shown import SEEN, EditBox

SAME_MODEL = MODEL("The model that the inversion was made with; another is refused.")
EDITED = POSITIVE("The edited prompt. Left open, the source prompt of the inversion: the picture comes back.")
NULL = NEGATIVE("Only for an inversion without null embeddings and cfg above 1: the negative (empty) prompt.")
STORED_OUTSIDE = MASK("Change only here (1 = change); the rest stays on the stored path.")
STRENGTH = Float(
    "strength",
    1.0,
    "The fraction of the steps that are sampled anew: 1 starts at the noise end, less starts further down the stored "
    "path and keeps more of the source, 0 is the source. Cost: N x strength calls.",
)


class Guider(Box):
    ID, TITLE, CATEGORY = "NullText_Guider", "Null-Text Guider", "NullText/inversion"
    SEARCH_ALIASES = ["null text inversion", "custom guider", "uncond per step"]
    DESCRIPTION = (
        "A guider for SamplerCustomAdvanced whose null branch is the inversion's embedding of each step; cfg is the "
        "inversion's unless target_cfg is set. Wire noise, sigmas, latent and sampler from Inversion Parts; euler "
        "works too where the pivot is DDIM or fixed point. Composes with ControlNet, LoRA and masks."
    )
    INPUTS = (SAME_MODEL, INVERSION, *optional(EDITED, NULL, TARGET_CFG))
    OUTPUTS = (Output("GUIDER", "The guider for SamplerCustomAdvanced."),)

    def run(self, model, inversion, positive=None, negative=None, target_cfg=0.0):
        record.check_belongs(inversion, model)
        cfg = cfg_of(inversion, target_cfg)
        positive, negative = record.prompts(inversion, positive, negative, cfg)
        return (null_text_guider(model, inversion, positive, negative, cfg),)


class InversionParts(Box):
    ID, TITLE, CATEGORY = "NullText_InversionParts", "Inversion Parts", "NullText/inversion"
    SEARCH_ALIASES = ["noise from image", "inverted noise", "unsampler"]
    DESCRIPTION = (
        "Takes an inversion apart for SamplerCustomAdvanced: the noise that starts the run on the stored path, its "
        "sigmas, the source latent, and the sampler that brings it back. No network calls."
    )
    INPUTS = (INVERSION, STRENGTH)
    OUTPUTS = (
        Output(
            "NOISE",
            "The inverted noise, in the form that SamplerCustomAdvanced expects. Use it with this node's sigmas, and "
            "with its latent or an empty one.",
            "noise",
        ),
        Output("SIGMAS", "The inversion's schedule, from the step that the strength sets.", "sigmas"),
        Output("LATENT", "The source picture's latent.", "latent"),
        Output(
            "SAMPLER",
            "The sampler that brings this pivot back exactly; starts on the stored path by itself.",
            "sampler",
        ),
    )

    def run(self, inversion, strength):
        first = first_step(strength, inversion.steps)
        noise, latent = InversionNoise(inversion, first), {"samples": source_latent(inversion)}
        if first == inversion.steps:  # an empty schedule tells the engine to do nothing
            sampler, _ = own_way_back(inversion, first - 1)
            return noise, torch.zeros(0), latent, sampler
        sampler, sigmas = own_way_back(inversion, first)
        return noise, sigmas, latent, sampler


class Sampler(EditBox):
    ID, TITLE, CATEGORY = "NullText_Sampler", "Null-Text Sampler", "NullText/inversion"
    SEARCH_ALIASES = ["null text inversion", "edit real image", "resample"]
    DESCRIPTION = (
        "Samples an inversion with an edited prompt (or, left open, with its own: the picture comes back). Schedule "
        "and null embeddings are the inversion's, cfg too unless target_cfg is set. Cost: N x strength calls, each "
        "with two rows where cfg is above 1."
    )
    INPUTS = (SAME_MODEL, INVERSION, STRENGTH, *optional(EDITED, NULL, STORED_OUTSIDE, TARGET_CFG, SEEN))
    OUTPUTS = (
        Output("LATENT", "The edited (or reconstructed) latent, for VAE Decode.", "latent"),
        Output("STRING", "What it cost and how far it lies from the source.", "report"),
    )

    def run(self, model, inversion, strength, positive=None, negative=None, mask=None, target_cfg=0.0):
        record.check_belongs(inversion, model)
        edited, cfg = positive is not None, cfg_of(inversion, target_cfg)
        positive, negative = record.prompts(inversion, positive, negative, cfg)
        latent = source_latent(inversion)
        inside = MaskedEdit(latent, mask)
        first = first_step(strength, inversion.steps)
        reason = None
        if first == inversion.steps:
            reason = f"strength {strength:g} samples no step"
        elif inside.empty:
            reason = "the mask is empty"
        elif not edited and inversion.correction == "overwrite":
            reason = "the source branch of a direct overwrite is the stored path itself"
        if reason:
            text = nothing_to_change(reason)
            return text_result(text, {"samples": latent}, text)
        result = replay(model, inversion, positive, negative, cfg=cfg, first=first, mask=inside.grid)
        done, steps = "Edited" if edited else "Reconstructed", calls_back(inversion, first)
        text = (
            f"{done} in {steps} of {inversion.steps} steps, cfg {cfg:g}, correction "
            f"{inversion.correction.replace('_', ' ')}: {result.calls} network calls in {result.seconds:.1f} s"
        )
        distance = error_line(inversion, result)
        text += "\n" + (distance if not edited else distance.replace("error", "distance from the source"))
        if not edited and cfg != inversion.cfg and inversion.correction != "negative_prompt":
            text += (
                f"\nNotice: the inversion was made for cfg {inversion.cfg:g}; at another cfg its source does not "
                "come back"
            )
        return text_result(text, {"samples": inside.put_back(result.samples)}, text)


NODES = (Guider, InversionParts, Sampler)
