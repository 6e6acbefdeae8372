"""Blended (latent) diffusion: repaint inside a mask, hold the background by blending or, to see it fail, by a loss."""

from __future__ import annotations

import torch

from ..engine.comfy import check_latent, fitted, latent_out, time_to_sigma
from ..engine.run import sample_with
from ..engine.sampler import own_sampler, sample_latent
from ..samplers.core import gaussian
from ..samplers.picture.blended import background_guided, noise_under, sample_blended
from ..samplers.picture.sdedit import sdedit_sigmas
from ..samplers.walk import sample_walk
from .base import CFG, LATENT, MASK, MODEL, NEGATIVE, POSITIVE, SEED, STEPS, Choice, Float, Int, Output
from .masked import MaskedEdit, check_picture
from .report import text_result, unchanged
from .shown import SEEN, EditBox

BLEND, LOSS = "blend (Algorithm 2)", "loss (first variant, drifts)"


class BlendedDiffusion(EditBox):
    ID, TITLE, CATEGORY = "NullText_BlendedDiffusion", "Blended Diffusion", "NullText/inpaint"
    SEARCH_ALIASES = ["blended diffusion", "blended latent diffusion", "local edit", "inpaint", "insert object"]
    DESCRIPTION = (
        "Draws the prompt inside a mask and blends the noised picture in everywhere else after each step (arXiv "
        "2111.14818, 2206.02779); thin masks start grown and shrink. Ends best in a Pixel Composite."
    )
    INPUTS = (
        MODEL,
        POSITIVE,
        NEGATIVE,
        LATENT("The picture to edit, encoded."),
        MASK,
        SEED,
        CFG(default=5.0),
        STEPS(default=40),
        Float(
            "t0",
            0.9,
            "Where the run begins, as a fraction of the diffusion's time: less keeps more of what is under the mask.",
        ),
        Choice(
            "start",
            ["noise", "picture"],
            "What is under the mask at first: pure noise of that strength (an object is drawn anew), or the noised "
            "picture (it is redrawn).",
        ),
        Int(
            "shrink",
            2,
            "Latent cells by which the mask is grown at first; it shrinks to itself in equal intervals. Helps thin "
            "masks.",
            0,
            64,
        ),
        Choice(
            "noise",
            ["fresh", "fixed"],
            "Noise of the background: drawn anew at each step (the paper), or once (as ComfyUI's own noise mask does).",
        ),
        Choice(
            "hold",
            [BLEND, LOSS],
            "How the background is held. The loss (squared error and its detail) is the paper's first variant: it "
            "costs a backward pass per step, and the background drifts.",
        ),
        Float("weight", 1.0, "Weight of that loss; 0 holds nothing.", 0.0, 1000.0, 0.1),
        SEEN,
    )
    OUTPUTS = (Output("LATENT", "The edited latent; with blending it is the given one to the bit outside the mask."),)

    def run(self, model, positive, negative, latent, mask, seed, cfg, steps, t0, start, shrink, noise, hold, weight):
        check_picture(latent, "Blended diffusion edits a picture")
        latent = fitted(model, latent)
        samples = check_latent(model, latent)
        edit = MaskedEdit(samples, mask)
        if t0 == 0 or edit.empty:
            return text_result(unchanged("t0 is 0" if t0 == 0 else "the mask is empty"), latent)
        sigmas = sdedit_sigmas(time_to_sigma(model), t0, steps).float()
        if hold == LOSS:
            guided = self._held_by_loss(
                model, positive, negative, cfg, samples, edit.grid, sigmas, seed, weight, start == "noise"
            )
            cost = f"{len(sigmas) - 1} network calls, each with a backward pass. "
            if bool((edit.grid == 1).all()):
                cost += "Notice: the mask covers everything, so there is no background to hold."
            elif weight == 0:
                cost += "Notice: the weight is 0, so nothing holds the background."
            else:
                cost += "The background is only pulled, not held."
            return text_result(cost, {**latent, "samples": guided})
        options = {"shrink": shrink, "fresh": noise == "fresh", "from_noise": start == "noise"}
        sampler = own_sampler(sample_blended, holds_mask=True, **options)
        out = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed, edit.grid)
        out["samples"] = edit.put_back(out["samples"])
        return text_result(f"{len(sigmas) - 1} network calls from sigma {float(sigmas[0]):.3g}.{edit.notice()}", out)

    def _held_by_loss(self, model, positive, negative, cfg, samples, grid, sigmas, seed, weight, from_noise):
        def body(run):
            draw = gaussian(run.latent, seed)
            with run.gradients():
                source, edit = run.latent.clone(), grid.to(run.device).clone()
                levels = run.sigmas.clone()
                x = run.process.noised(source, levels[0], draw())
                x = noise_under(edit, x, source, levels[0], run.process) if from_noise else x
                guided = background_guided(run.guided("positive", "negative", cfg), source, edit, weight, run.process)

                def step(state):
                    run.tick()
                    run.callback(state)

                with torch.no_grad():
                    x = sample_walk(guided, x, levels, process=run.process, noise=draw, callback=step)
            return x.detach().cpu()

        out = sample_with(
            model,
            {"positive": positive, "negative": negative},
            samples,
            sigmas,
            body,
            total=len(sigmas) - 1,
            seed=seed,
            gradients=True,
        )
        return latent_out(model, out)


NODES = (BlendedDiffusion,)
