"""Small line charts as IMAGE: loss curves, probabilities over the steps, a scale over sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        draw.text((at(value, low)[0] - 8, floor + 4), f"{value:.3g}", fill="black", font=font)
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
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]


def stacked(images: Sequence[Tensor]) -> Tensor:
    """IMAGEs [1, h, w, 3] under one another, the narrow ones padded white."""
    width = max(i.shape[2] for i in images)
    wide = [
        torch.cat([i[..., :3].float().cpu(), torch.ones(1, i.shape[1], width - i.shape[2], 3)], dim=2) for i in images
    ]
    return torch.cat(wide, dim=1)
