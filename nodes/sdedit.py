"""SDEdit: add noise to a picture or a scribble up to t0 and denoise it again."""

from __future__ import annotations

from ..engine.comfy import fitted, time_to_sigma
from ..engine.sampler import own_sampler, sample_latent
from ..samplers.ode import sample_ancestral
from ..samplers.picture.repaint import sample_repaint
from ..samplers.picture.sdedit import meaning, sdedit_sigmas
from . import words
from .base import CFG, LATENT, MASK, MODEL, NEGATIVE, POSITIVE, SEED, Choice, Float, Int, Output, Text
from .early import early
from .masked import MaskedEdit, check_picture, in_turn, own_mask
from .report import text_result, unchanged
from .shown import SEEN, EditBox

STOCHASTIC, DETERMINISTIC = "stochastic (the paper's)", "deterministic (DDIM)"


class SDEdit(EditBox):
    ID, TITLE, CATEGORY = "NullText_SDEdit", "SDEdit", "NullText/from picture"
    SEARCH_ALIASES = ["sdedit", "img2img", "image to image", "scribble to image", "stroke painting"]
    DESCRIPTION = (
        "Adds noise to a picture or a scribble up to t0 and denoises it again (arXiv 2108.01073): a small t0 is "
        "faithful, a large one realistic. With a mask only the masked part is redrawn."
    )
    INPUTS = (
        MODEL,
        POSITIVE,
        NEGATIVE,
        LATENT("The picture to start from, or strokes over a background, encoded."),
        SEED,
        CFG(default=5.0),
        Float(
            "t0",
            0.5,
            "How much noise is added, as a fraction of the diffusion's time: little keeps the picture, much draws a "
            "new one. The paper recommends 0.3 to 0.6; more_levels shows several at once.",
        ),
        Int("steps", 30, "Steps between t0 and 0, one network call each, whatever t0 is."),
        Choice("noise", [STOCHASTIC, DETERMINISTIC], "Stochastic adds fresh noise at every step, as the paper does."),
        Text(
            "more_levels", "", "Further values of t0 with commas, for a strip: 0.2, 0.4, 0.8. Each costs its own run."
        ),
        MASK(MASK.tooltip + " Not wired: the latent's own noise mask, if it has one.").optional(),
        SEEN,
    )
    OUTPUTS = (Output("LATENT", "The result; with further levels, one batch for each level in turn."),)
    READS_MASK = True

    @classmethod
    def VALIDATE_INPUTS(cls, more_levels=None):
        return early(cls, lambda more_levels: words.fractions(more_levels, "noise levels"), more_levels=more_levels)

    def run(self, model, positive, negative, latent, seed, cfg, t0, steps, noise, more_levels, mask=None):
        check_picture(latent, "SDEdit starts from a picture", "encode an image or a scribble")
        latent = fitted(model, latent)
        edit = MaskedEdit(latent["samples"], own_mask(latent) if mask is None else mask)
        eta = 1.0 if noise == STOCHASTIC else 0.0
        if edit.grid is None:
            sampler = own_sampler(sample_ancestral, eta=eta)
        else:
            sampler = own_sampler(sample_repaint, holds_mask=True, eta=eta, of_source=True)
        made, lines = [], []
        for level in (t0, *words.fractions(more_levels, "noise levels")):
            sigmas = sdedit_sigmas(time_to_sigma(model), level, steps).float()
            if len(sigmas) < 2 or edit.empty:
                made.append(latent["samples"])
                lines.append(unchanged("t0 is 0" if len(sigmas) < 2 else "the mask is empty"))
                continue
            out = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed, edit.grid)["samples"]
            made.append(edit.put_back(out))
            lines.append(
                f"t0 {level:g} (sigma {float(sigmas[0]):.3g}): {meaning(level)}. {len(sigmas) - 1} network calls."
            )
        return text_result("\n".join(lines), in_turn(latent, [m.to(made[0]) for m in made]))


NODES = (SDEdit,)
