"""RePaint's error on the mixtures that no schedule was chosen by, as a picture: one row per mixture, one dot per way.

Errors are told relative to the authors' 250/10/10, which is the line at 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = ((214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189), (255, 127, 14), (140, 140, 140))
INK, AXIS, FAINT = (20, 20, 20), (120, 120, 120), (225, 225, 225)
WIDTH, LEFT, RIGHT, TOP, ROW, FOOT, LEGEND = 860, 150, 24, 34, 24, 44, 20
TICKS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def plot(ratios: dict[str, dict[str, float]], mixtures: Sequence[str], path: Path) -> None:
    """ratios: way -> mixture -> error over that of 250/10/10."""
    bottom = TOP + ROW * len(mixtures)
    page = Image.new("RGB", (WIDTH, bottom + FOOT + LEGEND * ((len(ratios) + 1) // 2)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    values = [way[m] for way in ratios.values() for m in mixtures] + [1.0]
    low, high = math.log10(0.9 * min(values)), math.log10(1.1 * max(values))

    def across(ratio: float) -> float:
        return LEFT + (math.log10(ratio) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    title = "error against the true conditional, relative to the paper's 2410 calls (left is better)"
    pen.text((LEFT, 9), title, INK, font)
    for tick in TICKS:
        if low <= math.log10(tick) <= high:
            x = across(tick)
            pen.line((x, TOP, x, bottom), fill=INK if tick == 1 else FAINT, width=2 if tick == 1 else 1)
            pen.text((x - 8, bottom + 5), f"{tick:g}", INK, font)
    for row, mixture in enumerate(mixtures):
        y = TOP + ROW * (row + 0.5)
        pen.line((LEFT, y, WIDTH - RIGHT, y), fill=FAINT)
        pen.text((10, y - 8), mixture, INK, font)
        for colour, way in zip(COLOURS, ratios.values()):
            x = across(way[mixture])
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    pen.rectangle((LEFT, TOP, WIDTH - RIGHT, bottom), outline=AXIS)
    for i, (colour, name) in enumerate(zip(COLOURS, ratios)):
        x, y = (LEFT, LEFT + 330)[i % 2], bottom + FOOT - 14 + LEGEND * (i // 2)
        pen.ellipse((x, y + 3, x + 8, y + 11), fill=colour)
        pen.text((x + 14, y), name, INK, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, quality=90)
