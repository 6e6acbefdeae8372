"""Held-out scenes with one word changed, and how an edit of them is judged: the new attribute is there, the rest is not
touched. Latents are in model space, images [B, 3, 128, 128] in 0..1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo import captions, probe, scenes
from ..demo.scenes import BACKGROUNDS, COLOURS, Scenes
from ..samplers.measure.metrics import masked_mse, psnr, to_psnr

CHANGES = ("colour", "background")
CELL = 8  # pixels of a latent cell
#: a background smaller than this many pixels (one latent cell) is not measured
FEWEST = CELL * CELL
#: dB of a picture that came back to the last bit of fp32
CEILING = 120.0


def one_object(n: int, seed: int) -> Scenes:
    """n held-out scenes of one object whose colour-shape pair was trained."""
    return scenes.sample(n, torch.Generator().manual_seed(seed), "held_out", two=0.0)


def other_value(truth: Scenes, change: str, seed: int) -> Tensor:
    """[B] a new value for every scene, drawn evenly among those that leave a legible scene: not the old one, object and
    background of different colours, and no colour-shape pair that was never trained."""
    n = len(COLOURS if change == "colour" else BACKGROUNDS)
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.empty(len(truth), n, dtype=torch.bool)
    for value in range(n):
        new = truth.changed(change, value)
        old = getattr(truth, change)
        same = (old[:, 0] if old.ndim == 2 else old) == value
        allowed[:, value] = ~same & (new.colour[:, 0] != new.background) & ~scenes.unseen_pair(new)
    return torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]


def changed_region(truth: Scenes, target: Scenes) -> Tensor:
    """[B, 1, 128, 128], 1 where the two drawings differ or lie within one latent cell of that."""
    differ = scenes.difference(truth, target).float()[:, None]
    return F.max_pool2d(differ, 2 * CELL + 1, stride=1, padding=CELL)


@dataclass
class Edit:
    """What a batch of scenes shall become."""

    change: str
    target: Scenes
    context: Tensor  #: [B, 77, 128] the target caption's embedding
    region: Tensor  #: [B, 1, 128, 128] what it may touch


def edits_of(text: nn.Module, truth: Scenes, values: dict[str, Tensor]) -> list[Edit]:
    """One `Edit` for each attribute in `values` ({change: [B] new values})."""
    out = []
    for change, value in values.items():
        target = truth.changed(change, value)
        out.append(Edit(change, target, context_of(text, target), changed_region(truth, target)))
    return out


def context_of(text: nn.Module, truth: Scenes) -> Tensor:
    """[B, 77, 128] embeddings of the full captions."""
    return text(captions.token_rows(*captions.phrases(truth))[0])


def reconstruction_psnr(image: Tensor, decoded: Tensor) -> list[float]:
    """dB per picture against the autoencoder's own decode of the source latent."""
    return psnr(image, decoded).clamp(max=CEILING).tolist()


def judged(judge: nn.Module, edit: Edit, truth: Scenes, image: Tensor, decoded: Tensor) -> list[dict]:
    """Per picture {"success": 0 or 1, "background": dB or None where less than a latent cell is left to compare}."""
    reading = probe.read(judge, image)
    if edit.change == "colour":
        seen, wanted = reading.at_place("colour", truth.place[:, 0]), edit.target.colour[:, 0]
    else:
        seen, wanted = reading.background, edit.target.background
    left = (1 - edit.region).sum((1, 2, 3))
    background = to_psnr(masked_mse(image, decoded, edit.region)).clamp(max=CEILING)
    return [
        {"success": int(seen[i] == wanted[i]), "background": float(background[i]) if left[i] >= FEWEST else None}
        for i in range(len(image))
    ]
