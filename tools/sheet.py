"""Contact sheets: pictures in rows, each with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from ..samplers.measure.charts import captioned_grid, from_picture, heading, stacked, to_picture

CELL, GAP = 224, 8  # side of a picture with the room beside it, pixels


@dataclass
class Row:
    """One technique: its title, a line under it, and (caption, picture) pairs."""

    title: str
    line: str = ""
    cells: list[tuple[str, Image.Image]] = field(default_factory=list)


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture inside a square of that side."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(edge * scale)) for edge in picture.size)
    resized = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def contact_sheet(title: str, rows: Sequence[Row], columns: int = 6) -> Image.Image:
    """All rows on one page; a row longer than `columns` goes on below."""
    columns = max([2, *(min(columns, len(row.cells)) for row in rows)])
    parts = [heading(title, columns * CELL, 19)]
    for row in rows:
        parts += [heading(row.title, columns * CELL, 17)] if row.title else []
        parts += [heading(row.line, columns * CELL)] if row.line else []
        cells = torch.cat([from_picture(fit(picture, CELL - GAP)) for _, picture in row.cells])
        cells = torch.nn.functional.pad(cells, (0, 0, 0, GAP, 0, GAP), value=1.0)
        parts.append(captioned_grid(cells, [caption for caption, _ in row.cells], columns))
    return to_picture(torch.nn.functional.pad(stacked(parts), (0, 0, GAP, 0, GAP, GAP), value=1.0))


def tiled(pictures: Sequence[Image.Image], side: int = 256) -> Image.Image:
    """The pictures of a batch as one: itself, or the first four, two by two."""
    if len(pictures) == 1:
        return pictures[0]
    page, half = Image.new("RGB", (side, side), (255, 255, 255)), side // 2 - 1
    for i, picture in enumerate(pictures[:4]):
        page.paste(fit(picture, half), ((half + 2) * (i % 2), (half + 2) * (i // 2)))
    return page


def side_by_side(pictures: Sequence[Image.Image], side: int = 256) -> Image.Image:
    """Pictures in a row, each in a square of that side. ValueError without any."""
    if not pictures:
        raise ValueError("The run left no picture to show.")
    page = Image.new("RGB", (side * len(pictures) + 4 * (len(pictures) - 1), side), (255, 255, 255))
    for i, picture in enumerate(pictures):
        page.paste(fit(picture, side), (i * (side + 4), 0))
    return page
