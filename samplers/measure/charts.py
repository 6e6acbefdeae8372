"""Figures as pictures: line charts, grids of pictures with captions, headings. All are [1, H, W, 3] in 0..1, ComfyUI's
IMAGE, on white."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = (
    (31, 119, 180),
    (214, 39, 40),
    (44, 160, 44),
    (255, 127, 14),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (90, 90, 90),
    (188, 189, 34),
    (23, 190, 207),
)
_LEFT, _TOP, _BOTTOM = 52, 22, 26
_LINE = 12  # pixels of a line of text


def from_picture(picture: Image.Image) -> Tensor:
    """[1, H, W, 3] in 0..1 of an RGB picture."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def to_picture(image: Tensor) -> Image.Image:
    """The first of [B, H, W, 3] as an RGB picture."""
    return Image.fromarray((image[0].clamp(0, 1) * 255).round().byte().cpu().numpy())


def smoothed(values: Sequence[float]) -> list[float]:
    """Each value as the mean of the last ones up to it, a 40th of all, for a curve that can be read."""
    window = max(1, len(values) // 40)
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def straight(points: Mapping[float, float], x: Sequence[float]) -> list[float]:
    """The straight line through points {x: y} at each x; NaN, which a chart leaves open, outside of them."""
    if not points:
        return [math.nan] * len(x)
    at = sorted(points)
    return np.interp(x, at, [points[n] for n in at], left=math.nan, right=math.nan).tolist()


def line_chart(
    title: str,
    lines: dict[str, Sequence[float]],
    x: Sequence[float] | None = None,
    *,
    width: int = 512,
    height: int = 256,
    low: float | None = None,
    high: float | None = None,
    x_label: str = "step",
) -> Tensor:
    """IMAGE [1, height, width, 3] of named lines over x (default 0, 1, ...). Values that aren't finite leave gaps."""
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    finite = [v for values in lines.values() for v in values if math.isfinite(v)]
    low = min(finite, default=0.0) if low is None else low
    high = max(finite, default=1.0) if high is None else high
    high = high if high > low else low + 1
    count = max((len(values) for values in lines.values()), default=1)
    x = list(range(count)) if x is None else list(x)
    x_low, x_high = min(x), max(x) if max(x) > min(x) else min(x) + 1
    legend = max((len(name) for name in lines), default=0) * 6 + 22 if len(lines) > 1 else 8
    right, floor = width - min(legend, width // 3), height - _BOTTOM

    def at(a: float, b: float) -> tuple[float, float]:
        across, up = (a - x_low) / (x_high - x_low), (b - low) / (high - low)
        return _LEFT + across * (right - _LEFT), floor - up * (floor - _TOP)

    draw.rectangle((_LEFT, _TOP, right, floor), outline=(160, 160, 160))
    draw.text((_LEFT, 4), title, fill="black", font=font)
    for k in range(3):
        value = low + (high - low) * k / 2
        draw.text((2, at(x_low, value)[1] - 6), f"{value:.3g}", fill="black", font=font)
    for value in (x_low, x_high):
        name = f"{value:.3g}"
        across = min(at(value, low)[0] - 8, width - font.getlength(name) - 2)
        draw.text((across, floor + 4), name, fill="black", font=font)
    draw.text(((_LEFT + right) / 2 - 12, floor + 10), x_label, fill="black", font=font)
    for i, (name, values) in enumerate(lines.items()):
        colour, last = COLOURS[i % len(COLOURS)], None
        for a, b in zip(x, values):
            point = at(a, min(max(b, low), high)) if math.isfinite(b) else None
            if point and last:
                draw.line((*last, *point), fill=colour, width=2)
            elif point:
                draw.ellipse((point[0] - 1, point[1] - 1, point[0] + 1, point[1] + 1), fill=colour)
            last = point
        if len(lines) > 1:
            draw.line((right + 4, _TOP + 8 + 13 * i, right + 14, _TOP + 8 + 13 * i), fill=colour, width=3)
            draw.text((right + 17, _TOP + 2 + 13 * i), name[: width // 20], fill="black", font=font)
    return from_picture(picture)


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images [1, h, w, 3] under one another, the narrow ones padded white."""
    width = max(i.shape[2] for i in images)
    wide = [
        torch.cat([i[..., :3].float().cpu(), torch.ones(1, i.shape[1], width - i.shape[2], 3)], dim=2) for i in images
    ]
    return torch.cat(wide, dim=1)


def _caption(text: str, width: int, lines: int) -> Tensor:
    strip = Image.new("RGB", (width, lines * _LINE + 4), "white")
    draw = ImageDraw.Draw(strip)
    for i, line in enumerate(wrapped(text, width)[:lines]):
        draw.text((3, 1 + i * _LINE), line, fill="black", font=ImageFont.load_default())
    return from_picture(strip)[0]


def wrapped(text: str, width: int) -> list[str]:
    """The caption cut into lines for a picture of that width in pixels."""
    return textwrap.wrap(text, max(width // 6 - 1, 4)) or [""]


def captioned_grid(images: Tensor, captions: Sequence[str], columns: int) -> Tensor:
    """Pictures [N, H, W, 3] in 0..1 -> [1, rows (H + caption), columns W, 3]; empty places are white.

    ValueError unless there is one caption per picture."""
    if len(images) != len(captions) or columns < 1:
        raise ValueError(f"{len(images)} pictures need as many captions; got {len(captions)}.")
    width = images.shape[2]
    lines = min(max(len(wrapped(c, width)) for c in captions), 6)
    cells = []
    for image, caption in zip(images, captions):
        cells.append(torch.cat([_caption(caption, width, lines), image[..., :3].float().cpu()]))
    blank = torch.ones(cells[0].shape)
    cells += [blank] * (-len(cells) % columns)
    rows = [torch.cat(cells[i : i + columns], dim=1) for i in range(0, len(cells), columns)]
    return torch.cat(rows).unsqueeze(0)


def heading(text: str, width: int, size: int = 14) -> Tensor:
    """Words over pictures: [1, h, width, 3], wrapped."""
    font = ImageFont.load_default(size)
    lines = textwrap.wrap(text, max(int(width / (0.5 * size)), 4))
    strip = Image.new("RGB", (width, max(len(lines), 1) * (size + 4) + 6), "white")
    ImageDraw.Draw(strip).multiline_text((3, 3), "\n".join(lines), "black", font)
    return from_picture(strip)


def tiles(images: Tensor, columns: int = 8) -> Tensor:
    """Pictures [N, 3, H, W] side by side, in whole rows: [1, N // columns H, columns W, 3]."""
    rows = images[: len(images) // columns * columns].movedim(1, -1)
    return torch.cat([torch.cat(list(row), 1) for row in rows.split(columns)])[None]
