"""DiffusionCLIP: tune a model by a text direction through its sampling chain, edit with it, mix several."""

from __future__ import annotations

import json

import torch

from ..engine import files, mixing, tuning, weights
from ..engine.comfy import Progress, check_latent, latent_out, model_file, time_to_sigma, window
from ..engine.noise import source_latent
from ..engine.run import sample_with
from ..engine.sampler import own_sampler
from ..samplers.core import gaussian
from ..samplers.ode import sample_euler
from ..samplers.picture.sdedit import sdedit_sigmas
from ..samplers.tuning import lora
from ..samplers.tuning.diffusion_clip import PRESETS, Share, chain_step, into_seen_domain, saving_step
from ..samplers.tuning.directional import FORMS, EditLoss
from ..samplers.tuning.loop import Loop
from ..samplers.window import SigmaWindow
from .base import CFG, LATENT, MODEL, NEGATIVE, POSITIVE, SEED, Box, Choice, Float, Int, Output, Socket, Text
from .guidance import IMAGE_TEXT
from .report import text_result
from .tuning_chain import (
    SOURCE,
    TARGET,
    TEMPLATES_INPUT,
    curve_line,
    differentiable,
    direction_of,
    inverted,
    pictures_of,
    trained,
)
from .tuning_inputs import TRAINING, free_path

CATEGORY = "NullText/tuning"
WHOLE, SAVING = "whole chain (the paper's)", "one step at a time (saves memory)"
_README = PRESETS["README"]
VAE = Socket("vae", "VAE", "The VAE that belongs to the model: the loss is taken on pictures.")
LORA = Socket("lora_model", "LORA_MODEL", "From DiffusionCLIP Tune, or any LoRA of this model as data.")
T0 = Float("t0", _README.t0, "Noise level up to which pictures are inverted, as a share of the diffusion's time.")
INVERSION_STEPS = Int("inversion_steps", _README.inversion, "Steps of the inversion, one call each.", 2)


def schedule(model, t0: float, steps: int):
    """[steps + 1] from t0 to 0, fp32. ValueError for t0 0."""
    sigmas = sdedit_sigmas(time_to_sigma(model), t0, steps).float()
    if len(sigmas) < 3:
        raise ValueError("t0 and the steps leave no walk to tune or edit along: raise them.")
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
        Int("train_steps", _README.train, "Steps of the chain that is tuned.", 2, 50),
        Int("passes", _README.passes, "Passes over the pictures, one picture an optimiser step.", 1, 1000),
        Float(
            "lr", 1e-4, "Learning rate of the LoRA (Adam). The authors tune whole weights, at 8e-6.", 1e-7, 1.0, 1e-6
        ),
        Float("lr_growth", _README.growth, "The rate is multiplied by this after every pass.", 0.1, 10.0),
        Float("clip_weight", _README.clip, "Weight of the directional loss.", 0.0, 100.0, 0.1),
        Float("l1_weight", _README.l1, "Weight of the pixels' distance to the source picture.", 0.0, 100.0, 0.1),
        Float("identity_weight", 0.0, "Weight of the embedding's distance to the source picture's.", 0.0, 100.0, 0.1),
        Choice("form", list(FORMS), "The directional loss: log as the authors' code has it, printed as the paper."),
        Choice("gradient", [WHOLE, SAVING], "Through all steps, or a step of the optimiser at every sampling step."),
        Choice("layers", list(weights.TARGETS), "Which layers get a LoRA."),
        Int("rank", 8, "Rank of the LoRA.", 1, 256),
        SEED,
        TEMPLATES_INPUT,
        Text("file", "", "Name of the LoRA's file in models/loras; sub-folders are made. Empty: no file."),
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
        seed,
        templates,
        file,
    ):
        if file.strip():
            model_file("loras", file)  # refuses a name outside the folder before long work
        direction, _, notices = direction_of(image_text, source, target, templates)
        there, back = schedule(model, t0, inversion_steps), schedule(model, t0, train_steps)
        where = weights.layers(model, layers)
        inversion, said = inverted(model, positive, latent, there)
        n, steps = inversion.shape[0], len(back) - 1
        saving = gradient == SAVING
        settings = _README.settings(
            n,
            passes,
            steps=n * passes * (steps if saving else 1),
            lr=lr,
            factor=lr_growth,
            every=n * (steps if saving else 1),
        )
        numbers = [clip_weight, l1_weight, identity_weight, form, layers, rank, seed, str(settings)]
        key = files.cache_key(model, inversion.trajectory, direction, back, numbers)

        def body(run):
            factors = lora.low_rank_all(where.items(), rank, seed=seed, device=run.device)
            net = tuning.caption_net(run)

            def denoiser(name):
                return lambda x, sigma: net(x, sigma, [name] * len(x))

            with differentiable(run, model, vae, image_text) as (decode, embed):
                pictures = pictures_of(inversion, decode, run.device)
                loss = EditLoss(embed, direction.to(run.device), clip_weight, l1_weight, identity_weight, form)
                make = saving_step if saving else chain_step
                step = make(denoiser, pictures, back.to(run.device), decode, loss, on_call=run.tick)
                loop = Loop(lora.parameters(factors), settings, seed)
                with weights.attached(where, factors):
                    curve = trained(loop, step, key)
            words = {"source": source, "target": target, "t0": t0, "method": "DiffusionCLIP"}
            base = {**weights.base_of(model), "nulltext_tuned": json.dumps(words)}
            return weights.to_lora_model(factors, base), curve

        total = settings.steps * (1 if saving else steps)
        made, curve = sample_with(model, {"positive": positive}, source_latent(inversion), back, body, total=total)
        lines = [f"{source!r} -> {target!r}: {curve_line(*curve)}", said, *notices]
        if file.strip():
            path = free_path("loras", file, key)
            weights.save(made, path, {TRAINING: key or ""})
            lines.append(f"Saved as {path.name} in {path.parent}.")
        text = "\n".join(lines)
        return text_result(text, weights.applied(model, None, made)[0], made, text)


