"""Imagic Optimise: a picture's own text, and the model that gives the picture back from it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace

import torch

from ..engine import folders, training, weights
from ..engine.comfy import is_empty, to_model_space
from ..engine.imagic import plain
from ..engine.streamed import settled
from ..engine.training_store import Store
from ..engine.tuning import Caption
from ..samplers.tuning import lora
from ..samplers.tuning.imagic import PRESETS, embedding_loop
from ..samplers.tuning.loop import Loop, Settings
from ..samplers.tuning.objective import Examples, FixedLoss, denoising_step
from .base import LATENT, MODEL, TRAINING_SEED, Box, Choice, Float, Int, Output, Socket
from .report import text_result
from .tuning_inputs import (
    BATCH,
    CATEGORY,
    CHECKPOINT,
    FIXED_DRAWS,
    LEVELS,
    LOOK_EVERY,
    RANK,
    VAE,
    WEIGHT,
    file_name,
    free_path,
    loss_figure,
    metadata,
    objective_of,
    preset_choice,
    preview,
    shown,
    training_key,
    training_line,
    unkept,
)

TARGET, EMPTY = "target", "empty"


class ImagicOptimise(Box):
    ID, TITLE, CATEGORY = "NullText_ImagicOptimise", "Imagic Optimise", CATEGORY
    SEARCH_ALIASES = ["imagic", "edit one picture", "optimise embedding", "optimize embedding", "text-based editing"]
    DESCRIPTION = (
        "The two trainings of Imagic (arXiv 2210.09276) on one picture: first the target text's embedding moves until "
        "it describes the picture, then low-rank factors of the model learn to give the picture back from it."
    )
    INPUTS = (
        MODEL,
        Socket("target", "CONDITIONING", "The text that says what the picture shall become."),
        Socket("negative", "CONDITIONING", "The empty prompt, for the sample pictures."),
        LATENT(tooltip="The picture, encoded; one only."),
        preset_choice(PRESETS, "paper", "A published way; what stands at 0 below is taken from it."),
        Int("embedding_steps", 0, "Steps of the first training; 0: as the preset.", 0, 100_000),
        Float(
            "embedding_rate",
            0.0,
            "Its learning rate in units of the embedding's root mean square; 0: as the preset.",
            0.0,
            10.0,
            0.0001,
        ),
        Int("model_steps", 0, "Steps of the second training; 0: as the preset.", 0, 100_000),
        Float("model_rate", 0.0, "Learning rate of the factors; 0: as the preset.", 0.0, 1.0, 1e-6),
        BATCH(tooltip="Levels and noises a step; 0: as the preset."),
        RANK,
        Choice("targets", ["all linear and conv", *weights.TARGETS[:-1]], "Which of the network's layers get factors."),
        LEVELS,
        WEIGHT,
        CHECKPOINT,
        TRAINING_SEED,
        file_name("nulltext/imagic", "loras"),
        LOOK_EVERY,
        VAE,
    )
    OUTPUTS = (
        Output("CONDITIONING", "The optimised text: it describes the picture.", "optimised"),
        Output("LORA_MODEL", "What the model learnt, for Imagic Guider.", "lora"),
        Output("IMAGE", "Both losses as figures.", "loss_figure"),
        Output("STRING", "What was done.", "report"),
    )
    OUTPUT_NODE = True

    def run(
        self,
        model,
        target,
        negative,
        latent,
        preset,
        embedding_steps,
        embedding_rate,
        model_steps,
        model_rate,
        batch,
        rank,
        targets,
        levels,
        loss_weight,
        checkpointing,
        training_seed,
        file_name,
        sample_every,
        vae=None,
    ):
        way = PRESETS[preset]
        if is_empty(latent) or len(latent["samples"]) != 1:
            raise ValueError("Imagic learns one picture: wire the latent of a single encoded picture.")
        embedding, extra = plain(target, "target")
        model = settled(model)
        training.check_trainable(model)
        folders.model_file("loras", file_name)
        where = weights.layers(model, targets)
        rank, batch = rank or way.rank, batch or way.batch
        factors = lora.low_rank_all(where.items(), rank, seed=training_seed, device=model.load_device)
        scale = training.loss_scale(model)
        first = Settings(steps=embedding_steps or way.embedding_steps, optimiser=way.optimiser, loss_scale=scale)
        first = Settings(**{**asdict(first), "weight_decay": 0.0})
        second = Settings(
            steps=model_steps or way.model_steps,
            lr=model_rate or way.model_lr,
            optimiser=way.optimiser,
            weight_decay=0.0,
            loss_scale=scale,
        )
        with torch.inference_mode(False):
            start = embedding.detach().float().clone()
        objective = objective_of(model, loss_weight)
        drawn = training.levels_of(model, levels)
        with torch.inference_mode(False):
            x0 = to_model_space(model, latent)[0].float().clone()
        words = [[embedding, extra]], negative
        captions = {TARGET: words[0], EMPTY: words[1]}
        examples = Examples((x0,), (TARGET,), empty=EMPTY)
        held = FixedLoss.of(examples, drawn, FIXED_DRAWS)
        texts = embedding_loop(start, first, embedding_rate or way.embedding_lr, training_seed)
        key = training_key(
            model,
            ["imagic", texts.settings.lr, first.optimiser, scale, training_seed, batch, objective.weight, levels],
            [target, negative, x0],
        )
        store = Store(key)
        began = store.resume(texts)
        common = {"fixed_loss": held, "objective": objective, "checkpoint": checkpointing}

        def step(net, device):
            return denoising_step(net, examples, objective, drawn, batch, device=device)

        def at(value):
            """The net with every target caption read as this embedding."""

            def wrap(net):
                def inner(x, sigma, names):
                    said = [Caption(TARGET, value.to(x.device)) if name == TARGET else name for name in names]
                    return net(x, sigma, said)

                return inner

            return wrap

        done = training.Outcome()
        if texts.step < first.steps:
            live = texts.parameters["embedding"]
            done = training.train(
                model,
                texts,
                step,
                captions,
                x0.shape,
                attached=contextlib.nullcontext,
                wrap=at(live),
                draw=preview(texts, vae),
                store=store,
                rows=batch,
                **common,
            )
        optimised = texts.result()["embedding"]
        loop = Loop(lora.parameters(factors), replace(second, fixed_every=sample_every), training_seed)
        key2 = None if key is None else training_key(model, [key, first.steps, second.lr, rank, targets], optimised)
        store2 = Store(key2)
        began2, path = store2.resume(loop), free_path("loras", file_name, key2, second.steps)

        def written():
            lora.put(factors, loop.result())
            told = metadata(model, key2, [], loop, nulltext_preset=preset, ss_network_dim=rank, ss_network_alpha=rank)
            made = weights.to_lora_model(factors, told, model)
            weights.save(made, path)
            return made

        if done.stopped:
            outcome, made = training.Outcome(), written()
        else:
            outcome, made = training.train_to_file(
                written,
                model,
                loop,
                step,
                captions,
                x0.shape,
                attached=lambda: weights.attached(where, factors),
                wrap=at(optimised),
                look=training.Look(TARGET, sample_every, training_seed, cfg=way.cfg, empty=EMPTY),
                draw=preview(loop, vae),
                store=store2,
                rows=batch,
                measured=lambda: training.on_meta(where, factors),
                **common,
            )
        moved = float((optimised - start).norm())
        figures = [
            loss_figure(texts, "text: loss of each step, and on fixed levels and noises"),
            loss_figure(loop, "model: the same"),
        ]
        figure = torch.cat(figures, dim=1)
        report = "\n".join(
            [
                f"Text: {training_line(texts, done, began)} It moved by {moved:.3g}.",
                f"Model: {training_line(loop, outcome, began2)}",
                f"Saved as {path.name} in {path.parent}.",
                *unkept(key),
            ]
        )
        conditioning = [[optimised, dict(extra)]]
        return text_result(report, conditioning, made, figure, report, **shown(vae, outcome, figure))


NODES = (ImagicOptimise,)
