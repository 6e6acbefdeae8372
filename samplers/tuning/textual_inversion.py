"""Textual inversion (Gal et al. 2208.01618): a new word, its rows of the embedding table learnt and nothing else.

    min over v of E w(s) e(x0, c(v)),   c(v): the text encoder with v where the word stands

Departures. The rows are tensors of their own that replace the output of the table where the word's ids stand, so that
every other row is untouched by construction (the authors' and diffusers' code trains the table and puts the other rows
back after each step). The rate is said relative to the table's rms, since the published one belongs to one encoder:
5e-3 is 0.36 of the rms 0.014 of Stable Diffusion 1's table. Each picture has its own caption: the authors' and
diffusers' code draw a neutral sentence ("a photo of a *" and the like) for it at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def rms(values: Tensor) -> float:
    """Root mean square of a table or an embedding: the size of one of its numbers."""
    return float(values.detach().cpu().double().square().mean().sqrt())


def start_vectors(table: Tensor, rows: Sequence[int], count: int) -> Tensor:
    """[count, width] to begin with: the table's rows of a word that is near, repeated in turn; ordinary, trainable.

    table [words, width]. ValueError for no rows, a row that the table lacks, or a count below 1."""
    if count < 1 or not rows:
        raise ValueError("A new word needs at least one vector and at least one token of a word to begin from.")
    if not all(0 <= row < len(table) for row in rows):
        raise ValueError(f"The table has {len(table)} rows, and a start from row {max(rows)} was asked for.")
    with torch.inference_mode(False):
        picked = torch.stack([table.detach()[rows[i % len(rows)]] for i in range(count)])
        return picked.float().clone().requires_grad_()


def with_word(embedded: Tensor, ids: Tensor, own: Sequence[int], vectors: Tensor) -> Tensor:
    """The table's output [..., width] for ids [...], with vectors[j] wherever own[j] stands; elsewhere as it was, to
    the bit.

    vectors [k, width], own: k ids, which no other word may use. Differentiable in vectors."""
    if vectors.ndim != 2 or len(vectors) != len(own) or vectors.shape[1] != embedded.shape[-1]:
        raise ValueError(
            f"The word's vectors have shape {list(vectors.shape)}, and this text encoder needs {len(own)} of width "
            f"{embedded.shape[-1]}: make the word with the same text encoder."
        )
    for row, vector in zip(own, vectors):
        embedded = torch.where((ids == row)[..., None], vector.to(embedded), embedded)
    return embedded


@dataclass(frozen=True)
class Preset:
    """A published way to learn a word. relative_lr: of the table's rms. vectors: rows that the word takes."""

    steps: int
    relative_lr: float
    batch: int
    vectors: int = 1
    optimiser: str = "AdamW"
    weight_decay: float = 0.01


#: "authors, SD 1": their code's configuration for Stable Diffusion (v1-finetune.yaml), 5e-3 times a batch of 2.
#: "paper" (section 4): 5000 steps of 2 devices with 4 pictures each at 5e-3 times both, .04; here of 8 pictures. It is
#: a rate for the text encoder of the paper's own model, which is no CLIP: four times theirs for Stable Diffusion.
#: "diffusers": the README's 5e-4, times batch 1 and accumulation 4; here a batch of 4.
PRESETS = {
    "authors, SD 1": Preset(steps=6100, relative_lr=2 * 5e-3 / 0.014, batch=2),
    "paper": Preset(steps=5000, relative_lr=8 * 5e-3 / 0.014, batch=8),
    "diffusers": Preset(steps=3000, relative_lr=4 * 5e-4 / 0.014, batch=4),
}
