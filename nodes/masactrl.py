"""MasaCtrl: an edit that takes the source's contents by mutual self-attention, under its own name."""

from __future__ import annotations

from ..engine import record
from ..engine.comfy import sigmas_of
from ..engine.pair_guider import prompt_to_prompt_guider, run_guider, source_of
from ..samplers.attention.controllers import MutualSelf
from ..samplers.attention.layers import StepWindow
from ..samplers.inversion.replay import cfg_of
from .base import CFG, INVERSION, LATENT, MODEL, NEGATIVE, POSITIVE, SCHEDULER, SEED, STEPS, Float, Output, optional
from .report import text_result
from .shown import SEEN, EditBox


class MasaCtrl(EditBox):
    ID, TITLE, CATEGORY = "NullText_MasaCtrl", "MasaCtrl", "NullText/attention"
    SEARCH_ALIASES = ["masactrl", "mutual self-attention", "change pose", "non-rigid edit", "consistent subject"]
    DESCRIPTION = (
        "Changes pose or layout and keeps what things look like (MasaCtrl, arXiv 2304.08465): from a step and a layer "
        "on, the edit's self-attention reads the source's contents. Cost: N x 4 network rows; "
        "from an inversion 2 a step before start."
    )
    INPUTS = (
        MODEL,
        POSITIVE("The prompt of the edit, one for the whole picture: another pose, view or place.", name="edited"),
        NEGATIVE("The negative or empty prompt. An inversion's null embeddings stand in for it."),
        CFG("Guidance scale of the edit; 0: the inversion's own."),
        SEED,
        STEPS("Steps N from noise; an inversion brings its own."),
        SCHEDULER("How the steps are spaced; an inversion brings its own."),
        Float(
            "start",
            0.08,
            "The fraction of the steps in which the edit first finds its own layout (the paper's 4 of 50). Higher: "
            "more freedom for shape and pose, less of the source's look.",
        ),
        Float(
            "first_layer",
            0.625,
            "The fraction of the network's layers, from the first on, that is left as it is (the paper's 10 of 16 at "
            "SD1). Higher: fewer layers read the source, and less of its look is kept.",
        ),
        LATENT("An empty latent that sets size and count. Not needed with an inversion.").optional(),
        *optional(
            POSITIVE("The source prompt. May stay open with an inversion that knows its prompt.", name="source"),
            INVERSION("Edit a real picture, whose stored path is the source. Open: edit a generated one."),
        ),
        SEEN,
    )
    OUTPUTS = (
        Output("LATENT", "The edited latents.", "edit"),
        Output("LATENT", "The source latents.", "source"),
        Output("STRING", "What it cost.", "report"),
    )
    READS_MASK = True

    def before(self, inputs, outputs):
        return outputs[1]["samples"]

    def run(
        self,
        model,
        edited,
        negative,
        cfg,
        seed,
        steps,
        scheduler,
        start,
        first_layer,
        latent=None,
        source=None,
        inversion=None,
    ):
        if inversion is None and (latent is None or source is None):
            raise ValueError("MasaCtrl needs a picture to start from: wire source and an empty latent, or inversion.")
        if inversion is not None:
            record.check_belongs(inversion, model)
        cfg = cfg_of(inversion, cfg)
        source = source_of(inversion) if source is None else source
        mutual = MutualSelf(StepWindow(start, 1.0, points=0), first_layer)
        guider = prompt_to_prompt_guider(
            model, source, [edited], negative, cfg, [mutual], inversion=inversion, keep_source=inversion is None
        )
        sigmas = sigmas_of(model, scheduler, steps) if inversion is None else inversion.sigmas
        result = run_guider(guider, latent, sigmas, seed)
        text = f"{len(sigmas) - 1} steps at cfg {cfg:g}, {result.rows} network rows, {result.seconds:.1f} s"
        if start >= 1 or first_layer >= 1:
            text += ". Notice: start or first_layer leaves nothing to share, so this is the plain prompt change"
        return text_result(text, {"samples": result.edits}, {"samples": result.source}, text)


NODES = (MasaCtrl,)
