"""Edits of rendered scenes with their ground truth: prompts before and after, the redrawn scene, the background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo import captions, probe, scenes

KINDS = ("colour", "shape", "background", "texture")
_VALUES = {
    "colour": len(scenes.COLOURS),
    "shape": len(scenes.SHAPES),
    "background": len(scenes.BACKGROUNDS),
    "texture": len(scenes.TEXTURES),
}


@dataclass(frozen=True)
class Edit:
    """One attribute of one scene changed. `refine`: the source's prompt leaves the attribute's word out."""

    kind: str
    before: scenes.Scenes
    after: scenes.Scenes
    source: str
    edited: str
    refine: bool
    words: tuple[str, str]  # the object's shape word before and after: what local blend looks at

    @property
    def image(self) -> Tensor:
        return scenes.draw(self.before)[0]

    def background(self, cell: int = 8) -> Tensor:
        """[1, 1, H, W], 1 outside the region that truly differs, dilated by one latent cell."""
        changed = scenes.difference(self.before, self.after)[None].float()
        return 1 - F.max_pool2d(changed, 2 * cell + 1, 1, cell)


class ProbeJudge:
    """Reads attributes off pictures [1, 3, 128, 128] with the demo's probe."""

    def __init__(self):
        self.net = probe.load("conv")

    def done(self, edit: Edit, image: Tensor) -> bool:
        reading = probe.read(self.net, image)
        want = getattr(edit.after, edit.kind)
        if edit.kind in ("colour", "shape"):
            return bool(reading.at_place(edit.kind, edit.after.place[:, 0])[0] == want[0, 0])
        return bool(getattr(reading, edit.kind)[0] == want[0])

    def log_odds(self, image: Tensor, colour: int, place: int) -> float:
        """Log-odds of a colour at a place."""
        logits = probe.read(self.net, image).logits["colour"][0, place]
        others = torch.cat([logits[:colour], logits[colour + 1 :]])
        return float(logits[colour] - others.logsumexp(0))


def colour_amount(image: Tensor, scene: scenes.Scenes, cell: int = 8) -> Tensor:
    """[B] how much of the first object's colour there is at its place, in units of the object as it is drawn.

    Each pixel's way from the background's colour (0) towards the object's (1, or beyond it), over the object's mask
    dilated by a latent cell, as a share of the mask: it grows with the object's size and with the depth of its colour,
    and has no end, where a probe that is certain stays certain."""
    mask = scenes.draw(scene)[1][:, :1]
    object_, ground = (
        torch.tensor([scenes.RGB[names[int(i)]] for i in index]).view(-1, 3, 1, 1)
        for names, index in ((scenes.COLOURS, scene.colour[:, 0]), (scenes.BACKGROUNDS, scene.background))
    )
    way = object_ - ground
    part = ((image - ground) * way).sum(1, keepdim=True) / way.square().sum(1, keepdim=True)
    region = F.max_pool2d(mask, 2 * cell + 1, 1, cell)
    return (part * region).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def edits(n: int, seed: int, split: str = "held_out") -> list[Edit]:
    """n edits, the kinds in turn; every other texture edit adds the word to a prompt that did not have it."""
    draws = torch.Generator().manual_seed(seed)
    pool = scenes.sample(40 * n, draws, split, two=0.0)
    found: list[Edit] = []
    for at in range(len(pool)):
        if len(found) == n:
            break
        kind, scene = KINDS[len(found) % 4], pool[at]
        refine = kind == "texture" and len(found) % 8 == 7
        old = getattr(scene, kind)
        old = int(old[0, 0] if old.ndim == 2 else old[0])
        if kind == "texture" and old != 0:  # from plain to a pattern
            continue
        new = (old + 1 + int(torch.randint(_VALUES[kind] - 1, (1,), generator=draws))) % _VALUES[kind]
        after = scene.changed(kind, new)
        same = scenes.COLOURS[int(after.colour[0, 0])] == scenes.BACKGROUNDS[int(after.background[0])]
        if same or bool(scenes.unseen_pair(after)):
            continue
        source, edited = captions.captions(scene)[0], captions.captions(after)[0]
        if refine:
            source = source.replace("plain ", "")
        words = tuple(scenes.SHAPES[int(s.shape[0, 0])] for s in (scene, after))
        found.append(Edit(kind, scene, after, source, edited, refine, words))
    return found
