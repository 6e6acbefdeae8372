"""ILVR: the coarse content of a reference, as a model patch and in the paper's noisy form."""

from __future__ import annotations

import torch

from ..engine.comfy import sigmas_of
from ..engine.guide import window
from ..engine.post_cfg import patch_denoised
from ..engine.sampler import own_sampler
from ..engine.sampling import is_empty, sample_latent, to_model_space
from ..samplers.picture.ilvr import coarse_of, sample_ilvr
from ..samplers.picture.lowpass import LOW_PASSES, kept
from ..samplers.window import SigmaWindow
from . import fields as base
from .report import text_result

ALIASES = [
    "ilvr",
    "reference composition",
    "low-pass reference",
    "iterative latent variable refinement",
    "layout from picture",
]
_CELL = 8  # pixels of a latent cell; what ComfyUI's own latent nodes assume
_REFERENCE = base.latent("The picture whose coarse content is kept, of the size that is sampled.")
_FACTOR = base.number(
    4.0,
    1.0,
    128.0,
    0.5,
    "How coarse, in latent cells (one cell is 8 pixels, so 4 is the paper's factor 32 in pixels). 1 keeps all of the "
    "reference, larger factors only its large forms and colours.",
)


_FILTER = base.choice(
    [*LOW_PASSES],
    "What counts as coarse. Bicubic: down and up again, the filter of the paper's authors; it rings little at sharp "
    "borders and holds the coarse part closely. Cosines: keeps the longest waves and nothing else; it holds that part "
    "exactly and rings more.",
)


def coarseness(factor: float, shape) -> str:
    """A factor in latent and in pixel terms."""
    h, w = shape[-2:]
    return (
        f"factor {factor:g} in latent cells = {factor * _CELL:g} in pixels: {kept(h, factor)} x {kept(w, factor)} "
        f"numbers held of {h} x {w} cells"
    )


def check_reference(reference: dict) -> None:
    if is_empty(reference):
        raise ValueError("ILVR needs a reference picture, but this latent is empty: encode an image.")


class ILVR:
    ID = "NullText_ILVR"
    TITLE = "ILVR (reference patch)"
    CATEGORY = "NullText/reference"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = base.describe(
        "Keeps a reference's coarse content in whatever sampler runs the MODEL: D + phi(reference - D), ILVR's "
        "condition on the denoised picture (arXiv 2108.02938). No extra network calls.",
        ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The patched clone; the model itself where nothing would change.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "reference": _REFERENCE,
                "factor": _FACTOR,
                "filter": _FILTER,
                "strength": base.share(1.0, "1: the coarse content is the reference's. 0: off. Between: a mix."),
                "start_percent": base.share(0.0, "Where the condition begins: 0 is noise, 1 the finished picture."),
                "end_percent": base.share(
                    0.8,
                    "Where the condition ends. Earlier: more freedom. The paper's example stops after 80 of 100 "
                    "steps; 1 makes the result's coarse content the reference's (to rounding with cosines).",
                ),
            }
        }

    def run(self, model, reference, factor, filter, strength, start_percent, end_percent):
        check_reference(reference)
        if strength == 0 or start_percent >= end_percent:
            why = "strength is 0" if strength == 0 else f"the window from {start_percent:g} to {end_percent:g} is empty"
            return text_result(f"Notice: {why}, so the model is passed on unchanged.", model)
        span = SigmaWindow(*window(model, start_percent, end_percent))
        clean, phi = to_model_space(model, reference), LOW_PASSES[filter](factor)

        def change(denoised, sigma):
            if sigma not in span:
                return denoised
            if clean.shape[1:] != denoised.shape[1:] or len(clean) not in (1, len(denoised)):
                raise ValueError(
                    f"The reference's latent is {list(clean.shape)}, the run's {list(denoised.shape)}: resize the "
                    "reference to the size that is sampled."
                )
            held = coarse_of(denoised, clean.to(denoised), phi)
            return held if strength == 1 else denoised + strength * (held - denoised)

        return text_result(
            f"{coarseness(factor, clean.shape)}, from {start_percent:g} to {end_percent:g}.",
            patch_denoised(model, change),
        )


class ILVRSampler:
    ID = "NullText_ILVRSampler"
    TITLE = "ILVR Sampler"
    CATEGORY = "NullText/reference"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = base.describe(
        "Pictures with a reference's coarse content, everything else new (ILVR, arXiv 2108.02938, in the paper's "
        "noisy form). A strip over factor and stop shows the trade in one run.",
        ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("One latent per reference picture; with a strip, one batch for each of its settings in turn.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": base.POSITIVE,
                "negative": base.NEGATIVE,
                "reference": _REFERENCE,
                "seed": base.SEED,
                "cfg": base.cfg(3.0),
                "steps": base.steps(50),
                "scheduler": base.choice(
                    ["normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform"],
                    "Spacing of the steps.",
                ),
                "factor": _FACTOR,
                "filter": _FILTER,
                "stop": base.share(
                    0.8,
                    "Share of the steps that are conditioned. 0.8 is the paper's range_t 20 of 100; 1 holds the coarse "
                    "content to the end, 0 switches the condition off.",
                ),
                "strip": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Further settings as factor@stop, with commas: 2@0.8, 8@0.8, 4@0.5. Each costs "
                        "a run of its own; the same noise serves all.",
                    },
                ),
            }
        }

    def run(self, model, positive, negative, reference, seed, cfg, steps, scheduler, factor, filter, stop, strip):
        check_reference(reference)
        settings = [(factor, stop), *parse_strip(strip)]
        clean = to_model_space(model, reference)
        sigmas = sigmas_of(model, scheduler, steps)
        empty = {**reference, "samples": torch.zeros_like(reference["samples"])}
        empty.pop("noise_mask", None)
        made, said = [], [f"{len(settings) * (len(sigmas) - 1)} network calls."]
        for each, until in settings:
            count = round(until * (len(sigmas) - 1))
            sampler = own_sampler(sample_ilvr, reference=clean, low_pass=LOW_PASSES[filter](each), stop=count)
            made.append(sample_latent(model, positive, negative, cfg, sampler, sigmas, empty, seed)["samples"])
            said.append(
                f"{coarseness(each, clean.shape)}; {count} of {len(sigmas) - 1} steps conditioned"
                + (". Notice: no step is conditioned, this is free generation." if count == 0 else "")
            )
        return text_result("\n".join(said), {**empty, "samples": torch.cat(made)})


def parse_strip(text: str) -> list[tuple[float, float]]:
    """ "2@0.8, 4@0.5" -> [(2.0, 0.8), (4.0, 0.5)]. ValueError for anything else."""
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        factor, _, stop = part.partition("@")
        try:
            pair = float(factor), float(stop)
        except ValueError:
            raise ValueError(
                f"{part!r} is no setting of a strip: write factor@stop, 4@0.8 for one, with commas between."
            ) from None
        if pair[0] < 1 or not 0 <= pair[1] <= 1:
            raise ValueError(f"{part!r} is out of range: the factor is 1 or more, the stop lies between 0 and 1.")
        out.append(pair)
    return out


NODES = (ILVR, ILVRSampler)
