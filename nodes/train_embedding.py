"""Train Embedding: a new word by textual inversion, in a file that ComfyUI reads as `embedding:name`."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..engine import folders, training, tuning
from ..engine.streamed import settled
from ..engine.training_store import Store
from ..samplers.tuning.loop import Loop, Settings
from ..samplers.tuning.objective import FixedLoss, denoising_step
from ..samplers.tuning.textual_inversion import PRESETS, rms
from .base import MODEL, TRAINING_SEED, Box, Float, Int, Output, Text
from .own_word import begun, namesakes, tokens_of
from .report import text_result
from .tuning_inputs import (
    BATCH,
    CATEGORY,
    CHECKPOINT,
    CLIP,
    DROPOUT,
    FIXED_DRAWS,
    LEVELS,
    LOOK_EVERY,
    LOSS_OUTPUTS,
    PICTURES,
    TRAIN_STEPS,
    VAE,
    WEIGHT,
    file_name,
    free_path,
    loss_figure,
    loss_map,
    metadata,
    objective_of,
    preset_choice,
    preview,
    shown,
    training_key,
    training_line,
    unkept,
)


class TrainEmbedding(Box):
    ID, TITLE, CATEGORY = "NullText_TrainEmbedding", "Train Embedding (Textual Inversion)", CATEGORY
    SEARCH_ALIASES = ["textual inversion", "embedding training", "new word", "concept", "personalization"]
    DESCRIPTION = (
        "Learns a new word from a few pictures: only the word's vectors in the text encoder's table are trained "
        "(arXiv 2208.01618). It writes an embedding file for prompts: embedding:name."
    )
    INPUTS = (
        MODEL,
        CLIP,
        PICTURES,
        Text("word", "sks", "What stands for the new word in the captions; it must stand in every one."),
        Text("start_word", "dog", "A word that is near: the new one begins as it."),
        preset_choice(
            PRESETS,
            "authors, SD 1",
            "A published way to train; what stands at 0 below is taken from it. Paper: its rate belongs to the text "
            "encoder of the paper's own model.",
        ),
        TRAIN_STEPS,
        Float(
            "learning_rate",
            0.0,
            "Learning rate in units of the table's own size (its root mean square), so that one number fits every "
            "text encoder; 0: as the preset.",
            0.0,
            100.0,
            0.001,
        ),
        BATCH,
        Int("vectors", 0, "How many tokens the word takes; 0: as the preset, one.", 0, 32),
        LEVELS,
        WEIGHT,
        DROPOUT,
        CHECKPOINT,
        TRAINING_SEED,
        file_name("nulltext_word", "embeddings"),
        LOOK_EVERY,
        Text("sample_prompt", "", "Prompt of the sample pictures; empty: the first caption."),
        VAE,
    )
    OUTPUTS = (
        Output("STRING", "What to write in a prompt for the new word: embedding:name.", "word"),
        Output("CONDITIONING", "The sample prompt with the new word in it."),
        *LOSS_OUTPUTS,
    )
    OUTPUT_NODE = True

    def run(
        self,
        model,
        clip,
        pictures,
        word,
        start_word,
        preset,
        steps,
        learning_rate,
        batch,
        vectors,
        levels,
        loss_weight,
        caption_dropout,
        checkpointing,
        training_seed,
        file_name,
        sample_every,
        sample_prompt,
        vae=None,
    ):
        way = PRESETS[preset]
        steps, batch, count = steps or way.steps, batch or way.batch, vectors or way.vectors
        rate = learning_rate or way.relative_lr
        model, clip = settled(model), settled(clip)
        training.check_trainable(model, clip)
        pictures.check_word(word)
        folders.model_file("embeddings", file_name)
        own = tuning.own_ids(count)
        prompt = sample_prompt or pictures.captions[0]
        tokens = tokens_of(clip, dict.fromkeys([*pictures.captions, "", prompt]), word, own)
        captions = tuning.conditions_of(model, clip, tokens)
        new, sizes = begun(clip, start_word, count)
        first = next(iter(new))
        settings = Settings(
            steps=steps,
            lr=rate * sizes[first],
            optimiser=way.optimiser,
            weight_decay=way.weight_decay,
            loss_scale=training.loss_scale(model),
        )
        loop = Loop(
            new,
            replace(settings, fixed_every=sample_every),
            training_seed,
            {name: size / sizes[first] for name, size in sizes.items()},
        )
        objective = objective_of(model, loss_weight)
        drawn = training.levels_of(model, levels)
        key = training_key(
            model,
            ["textual inversion", settings.lr, settings.optimiser, settings.weight_decay, settings.loss_scale],
            [training_seed, batch, count, caption_dropout, objective.weight, levels, word, start_word],
            pictures.content(),
            {text: captions[text] for text in ("", *pictures.captions)},
        )
        store = Store(key)
        began_at = store.resume(loop)
        examples = pictures.examples(model)
        path = free_path("embeddings", file_name, key, settings.steps)

        def written():
            told = metadata(model, key, pictures.captions, loop, nulltext_word=word, nulltext_preset=preset)
            tuning.save_word(loop.result(), path, told)

        outcome, _ = training.train_to_file(
            written,
            model,
            loop,
            lambda net, device: denoising_step(net, examples, objective, drawn, batch, caption_dropout, device),
            captions,
            pictures.latents[0].shape,
            attached=lambda: tuning.word_attached(clip, own, loop.parameters),
            clip=clip,
            encode=lambda text: tuning.encode(clip, tokens[text]),
            fixed_loss=FixedLoss.of(examples, drawn, FIXED_DRAWS),
            objective=objective,
            look=training.Look(prompt, sample_every, training_seed),
            draw=preview(loop, vae),
            checkpoint=checkpointing,
            store=store,
            rows=batch,
        )
        with tuning.word_attached(clip, own, loop.result()), torch.no_grad():
            embedding, pooled = tuning.encode(clip, tokens[prompt])
        figure = loss_figure(loop)
        name = f"embedding:{folders.model_name('embeddings', path)}"
        grown = ", ".join(f"{n} {rms(v) / sizes[n]:.2g} times" for n, v in loop.result().items())
        report = "\n".join(
            [
                training_line(loop, outcome, began_at),
                f"Saved as {path.name} in {path.parent}: write {name} in a prompt. Size of its numbers against the "
                f"table's: {grown}.",
                *namesakes(path),
                *unkept(key),
            ]
        )
        conditioning = [[embedding, {"pooled_output": pooled}]]
        return text_result(report, name, conditioning, loss_map(loop), figure, report, **shown(vae, outcome, figure))


NODES = (TrainEmbedding,)
