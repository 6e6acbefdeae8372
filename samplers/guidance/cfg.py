"""Classifier-free guidance in the paper's own convention (Ho & Salimans 2207.12598, eq. 6), with a scale over sigma.

The paper writes eps = (1 + w) eps_c - w eps_u: w = 0 is the conditional model alone. ComfyUI's cfg is 1 + w. A scale
over sigma is plain data: constant, linear or cosine in log sigma between two values, or switched off (w = 0) outside an
interval (Kynkaanniemi et al. 2404.07724).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..window import SigmaWindow

SHAPES = ("constant", "linear", "cosine")


def from_w(w: float) -> float:
    """The paper's w -> ComfyUI's cfg."""
    return 1 + w


@dataclass(frozen=True)
class ScheduleOfW:
    """w at a noise level: from `start` at sigma_start to `end` at sigma_end by shape, and 0 outside (`SigmaWindow`).

    Log sigma needs finite ends: where the window is wider than `highest` to `lowest`, the shape runs between these."""

    start: float
    end: float
    sigma_start: float
    sigma_end: float
    shape: str = "constant"
    highest: float = math.inf
    lowest: float = 1e-4

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"A schedule of w is one of {', '.join(SHAPES)}, not {self.shape!r}.")
        if not self.sigma_start >= self.sigma_end >= 0:
            raise ValueError("The schedule of w must start at a sigma above its end.")
        if min(self.start, self.end) < -1:
            raise ValueError("w below -1 turns the prompt around: use a w of at least -1 (cfg 0).")

    def __call__(self, sigma: float) -> float:
        if sigma not in SigmaWindow(self.sigma_start, self.sigma_end):
            return 0.0
        if self.shape == "constant":
            return self.start
        high, low = math.log(min(self.sigma_start, self.highest)), math.log(max(self.sigma_end, self.lowest))
        place = 0.0 if high <= low else min(1.0, max(0.0, (high - math.log(max(sigma, self.lowest))) / (high - low)))
        if self.shape == "cosine":
            place = (1 - math.cos(math.pi * place)) / 2
        return self.start + (self.end - self.start) * place
