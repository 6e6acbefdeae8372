"""DreamBooth and textual inversion on subjects that no training scene holds: with the class's pictures and without."""

from __future__ import annotations

import torch

from ...demo import captions, scenes, subjects
from ...engine import folders
from ...engine.tuning_set import TuningSet
from ...nodes.train_embedding import TrainEmbedding
from ...nodes.train_lora import LEAVE, TrainLora
from ...nodes.tuning_pictures import PriorPictures
from ..lab import encode, loaded
from .judged import (
    CFG,
    DREAMBOOTH,
    STEPS,
    TEXTUAL_INVERSION,
    defaults,
    drawn,
    lora_file_kb,
    one_object,
    right,
    through_autoencoder,
)

LEAKED = 0.4  # an untrained word drew the subject if the overlap is above this
ARMS = ("with the class's pictures", "without")
#: quick -> prompts, sampling steps, training steps, pictures of the class
EFFORT = {False: (8, STEPS, DREAMBOOTH["steps"], 100), True: (2, 4, 3, 4)}
WORD_FIRST = "with them, on a word learned first"


def subject_set(name: str, n: int = 5, word: str = "sks") -> TuningSet:
    """The n pictures that are taught, encoded, with captions."""
    s = subjects.sample(name, n, torch.Generator().manual_seed(11))
    images, _ = subjects.draw(name, s)
    _, _, vae = loaded()
    with torch.inference_mode():
        latents = tuple(encode(vae, image[None])[0].float().cpu().clone() for image in images)
    return TuningSet(
        latents, tuple(subjects.caption(name, s, word)), (None,) * n, tuple(f"picture {i}" for i in range(n))
    )


def prior_set(name: str, count: int, steps: int) -> TuningSet:
    """Pictures of the class by the untuned model, with full captions of many scenes."""
    model, clip, _ = loaded()
    kind = scenes.SHAPES.index(subjects.SUBJECTS[name][2])
    told = captions.captions(one_object(count, 21, shape=kind))
    given = defaults(
        PriorPictures,
        class_prompt="\n".join(told),
        count=count,
        width=128,
        height=128,
        training_seed=3,
        steps=steps,
        cfg=CFG,
        batch=1,
    )
    given.pop("sample_every")
    with torch.inference_mode():
        return PriorPictures().run(model=model, clip=clip, **given)["result"][0]


def overlap(name: str, images, asked) -> list[float]:
    return [subjects.best_iou(name, image, subjects.pose(asked, i)) for i, image in enumerate(images)]


def scores(name: str, model, clip, word: str, n: int, steps: int, leak: bool = True) -> dict[str, float]:
    """One model's figures: the subject in new scenes, the class, other shapes, an untrained word."""
    _, _, vae = loaded()
    asked = subjects.sample(name, n, torch.Generator().manual_seed(31))
    kind = scenes.SHAPES.index(subjects.SUBJECTS[name][2])
    images = drawn(model, clip, vae, subjects.caption(name, asked, word), 100, steps)
    found = overlap(name, images, asked)
    of_class = one_object(n, 41, shape=kind)
    others = one_object(n, 42)
    others = others.changed("shape", (kind + 1 + torch.arange(n) % (len(scenes.SHAPES) - 1)) % len(scenes.SHAPES))
    kept = right(drawn(model, clip, vae, captions.captions(of_class), 200, steps), of_class, ("colour", "shape"))
    rest = right(drawn(model, clip, vae, captions.captions(others), 300, steps), others, ("colour", "shape"))
    seen = right(images, asked, ("background", "texture", "place"))
    out = {
        "iou": sum(found) / n,
        "background": seen["background"],
        "texture": seen["texture"],
        "place": seen["place"],
        "class_colour": kept["colour"],
        "class_shape": kept["shape"],
        "others": (rest["colour"] + rest["shape"]) / 2,
    }
    if leak:
        away = drawn(model, clip, vae, subjects.caption(name, asked, "zwx"), 100, steps)
        out["leak"] = sum(v > LEAKED for v in overlap(name, away, asked)) / n
    return out


def measure_subject(name: str, quick: bool) -> dict[str, dict[str, float]]:
    """All of one subject: truth through the autoencoder, untuned, DreamBooth in both arms, textual inversion."""
    model, clip, _ = loaded()
    n, steps, train_steps, prior_count = EFFORT[quick]
    asked = subjects.sample(name, n, torch.Generator().manual_seed(31))
    truth = through_autoencoder(subjects.draw(name, asked)[0])
    out = {
        "truth": {"iou": sum(overlap(name, truth, asked)) / n},
        "untuned": scores(name, model, clip, "sks", n, steps),
    }
    taught, prior = subject_set(name), prior_set(name, prior_count, steps)
    for arm in ARMS:
        # equal rows a step: without the class's pictures the subject is seen twice as often
        wired = {"prior": prior} if arm == ARMS[0] else {"prior_weight": 0.0, "batch": 4}
        out[arm] = dreambooth(name, arm, taught, "sks", n, steps, train_steps, **wired)
    told = learned_word(name, taught, train_steps)
    out["textual inversion"] = word_scores(name, model, clip, told, n, steps)
    return out


def dreambooth(name: str, arm: str, taught: TuningSet, word: str, n: int, steps: int, train_steps: int, **wired):
    """The scores of one training; `word` is what the prompts then say."""
    model, clip, _ = loaded()
    given = defaults(TrainLora, training_seed=1, text_encoder=LEAVE, **(DREAMBOOTH | {"steps": train_steps}))
    given["file_name"] = f"bench/{name} {arm}".replace(" ", "_").replace("'", "").replace(",", "")
    with torch.inference_mode():
        made = TrainLora().run(model=model, clip=clip, pictures=taught, **(given | wired))["result"]
    return scores(name, made[0], made[1], word, n, steps) | {"kb": lora_file_kb(given["file_name"])}


def learned_word(name: str, taught: TuningSet, train_steps: int) -> str:
    """`embedding:...` by textual inversion, readable by core's own embedding files from here on."""
    model, clip, _ = loaded()
    given = defaults(
        TrainEmbedding,
        start_word=subjects.SUBJECTS[name][2],
        training_seed=1,
        file_name=f"bench_{name}".replace(" ", "_"),
        **(TEXTUAL_INVERSION | {"steps": train_steps}),
    )
    clip.tokenizer.clip_l.embedding_directory = str(folders.model_file("embeddings", "x").parent)
    with torch.inference_mode():
        return TrainEmbedding().run(model=model, clip=clip, pictures=taught, **given)["result"][0]


def measure_word_first(name: str, quick: bool) -> dict[str, float]:
    """DreamBooth with the class's pictures after textual inversion, both on the same five pictures."""
    n, steps, train_steps, prior_count = EFFORT[quick]
    taught, prior = subject_set(name), prior_set(name, prior_count, steps)
    told = learned_word(name, taught, train_steps)
    return dreambooth(name, WORD_FIRST, taught, told, n, steps, train_steps, prior=prior, learned_word=told)


def word_scores(name: str, model, clip, word: str, n: int, steps: int) -> dict[str, float]:
    """The untouched model with `embedding:...` as the word."""
    found = scores(name, model, clip, word, n, steps, leak=False)
    return {key: found[key] for key in ("iou", "background")}
