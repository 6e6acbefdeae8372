"""Imagic Guider: from the optimised text towards the one that edits, with what the model learnt."""

from __future__ import annotations

from ..engine.comfy import time_to_sigma
from ..engine.imagic import imagic_guider
from ..samplers.window import SigmaWindow
from . import words
from .base import CFG, MODEL, NEGATIVE, Box, Float, Output, Socket, Text
from .report import text_result
from .tuning_inputs import CATEGORY


class ImagicGuider(Box):
    ID, TITLE, CATEGORY = "NullText_ImagicGuider", "Imagic Guider", CATEGORY
    SEARCH_ALIASES = ["imagic", "unitune", "interpolate embeddings", "lora strength", "lora schedule"]
    DESCRIPTION = (
        "Samples between the optimised text (eta 0, the picture) and the target text (eta 1) with what the model "
        "learnt (Imagic, arXiv 2210.09276); the LoRA's strength and its window of noise levels are ours."
    )
    INPUTS = (
        MODEL(tooltip="The untuned model: the LoRA is laid on it while it samples."),
        Socket("target", "CONDITIONING", "The text that says what the picture shall become."),
        NEGATIVE,
        Float(
            "eta",
            0.7,
            "0: the picture, 1: the target text. The paper edits at 0.6 to 0.8; beyond 1 is allowed.",
            0.0,
            2.0,
        ),
        Text("more_etas", "", "Further values of eta with commas, for a strip from the same noise: 0, 0.5, 1."),
        CFG,
        Float(
            "lora_strength",
            1.0,
            "How much the tuned factors count; the paper: 1. Ours: less, where no eta moves the picture.",
            0.0,
            2.0,
        ),
        Float(
            "lora_from",
            1.0,
            "The LoRA acts from this share of the diffusion's time downwards; 1: from pure noise, as in the paper.",
        ),
        Float(
            "lora_to",
            0.0,
            "The LoRA stops at this share of the diffusion's time; 0: it acts to the end. UniTune's unofficial code "
            "leaves the second half of the sampling to the untouched model: set half of the share that the sampling "
            "starts from, 0.4 for 0.8.",
        ),
        Socket(
            "optimised", "CONDITIONING", "The text from Imagic Optimise; without it the target text alone."
        ).optional(),
        Socket("lora", "LORA_MODEL", "From Imagic Optimise, Train LoRA or Load LoRA.").optional(),
    )
    OUTPUTS = (Output("GUIDER", "For SamplerCustomAdvanced; a strip needs one latent."),)

    def run(
        self, model, target, negative, eta, more_etas, cfg, lora_strength, lora_from, lora_to, optimised=None, lora=None
    ):
        if lora_from <= lora_to:
            raise ValueError(
                f"The LoRA's window runs from {lora_from:g} down to {lora_to:g}: set lora_from above lora_to."
            )
        etas = [eta, *words.numbers(more_etas, "more_etas")]
        sigma = time_to_sigma(model)
        window = SigmaWindow(float("inf") if lora_from >= 1 else sigma(lora_from), sigma(lora_to))
        guider = imagic_guider(model, lora, target, optimised, negative, cfg, etas, lora_strength, window)
        line = f"Samples at eta {', '.join(f'{each:g}' for each in etas)}."
        return text_result("\n".join([line, *guider.notices]), guider)


NODES = (ImagicGuider,)
