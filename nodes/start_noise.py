"""Optimise Start Noise: x_T against the losses of the guidance nodes that are on the MODEL."""

from __future__ import annotations

import time

from ..engine import record, terms
from ..engine.comfy import check_latent, latent_out, sigmas_of
from ..engine.gradients import bring, grad_mode, normal, short_of_memory
from ..engine.noise import StartNoise, model_notes
from ..engine.run import Run, sample_with
from ..engine.training_memory import room_for
from ..samplers.guidance.start_noise import optimise_start_noise
from ..samplers.measure.charts import line_chart
from .base import CFG, INVERSION, LATENT, MODEL, NEGATIVE, POSITIVE, SCHEDULER, SEED, STEPS, Box, Float, Int, Output
from .masked import mask_unread
from .report import text_result


class OptimiseStartNoise(Box):
    ID, TITLE, CATEGORY = "NullText_OptimiseStartNoise", "Optimise Start Noise", "NullText/guidance"
    SEARCH_ALIASES = ["optimise x_T", "noise optimisation", "DOODL", "ReNO", "initial noise", "latent optimisation"]
    DESCRIPTION = (
        "Changes the start noise, not the steps: x_T is optimised through a short deterministic sampler (Euler/DDIM) "
        "until the result agrees with the guidance nodes on the MODEL (CLIP, classifier, semantic; their scales weigh "
        "them). From noise, or from an inverted picture. Memory is bounded: each step is recomputed in backward."
    )
    INPUTS = (
        MODEL(
            "A MODEL with CLIP, Classifier or Semantic Guidance on it: their targets are the loss. While optimising, "
            "the steps themselves aren't guided."
        ),
        POSITIVE,
        NEGATIVE,
        LATENT("Size and batch of the result; an empty latent. With an inversion: ignored."),
        SEED,
        STEPS(
            "Steps of the short sampler. Cost of one iteration: two network forwards and one backward per step; with "
            "cfg other than 1 double that.",
            default=8,
        ),
        SCHEDULER("How the steps of the short sampler are spaced.", default="karras"),
        CFG("Classifier-free guidance inside the sampler. 1 is the cheapest and the most stable.", default=1.0),
        Int("iterations", 15, "Steps of Adam on the start noise."),
        Float("learning_rate", 0.03, "Of Adam, in standard deviations of the noise per iteration.", 0.0001, 1.0, 0.005),
        Float(
            "prior",
            1.0,
            "How firmly the noise is kept at the overall strength that it begins with; ordinary noise always has "
            "nearly the same. 0: not at all.",
            0.0,
            1000.0,
            0.1,
        ),
        INVERSION(
            "Start from an inverted picture instead of from noise: its x_T and its sigmas are used; steps, scheduler "
            "and seed are not read."
        ).optional(),
    )
    OUTPUTS = (
        Output("LATENT", "The result of the best start noise.", "latent"),
        Output(
            "NOISE",
            "The best start noise, for SamplerCustomAdvanced with these sigmas and an empty latent (or the inverted "
            "one).",
            "noise",
        ),
        Output("SIGMAS", "The schedule that it was optimised for.", "sigmas"),
        Output("IMAGE", "The loss over the iterations.", "loss_curve"),
    )

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
        losses = [t for t in terms.terms_of(model) if not callable(t.guidance.scale)]
        if not losses:
            raise ValueError(
                "There is no loss: put CLIP Guidance, Classifier Guidance or Semantic Guidance on the "
                "model; their targets are what the start noise is optimised for."
            )
        plain = terms.without_terms(model)
        if inversion is not None:
            record.check_belongs(inversion, model)
            samples, sigmas = latent_out(plain, inversion.source), inversion.sigmas.float()
        else:
            samples, sigmas = check_latent(plain, latent), sigmas_of(model, scheduler, steps)
        began = time.time()

        def body(run: Run):
            start = run.start(sigmas[0], seed) if inversion is None else inversion.trajectory[0].to(run.device)
            modules = [*{id(m): m for t in losses for m in t.modules}.values()]
            bring(run.device, [p for t in losses for p in t.patchers], modules)
            advice = (
                "one network backward: use a smaller latent or batch; nothing cheaper than this exists for the start "
                "noise, guidance in decoder mode would fit."
            )
            again = room_for(run, "positive", len(start) * (1 if cfg == 1 else 2))
            with run.gradients(again), grad_mode(*modules), short_of_memory(advice):
                found = optimise_start_noise(
                    run.differentiable("positive", "negative", cfg),
                    normal(start).float(),
                    normal(sigmas.to(run.device)).float(),
                    terms.loss_of(losses, run.sigma_min),
                    steps=iterations,
                    lr=learning_rate,
                    prior=prior,
                    tick=run.tick,
                    callback=run.callback,
                )
            return found, run.calls

        conds, total = {"positive": positive, "negative": negative}, (len(sigmas) - 1) * (iterations + 1)
        found, calls = sample_with(plain, conds, samples, sigmas, body, total=total, seed=seed, gradients=True)
        gain, first = model_notes(plain, float(sigmas[0]))["full_gain"], float(sigmas[0])
        share = 1 - first if inversion is not None and inversion.process == "flow" else 1.0
        noise = StartNoise(found.x.detach().cpu(), gain, share, None if inversion is None else inversion.source)
        out, curve = {"samples": latent_out(plain, found.result.detach().cpu())}, found.losses
        lines = {f"picture {b + 1}": curve[:, b].tolist() for b in range(min(8, curve.shape[1]))}
        first, best = float(curve[0].mean()), float(curve.min(0).values.mean())
        text = (
            f"Loss {first:.4g} -> {best:.4g} (mean of {curve.shape[1]}, best of {iterations} iterations), "
            f"{calls} network calls, {time.time() - began:.1f} s."
        )
        if best >= first:
            text += " Notice: nothing was gained; try another learning rate or more iterations."
        text += mask_unread(latent if inversion is None else {}, ", and the whole picture may change")
        return text_result(text, out, noise, sigmas.cpu(), line_chart("loss", lines, x_label="iteration"))


NODES = (OptimiseStartNoise,)
