"""Blended (latent) diffusion: repaint inside a mask, hold the background by blending or, to see it fail, by a loss."""

from __future__ import annotations

import torch

from ..engine.comfy import check_latent, latent_out
from ..engine.run import sample_with
from ..engine.sampler import own_sampler
from ..engine.sampling import is_empty, sample_latent, time_to_sigma
from ..samplers.core import expand, gaussian
from ..samplers.masks import to_grid
from ..samplers.picture.blended import background_guided, sample_blended
from ..samplers.picture.sdedit import sdedit_sigmas
from ..samplers.walk import sample_walk
from . import fields as base
from .report import text_result

BLEND, LOSS = "blend (Algorithm 2)", "loss (first variant, drifts)"


class BlendedDiffusion:
    ID = "NullText_BlendedDiffusion"
    TITLE = "Blended Diffusion"
    CATEGORY = "NullText/inpaint"
    SEARCH_ALIASES = ["blended diffusion", "blended latent diffusion", "local edit", "inpaint", "insert object"]
    DESCRIPTION = base.describe(
        "Draws the prompt inside a mask and blends the noised picture in everywhere else after each step (arXiv "
        "2111.14818, 2206.02779); thin masks start grown and shrink. Ends best in a Pixel Composite.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The edited latent; with blending it is the given one to the bit outside the mask.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": base.POSITIVE,
                "negative": base.NEGATIVE,
                "latent": base.latent("The picture to edit, encoded."),
                "mask": base.MASK,
                "seed": base.SEED,
                "cfg": base.cfg(5.0),
                "steps": base.steps(40),
                "t0": base.share(
                    0.9,
                    "Where the run begins, as a share of the diffusion's time: less keeps more of what is under the "
                    "mask.",
                ),
                "start": base.choice(
                    ["noise", "picture"],
                    "What stands under the mask at first: pure noise of that level (an object is drawn "
                    "anew), or the noised picture (it is redrawn).",
                ),
                "shrink": base.whole(
                    2,
                    0,
                    64,
                    "Latent cells by which the mask is grown at first; it shrinks to itself in equal intervals. "
                    "Helps thin masks.",
                ),
                "noise": base.choice(
                    ["fresh", "fixed"],
                    "Noise of the background: drawn anew at each step (the paper), or once (as "
                    "ComfyUI's own noise mask does).",
                ),
                "hold": base.choice(
                    [BLEND, LOSS],
                    "How the background is held. The loss (squared error and its detail) is the paper's first "
                    "variant: it costs a backward pass per step, and the background drifts.",
                ),
                "weight": base.number(1.0, 0.0, 1000.0, 0.1, "Weight of that loss; 0 holds nothing."),
            }
        }

    def run(self, model, positive, negative, latent, mask, seed, cfg, steps, t0, start, shrink, noise, hold, weight):
        if is_empty(latent):
            raise ValueError("Blended diffusion edits a picture, but the latent is empty: encode an image.")
        samples = check_latent(model, latent)
        grid = to_grid(mask, samples.shape[-2:], batch=len(samples))
        sigmas = sdedit_sigmas(time_to_sigma(model), t0, steps).float()
        if t0 == 0 or not bool((grid > 0).any()):
            why = "t0 is 0" if t0 == 0 else "the mask is empty"
            return text_result(f"Notice: {why}, so the latent comes back as it is.", latent)
        if hold == LOSS:
            out = self._held_by_loss(
                model, positive, negative, cfg, samples, grid, sigmas, seed, weight, start == "noise"
            )
            said = f"{len(sigmas) - 1} network calls, each with a backward pass. "
            if bool((grid == 1).all()):
                said += "Notice: the mask covers everything, so there is no background to hold."
            elif weight == 0:
                said += "Notice: the weight is 0, so nothing holds the background."
            else:
                said += "The background is only pulled, not held."
            return text_result(said, {**latent, "samples": out})
        options = {"shrink": shrink, "fresh": noise == "fresh", "from_noise": start == "noise"}
        sampler = own_sampler(sample_blended, holds_mask=True, **options)
        out = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed, grid)
        out["samples"] = torch.where(grid.to(samples) == 0, samples, out["samples"].to(samples))
        said = f"{len(sigmas) - 1} network calls from sigma {float(sigmas[0]):.3g}."
        return text_result(
            said if bool((grid == 0).any()) else said + " Notice: the mask covers everything, so nothing is held.", out
        )

    def _held_by_loss(self, model, positive, negative, cfg, samples, grid, sigmas, seed, weight, from_noise):
        def body(run):
            draw = gaussian(run.latent, seed)
            with run.gradients():
                source, edit = run.latent.clone(), grid.to(run.device).clone()
                levels = run.sigmas.clone()
                x = run.process.noised(source, levels[0], draw())
                x = x - expand(run.process.signal(levels[0]), x) * source if from_noise else x
                guided = background_guided(run.guided("positive", "negative", cfg), source, edit, weight, run.process)

                def step(state):
                    run.tick()
                    run.callback(state)

                with torch.no_grad():
                    x = sample_walk(guided, x, levels, process=run.process, noise=draw, callback=step)
            return x.detach().cpu()

        out = sample_with(
            model, {"positive": positive, "negative": negative}, samples, sigmas, body, total=len(sigmas) - 1, seed=seed
        )
        return latent_out(model, out)


NODES = (BlendedDiffusion,)
