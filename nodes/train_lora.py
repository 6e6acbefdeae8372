"""Train LoRA: DreamBooth, and UniTune as its case without a class."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace

from ..engine import comfy, folders, training, tuning, weights
from ..engine.streamed import settled
from ..engine.training_store import Store
from ..engine.tuning_set import exchanged
from ..samplers.tuning import lora
from ..samplers.tuning.dreambooth import PRESETS, Preset, dreambooth_step
from ..samplers.tuning.loop import Loop, Settings
from ..samplers.tuning.objective import FixedLoss, Objective
from .base import MODEL, TRAINING_SEED, Box, Choice, Float, Output, Socket, Text
from .own_word import VECTORS, OwnWord, namesakes
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
    OWN,
    PICTURES,
    PRESET,
    RANK,
    TRAIN_STEPS,
    VAE,
    WEIGHT,
    file_name,
    free_path,
    loss_figure,
    loss_map,
    metadata,
    preset_choice,
    preview,
    shown,
    training_key,
    training_line,
    unkept,
)

TRAIN, LEAVE = "train it", "leave it"
TEXT = "text_encoder"


def settings_of(preset: Preset, scale: float) -> Settings:
    """The loop's settings of a preset, whose own fields the widgets have replaced already."""
    return Settings(
        steps=preset.steps,
        lr=preset.lr,
        optimiser=preset.optimiser,
        weight_decay=preset.weight_decay,
        accumulate=preset.accumulate,
        clip=preset.clip,
        warmup=preset.warmup,
        schedule=preset.schedule,
        loss_scale=scale,
    )


def entering(settings: Settings) -> list:
    """What of the settings decides the numbers trained; the number of steps does not where the rate is constant."""
    told = asdict(settings)
    if settings.schedule == "constant":
        told.pop("steps")
    return [told]


