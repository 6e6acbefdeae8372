"""Contact sheets and thumbnails: pictures in rows, each with its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN, LINE = 224, 12, 17  # side of a picture, room around it, height of a line of text: pixels
PAPER, INK, FAINT = (250, 250, 248), (25, 25, 25), (110, 110, 110)


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
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _wrap(text: str, width: int, font) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def contact_sheet(title: str, rows: Sequence[Row], columns: int = 6) -> Image.Image:
    """All rows on one page; a row longer than `columns` goes on below."""
    font, bold = ImageFont.load_default(14), ImageFont.load_default(19)
    wide = max([2, *(min(columns, len(row.cells)) for row in rows)])
    width = MARGIN + wide * (CELL + MARGIN)
    blocks = []
    height = MARGIN + 2 * LINE
    for row in rows:
        head = _wrap(row.line, width - 2 * MARGIN, font)
        lines = [
            [(_wrap(caption, CELL, font), picture) for caption, picture in row.cells[i : i + wide]]
            for i in range(0, len(row.cells), wide)
        ]
        blocks.append((row, head, lines))
        height += 2 * LINE + LINE * len(head)
        height += sum(CELL + MARGIN + LINE * max(len(text) for text, _ in line) for line in lines) + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, INK, bold)
    y = MARGIN + 2 * LINE
    for row, head, lines in blocks:
        pen.text((MARGIN, y), row.title, INK, bold)
        y += 2 * LINE - 8
        for text in head:
            pen.text((MARGIN, y), text, FAINT, font)
            y += LINE
        y += 8
        for line in lines:
            for i, (text, picture) in enumerate(line):
                x = MARGIN + i * (CELL + MARGIN)
                page.paste(fit(picture, CELL), (x, y))
                pen.multiline_text((x, y + CELL + 2), "\n".join(text), INK, font, spacing=2)
            y += CELL + MARGIN + LINE * max(len(text) for text, _ in line)
        y += MARGIN
    return page


def tiled(pictures: Sequence[Image.Image], side: int = 256) -> Image.Image:
    """The pictures of a batch as one: itself, or the first four, two by two."""
    if len(pictures) == 1:
        return pictures[0]
    page, half = Image.new("RGB", (side, side), (255, 255, 255)), side // 2 - 1
    for i, picture in enumerate(pictures[:4]):
        page.paste(fit(picture, half), ((half + 2) * (i % 2), (half + 2) * (i // 2)))
    return page


def thumbnail(sources: Sequence[Image.Image], results: Sequence[Image.Image], side: int = 256) -> Image.Image:
    """What a workflow does at one look: its first source picture and its last two results. ValueError without any."""
    shown = [*sources[:1], *results[-2:]]
    if not shown:
        raise ValueError("The run left no picture to make a thumbnail of.")
    page = Image.new("RGB", (side * len(shown) + 4 * (len(shown) - 1), side), (255, 255, 255))
    for i, picture in enumerate(shown):
        page.paste(fit(picture, side), (i * (side + 4), 0))
    return page


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal to noise ratio in dB of two 8-bit RGB pictures of one size; inf for equal ones."""
    if a.size != b.size:
        raise ValueError(f"The pictures differ in size: {a.size} and {b.size}.")
    pairs = zip(a.convert("RGB").tobytes(), b.convert("RGB").tobytes(), strict=True)
    error = sum((p - q) ** 2 for p, q in pairs) / (3 * a.width * a.height)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
