"""Edits of rendered scenes with their ground truth: prompts before and after, the redrawn scene, what may change.

An edit succeeds when a probe reads the new attribute; its background is what lies outside the region where the two
drawings differ, dilated by one latent cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo import captions, probe, scenes
from ..demo.attributes import truth as value_of
from ..demo.scenes import BACKGROUNDS, COLOURS, Scenes
from ..samplers.measure.metrics import masked_mse, to_psnr
from .lab import Demo, some

CELL = 8  # pixels of a latent cell
CEILING = 120.0  # dB of a picture that came back to the last bit of fp32
FEWEST = CELL * CELL  # pixels of a background that is measured: a latent cell
ENOUGH = 8  # pictures whose mean a table shows
CHANGES = ("colour", "background")  # of every scene of `Changing`
KINDS = ("colour", "shape", "background", "texture")
VALUES = {"colour": COLOURS, "shape": scenes.SHAPES, "background": BACKGROUNDS, "texture": scenes.TEXTURES}


@dataclass(frozen=True)
class Edit:
    """Scenes with one attribute changed. `refine`: the source's prompt leaves the attribute's word out."""

    kind: str
    before: Scenes
    after: Scenes
    refine: bool = False

    @cached_property
    def image(self) -> Tensor:
        return scenes.draw(self.before)[0]

    @cached_property
    def region(self) -> Tensor:
        """[B, 1, 128, 128], 1 where the drawings differ or lie within one latent cell of that: what may change."""
        differ = scenes.difference(self.before, self.after).float().view(-1, 1, 128, 128)
        return F.max_pool2d(differ, 2 * CELL + 1, stride=1, padding=CELL)

    @property
    def source(self) -> str:
        """The first scene's caption."""
        text = captions.captions(self.before)[0]
        return text.replace("plain ", "") if self.refine else text

    @property
    def edited(self) -> str:
        return captions.captions(self.after)[0]

    @property
    def words(self) -> tuple[str, str]:
        """The first object's shape word before and after: what local blend follows."""
        return tuple(scenes.SHAPES[int(s.shape[0, 0])] for s in (self.before, self.after))

    def done(self, judge: nn.Module, image: Tensor) -> Tensor:
        """[B] whether the judge reads the new attribute."""
        return probe.right(probe.read(judge, image), self.after, (self.kind,), self.after.place[:, 0])[self.kind]

    def background(self, image: Tensor, decoded: Tensor, fewest: int) -> list[float | None]:
        """Mean squared error outside the region, per picture; None where fewer pixels than that are left."""
        errors, left = masked_mse(image, decoded, self.region), (1 - self.region).sum((1, 2, 3))
        return [float(error) if n >= fewest else None for error, n in zip(errors, left)]


def judged(judge: nn.Module, edit: Edit, image: Tensor, decoded: Tensor) -> list[dict]:
    """Per picture {"success": 0 or 1, "background": dB or None where less than a latent cell is left to compare}."""
    errors = edit.background(image, decoded, FEWEST)
    rest = [None if e is None else min(float(to_psnr(torch.tensor(e))), CEILING) for e in errors]
    return [{"success": int(s), "background": dB} for s, dB in zip(edit.done(judge, image), rest)]


def rest_cell(value: str, measured: int, edits: int) -> str:
    """A table's cell for the dB of what should stay: with the number of pictures in the mean where some had too little
    left to compare, and without the value where that leaves fewer than ENOUGH."""
    shown = value if measured >= ENOUGH else "-"
    return shown if measured == edits >= ENOUGH else f"{shown} ({measured} of {edits})"


def allowed(truth: Scenes, kind: str) -> Tensor:
    """[B, V] which values leave a legible scene: not the old one, object and background of different colours, and no
    colour-shape pair that was never trained."""
    found = torch.empty(len(truth), len(VALUES[kind]), dtype=torch.bool)
    for value in range(found.shape[1]):
        new = truth.changed(kind, value)
        found[:, value] = (value_of(truth, kind) != value) & (new.colour[:, 0] != new.background)
        found[:, value] &= ~scenes.unseen_pair(new)
    return found


def other_value(truth: Scenes, kind: str, seed: int) -> Tensor:
    """[B] a new value for every scene, drawn evenly among those that are allowed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(allowed(truth, kind).float(), 1, generator=generator)[:, 0]


def edits(n: int, seed: int) -> list[Edit]:
    """n edits of one held-out scene each, the kinds in turn; every other texture edit adds the word to a prompt without
    it."""
    draws = torch.Generator().manual_seed(seed)
    pool = scenes.sample(40 * n, draws, "held_out", two=0.0)
    found: list[Edit] = []
    for scene in (pool[at] for at in range(len(pool))):
        if len(found) == n:
            break
        kind = KINDS[len(found) % 4]
        old = int(value_of(scene, kind)[0])
        if kind == "texture" and old != 0:  # from plain to a pattern
            continue
        new = (old + 1 + int(torch.randint(len(VALUES[kind]) - 1, (1,), generator=draws))) % len(VALUES[kind])
        if bool(allowed(scene, kind)[0, new]):
            found.append(Edit(kind, scene, scene.changed(kind, new), kind == "texture" and len(found) % 8 == 7))
    return found


class Changing(Demo):
    """The demo model, n scenes, and a change of each in its colour and one in its background. made(lab, truth, edits,
    first): some of the scenes, the first one's index last. options: of `Demo`."""

    def __init__(self, n: int, seed: int, made: Callable, **options):
        super().__init__(**options)
        self.truth, self.made = some(n, seed), made
        self.values = {kind: other_value(self.truth, kind, seed + 1 + k) for k, kind in enumerate(CHANGES)}
        self.batches: dict[tuple, object] = {}

    def batch(self, items: list[int]):
        """Scenes by index; kept, so that ways share a pivot."""
        if tuple(items) not in self.batches:
            part = torch.tensor(items)
            truth = self.truth[part]
            edits = [Edit(kind, truth, truth.changed(kind, new[part])) for kind, new in self.values.items()]
            self.batches[tuple(items)] = self.made(self, truth, edits, items[0])
        return self.batches[tuple(items)]


def log_odds(judge: nn.Module, image: Tensor, colour: int, place: int) -> float:
    """Log-odds of a colour at a place of one picture, by a probe."""
    logits = probe.read(judge, image).logits["colour"][0, place]
    others = torch.cat([logits[:colour], logits[colour + 1 :]])
    return float(logits[colour] - others.logsumexp(0))


def colour_amount(image: Tensor, scene: Scenes) -> Tensor:
    """[B] how much of the first object's colour there is at its place, in units of the object as it is drawn.

    Each pixel's way from the background's colour (0) towards the object's (1, or beyond it), over the object's mask
    dilated by a latent cell, relative to the mask: it grows with the object's size and the depth of its colour, and has
    no end, where a probe that is certain stays certain."""
    mask = scenes.draw(scene)[1][:, :1]
    object_, ground = (
        torch.tensor([scenes.RGB[names[int(i)]] for i in index]).view(-1, 3, 1, 1)
        for names, index in ((COLOURS, scene.colour[:, 0]), (BACKGROUNDS, scene.background))
    )
    way = object_ - ground
    part = ((image - ground) * way).sum(1, keepdim=True) / way.square().sum(1, keepdim=True)
    region = F.max_pool2d(mask, 2 * CELL + 1, 1, CELL)
    return (part * region).sum((1, 2, 3)) / mask.sum((1, 2, 3))
