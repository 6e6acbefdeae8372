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

    def done(self, judge, image: Tensor) -> bool:
        """Whether the probe reads the new attribute off an image [1, 3, 128, 128]."""
        reading = probe.read(judge, image)
        want = getattr(self.after, self.kind)
        if self.kind in ("colour", "shape"):
            return bool(reading.at_place(self.kind, self.after.place[:, 0])[0] == want[0, 0])
        return bool(getattr(reading, self.kind)[0] == want[0])


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
