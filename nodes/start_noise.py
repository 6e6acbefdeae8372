"""Optimise Start Noise: x_T against the losses of the guidance nodes that are on the MODEL."""

from __future__ import annotations

from ..engine.comfy import schedulers, sigmas_of
from ..engine.start_noise import optimise
from . import fields as base
from .plots import line_chart
from .report import text_result


class OptimiseStartNoise:
    ID = "NullText_OptimiseStartNoise"
    TITLE = "Optimise Start Noise"
    CATEGORY = "NullText/guidance"
    SEARCH_ALIASES = ["optimise x_T", "noise optimisation", "DOODL", "ReNO", "initial noise", "latent optimisation"]
    DESCRIPTION = base.describe(
        "Changes the start noise, not the steps: x_T is optimised through a short deterministic sampler "
        "(Euler/DDIM) until the result agrees with the guidance nodes on the MODEL (CLIP, classifier, semantic; "
        "their scales weigh them). From noise, or from an inverted picture. Memory is bounded: each step is "
        "recomputed in backward.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT", "NOISE", "SIGMAS", "IMAGE")
    RETURN_NAMES = ("latent", "noise", "sigmas", "loss_curve")
    OUTPUT_TOOLTIPS = (
        "The result of the best start noise.",
        "The best start noise, for SamplerCustomAdvanced with these sigmas and an empty latent (or the inverted one).",
        "The schedule that it was optimised for.",
        "The loss over the iterations.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": (
                    "MODEL",
                    {
                        "tooltip": "A MODEL with CLIP, Classifier or Semantic Guidance on it: their "
                        "targets are the loss. While optimising, the steps themselves aren't "
                        "guided."
                    },
                ),
                "positive": base.POSITIVE,
                "negative": base.NEGATIVE,
                "latent": base.latent("Size and batch of the result; an empty latent. With an inversion: ignored."),
                "seed": base.SEED,
                "steps": base.steps(
                    8,
                    "Steps of the short sampler. Cost of one iteration: this many network "
                    "forwards, twice, and as many backwards; with cfg other than 1 double "
                    "that.",
                ),
                "scheduler": base.choice(schedulers(), "Which sigmas the short sampler takes.", "karras"),
                "cfg": base.cfg(
                    1.0, "Classifier-free guidance inside the sampler. 1 is the cheapest and the most stable."
                ),
                "iterations": base.whole(15, 1, 1000, "Steps of Adam on the start noise."),
                "learning_rate": base.number(
                    0.03, 0.0001, 1.0, 0.005, "Of Adam, in standard deviations of the noise per iteration."
                ),
                "prior": base.number(
                    1.0,
                    0.0,
                    1000.0,
                    0.1,
                    "How firmly the noise keeps its length: a Gaussian's samples all have nearly the same. 0: free.",
                ),
            },
            "optional": {
                "inversion": (
                    "INVERSION",
                    {
                        "tooltip": "Start from an inverted picture instead of from noise: its "
                        "x_T and its sigmas are taken, steps, scheduler and seed "
                        "not."
                    },
                )
            },
        }

    def run(
        self,
        model,
        positive,
        negative,
        latent,
        seed,
        steps,
        scheduler,
        cfg,
        iterations,
        learning_rate,
        prior,
        inversion=None,
    ):
        sigmas = sigmas_of(model, scheduler, steps)
        out = optimise(
            model,
            positive,
            negative,
            latent,
            sigmas,
            seed=seed,
            cfg=cfg,
            iterations=iterations,
            learning_rate=learning_rate,
            prior=prior,
            inversion=inversion,
        )
        curve = out.losses
        lines = {f"picture {b + 1}": curve[:, b].tolist() for b in range(min(8, curve.shape[1]))}
        first, best = float(curve[0].mean()), float(curve.min(0).values.mean())
        said = (
            f"Loss {first:.4g} -> {best:.4g} (mean of {curve.shape[1]}, best of {iterations} iterations), "
            f"{out.calls} network calls, {out.seconds:.1f} s."
        )
        if best >= first:
            said += " Notice: nothing was gained; try another learning rate or more iterations."
        return text_result(said, out.latent, out.noise, out.sigmas, line_chart("loss", lines, x_label="iteration"))


NODES = (OptimiseStartNoise,)
