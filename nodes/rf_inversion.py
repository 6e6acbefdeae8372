"""RF-Inversion: from a picture to structured noise and back with another prompt, both ways under a controller."""

from __future__ import annotations

import time

from ..engine import record
from ..engine.comfy import check_latent, latent_out, process_of, sigmas_of
from ..engine.run import Run, sample_with
from ..samplers.core import gaussian, rms_apart
from ..samplers.inversion.rf_inversion import FADES, invert_rf, sample_rf, strengths
from .base import CFG, LATENT, MODEL, NEGATIVE, POSITIVE, SCHEDULER, SEED, STEPS, Choice, Float, Output
from .masked import check_picture, mask_unread
from .report import text_result
from .shown import SEEN, EditBox


class RFInversion(EditBox):
    ID, TITLE, CATEGORY = "NullText_RFInversion", "RF-Inversion", "NullText/edit"
    SEARCH_ALIASES = [
        "rf inversion",
        "rectified flow inversion",
        "flow inversion",
        "stroke to image",
        "edit real image",
    ]
    DESCRIPTION = (
        "Edits a picture on a flow model by its new prompt alone (RF-Inversion, arXiv 2410.10792): inverted while "
        "drawn to one noise, then sampled back while held to the picture for the first steps. Cost: 2 x steps calls."
    )
    INPUTS = (
        MODEL("The diffusion model; made for flow models (SD3, Flux)."),
        POSITIVE("What the picture shall show. The picture's own prompt is not needed."),
        NEGATIVE("The empty prompt: the picture is inverted with it, and the null branch of the way back."),
        LATENT("The picture, from VAE Encode; a batch is edited at once."),
        SEED("The noise that the inversion is drawn to."),
        STEPS("Steps N each way (28 in the paper). Cost: 2 N calls.", default=28),
        SCHEDULER,
        CFG(
            "Guidance scale of the way back. For Flux: 1, and FluxGuidance on the prompts, 0 on the negative one.",
            default=3.5,
        ),
        Float(
            "gamma",
            0.5,
            "How much the inversion is drawn to one noise: 0 is DDIM inversion, 1 ends in that noise (on models "
            "that aren't flows: in the picture plus that noise).",
        ),
        Float("eta", 0.9, "How far the way back is held to the picture: higher keeps more; 1 to the end returns it."),
        Float("start", 0.0, "Where eta begins, as a fraction of the steps."),
        Float("stop", 0.25, "Where eta ends: later keeps more of the picture (the paper's Flux edits: 0.2 to 0.35)."),
        Choice("fade", FADES, "Whether eta stays as it is or falls to 0 between start and stop."),
        SEEN,
    )
    OUTPUTS = (
        Output("LATENT", "The edited latent, for VAE Decode.", "latent"),
        Output("STRING", "What it cost and how far it lies from the source.", "report"),
    )

    def run(self, model, positive, negative, latent, seed, steps, scheduler, cfg, gamma, eta, start, stop, fade):
        samples = check_latent(model, latent)
        check_picture(latent, "RF-Inversion needs a picture")
        sigmas = record.check_sigmas(sigmas_of(model, scheduler, steps), process_of(model), self.TITLE)
        steps = len(sigmas) - 1
        etas = strengths(steps, eta, round(start * steps), round(stop * steps), fade)

        def body(run: Run):
            def counted(guide):
                def ask(x, sigma):
                    run.tick()
                    return guide(x, sigma)

                return ask

            noise = gaussian(run.latent, seed)()
            without, target = run.guided("negative", None, 1.0), run.guided("positive", "negative", cfg)
            up = {"process": run.process, "noise": noise, "gamma": gamma}
            begin = invert_rf(counted(without), run.latent, run.sigmas, **up)
            back = {"source": run.latent, "etas": etas, "callback": run.callback}
            out = sample_rf(counted(target), begin, run.sigmas, **back)
            error = rms_apart(out, run.latent)
            return latent_out(model, out.cpu()), error.tolist(), run.calls

        conds, began = {"positive": positive, "negative": negative}, time.perf_counter()
        out, error, calls = sample_with(model, conds, samples, sigmas, body, total=2 * steps, seed=seed)
        text = f"{calls} network calls in {time.perf_counter() - began:.1f} s, eta in {sum(e > 0 for e in etas)} of "
        text += f"{steps} steps; latent rms distance from the source " + ", ".join(f"{e:.2g}" for e in error)
        text += mask_unread(latent, ", and the whole picture may change")
        return text_result(text, {"samples": out}, text)


NODES = (RFInversion,)
