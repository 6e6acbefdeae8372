"""A rare word's own vectors, trained beside a LoRA: the word means the subject even where the text encoder never
learnt it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..engine import comfy, folders, tuning
from ..engine.tuning_set import stands_in
from ..samplers.tuning.textual_inversion import PRESETS, rms, start_vectors
from .base import Int

PREFIX = "word/"  # of the vectors' names among what is trained
VECTORS = Int(
    "word_vectors",
    0,
    "Train this many vectors for the word, beside the LoRA, and save them as an embedding of the same name: for words "
    "that the text encoder can't tell from others. They start at the word's own tokens, at the first ones where it has "
    "more. 0: none.",
    0,
    32,
).optional()


def begun(clip, near: str, count: int, whole: bool = True) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(vectors [count, width] by encoder, begun at the rows of a near word; the rms of each encoder's table).

    whole: refuse a near word of more tokens than `count` (as the authors' and diffusers' code); else its first ones are
    taken. ValueError for an empty near word."""
    ids, new, sizes = tuning.word_tokens(clip, near), {}, {}
    comfy.load_models([clip.patcher])
    for name, encoder in tuning.encoders(clip).items():
        table, own = tuning.table(encoder), ids[name]
        if not own:
            raise ValueError("The start word is empty: name something near to the new word, such as its class.")
        if len(own) > count and whole:
            raise ValueError(
                f"The start word {near!r} has {len(own)} tokens, and the new word {count}: raise vectors to "
                f"{len(own)}, or take a shorter start word."
            )
        with torch.no_grad():
            rows = table(torch.tensor([own], device=clip.patcher.load_device))[0]
        new[name] = start_vectors(rows, range(len(own)), count)
        sizes[name] = rms(table.weight)
    return new, sizes


def tokens_of(clip, texts: Iterable[str], word: str, own: list[int]) -> dict[str, dict]:
    """The tokens of each text, `own` where the word stands. Refuses like `tuning.tokens_with_word`."""
    return {
        text: tuning.tokens_with_word(clip, text, word, own) if stands_in(text, word) else clip.tokenize(text)
        for text in texts
    }


def namesakes(path: Path) -> list[str]:
    """A notice for every other file that a prompt may read in this embedding's place, or this one in its place."""
    return [
        f"Notice: there is also {other}, and embedding:{name} in a prompt may read either: rename one."
        for name, other in folders.namesakes(path).items()
    ]


@dataclass(frozen=True)
class OwnWord:
    """`vectors` [k, width] by encoder that stand where the word does, and the tokens of every text."""

    clip: object
    own: list[int]
    vectors: dict[str, Tensor]
    sizes: dict[str, float]
    tokens: dict[str, dict]

    @classmethod
    def of(cls, clip, word: str, count: int, texts: Iterable[str]) -> OwnWord:
        """Begun as the text encoder reads the word now. Refuses like `tuning.tokens_with_word`."""
        own = tuning.own_ids(count)
        return cls(clip, own, *begun(clip, word, count, whole=False), tokens_of(clip, texts, word, own))

    def parameters(self) -> dict[str, Tensor]:
        return {PREFIX + name: value for name, value in self.vectors.items()}

    def rates(self, lr: float) -> dict[str, float]:
        """Factors on a learning rate: diffusers' rate of textual inversion, relative to each table's own size."""
        return {PREFIX + name: PRESETS["diffusers"].relative_lr * size / lr for name, size in self.sizes.items()}

    def attached(self):
        return tuning.word_attached(self.clip, self.own, self.vectors)

    def encode(self, text: str):
        return tuning.encode(self.clip, self.tokens[text])

    def save(self, values: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        """values: a loop's result; the vectors among them are written as core's `embedding:name`."""
        tuning.save_word({n.removeprefix(PREFIX): v for n, v in values.items() if n.startswith(PREFIX)}, path, metadata)
