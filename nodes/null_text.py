"""Sampling from an INVERSION: the guider, the parts for ComfyUI's own samplers, and the one-box sampler."""

from __future__ import annotations

import torch

from ..engine import record
from ..engine.guider import null_text_guider
from ..engine.noise import InversionNoise, source_latent
from ..engine.sampler import own_way_back
from ..samplers.inversion.replay import calls_back, cfg_of, first_step
from . import fields as base
from . import inverting
from .report import error_line, text_result

_MODEL = ("MODEL", {"tooltip": "The model that the inversion was made with; another is refused."})
_INVERSION = ("INVERSION", {"tooltip": "From Null-Text Inverter, Null-Text Optimise, Invert Image or Load Inversion."})
_POSITIVE = (
    "CONDITIONING",
    {"tooltip": "The edited prompt. Left open, the source prompt of the inversion: the picture comes back."},
)
_NEGATIVE = (
    "CONDITIONING",
    {"tooltip": "Only for an inversion without null embeddings and cfg above 1: the negative (empty) prompt."},
)
_STRENGTH = (
    "FLOAT",
    {
        "default": 1.0,
        "min": 0.0,
        "max": 1.0,
        "step": 0.01,
        "tooltip": "The share of the steps that are walked anew: 1 starts at the noise end, less starts "
        "further down the "
        "stored path and keeps more of the source, 0 is the source. Cost: N x strength calls.",
    },
)


class Guider:
    ID = "NullText_Guider"
    TITLE = "Null-Text Guider"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "A guider for SamplerCustomAdvanced whose null branch is the inversion's embedding of each step; cfg is the "
        "inversion's unless target_cfg is set. Wire noise, sigmas, latent and sampler from Inversion Parts; euler "
        "works too where the pivot is DDIM or fixed point. Composes with ControlNet, LoRA and masks. Search: null text "
        "inversion, custom guider, uncond per step."
    )
    SEARCH_ALIASES = ["null text inversion", "custom guider", "uncond per step"]
    FUNCTION = "run"
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("The guider for SamplerCustomAdvanced.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": _MODEL, "inversion": _INVERSION},
            "optional": {"positive": _POSITIVE, "negative": _NEGATIVE, "target_cfg": base.TARGET_CFG},
        }

    def run(self, model, inversion, positive=None, negative=None, target_cfg=0.0):
        record.check_belongs(inversion, model)
        cfg = cfg_of(inversion, target_cfg)
        positive, negative = record.prompts(inversion, positive, negative, cfg)
        return (null_text_guider(model, inversion, positive, negative, cfg),)


class InversionParts:
    ID = "NullText_InversionParts"
    TITLE = "Inversion Parts"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "Takes an inversion apart for SamplerCustomAdvanced: the noise that starts the run on the stored path, its "
        "sigmas, the source latent, and the sampler that walks it back. No network calls. Search: noise from image, "
        "inverted noise, unsampler."
    )
    SEARCH_ALIASES = ["noise from image", "inverted noise", "unsampler"]
    FUNCTION = "run"
    RETURN_TYPES = ("NOISE", "SIGMAS", "LATENT", "SAMPLER")
    RETURN_NAMES = ("noise", "sigmas", "latent", "sampler")
    OUTPUT_TOOLTIPS = (
        "Noise that becomes the inverted x_T under the engine's own scaling; belongs with these sigmas and this "
        "latent.",
        "The inversion's schedule, from the step that the strength says.",
        "The source picture's latent.",
        "The sampler that walks this pivot back exactly; starts on the stored path by itself.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"inversion": _INVERSION, "strength": _STRENGTH}}

    def run(self, inversion, strength):
        first = first_step(strength, inversion.steps)
        noise, latent = InversionNoise(inversion, first), {"samples": source_latent(inversion)}
        if first == inversion.steps:  # an empty schedule is the engine's word for: nothing to do
            sampler, _ = own_way_back(inversion, first - 1)
            return noise, torch.zeros(0), latent, sampler
        sampler, sigmas = own_way_back(inversion, first)
        return noise, sigmas, latent, sampler


class Sampler:
    ID = "NullText_Sampler"
    TITLE = "Null-Text Sampler"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "Samples an inversion with an edited prompt (or, left open, with its own: the picture comes back). Schedule "
        "and null embeddings are the inversion's, cfg too unless target_cfg is set. Cost: N x strength calls, each "
        "with two rows where cfg is above 1. Search: null text inversion, edit real image, resample."
    )
    SEARCH_ALIASES = ["null text inversion", "edit real image", "resample"]
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    OUTPUT_TOOLTIPS = (
        "The edited (or reconstructed) latent, for VAE Decode.",
        "What it cost and how far it lies from the source.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": _MODEL, "inversion": _INVERSION, "strength": _STRENGTH},
            "optional": {
                "positive": _POSITIVE,
                "negative": _NEGATIVE,
                "mask": ("MASK", {"tooltip": "Change only here (1 = change); the rest stays on the stored path."}),
                "target_cfg": base.TARGET_CFG,
            },
        }

    def run(self, model, inversion, strength, positive=None, negative=None, mask=None, target_cfg=0.0):
        record.check_belongs(inversion, model)
        edited, cfg = positive is not None, cfg_of(inversion, target_cfg)
        positive, negative = record.prompts(inversion, positive, negative, cfg)
        latent = source_latent(inversion)
        first = first_step(strength, inversion.steps)
        reason = None
        if first == inversion.steps:
            reason = f"strength {strength:g} walks no step"
        elif mask is not None and not bool((mask > 0).any()):
            reason = "the mask is empty"
        elif not edited and inversion.correction == "overwrite":
            reason = "the source branch of a direct overwrite is the stored path itself"
        if reason:
            said = f"Nothing to change: {reason}; the source comes back as it is"
            return text_result(said, {"samples": latent}, said)
        result = inverting.replay(model, inversion, positive, negative, cfg=cfg, first=first, mask=mask)
        done, steps = "Edited" if edited else "Reconstructed", calls_back(inversion, first)
        said = (
            f"{done} in {steps} of {inversion.steps} steps, cfg {cfg:g}, correction "
            f"{inversion.correction.replace('_', ' ')}: {result.calls} network calls in {result.seconds:.1f} s"
        )
        distance = error_line(inversion, result)
        said += "\n" + (distance if not edited else distance.replace("error", "distance from the source"))
        if not edited and cfg != inversion.cfg and inversion.correction != "negative_prompt":
            said += (
                f"\nNotice: the inversion was made for cfg {inversion.cfg:g}; at another cfg its source does not "
                "come back"
            )
        return text_result(said, {"samples": result.samples}, said)


NODES = (Guider, InversionParts, Sampler)
