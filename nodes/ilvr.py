"""ILVR: the coarse content of a reference, as a model patch and in the paper's noisy form."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.comfy import fitted, picture_size, sigmas_of, to_model_space, window
from ..engine.guider import patch_denoised
from ..engine.sampler import own_sampler, sample_latent
from ..samplers.core import repeated
from ..samplers.picture.ilvr import coarse_of, sample_ilvr
from ..samplers.picture.lowpass import LOW_PASSES, kept
from ..samplers.window import SigmaWindow
from . import words
from .base import CFG, MODEL, NEGATIVE, POSITIVE, SCHEDULER, SEED, STEPS, Box, Choice, Float, Output, Socket, Text, span
from .early import early
from .masked import check_picture, in_turn
from .report import model_unchanged, text_result
from .shown import SEEN, EditBox

ALIASES = [
    "ilvr",
    "reference composition",
    "low-pass reference",
    "iterative latent variable refinement",
    "layout from picture",
]
REFERENCE = Socket("reference", "LATENT", "The picture whose coarse content is kept, of the size that is sampled.")
FACTOR = Float(
    "factor",
    4.0,
    "How coarse, in latent cells (one cell is 8 pixels, so 4 is the paper's factor 32 in pixels). 1 keeps all of the "
    "reference, larger factors only its large forms and colours.",
    1.0,
    128.0,
    0.5,
)
FILTER = Choice(
    "filter",
    [*LOW_PASSES],
    "What counts as coarse. Bicubic: down and up again, the filter of the paper's authors; it rings little at sharp "
    "borders and holds the coarse part closely. Cosines: keeps the longest waves and nothing else; it holds that part "
    "exactly and rings more.",
)


def coarseness(factor: float, model, clean: Tensor) -> str:
    """A factor in latent and in pixel terms."""
    h, w = clean.shape[-2:]
    pixels = factor * picture_size(model, clean)[0] / h
    held = f"{kept(h, factor)} x {kept(w, factor)} numbers held of {h} x {w} cells"
    return f"factor {factor:g} in latent cells = {pixels:g} in pixels: {held}"


class ILVR(Box):
    ID, TITLE, CATEGORY = "NullText_ILVR", "ILVR (reference patch)", "NullText/reference"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = (
        "Keeps a reference's coarse content in whatever sampler runs the MODEL: D + phi(reference - D), ILVR's "
        "condition on the denoised picture (arXiv 2108.02938). No extra network calls."
    )
    INPUTS = (
        MODEL,
        REFERENCE,
        FACTOR,
        FILTER,
        Float("strength", 1.0, "1: the coarse content is the reference's. 0: off. Between: a mix."),
        *span(
            "the condition",
            end=0.8,
            at_end="Earlier: more freedom. The paper's example stops after 80 of 100 steps; 1 makes the result's "
            "coarse content the reference's (to rounding with cosines).",
        ),
    )
    OUTPUTS = (Output("MODEL", "The patched clone; the model itself where nothing would change."),)

    def run(self, model, reference, factor, filter, strength, start_percent, end_percent):
        check_picture(reference, "ILVR needs a reference picture")
        if strength == 0:
            return model_unchanged("strength is 0", model)
        if start_percent >= end_percent:
            return model_unchanged(f"the window from {start_percent:g} to {end_percent:g} is empty", model)
        inside = SigmaWindow(*window(model, start_percent, end_percent))
        clean, phi = to_model_space(model, reference), LOW_PASSES[filter](factor)

        def change(denoised, sigma):
            if sigma not in inside:
                return denoised
            if clean.shape[1:] != denoised.shape[1:] or len(denoised) % len(clean):
                raise ValueError(
                    f"The reference's latent is {list(clean.shape)}, the run's {list(denoised.shape)}: resize the "
                    "reference to the size that is sampled."
                )
            held = coarse_of(denoised, repeated(clean, len(denoised) // len(clean)).to(denoised), phi)
            return held if strength == 1 else denoised + strength * (held - denoised)

        return text_result(
            f"{coarseness(factor, model, clean)}, from {start_percent:g} to {end_percent:g}.",
            patch_denoised(model, change),
        )


class ILVRSampler(EditBox):
    ID, TITLE, CATEGORY = "NullText_ILVRSampler", "ILVR Sampler", "NullText/reference"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = (
        "Pictures with a reference's coarse content, everything else new (ILVR, arXiv 2108.02938, in the paper's "
        "noisy form). A strip over factor and stop shows the trade in one run."
    )
    INPUTS = (
        MODEL,
        POSITIVE,
        NEGATIVE,
        REFERENCE,
        SEED,
        CFG(default=3.0),
        STEPS,
        SCHEDULER,
        FACTOR,
        FILTER,
        Float(
            "stop",
            0.8,
            "Share of the steps that are conditioned. 0.8 is the paper's range_t 20 of 100; 1 holds the coarse "
            "content to the end, 0 switches the condition off.",
        ),
        Text(
            "strip",
            "",
            "Further settings as factor@stop, with commas: 2@0.8, 8@0.8, 4@0.5. Each costs a run of its own; the same "
            "noise serves all.",
        ),
        SEEN,
    )
    OUTPUTS = (
        Output("LATENT", "One latent per reference picture; with a strip, one batch for each of its settings in turn."),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, strip=None):
        return early(cls, lambda strip: words.settings(strip), strip=strip)

    AFTER = "result"

    def before(self, inputs, outputs):
        return inputs["reference"]["samples"]

    def run(self, model, positive, negative, reference, seed, cfg, steps, scheduler, factor, filter, stop, strip):
        check_picture(reference, "ILVR needs a reference picture")
        reference = fitted(model, reference)
        settings = [(factor, stop), *words.settings(strip)]
        clean = to_model_space(model, reference)
        sigmas = sigmas_of(model, scheduler, steps)
        empty = {**reference, "samples": torch.zeros_like(reference["samples"])}
        empty.pop("noise_mask", None)
        made, lines = [], [f"{len(settings) * (len(sigmas) - 1)} network calls."]
        for each, until in settings:
            count = round(until * (len(sigmas) - 1))
            sampler = own_sampler(sample_ilvr, reference=clean, low_pass=LOW_PASSES[filter](each), stop=count)
            made.append(sample_latent(model, positive, negative, cfg, sampler, sigmas, empty, seed)["samples"])
            lines.append(
                f"{coarseness(each, model, clean)}; {count} of {len(sigmas) - 1} steps conditioned"
                + (". Notice: no step is conditioned, this is free generation." if count == 0 else "")
            )
        return text_result("\n".join(lines), in_turn(empty, made))


NODES = (ILVR, ILVRSampler)