class TrainLora(Box):
    ID, TITLE, CATEGORY = "NullText_TrainLora", "Train LoRA (DreamBooth)", CATEGORY
    SEARCH_ALIASES = ["dreambooth", "lora training", "fine-tune", "subject", "unitune", "personalization"]
    DESCRIPTION = (
        "Teaches the model a subject from a few pictures: low-rank factors beside its weights learn that a rare word "
        "means it (DreamBooth, arXiv 2208.12242). It writes a LoRA that every ComfyUI loads."
    )
    INPUTS = (
        MODEL,
        CLIP,
        PICTURES,
        Text("word", "sks", "The rare word that shall mean the subject. It must stand in every caption."),
        preset_choice(
            PRESETS,
            "diffusers",
            "A published way to train; what stands at 0 or 'as the preset' below is taken from it. UniTune: one "
            "picture, its caption the word alone, no prior.",
        ),
        TRAIN_STEPS,
        Float(
            "learning_rate",
            0.0,
            "Highest learning rate of the network's factors; 0: as the preset. Higher learns faster, too high spoils "
            "the pictures.",
            0.0,
            1.0,
            1e-6,
        ),
        BATCH(tooltip="Pictures of the subject a step, and as many of the class; 0: as the preset."),
        RANK,
        Float(
            "alpha", 0.0, "The LoRA acts at alpha / rank: higher acts more strongly. 0: as the preset.", 0.0, 256.0, 0.1
        ),
        Choice(
            "targets",
            [PRESET, *weights.TARGETS],
            "Which of the network's layers get factors. transformers: the projections around a UNet's transformers "
            "too, and in networks that are no UNet all Linear layers of the blocks, as kohya does.",
        ),
        Choice(TEXT, [PRESET, TRAIN, LEAVE], "Whether CLIP's attention layers get factors too."),
        Float(
            "prior_weight",
            -1.0,
            "Lambda, how much the class pictures count; the paper: 1. Below 0: as the preset.",
            -1.0,
            100.0,
            0.1,
        ),
        LEVELS,
        WEIGHT,
        DROPOUT,
        CHECKPOINT,
        TRAINING_SEED,
        file_name("nulltext/subject", "loras"),
        LOOK_EVERY,
        Text("sample_prompt", "", "Prompt of the sample pictures; empty: the first caption."),
        Socket(
            "prior", "TUNING_SET", "Pictures of the class by the untuned model, from Prior Pictures; without: no prior."
        ).optional(),
        VAE,
        VECTORS,
        Text(
            "learned_word",
            "",
            "A word learned first, from Train Embedding (embedding:name): it stands in the word's place in the "
            "captions and the sample prompt, so that no other rare word draws the subject.",
        ).optional(),
    )
    OUTPUTS = (
        Output("MODEL", "The model with the LoRA."),
        Output("CLIP", "The text encoder, with its part of the LoRA where it was trained."),
        Output("LORA_MODEL", "The LoRA alone, for Imagic Guider, Save LoRA and core's nodes.", "lora"),
        *LOSS_OUTPUTS,
    )
    OUTPUT_NODE = True

    def run(
        self,
        model,
        clip,
        pictures,
        word,
        preset,
        steps,
        learning_rate,
        batch,
        rank,
        alpha,
        targets,
        text_encoder,
        prior_weight,
        levels,
        loss_weight,
        caption_dropout,
        checkpointing,
        training_seed,
        file_name,
        sample_every,
        sample_prompt,
        prior=None,
        vae=None,
        word_vectors=0,
        learned_word="",
    ):
        way = chosen(
            PRESETS[preset],
            steps=steps,
            lr=learning_rate,
            batch=batch,
            rank=rank,
            alpha=alpha,
            targets=targets,
            text=text_encoder,
            prior_weight=prior_weight,
            dropout=caption_dropout,
        )
        of_text = bool(way.text_lr or word_vectors)  # whether texts are encoded anew at every step
        given, given_clip = model, clip
        model, clip = settled(model), settled(clip) if of_text else clip
        training.check_trainable(model, clip if of_text else None)
        pictures.check_word(word)
        if learned_word.strip():
            tuning.check_saved(clip, learned_word)
            sample_prompt = exchanged(sample_prompt, word, learned_word)
            pictures, word = pictures.with_word(word, learned_word), learned_word.strip()
        for folder in ("loras", *(("embeddings",) if word_vectors else ())):
            folders.model_file(folder, file_name)  # refused before any work
        where = weights.layers(model, way.targets)
        text_where = weights.text_layers(clip, way.text_targets) if way.text_lr else {}
        start = (way.rank, way.alpha, way.init)
        factors = lora.low_rank_all(where.items(), *start, seed=training_seed, device=model.load_device)
        factors |= lora.low_rank_all(text_where.items(), *start, seed=training_seed, device=clip.patcher.load_device)
        said = []
        if prior is None and way.prior_weight:
            said.append("Notice: without prior pictures the model forgets the class; Prior Pictures makes them.")
        elif prior is not None and not way.prior_weight:
            said.append("Notice: lambda is 0, so the prior pictures are not used.")
        elif prior is not None and len(prior) < way.prior_pictures:
            said.append(f"Notice: {len(prior)} prior pictures; this preset's source uses {way.prior_pictures}.")
        used = prior if way.prior_weight else None
        taught = dict.fromkeys([*pictures.texts(), *(used.texts() if used else [])])
        texts = [*taught, sample_prompt]
        own = OwnWord.of(clip, word, word_vectors, texts) if word_vectors else None
        captions = tuning.conditions_of(model, clip, texts)
        settings = settings_of(way, training.loss_scale(model))
        rates = {"lora_te": way.text_lr / way.lr} if way.text_lr else {}
        if way.rest != 1:
            rates |= {f"{name}.": way.rest for name in where.keys() - weights.attention_outputs(model)}
        rates |= own.rates(way.lr) if own else {}
        loop = Loop(
            lora.parameters(factors) | (own.parameters() if own else {}),
            replace(settings, fixed_every=sample_every),
            training_seed,
            rates,
        )
        objective = Objective(comfy.process_of(model), weight_of(model, way, loss_weight))
        drawn = training.levels_of(model, levels)
        key = training_key(
            model,
            [*entering(settings), rates, training_seed, way.rank, way.alpha, way.init],
            [way.batch, way.dropout, way.prior_weight],
            [way.targets, bool(way.text_lr), objective.weight, levels],
            pictures.content(),
            used.content() if used else None,
            {text: captions[text] for text in taught},
            *(["own word", word, word_vectors] if own else []),
        )
        store, began_at = Store(key), 0
        began_at = store.resume(loop)
        examples, of_class = pictures.examples(model), used.examples(model) if used else None
        held = FixedLoss.of(examples, drawn, FIXED_DRAWS)

        def step(net, device):
            return dreambooth_step(
                net, examples, of_class, objective, drawn, way.batch, way.prior_weight, way.dropout, device
            )

        @contextlib.contextmanager
        def attached():
            of_clip = {name: factors[name] for name in text_where}
            of_net = {name: factors[name] for name in where}
            word_in = own.attached() if own else contextlib.nullcontext()
            with weights.attached(where, of_net), weights.attached(text_where, of_clip), word_in:
                yield

        path = free_path("loras", file_name, key, settings.steps)
        word_path = free_path("embeddings", file_name, key, settings.steps) if own else None
        called = f"embedding:{folders.model_name('embeddings', word_path)}" if own else ""

        def encode(text):
            return own.encode(text) if own else tuning.encode(clip, clip.tokenize(text))

        def written():
            lora.put(factors, loop.result())
            more = {
                **weights.text_base_of(clip),
                "nulltext_word": word,
                "nulltext_preset": preset,
                "ss_network_module": "networks.lora",
                "ss_network_dim": way.rank,
                "ss_network_alpha": way.rank if way.alpha is None else way.alpha,
            }
            more |= {"nulltext_embedding": called} if own else {}
            told = metadata(model, key, pictures.captions, loop, **more)
            if own:
                own.save(loop.result(), word_path, told)
            made = weights.to_lora_model(factors, told, model)
            weights.save(made, path)
            return made

        outcome, made = training.train_to_file(
            written,
            model,
            loop,
            step,
            captions,
            pictures.latents[0].shape,
            attached=attached,
            clip=clip if of_text else None,
            encode=encode if of_text else None,
            fixed_loss=held,
            objective=objective,
            look=training.Look(sample_prompt or pictures.captions[0], sample_every, training_seed),
            draw=preview(loop, vae),
            checkpoint=checkpointing,
            store=store,
            rows=way.batch * (2 if used else 1),
            measured=lambda: training.on_meta(where, {name: factors[name] for name in where}),
        )
        patched, text = weights.applied(given, given_clip if way.text_lr else None, made)
        figure = loss_figure(loop)
        size = path.stat().st_size / 1000
        said = [
            training_line(loop, outcome, began_at),
            f"Saved as {path.name} ({size:.0f} kB) in {path.parent}: {len(factors)} layers, rank {way.rank}.",
            *([f"The word is {word_path.name} in {word_path.parent}: write {called} for it."] if own else []),
            *(namesakes(word_path) if own else []),
            *said,
            *unkept(key),
        ]
        report = "\n".join(said)
        return text_result(
            report,
            patched,
            text if way.text_lr else given_clip,
            made,
            loss_map(loop),
            figure,
            report,
            **shown(vae, outcome, figure),
        )


def chosen(preset: Preset, *, steps, lr, batch, rank, alpha, targets, text, prior_weight, dropout) -> Preset:
    """The preset with the widgets' own values in place of its own."""
    lr = lr or preset.lr
    text_lr = {PRESET: preset.text_lr and preset.text_lr / preset.lr * lr, TRAIN: lr, LEAVE: 0.0}[text]
    return replace(
        preset,
        steps=steps or preset.steps,
        lr=lr,
        text_lr=text_lr,
        batch=batch or preset.batch,
        rank=rank or preset.rank,
        alpha=alpha or preset.alpha,
        targets=preset.targets if targets == PRESET else targets,
        prior_weight=preset.prior_weight if prior_weight < 0 else prior_weight,
        dropout=dropout or preset.dropout,
    )


def weight_of(model, way: Preset, wanted: str) -> str:
    """The loss weight's name; a preset's "eps" means the model's own, which is eps where the papers trained."""
    if wanted != OWN:
        return wanted
    return training.own_weight(model) if way.weight == "eps" else way.weight


NODES = (TrainLora,)
