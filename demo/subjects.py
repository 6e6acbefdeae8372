"""Subjects for tuning: things that no training scene holds, drawn into any scene, and the judge that finds them again.

A subject is an unseen shape in an unseen colour (`scenes.UNSEEN_COLOURS`). It takes the place, size, turn and light of
the scene's first object. The judge looks at geometry alone: which pixels have the subject's colour, and how well they
overlap the shape drawn at the asked place, over small shifts, sizes and turns. No network has a say in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import captions, scenes
from .scenes import Scenes

#: signed distance in units of the radius, as in scenes: (x, y) -> < 0 inside; y points down
Distance = Callable[[Tensor, Tensor], Tensor]


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    full, bite = (x**2 + y**2).sqrt() - 0.92, ((x - 0.42) ** 2 + (y + 0.1) ** 2).sqrt() - 0.72
    return torch.maximum(full, -bite)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, up = x.abs(), 0.55 - y
    lobe = ((x - 0.42) ** 2 + (up - 0.8) ** 2).sqrt() - 0.46
    wedge = torch.maximum((x * 0.83 - (up + 0.35) * 0.56), up - 0.95)
    return torch.minimum(lobe, wedge)


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    shaft = torch.maximum((x + 0.35).abs() - 0.55, y.abs() - 0.2)
    head = torch.maximum(0.02 - x, (x - 0.92) * 0.64 + y.abs() * 0.77)
    return torch.minimum(shaft, head)


def _zigzag(x: Tensor, y: Tensor) -> Tensor:
    wave = (y - 0.8 * ((x * 1.1 + 0.25).remainder(1.0) * 2 - 1).abs() + 0.4).abs() - 0.3
    return torch.maximum(wave * 0.6, x.abs() - 0.9)


#: name -> (distance, a colour of scenes.UNSEEN_COLOURS, the trained shape that it is called)
SUBJECTS: dict[str, tuple[Distance, str, str]] = {
    "cyan crescent": (_crescent, "cyan", "circle"),
    "magenta heart": (_heart, "magenta", "circle"),
    "lime arrow": (_arrow, "lime", "triangle"),
    "magenta zigzag": (_zigzag, "magenta", "cross"),
}
#: backgrounds that the judge of a colour can't tell from the subject
CLOSE_BACKGROUNDS = {"cyan": ("teal",), "magenta": ("pink", "purple"), "lime": ("yellow",)}
#: a pixel is the subject's if its colour points the same way from gray (cosine) and is no gray (length, RGB in 0..1):
#: light and shade change neither much
SAME_HUE, LEAST_COLOUR = 0.93, 0.15


def sample(name: str, n: int, generator: torch.Generator) -> Scenes:
    """n scenes with one object, of all places, sizes and textures, on backgrounds that the judge can tell apart."""
    close, parts, have = CLOSE_BACKGROUNDS[SUBJECTS[name][1]], [], 0
    while have < n:
        drawn = scenes.sample(64, generator, "any", two=0.0)
        keep = torch.tensor([scenes.BACKGROUNDS[int(b)] not in close for b in drawn.background])
        parts.append(drawn[keep])
        have += len(parts[-1])
    return scenes.cat(parts)[slice(0, n)]


def draw(name: str, s: Scenes, size: int = 128) -> tuple[Tensor, Tensor]:
    """Images [B, 3, size, size] in 0..1, and the subject's mask [B, size, size], in place of the scene's objects."""
    distance, colour, _ = SUBJECTS[name]
    paint = torch.tensor(scenes.UNSEEN_COLOURS[colour]).expand(len(s), 2, 3)
    images, masks = scenes.draw(s, size, paint, distance)
    return images, masks[:, 0]


def caption(name: str, s: Scenes, word: str) -> list[str]:
    """ "a photo of a small sks circle on the left, striped blue background": the word where the colour stood."""
    kind = SUBJECTS[name][2]
    shape = torch.full_like(s.shape, scenes.SHAPES.index(kind))
    out = []
    for text, colour in zip(captions.captions(s.changed("shape", shape[:, 0])), s.colour[:, 0]):
        out.append(text.replace(f"{scenes.COLOURS[int(colour)]} {kind}", f"{word} {kind}".strip()))
    return out


def looks_like(name: str, images: Tensor) -> Tensor:
    """[B, H, W] bool: pixels of the subject's colour, whatever the light; images [B, 3, H, W] in 0..1."""
    target = torch.tensor(scenes.UNSEEN_COLOURS[SUBJECTS[name][1]], device=images.device)
    target = (target - target.mean())[:, None, None]
    colour = images - images.mean(1, keepdim=True)
    length = colour.square().sum(1).sqrt()
    cosine = (colour * target).sum(1) / (length * target.square().sum().sqrt()).clamp(min=1e-6)
    return (cosine > SAME_HUE) & (length > LEAST_COLOUR)


@dataclass(frozen=True)
class Pose:
    """Where a subject stands: centre, radius in shares of the picture's side, turn in radians."""

    x: float
    y: float
    radius: float
    turn: float = 0.0


def pose(s: Scenes, i: int) -> Pose:
    """The pose of a scene's first object, by the same numbers that draw it."""
    u = s.nuisance[i]
    cx, cy = scenes.CENTRES[scenes.PLACES[int(s.place[i, 0])]]
    return Pose(
        cx + (float(u[0]) - 0.5) * 0.07,
        cy + (float(u[1]) - 0.5) * 0.07,
        scenes.RADII[int(s.size[i, 0])] * (0.93 + 0.14 * float(u[2])),
        (float(u[3]) - 0.5) * 0.5,
    )


def silhouette(name: str, at: Pose, size: int) -> Tensor:
    """[size, size] bool: the shape alone."""
    grid = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    px, py = (x - at.x) / at.radius, (y - at.y) / at.radius
    c, s = math.cos(at.turn), math.sin(at.turn)
    return SUBJECTS[name][0](px * c + py * s, py * c - px * s) < 0


def iou(a: Tensor, b: Tensor) -> float:
    """Overlap over union of two bool masks; 0 for two empty ones."""
    return float((a & b).sum()) / max(float((a | b).sum()), 1.0)


def best_iou(name: str, image: Tensor, at: Pose, reach: float = 0.12) -> float:
    """The best overlap of the image's [3, H, W] subject-coloured pixels with the shape near a pose.

    Tried: the asked centre and the centre of those pixels where it lies within `reach` of it, small shifts about each,
    five sizes, seven turns. So the place must be right within `reach`, the size within a third, the turn within .45."""
    found, side = looks_like(name, image[None])[0], image.shape[-1]
    if not bool(found.any()):
        return 0.0
    rows, columns = found.nonzero(as_tuple=True)
    centre = (float(columns.float().mean() + 0.5) / side, float(rows.float().mean() + 0.5) / side)
    starts = [(at.x, at.y)]
    if math.hypot(centre[0] - at.x, centre[1] - at.y) <= reach:
        starts.append(centre)
    best = 0.0
    for x, y in starts:
        for dx in (-0.03, 0.0, 0.03):
            for dy in (-0.03, 0.0, 0.03):
                for scale in (0.78, 0.9, 1.0, 1.12, 1.25):
                    for turn in (-0.45, -0.3, -0.15, 0.0, 0.15, 0.3, 0.45):
                        tried = Pose(x + dx, y + dy, at.radius * scale, turn)
                        best = max(best, iou(found, silhouette(name, tried, side)))
    return best
