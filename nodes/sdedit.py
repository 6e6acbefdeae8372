"""SDEdit: noise a picture or a scribble to t0 and denoise it again."""

from __future__ import annotations

import torch

from ..engine.sampler import own_sampler
from ..engine.sampling import is_empty, sample_latent, time_to_sigma
from ..samplers.masks import to_grid
from ..samplers.ode import sample_ancestral
from ..samplers.picture.repaint import sample_repaint
from ..samplers.picture.sdedit import meaning, sdedit_sigmas
from .base import CFG, LATENT, MASK, MODEL, NEGATIVE, POSITIVE, SEED, Box, Choice, Float, Int, Output, Text
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


class SDEdit(Box):
    ID, TITLE, CATEGORY = "NullText_SDEdit", "SDEdit", "NullText/from picture"
    SEARCH_ALIASES = ["sdedit", "img2img", "image to image", "scribble to image", "stroke painting"]
    DESCRIPTION = (
        "Noises a picture or a scribble to level t0 and denoises it again (arXiv 2108.01073): small t0 is faithful, "
        "large t0 realistic. With a mask only the masked part is redrawn."
    )
    INPUTS = (
        MODEL,
        POSITIVE,
        NEGATIVE,
        LATENT(tooltip="The guide: a picture, or strokes over a background, encoded."),
        SEED,
        CFG(default=5.0),
        Float(
            "t0",
            0.5,
            "Noise level as a share of the diffusion's time. Up to 0.2: almost untouched; 0.4: details "
            "redrawn; 0.6: layout and main colours kept (scribbles); 0.8: rough layout; 1: hardly anything.",
        ),
        Int("steps", 30, "Steps between t0 and 0, one network call each, whatever t0 is."),
        Choice("noise", [STOCHASTIC, DETERMINISTIC], "Stochastic adds fresh noise at every step, as the paper does."),
        Text(
            "more_levels", "", "Further values of t0 with commas, for a strip: 0.2, 0.4, 0.8. Each costs its own run."
        ),
        MASK(tooltip=MASK.tooltip + " Not wired: the latent's own noise mask, if it has one.").optional(),
    )
    OUTPUTS = (Output("LATENT", "The result; with further levels, one batch for each level in turn."),)

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
                out = torch.where(grid.to(out) == 0, latent["samples"].to(out), out)
            made.append(out)
            said.append(
                f"t0 {level:g} (sigma {float(sigmas[0]):.3g}): {meaning(level)}. {len(sigmas) - 1} network calls."
            )
        kept = {k: v for k, v in latent.items() if k != "noise_mask"}
        return text_result("\n".join(said), {**kept, "samples": torch.cat([m.to(made[0]) for m in made])})


NODES = (SDEdit,)
