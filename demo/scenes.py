"""Scenes of known shape, colour, place and texture, drawn with signed distance functions: every figure's ground truth.

A scene is a row of integer attributes plus a row of nuisance numbers in [0, 1) (exact position, light, stripe angle).
Drawing is a pure function of the two, so "the same scene with one attribute changed" is exact, and everything is
deterministic by seed. Runs on CPU and GPU; images are [B, 3, H, W] in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .shapes import shape_distance

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
BACKGROUNDS = COLOURS + ("pink", "brown", "gray", "teal")
SIZES = ("small", "medium", "large")
PLACES = ("left", "right", "top", "bottom", "middle")
TEXTURES = ("plain", "striped", "checkered", "mottled")
STYLES = ("photo", "drawing")

RGB = {
    "red": (0.85, 0.10, 0.12),
    "green": (0.13, 0.58, 0.20),
    "blue": (0.13, 0.27, 0.85),
    "yellow": (0.96, 0.87, 0.12),
    "orange": (0.98, 0.52, 0.05),
    "purple": (0.53, 0.16, 0.70),
    "white": (0.95, 0.95, 0.95),
    "black": (0.09, 0.09, 0.11),
    "pink": (0.98, 0.62, 0.75),
    "brown": (0.45, 0.27, 0.14),
    "gray": (0.54, 0.54, 0.56),
    "teal": (0.08, 0.60, 0.62),
}
#: colours that no training scene of the diffusion holds, for subjects that are taught and for the decoder's figure
UNSEEN_COLOURS = {
    "cyan": (0.05, 0.85, 0.92),
    "magenta": (0.92, 0.10, 0.72),
    "lime": (0.62, 0.95, 0.10),
    "navy": (0.05, 0.08, 0.42),
    "salmon": (0.98, 0.50, 0.44),
    "olive": (0.48, 0.50, 0.06),
}
CENTRES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75), "middle": (0.5, 0.5)}
RADII = (0.135, 0.19, 0.25)

#: colour-shape pairs that no training scene holds
UNSEEN_PAIRS = (
    ("red", "star"),
    ("green", "ring"),
    ("blue", "triangle"),
    ("yellow", "cross"),
    ("purple", "square"),
    ("orange", "circle"),
    ("white", "star"),
    ("black", "ring"),
)
NUISANCES = 40

#: [colours, shapes] bool: UNSEEN_PAIRS as a table
UNSEEN_TABLE = torch.zeros(len(COLOURS), len(SHAPES), dtype=torch.bool)
for _c, _s in UNSEEN_PAIRS:
    UNSEEN_TABLE[COLOURS.index(_c), SHAPES.index(_s)] = True


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes. Object attributes are [B, 2] (the second object counts where `count` is 2), the others [B]."""

    shape: Tensor
    colour: Tensor
    size: Tensor
    place: Tensor
    count: Tensor
    background: Tensor
    texture: Tensor
    style: Tensor
    nuisance: Tensor  # [B, NUISANCES] in [0, 1)

    def __len__(self):
        return len(self.count)

    def __getitem__(self, index) -> Scenes:
        if isinstance(index, int):
            index = slice(index, index + 1)
        return Scenes(*(getattr(self, f)[index] for f in self.__dataclass_fields__))

    def to(self, device) -> Scenes:
        return Scenes(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))

    def changed(self, attribute: str, value: Tensor | int, item: int = 0) -> Scenes:
        """The same scenes with exactly one attribute changed (of object `item`, where it belongs to an object)."""
        old = getattr(self, attribute)
        new = old.clone()
        (new[:, item] if old.ndim == 2 else new)[:] = torch.as_tensor(value, device=old.device)
        return replace(self, **{attribute: new})


def unseen_paint(n: int) -> Tensor:
    """[n, 2, 3] RGB for `draw`: objects in the unseen colours in turn."""
    table = torch.tensor(list(UNSEEN_COLOURS.values()))
    first = torch.arange(n) % len(table)
    return table[torch.stack([first, (first + 1) % len(table)], 1)]


def cat(parts: list[Scenes]) -> Scenes:
    return Scenes(*(torch.cat([getattr(p, f) for p in parts]) for f in Scenes.__dataclass_fields__))


