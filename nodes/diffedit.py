"""DiffEdit: the mask from two prompts, and the edit inside it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.comfy import check_latent, picture_size, time_to_sigma
from ..engine.noise import source_latent
from ..engine.record import check_belongs, check_stored
from ..engine.run import sample_with
from ..engine.sampler import own_sampler, sample_latent
from ..samplers.core import gaussian
from ..samplers.masks import dilate, to_pixels
from ..samplers.picture.diffedit import (
    CLAMP,
    THRESHOLD,
    difference_map,
    edit_mask,
    normalised,
    sample_diffedit,
    smoothed,
)
from .base import CFG, INVERSION, LATENT, MASK, MODEL, NEGATIVE, POSITIVE, SEED, Box, Float, Int, Output, Socket
from .masked import MaskedEdit, check_picture
from .report import text_result, unchanged
from .shown import SEEN, EditBox


def difference(model, source: list, target: list, samples: Tensor, *, maps: int, sigma: float, seed: int) -> Tensor:
    """[B, h, w]: how far two prompts' noise predictions lie apart on the picture at a noise level, mean of `maps`."""

    def body(run):
        def pair(x, s):
            run.tick()
            return run.predictions(x, s, ["source", "positive"])

        return difference_map(
            pair, run.latent, sigma, process=run.process, noise=gaussian(run.latent, seed), maps=maps
        ).cpu()

    conds = {"positive": target, "source": source}
    return sample_with(model, conds, samples, torch.tensor([sigma, 0.0]), body, total=maps, seed=seed)


def to_mask(
    map_: Tensor, size: tuple[int, int], threshold: float = THRESHOLD, clamp: float = CLAMP, grow: int = 0
) -> Tensor:
    """A smoothed difference map as a MASK [B, H, W] of 0 and 1, its size in pixels."""
    return to_pixels(dilate(edit_mask(map_, threshold, clamp)[:, None], grow)[:, 0], size)


class DiffEditMask(Box):
    ID, TITLE, CATEGORY = "NullText_DiffEditMask", "DiffEdit Mask", "NullText/from picture"
    SEARCH_ALIASES = ["diffedit", "automatic mask", "mask from text", "prompt difference"]
    DESCRIPTION = (
        "Finds the region that an edit concerns: where the source and the target prompt predict different noise "
        "(DiffEdit, arXiv 2210.11427). Gives a MASK and the heat map."
    )
    INPUTS = (
        MODEL,
        Socket("source", "CONDITIONING", "What the picture shows now."),
        Socket("target", "CONDITIONING", "What it shall show."),
        LATENT("The picture that the edit is about, encoded."),
        SEED,
        Int(
            "maps",
            10,
            "Noisings that are averaged (the paper's n = 10). Cost: one call with both prompts each.",
            1,
            256,
        ),
        Float(
            "strength",
            0.5,
            "How far the picture is noised before the prompts are compared, as a fraction of the diffusion's time (the "
            "paper's 0.5). Higher: the mask follows the prompts more and this picture less.",
        ),
        Float(
            "threshold",
            THRESHOLD,
            "The mask is where the heat, scaled to 0..1, is above this. Higher: a smaller mask. 0.5 is the paper's.",
        ),
        Float(
            "clamp",
            CLAMP,
            "Heat above this many times its mean counts as this. Lower: a larger mask. 3 is diffusers'; the paper "
            "names none.",
            1.0,
            100.0,
            0.1,
        ),
        Int("smooth", 0, "Latent cells over which the heat is averaged before the threshold. 0 is the paper's.", 0, 16),
        Int("grow", 0, "Latent cells by which the mask grows.", 0, 64),
    )
    OUTPUTS = (
        Output("MASK", "1 where the prompts disagree, in squares of one latent cell.", "mask"),
        Output("IMAGE", "The disagreement before the threshold, 0 to 1.", "heat_map"),
    )

    def run(self, model, source, target, latent, seed, maps, strength, threshold, clamp, smooth, grow):
        samples = check_latent(model, latent)
        check_picture(latent, "DiffEdit needs a picture")
        if strength == 0:
            raise ValueError(
                "DiffEdit compares predictions of noise, and strength 0 adds none: set it to 0.5, for one."
            )
        sigma = time_to_sigma(model)(strength)

        map_ = smoothed(difference(model, source, target, samples, maps=maps, sigma=sigma, seed=seed), smooth)
        size = picture_size(model, samples)
        mask = to_mask(map_, size, threshold, clamp, grow)
        image = to_pixels(normalised(map_, clamp), size)[..., None].expand(-1, -1, -1, 3).contiguous()
        text = f"{float(mask.mean()):.0%} of the picture differs. {maps} calls with both prompts at sigma {sigma:.3g}."
        if not bool((mask > 0).any()):
            why = "the prompts agree everywhere"
            if bool(map_.any()):
                why = f"no heat is above the threshold {threshold:g}"
            text = f"Notice: {why}, so the mask is empty. {text}"
        return text_result(text, mask, image)


class DiffEdit(EditBox):
    ID, TITLE, CATEGORY = "NullText_DiffEdit", "DiffEdit", "NullText/from picture"
    SEARCH_ALIASES = ["diffedit", "masked edit", "inversion edit", "local edit"]
    DESCRIPTION = (
        "Edits inside a mask, starting from an inversion at the chosen depth and holding its stored trajectory "
        "elsewhere (DiffEdit, arXiv 2210.11427). Outside the mask the latent comes back as it was."
    )
    INPUTS = (
        MODEL,
        POSITIVE("The target prompt."),
        NEGATIVE,
        INVERSION("From Invert Image with the source prompt, of this model and picture."),
        MASK,
        CFG(default=5.0),
        Float(
            "depth",
            0.8,
            "How much of the inversion is undone (the paper's encoding ratio 0.8). More changes more; the cost is "
            "depth times the inversion's steps.",
        ),
        SEEN,
    )
    OUTPUTS = (Output("LATENT", "The edited latent."),)

    def run(self, model, positive, negative, inversion, mask, cfg, depth):
        check_belongs(inversion, model)
        check_stored(inversion, "DiffEdit")
        steps = inversion.steps
        whole = inversion.metadata.get("schedule_steps", steps)  # an inversion may have climbed a part of the way
        first = steps - round(depth * whole)
        if first < 0:
            raise ValueError(
                f"The inversion climbed to depth {steps / whole:g}, and this edit starts at {depth:g}: invert as deep, "
                "or lower the depth here."
            )
        clean = source_latent(inversion)
        edit = MaskedEdit(clean, mask)
        if first == steps or edit.empty:
            why = f"depth {depth:g} samples no step" if first == steps else "the mask is empty"
            return text_result(unchanged(why, "picture"), {"samples": clean})
        trajectory, sigmas = inversion.trajectory[first:], inversion.sigmas[first:].float()
        sampler = own_sampler(sample_diffedit, start=trajectory[0], trajectory=trajectory, edit=edit.grid)
        out = sample_latent(model, positive, negative, cfg, sampler, sigmas, {"samples": clean}, 0)
        out["samples"] = edit.put_back(out["samples"])
        done = (
            f"{len(sigmas) - 1} network calls from sigma {float(sigmas[0]):.3g}, "
            f"{float((edit.grid > 0).float().mean()):.0%} of the latent may change."
        )
        if inversion.null_embeddings is not None:
            done += " Notice: this inversion's null embeddings are not used, the wired negative prompt is."
        return text_result(done, out)


NODES = (DiffEditMask, DiffEdit)
