"""Pictures with captions, laid out in a grid: what a node shows when it made many."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_LINE = 12


def _caption(text: str, width: int, lines: int) -> np.ndarray:
    strip = Image.new("RGB", (width, lines * _LINE + 4), "white")
    draw = ImageDraw.Draw(strip)
    for i, line in enumerate(wrapped(text, width)[:lines]):
        draw.text((3, 1 + i * _LINE), line, fill="black", font=ImageFont.load_default())
    return np.asarray(strip, np.float32) / 255


def wrapped(text: str, width: int) -> list[str]:
    """The caption cut into lines for a picture of that width in pixels."""
    return textwrap.wrap(text, max(width // 6 - 1, 4)) or [""]


def captioned_grid(images: Tensor, captions: Sequence[str], columns: int) -> Tensor:
    """IMAGE [N, H, W, 3] in 0..1 -> one IMAGE [1, rows (H + caption), columns W, 3]; empty places are white.

    ValueError unless there is one caption per picture."""
    if len(images) != len(captions) or columns < 1:
        raise ValueError(f"{len(images)} pictures need as many captions; got {len(captions)}.")
    width = images.shape[2]
    lines = min(max(len(wrapped(c, width)) for c in captions), 6)
    cells = []
    for image, caption in zip(images, captions):
        strip = torch.from_numpy(_caption(caption, width, lines))
        cells.append(torch.cat([strip, image[..., :3].float().cpu()]))
    blank = torch.ones(cells[0].shape)
    cells += [blank] * (-len(cells) % columns)
    rows = [torch.cat(cells[i : i + columns], dim=1) for i in range(0, len(cells), columns)]
    return torch.cat(rows).unsqueeze(0)
