"""DiffEdit: the mask from two prompts, and the edit inside it."""

from __future__ import annotations

import torch

from ..engine.comfy import check_latent
from ..engine.noise import source_latent
from ..engine.record import check_belongs, check_stored
from ..engine.run import sample_with
from ..engine.sampler import own_sampler
from ..engine.sampling import is_empty, sample_latent, time_to_sigma
from ..samplers.core import gaussian
from ..samplers.masks import dilate, to_grid, to_pixels
from ..samplers.picture.diffedit import CLAMP, THRESHOLD, difference_map, edit_mask, heat, sample_diffedit, smoothed
from . import fields as base
from .report import text_result

_CELL = 8  # pixels of a latent cell; what ComfyUI's own latent nodes assume


class DiffEditMask:
    ID = "NullText_DiffEditMask"
    TITLE = "DiffEdit Mask"
    CATEGORY = "NullText/from picture"
    SEARCH_ALIASES = ["diffedit", "automatic mask", "mask from text", "prompt difference"]
    DESCRIPTION = base.describe(
        "Finds the region that an edit concerns: where the source and the target prompt predict different noise "
        "(DiffEdit, arXiv 2210.11427). Gives a MASK and the heat map.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MASK", "IMAGE")
    RETURN_NAMES = ("mask", "heat_map")
    OUTPUT_TOOLTIPS = (
        "1 where the prompts disagree, in squares of one latent cell.",
        "The disagreement before the threshold, 0 to 1.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "source": ("CONDITIONING", {"tooltip": "What the picture shows now."}),
                "target": ("CONDITIONING", {"tooltip": "What it shall show."}),
                "latent": base.latent("The picture that the edit is about, encoded."),
                "seed": base.SEED,
                "maps": base.whole(
                    10,
                    1,
                    256,
                    "Noisings that are averaged (the paper's n = 10). Cost: one call with both prompts each.",
                ),
                "strength": base.share(
                    0.5, "How far the picture is noised, as a share of the diffusion's time (the paper's 0.5)."
                ),
                "threshold": base.share(
                    THRESHOLD, "Where the scaled heat counts as edit. 0.5 is the paper's: 1.5 times the mean."
                ),
                "clamp": base.number(
                    CLAMP,
                    1.0,
                    100.0,
                    0.1,
                    "Heat above this many times its mean counts as this. 3 is diffusers'; the paper names none.",
                ),
                "smooth": base.whole(
                    0, 0, 16, "Latent cells over which the heat is averaged before the threshold. 0 is the paper's."
                ),
                "grow": base.whole(0, 0, 64, "Latent cells by which the mask grows."),
            }
        }

    def run(self, model, source, target, latent, seed, maps, strength, threshold, clamp, smooth, grow):
        samples = check_latent(model, latent)
        if is_empty(latent):
            raise ValueError("DiffEdit looks at a picture, but the latent is empty: encode an image.")
        if strength == 0:
            raise ValueError(
                "DiffEdit compares predictions of noise, and strength 0 adds none: set it to 0.5, for one."
            )
        sigma = time_to_sigma(model)(strength)

        def body(run):
            def pair(x, s):
                run.tick()
                return run.predictions(x, s, ["source", "positive"])

            return difference_map(
                pair, run.latent, sigma, process=run.process, noise=gaussian(run.latent, seed), maps=maps
            ).cpu()

        h = smoothed(
            sample_with(
                model,
                {"positive": target, "source": source},
                samples,
                torch.tensor([sigma, 0.0]),
                body,
                total=maps,
                seed=seed,
            ),
            smooth,
        )
        size = tuple(n * _CELL for n in samples.shape[-2:])
        mask = to_pixels(dilate(edit_mask(h, threshold, clamp)[:, None], grow)[:, 0], size)
        image = to_pixels(heat(h, clamp), size)[..., None].expand(-1, -1, -1, 3).contiguous()
        said = f"{float(mask.mean()):.0%} of the picture differs. {maps} calls with both prompts at sigma {sigma:.3g}."
        if not bool((mask > 0).any()):
            said = "Notice: the prompts agree everywhere, so the mask is empty. " + said
        return text_result(said, mask, image)


class DiffEdit:
    ID = "NullText_DiffEdit"
    TITLE = "DiffEdit"
    CATEGORY = "NullText/from picture"
    SEARCH_ALIASES = ["diffedit", "masked edit", "inversion edit", "local edit"]
    DESCRIPTION = base.describe(
        "Edits inside a mask, starting from an inversion at the chosen depth and holding its stored trajectory "
        "elsewhere (DiffEdit, arXiv 2210.11427). Outside the mask the latent comes back as it was.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The edited latent.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": ("CONDITIONING", {"tooltip": "The target prompt."}),
                "negative": base.NEGATIVE,
                "inversion": (
                    "INVERSION",
                    {"tooltip": "From Invert Image with the source prompt, of this model and picture."},
                ),
                "mask": base.MASK,
                "cfg": base.cfg(5.0),
                "depth": base.share(
                    0.8,
                    "How much of the inversion is undone (the paper's encoding ratio 0.8). More changes more; the "
                    "cost is depth times the inversion's steps.",
                ),
            }
        }

    def run(self, model, positive, negative, inversion, mask, cfg, depth):
        check_belongs(inversion, model)
        check_stored(inversion, "DiffEdit")
        steps = len(inversion.sigmas) - 1
        first = steps - round(depth * steps)
        clean = source_latent(inversion)
        grid = to_grid(mask, clean.shape[-2:], batch=len(clean))
        if first == steps or not bool((grid > 0).any()):
            why = "depth is 0" if first == steps else "the mask is empty"
            return text_result(f"Notice: {why}, so the picture comes back as it is.", {"samples": clean})
        trajectory, sigmas = inversion.trajectory[first:], inversion.sigmas[first:].float()
        sampler = own_sampler(sample_diffedit, start=trajectory[0], trajectory=trajectory, edit=grid)
        out = sample_latent(model, positive, negative, cfg, sampler, sigmas, {"samples": clean}, 0)
        out["samples"] = torch.where(grid.to(clean) == 0, clean, out["samples"].to(clean))
        said = (
            f"{len(sigmas) - 1} network calls from sigma {float(sigmas[0]):.3g}, "
            f"{float((grid > 0).float().mean()):.0%} of the latent may change."
        )
        if inversion.null_embeddings is not None:
            said += " Notice: this inversion's null embeddings are not used, the wired negative prompt is."
        return text_result(said, out)


NODES = (DiffEditMask, DiffEdit)
