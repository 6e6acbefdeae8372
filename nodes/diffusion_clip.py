"""DiffusionCLIP Tune: a model is tuned by a text direction through its sampling chain."""

from __future__ import annotations

import json
from dataclasses import replace

from ..engine import tuning, weights
from ..engine.comfy import time_to_sigma
from ..engine.folders import model_file
from ..engine.gradients import normal
from ..engine.noise import source_latent
from ..engine.run import sample_with
from ..engine.streamed import settled
from ..engine.training import check_trainable
from ..samplers.core import recomputed
from ..samplers.picture.sdedit import sdedit_sigmas
from ..samplers.tuning import lora
from ..samplers.tuning.diffusion_clip import PRESETS, chain_step, saving_step
from ..samplers.tuning.directional import EditLoss
from ..samplers.tuning.loop import Loop
from ..samplers.tuning.whole import unchanged_all
from .base import LATENT, MODEL, POSITIVE, TRAINING_SEED, Box, Choice, Float, Int, Output, Socket, Text
from .guidance import IMAGE_TEXT
from .report import text_result
from .tuning_chain import (
    FORM,
    SOURCE,
    TARGET,
    TEMPLATES_INPUT,
    check_one_prompt,
    curve_line,
    curve_shown,
    differentiable,
    direction_of,
    inverted,
    pictures_of,
    resume_key,
    trained,
)
from .tuning_inputs import CHECKPOINT, TRAINING, free_path, unkept

CATEGORY = "NullText/tuning"
WHOLE, SAVING = "whole chain (the paper's)", "one step at a time (saves memory)"
EVERY, BY_HAND = "whole weights (the authors')", "by hand"
PUBLISHED = PRESETS["README"]
VAE = Socket("vae", "VAE", "The VAE that belongs to the model: the loss is taken on pictures.")
T0 = Float(
    "t0",
    PUBLISHED.t0,
    "Noise level up to which pictures are inverted, as a share of the diffusion's time. Higher: larger changes are "
    "possible, and less of the picture is kept.",
)
INVERSION_STEPS = Int("inversion_steps", PUBLISHED.inversion, "Steps of the inversion, one call each.", 2)


def schedule(model, t0: float, steps: int):
    """[steps + 1] from t0 to 0, fp32. ValueError for t0 0."""
    sigmas = sdedit_sigmas(time_to_sigma(model), t0, steps).float()
    if len(sigmas) < 3:
        raise ValueError("t0 and the steps leave no step to tune or edit: raise them.")
    return sigmas


