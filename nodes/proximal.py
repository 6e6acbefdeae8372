"""Proximal guidance on a MODEL: with the source prompt as the negative one, ProxNPI."""

from __future__ import annotations

from ..engine.guider import patch_cond
from ..samplers.guidance.proximal import proximal_cond
from .base import MODEL, Box, Choice, Float, Output

NORMS = {"hard (l0)": "l0", "soft (l1)": "l1"}


class ProximalGuidance(Box):
    ID, TITLE, CATEGORY = "NullText_ProximalGuidance", "Proximal Guidance (ProxNPI)", "NullText/guidance"
    SEARCH_ALIASES = ["proximal guidance", "ProxNPI", "ProxEdit", "negative-prompt inversion", "keep background"]
    DESCRIPTION = (
        "Guides only where the edited prompt differs much from the source prompt, so that an edit of an inverted "
        "picture leaves the rest alone. Wire the source prompt as the sampler's negative prompt. No extra network "
        "calls, no optimisation."
    )
    INPUTS = (
        MODEL,
        Float(
            "quantile",
            0.7,
            "The part of the difference between the two prompts, smallest values first, that is not guided. Higher "
            "keeps more of the source. 0: ordinary guidance. 0.7 is the paper's; its authors' code, beside "
            "Prompt-to-Prompt, comes to 0.4 with the soft threshold.",
            0.0,
            0.99,
        ),
        Choice(
            "norm",
            list(NORMS),
            "Hard: the larger differences act in full. Soft: the threshold is taken off them too, for gentler edits.",
        ),
    )
    OUTPUTS = (Output("MODEL", "The clone with thresholded guidance; the model itself at quantile 0."),)

    def run(self, model, quantile, norm):
        if quantile == 0:
            return (model,)
        return (patch_cond(model, lambda cond, uncond, sigma: proximal_cond(cond, uncond, quantile, NORMS[norm])),)


NODES = (ProximalGuidance,)