def held_out(scenes: Scenes) -> Tensor:
    """[B] bool: the combination belongs to the held-out split (one in ten by a fixed hash, and every unseen pair)."""
    one = torch.tensor(1, device=scenes.count.device)
    key = scenes.background * 7919 + scenes.texture * 104729 + scenes.style * 1299709
    for i in range(2):
        there = torch.where(scenes.count > i, one, one * 0)
        part = scenes.shape[:, i] * 31 + scenes.colour[:, i] * 997 + scenes.size[:, i] * 15 + scenes.place[:, i] * 5003
        key = key + there * (i + 1) * part * 613
    return ((key * 2654435761) % 4294967296 // 65536 % 10 == 0) | unseen_pair(scenes)


def unseen_pair(scenes: Scenes) -> Tensor:
    """[B] bool: an object of the scene has a colour-shape pair that is never trained."""
    table = UNSEEN_TABLE.to(scenes.count.device)
    pair = table[scenes.colour, scenes.shape]
    return pair[:, 0] | (pair[:, 1] & (scenes.count == 2))


def sample(n: int, generator: torch.Generator, split: str = "train", two: float = 0.35) -> Scenes:
    """n random scenes of `split` ("train", "held_out" = held-out combinations of trained pairs, "unseen" = one object
    of a never trained pair, "any"); `two` is the share of two-object scenes."""
    parts, have = [], 0
    while have < n:
        batch = _draw(max(64, 2 * (n - have)) * (12 if split in ("held_out", "unseen") else 1), generator, two)
        if split == "train":
            batch = batch[~held_out(batch)]
        elif split == "held_out":
            batch = batch[held_out(batch) & ~unseen_pair(batch)]
        elif split == "unseen":
            batch = batch[unseen_pair(batch) & (batch.count == 1)]
        parts.append(batch[: n - have])
        have += len(parts[-1])
    return cat(parts)


def _draw(n: int, g: torch.Generator, two: float) -> Scenes:
    device = g.device

    def pick(k, *shape):
        return torch.randint(k, (n, *shape), generator=g, device=device)

    count = 1 + (torch.rand(n, generator=g, device=device) < two).long()
    colour, shape = pick(len(COLOURS), 2), pick(len(SHAPES), 2)
    # two objects differ in colour and shape, so that a caption names each
    colour[:, 1] = (colour[:, 0] + 1 + pick(len(COLOURS) - 1)) % len(COLOURS)
    shape[:, 1] = (shape[:, 0] + 1 + pick(len(SHAPES) - 1)) % len(SHAPES)
    background = pick(len(BACKGROUNDS))
    for _ in range(3):  # an object is never of the background's colour
        for i in range(2):
            background = torch.where(colour[:, i] == background, (background + 1) % len(BACKGROUNDS), background)
    size, place = pick(len(SIZES), 2), pick(len(PLACES), 2)
    pair = pick(4)
    both = count == 2
    first = torch.tensor([0, 1, 2, 3], device=device)[pair]
    second = torch.tensor([1, 0, 3, 2], device=device)[pair]
    place = torch.where(both[:, None], torch.stack([first, second], 1), place)
    size = torch.where(both[:, None], size.clamp(max=1), size)
    return Scenes(
        shape,
        colour,
        size,
        place,
        count,
        background,
        pick(len(TEXTURES)),
        pick(len(STYLES)),
        torch.rand(n, NUISANCES, generator=g, device=device),
    )


# --------------------------------------------------------------------------------------------------- drawing


def _rgb(names, index: Tensor) -> Tensor:
    table = torch.tensor([RGB[n] for n in names], device=index.device)
    return table[index][:, :, None, None]


def _waves(nuisance: Tensor, x: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
    """A smooth random pattern about -1..1: six plane waves; nuisance [B, 18]."""
    out = 0
    for i in range(6):
        f, a, p = (nuisance[:, 3 * i + j, None, None] for j in range(3))
        f, a = lo + (hi - lo) * f, 2 * math.pi * a
        out = out + torch.sin(2 * math.pi * (f * (x * torch.cos(a) + y * torch.sin(a)) + p))
    return out / 2.5


def _background(s: Scenes, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    u = s.nuisance
    base = _rgb(BACKGROUNDS, s.background)
    light, dark = base + 0.30 * (1 - base), base * 0.74
    angle = (u[:, 8] * 4).floor() * math.pi / 4 + (u[:, 9] - 0.5) * 0.2
    angle = torch.where(s.texture == 2, (u[:, 9] - 0.5) * 0.3, angle)[:, None, None]
    xr, yr = x * torch.cos(angle) + y * torch.sin(angle), y * torch.cos(angle) - x * torch.sin(angle)
    period = (0.22 + 0.10 * u[:, 10])[:, None, None]
    soft = 3.2 * pixel / period * 2 * math.pi  # edges about three pixels wide
    stripe = (torch.sin(2 * math.pi * (xr / period + u[:, 11, None, None])) / soft).clamp(-1, 1)
    other = (torch.sin(2 * math.pi * (yr / period + u[:, 12, None, None])) / soft).clamp(-1, 1)
    pattern = torch.zeros_like(stripe)
    texture = s.texture[:, None, None]
    pattern = torch.where(texture == 1, stripe, pattern)
    pattern = torch.where(texture == 2, stripe * other, pattern)
    pattern = torch.where(texture == 3, _waves(u[:, 13:31], x, y, 2.5, 6.5).clamp(-1, 1), pattern)[:, None]
    image = base + pattern.clamp(min=0) * (light - base) + (-pattern).clamp(min=0) * (dark - base)
    return image


def draw(
    scenes: Scenes, size: int = 128, paint: Tensor | None = None, form: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Images [B, 3, size, size] in 0..1 and object masks [B, 2, size, size] in 0..1 (the second all 0 where absent).

    paint: [B, 2, 3] RGB in 0..1 of the objects, in place of their named colours. form: the objects' signed distance as
    a function of (x, y) in units of the radius, in place of their named shapes."""
    s, u, device = scenes, scenes.nuisance, scenes.nuisance.device
    grid = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    x, y = x[None], y[None]
    pixel = 1 / size
    photo = (s.style == 0)[:, None, None]
    angle = 2 * math.pi * u[:, 31, None, None]
    lx, ly = torch.cos(angle), torch.sin(angle)

    image = _background(s, x, y, pixel)
    lit = 1 + 0.16 * ((x - 0.5) * lx + (y - 0.5) * ly)
    image = torch.where(photo[:, None], image * lit[:, None], image)

    masks = torch.zeros(len(s), 2, size, size, device=device)
    centres = torch.tensor([CENTRES[p] for p in PLACES], device=device)[s.place]
    radii = torch.tensor(RADII, device=device)[s.size]
    for i in range(2):
        there = (s.count > i)[:, None, None]
        cx = centres[:, i, 0] + (u[:, 4 * i] - 0.5) * 0.07
        cy = centres[:, i, 1] + (u[:, 4 * i + 1] - 0.5) * 0.07
        r = (radii[:, i] * (0.93 + 0.14 * u[:, 4 * i + 2]))[:, None, None]
        turn = ((u[:, 4 * i + 3] - 0.5) * 0.5)[:, None, None]
        px, py = (x - cx[:, None, None]) / r, (y - cy[:, None, None]) / r
        qx, qy = px * torch.cos(turn) + py * torch.sin(turn), py * torch.cos(turn) - px * torch.sin(turn)
        shape = s.shape[:, i, None, None]
        distance = (lambda x, y, shape=shape: shape_distance(shape, x, y)) if form is None else form
        inside = distance(qx, qy) * r
        alpha = (0.5 - inside / (1.6 * pixel)).clamp(0, 1) * there

        # soft shadow away from the light, photo only
        ox, oy = lx * 0.3, ly * 0.3
        sx = (px + ox) * torch.cos(turn) + (py + oy) * torch.sin(turn)
        sy = (py + oy) * torch.cos(turn) - (px + ox) * torch.sin(turn)
        shadow = (0.5 - distance(sx, sy) * r / (9 * pixel)).clamp(0, 1) * there * photo * 0.38
        image = image * (1 - shadow[:, None])

        colour = _rgb(COLOURS, s.colour[:, i]) if paint is None else paint[:, i, :, None, None]
        shade = (1 + 0.24 * (px * lx + py * ly))[:, None]
        glow = torch.exp(-((px - 0.38 * lx) ** 2 + (py - 0.38 * ly) ** 2) / 0.09)[:, None]
        solid = (colour * shade.clamp(0.6, 1.3) + 0.34 * glow * (1 - colour * 0.6)).clamp(0, 1)
        solid = torch.where(colour.mean(1, keepdim=True) < 0.2, colour + 0.16 * glow + 0.05 * (shade - 1), solid)
        outline = ((inside + 2.4 * pixel) / (1.4 * pixel)).clamp(0, 1)[:, None]
        flat = colour * (1 - outline) + 0.45 * colour * outline
        body = torch.where(photo[:, None], solid, flat)
        image = image * (1 - alpha[:, None]) + body * alpha[:, None]
        masks[:, i] = alpha
    return image.clamp(0, 1), masks


def difference(a: Scenes, b: Scenes, size: int = 128, threshold: float = 0.02) -> Tensor:
    """[B, size, size] bool: where two drawings truly differ (the region an edit from one to the other may touch)."""
    return (draw(a, size)[0] - draw(b, size)[0]).abs().amax(1) > threshold
