"""Proximal guidance on a MODEL: with the source prompt as the negative one, ProxNPI."""

from __future__ import annotations

from ..engine.cfg_scale import patch_cond
from ..samplers.guidance.proximal import proximal_cond
from . import base

NORMS = {"hard (l0)": "l0", "soft (l1)": "l1"}


class ProximalGuidance:
    ID = "NullText_ProximalGuidance"
    TITLE = "Proximal Guidance (ProxNPI)"
    CATEGORY = "NullText/guidance"
    SEARCH_ALIASES = ["proximal guidance", "ProxNPI", "ProxEdit", "negative-prompt inversion", "keep background"]
    DESCRIPTION = base.describe(
        "Guides only where the edited prompt differs much from the source prompt, so that an edit of an inverted "
        "picture leaves the rest alone. Wire the source prompt as the sampler's negative prompt. No extra network "
        "calls, no optimisation.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The clone with thresholded guidance; the model itself at quantile 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "quantile": base.number(
                    0.7,
                    0.0,
                    0.99,
                    0.01,
                    "The part of the difference between the two prompts, smallest values first, that is not guided. "
                    "Higher keeps more of the source. 0: ordinary guidance.",
                ),
                "norm": base.choice(
                    list(NORMS),
                    "Hard: the larger differences act in full. Soft: the threshold is taken off them too, for gentler "
                    "edits.",
                ),
            }
        }

    def run(self, model, quantile, norm):
        if quantile == 0:
            return (model,)
        return (patch_cond(model, lambda cond, uncond, sigma: proximal_cond(cond, uncond, quantile, NORMS[norm])),)


NODES = (ProximalGuidance,)