class DiffusionCLIPTune(Box):
    ID, TITLE, CATEGORY = "NullText_DiffusionCLIPTune", "DiffusionCLIP Tune", CATEGORY
    SEARCH_ALIASES = ["diffusionclip", "clip fine-tuning", "text direction", "train lora", "domain adaptation"]
    DESCRIPTION = (
        "Trains a LoRA that turns what pictures show from one text into another: pictures are inverted, sampled again "
        "in a few steps, and the gradient passes the whole chain (DiffusionCLIP, arXiv 2110.02711). Cost: pictures x "
        "passes x train_steps calls forward and backward."
    )
    INPUTS = (
        MODEL,
        POSITIVE(tooltip="The prompt the model is given with every picture, usually empty."),
        LATENT(tooltip="The pictures, encoded, as one batch; the authors take 50."),
        VAE,
        IMAGE_TEXT,
        SOURCE,
        TARGET,
        T0,
        INVERSION_STEPS,
        Int("train_steps", PUBLISHED.train, "Steps of the chain that is tuned.", 2, 50),
        Int("passes", PUBLISHED.passes, "Passes over the pictures, one picture an optimiser step.", 1, 1000),
        Float(
            "lr", 1e-4, "Learning rate of the LoRA (Adam). The authors tune whole weights, at 8e-6.", 1e-7, 1.0, 1e-6
        ),
        Float("lr_growth", PUBLISHED.growth, "The rate is multiplied by this after every pass.", 0.1, 10.0),
        Float("clip_weight", PUBLISHED.clip, "Weight of the directional loss: higher changes more.", 0.0, 100.0, 0.1),
        Float(
            "l1_weight",
            PUBLISHED.l1,
            "Weight of the pixels' distance to the source picture: higher keeps more of it.",
            0.0,
            100.0,
            0.1,
        ),
        Float(
            "identity_weight",
            0.0,
            "Weight of the embedding's distance to the source picture's: higher keeps more of what it shows.",
            0.0,
            100.0,
            0.1,
        ),
        FORM,
        Choice(
            "gradient",
            [WHOLE, SAVING],
            "Whole chain: the loss is taken on the finished picture, and its gradient passes all sampling steps. One "
            "step at a time: it is taken after every step, on the picture predicted there, and needs less memory.",
        ),
        Choice(
            "layers",
            [*weights.TARGETS, EVERY],
            "Which layers get a LoRA. Whole weights: no LoRA but every weight itself, as the authors do it; lower lr "
            "then, they take 8e-6 and 2e-6. The file is as large as the network, and LoRA loaders take it too.",
        ),
        Int("rank", 8, "Rank of the LoRA; not used with whole weights.", 1, 256),
        TRAINING_SEED,
        TEMPLATES_INPUT,
        Text("file", "", "Name of the LoRA's file in models/loras; sub-folders are made. Empty: no file."),
        Choice(
            "preset",
            [BY_HAND, *PRESETS],
            "The authors' own run instead of the numbers above: t0, steps, passes, rate, its growth, the losses' "
            "weights and form, whole weights. README: their example; code: their code's defaults.",
            BY_HAND,
        ).optional(),
        IMAGE_TEXT(
            name="identity",
            tooltip="Another model for the identity loss, one that knows faces for one. Not wired: image_text.",
        ).optional(),
        CHECKPOINT(
            tooltip="Compute network calls a second time in backward (one step at a time: their blocks): the memory of "
            "one call, whatever train_steps is, for up to two fifths more time."
        ).optional(),
    )
    OUTPUTS = (
        Output("MODEL", "The model with the LoRA."),
        Output("LORA_MODEL", "The LoRA as data, for DiffusionCLIP Edit, Mix Models and core's Save LoRA."),
        Output("STRING", "Losses, times, cost.", "report"),
    )

    def run(
        self,
        model,
        positive,
        latent,
        vae,
        image_text,
        source,
        target,
        t0,
        inversion_steps,
        train_steps,
        passes,
        lr,
        lr_growth,
        clip_weight,
        l1_weight,
        identity_weight,
        form,
        gradient,
        layers,
        rank,
        training_seed,
        templates,
        file,
        preset=BY_HAND,
        identity=None,
        checkpointing=False,
    ):
        if preset != BY_HAND:
            own, layers = PRESETS[preset], EVERY
            t0, inversion_steps, train_steps, passes = own.t0, own.inversion, own.train, own.passes
            lr, lr_growth, form = own.lr, own.growth, own.form
            clip_weight, l1_weight, identity_weight = own.clip, own.l1, own.identity
        if file.strip():
            model_file("loras", file)  # refuses a name outside the folder before long work
        given, model = model, settled(model)
        check_trainable(model)
        check_one_prompt(positive)
        tuning.check_caption("positive", [extra for _, extra in positive])
        direction, _, notices = direction_of(image_text, source, target, templates)
        towers = [image_text] if identity is None else [image_text, identity]
        parts = (clip_weight, l1_weight, identity_weight, form, towers[-1].embed_image)
        loss = EditLoss(image_text.embed_image, direction, *parts)  # refuses before the inversion
        there, back = schedule(model, t0, inversion_steps), schedule(model, t0, train_steps)
        whole = layers == EVERY
        where = weights.whole_layers(model) if whole else weights.layers(model, layers)
        inversion, said = inverted(model, positive, latent, there)
        n, steps = inversion.shape[0], len(back) - 1
        saving = gradient == SAVING
        settings = PUBLISHED.settings(
            n,
            passes,
            steps=n * passes * (steps if saving else 1),
            lr=lr,
            factor=lr_growth,
            every=n * (steps if saving else 1),
        )
        numbers = [clip_weight, l1_weight, identity_weight, form, layers, rank, training_seed, str(settings)]
        key = resume_key(model, vae, towers, inversion.trajectory, direction, back, numbers)

        def body(run):
            if whole:
                changes = unchanged_all(where.items(), run.device)
            else:
                changes = lora.low_rank_all(where.items(), rank, seed=training_seed, device=run.device)
            values, plain = lora.parameters(changes), tuning.caption_net(run)
            smaller = "take smaller pictures." if checkpointing else "turn checkpointing on, or take smaller pictures."
            with (
                differentiable(run, model, vae, *towers, checkpoint=checkpointing and saving, advice=smaller) as decode,
                run.kept_from_underflow(values.values()) as kept_large,
            ):
                net = kept_large(recomputed(plain) if checkpointing and not saving else plain)

                def denoiser(name):
                    return lambda x, sigma: net(x, sigma, [name] * len(x))

                pictures = pictures_of(inversion, decode, run.device)
                here = replace(loss, direction=direction.to(run.device))
                make = saving_step if saving else chain_step
                step = make(denoiser, pictures, normal(back.to(run.device)), decode, here, on_call=run.tick)
                loop = Loop(values, settings, training_seed)
                with weights.attached(where, changes):
                    curve = trained(loop, step, key, run.progress.show)
            words = {"source": source, "target": target, "t0": t0, "method": "DiffusionCLIP"}
            base = {**weights.base_of(model), "nulltext_tuned": json.dumps(words)}
            return weights.to_lora_model(changes, base, model), curve

        total = settings.steps * (1 if saving else steps)
        made, curve = sample_with(model, {"positive": positive}, source_latent(inversion)[:1], back, body, total=total)
        lines = [f"{source!r} -> {target!r}: {curve_line(*curve)}", said, *notices, *unkept(key)]
        if file.strip():
            path = free_path("loras", file, key)
            try:
                weights.save(made, path, {TRAINING: key or ""})
                lines.append(f"Saved as {path.name} in {path.parent}.")
            except OSError as error:  # the training is over, and what it made goes on
                lines.append(f"{path.name} could not be written to {path.parent} ({error}): make room, then Save LoRA.")
        text = "\n".join(lines)
        return text_result(text, weights.applied(given, None, made)[0], made, text, **curve_shown(curve[0]))


NODES = (DiffusionCLIPTune,)
