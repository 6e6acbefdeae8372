"""SDEdit: noise a picture or a scribble to t0 and denoise it again."""

from __future__ import annotations

import torch

from ..engine.comfy import is_empty, time_to_sigma
from ..engine.sampler import own_sampler, sample_latent
from ..samplers.masks import put_back, to_grid
from ..samplers.ode import sample_ancestral
from ..samplers.picture.repaint import sample_repaint
from ..samplers.picture.sdedit import meaning, sdedit_sigmas
from . import base
from .report import text_result

STOCHASTIC, DETERMINISTIC = "stochastic (the paper's)", "deterministic (DDIM)"


def levels_of(text: str) -> list[float]:
    """ "0.3, 0.6" -> [0.3, 0.6]. ValueError for anything that is no level."""
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        try:
            level = float(part)
        except ValueError:
            raise ValueError(
                f"{part!r} is no noise level: write numbers between 0 and 1, with commas between."
            ) from None
        if not 0 <= level <= 1:
            raise ValueError(f"The noise level {part} lies outside 0 (nothing changes) to 1 (nothing is kept).")
        out.append(level)
    return out


class SDEdit:
    ID = "NullText_SDEdit"
    TITLE = "SDEdit"
    CATEGORY = "NullText/from picture"
    SEARCH_ALIASES = ["sdedit", "img2img", "image to image", "scribble to image", "stroke painting"]
    DESCRIPTION = base.describe(
        "Noises a picture or a scribble to level t0 and denoises it again (arXiv 2108.01073): small t0 is faithful, "
        "large t0 realistic. With a mask only the masked part is redrawn.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The result; with further levels, one batch for each level in turn.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": base.POSITIVE,
                "negative": base.NEGATIVE,
                "latent": base.latent("The guide: a picture, or strokes over a background, encoded."),
                "seed": base.SEED,
                "cfg": base.cfg(5.0),
                "t0": base.share(
                    0.5,
                    "Noise level as a share of the diffusion's time. Up to 0.2: almost untouched; 0.4: details "
                    "redrawn; 0.6: layout and main colours kept (scribbles); 0.8: rough layout; 1: hardly anything.",
                ),
                "steps": base.steps(30, "Steps between t0 and 0, one network call each, whatever t0 is."),
                "noise": base.choice(
                    [STOCHASTIC, DETERMINISTIC], "Stochastic adds fresh noise at every step, as the paper does."
                ),
                "more_levels": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Further values of t0 with commas, for a strip: 0.2, 0.4, 0.8. Each "
                        "costs its own run.",
                    },
                ),
            },
            "optional": {
                "mask": (
                    "MASK",
                    {"tooltip": base.MASK[1]["tooltip"] + " Not wired: the latent's own noise mask, if it has one."},
                )
            },
        }

    def run(self, model, positive, negative, latent, seed, cfg, t0, steps, noise, more_levels, mask=None):
        if is_empty(latent):
            raise ValueError("SDEdit starts from a picture, but the latent is empty: encode an image or a scribble.")
        levels = [t0, *levels_of(more_levels)]
        mask = latent.get("noise_mask") if mask is None else mask
        grid = None if mask is None else to_grid(mask, latent["samples"].shape[-2:], batch=len(latent["samples"]))
        eta = 1.0 if noise == STOCHASTIC else 0.0
        made, said = [], []
        for level in levels:
            sigmas = sdedit_sigmas(time_to_sigma(model), level, steps).float()
            if len(sigmas) < 2 or (grid is not None and not bool((grid > 0).any())):
                made.append(latent["samples"])
                why = "t0 is 0" if len(sigmas) < 2 else "the mask is empty"
                said.append(f"Notice: {why}, so the latent comes back as it is.")
                continue
            if grid is None:
                sampler = own_sampler(sample_ancestral, eta=eta)
            else:
                sampler = own_sampler(sample_repaint, holds_mask=True, eta=eta)
            out = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed, grid)["samples"]
            if grid is not None:
                out = put_back(latent["samples"].to(out), out, grid == 0)
            made.append(out)
            said.append(
                f"t0 {level:g} (sigma {float(sigmas[0]):.3g}): {meaning(level)}. {len(sigmas) - 1} network calls."
            )
        kept = {k: v for k, v in latent.items() if k != "noise_mask"}
        return text_result("\n".join(said), {**kept, "samples": torch.cat([m.to(made[0]) for m in made])})


NODES = (SDEdit,)