def share(model, weight: float, start: float, end: float) -> Share:
    return Share(weight, SigmaWindow(*window(model, start, end)))


WEIGHT = Float("weight", 1.0, "How much of this LoRA's prediction counts; the rest is the model's.", 0.0, 3.0, 0.05)
START = Float("start_percent", 0.0, "From this part of the schedule on (0: pure noise).")
END = Float("end_percent", 1.0, "Up to this part of the schedule (1: done).")


def _numbered(number: int):
    return tuple(
        item(name=f"{item.name}_{number}").optional()
        for item in (LORA(tooltip="A further LoRA of the same model."), WEIGHT, START, END)
    )


class MixModels(Box):
    ID, TITLE, CATEGORY = "NullText_MixModels", "Mix Models (predictions)", CATEGORY
    SEARCH_ALIASES = ["diffusionclip", "mix lora", "prediction mixing", "attribute degree", "model blend"]
    DESCRIPTION = (
        "A guider that mixes a model's predictions with and without several LoRAs, each in its own part of the "
        "schedule: the degree of an edit, and several edits at once (DiffusionCLIP). Cost: one prediction for each "
        "LoRA at work, and one for the model unless their weights reach 1."
    )
    INPUTS = (MODEL, POSITIVE, NEGATIVE, CFG(default=1.0), LORA, WEIGHT, START, END, *_numbered(2), *_numbered(3))
    OUTPUTS = (Output("GUIDER", "For SamplerCustomAdvanced, with any sampler."),)

    def run(self, model, positive, negative, cfg, lora_model, weight, start_percent, end_percent, **more):
        tuned = [(lora_model, share(model, weight, start_percent, end_percent))]
        for i in (2, 3):
            if more.get(f"lora_model_{i}") is not None:
                given = (more.get(f"{name}_{i}", 1.0 * (name != "start_percent")) for name in _DIALS)
                tuned.append((more[f"lora_model_{i}"], share(model, *given)))
        guider = mixing.mix_guider(model, tuned, positive, negative, cfg)
        return text_result(f"{len(tuned)} LoRA(s) mixed with the model.", guider)


_DIALS = ("weight", "start_percent", "end_percent")


class DiffusionCLIPEdit(Box):
    ID, TITLE, CATEGORY = "NullText_DiffusionCLIPEdit", "DiffusionCLIP Edit", CATEGORY
    SEARCH_ALIASES = ["diffusionclip", "text direction edit", "unseen domain", "tuned model edit"]
    DESCRIPTION = (
        "Edits pictures with what DiffusionCLIP Tune made: inverts them by the model alone and samples them again by "
        "the tuned one, or by a mixture. A picture of a kind that the model never saw can first be brought among those "
        "it knows."
    )
    INPUTS = (
        MODEL(tooltip="The model as it was tuned on, without the LoRA."),
        POSITIVE(tooltip="The prompt that was given in tuning, usually empty."),
        LATENT(tooltip="The pictures, encoded."),
        LORA,
        Float("degree", 1.0, "0: the picture comes back; 1: the tuned model; between: both predictions mixed.", 0, 3.0),
        T0,
        INVERSION_STEPS,
        Int("steps", _README.sample, "Steps of the way back; the authors tune with 6 and edit with 40.", 2),
        Int(
            "unseen_passes",
            0,
            "For a picture unlike the model's own: noised to t0 and sampled by the model so often first (the authors "
            "advise more than 8). 0: not.",
            0,
            100,
        ),
        Int("unseen_steps", 6, "Steps of each such pass.", 2),
        SEED,
    )
    OUTPUTS = (Output("LATENT", "The edited pictures."), Output("STRING", "What it cost.", "report"))

    def run(
        self, model, positive, latent, lora_model, degree, t0, inversion_steps, steps, unseen_passes, unseen_steps, seed
    ):
        there, back = schedule(model, t0, inversion_steps), schedule(model, t0, steps)
        guider = mixing.mix_guider(model, [(lora_model, Share(degree))], positive, None, 1.0)
        said = []
        if unseen_passes:
            few = schedule(model, t0, unseen_steps)

            def body(run):
                return into_seen_domain(
                    run.guided("positive", None, 1.0),
                    run.latent,
                    few.to(run.device),
                    noise=gaussian(run.latent, seed),
                    process=run.process,
                    repeats=unseen_passes,
                    on_pass=lambda _i, x: run.tick(unseen_steps),
                )

            total = unseen_passes * unseen_steps
            brought = sample_with(model, {"positive": positive}, check_latent(model, latent), few, body, total=total)
            latent = {"samples": latent_out(model, brought).cpu()}
            said.append(f"{unseen_passes} passes of {unseen_steps} steps by the model alone.")
        inversion, line = inverted(model, positive, latent, there)
        progress = Progress(len(back) - 1, model)
        start = source_latent(inversion)
        out = guider.sample(
            torch.zeros_like(start),
            start,
            own_sampler(sample_euler, start=inversion.x_T),
            back,
            callback=lambda i, denoised, x, total: progress.tick(1, x0=denoised),
            disable_pbar=True,
            seed=seed,
        )
        text = "\n".join([f"Edited at degree {degree:g} in {len(back) - 1} steps.", line, *said])
        return text_result(text, {"samples": out.float().cpu()}, text)


NODES = (DiffusionCLIPTune, DiffusionCLIPEdit, MixModels)
