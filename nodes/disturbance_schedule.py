"""Disturbance Schedule: as many steps as a null-text disturbance needs not to turn the picture into noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.comfy import window
from ..samplers.picture.disturbance_schedules import disturbance_schedule, gains
from ..samplers.picture.sdedit import sdedit_sigmas
from ..samplers.window import SigmaWindow
from .base import CFG, MODEL, SIGMAS, Box, Int, Output, span
from .report import text_result

SPAN = span("the disturbance", 0.7, at_start="0.7 is the paper's s = 300; earlier changes more.")


def picture_sigmas(sigma_at, low: float, denoise: float, cfg: float, start_percent: float, above, below) -> Tensor:
    """The Disturbance Sampler's own schedule: from the noise that `denoise` asks for to 0, enough steps below the
    window's start. sigma_at: time -> sigma; low: the smallest sigma of the model; above, below: steps, None by need."""
    sigmas = sdedit_sigmas(sigma_at, denoise, 100)
    sigmas = torch.cat([sigmas[sigmas > low * 1.01], torch.tensor([low, 0.0], dtype=sigmas.dtype)]).float()
    return disturbance_schedule(sigmas, cfg, sigma_at(1 - start_percent), above=above, below=below)


def stability(worst: float) -> str:
    """Whether a schedule has enough steps. worst: the largest of its `gains`."""
    return f"{'stable' if worst < 2 else 'NOT stable'} ({worst:.2f}; noise appears above 2)"


class DisturbanceSchedule(Box):
    ID, TITLE, CATEGORY = "NullText_DisturbanceSchedule", "Disturbance Schedule", "NullText/cartoon"
    SEARCH_ALIASES = ["cartoon sigmas", "null-text disturbance", "stable schedule"]
    DESCRIPTION = (
        "Gives a null-text disturbance enough steps: few before its window, and inside it as many as the cfg needs, "
        "evenly spaced in log sigma. With too few the picture turns into noise."
    )
    INPUTS = (
        MODEL,
        SIGMAS("Any scheduler's schedule; its first and last sigma are kept."),
        CFG("The cfg that the sampler uses. More cfg needs more steps.", default=10.0),
        SPAN[0],
        Int("steps_above", 12, "Steps before the window. 0 keeps the given ones.", 0, 1000),
        Int(
            "steps_below",
            0,
            "Steps inside the window. 0: as many as cfg needs, 32 for cfg 10 on Stable Diffusion 1.",
            0,
            1000,
        ),
    )
    OUTPUTS = (Output("SIGMAS", "The schedule, from the same first to the same last sigma."),)

    def run(self, model, sigmas, cfg, start_percent, steps_above, steps_below):
        start = window(model, start_percent, 1.0)[0]
        out = disturbance_schedule(sigmas, cfg, start, above=steps_above or None, below=steps_below or None)
        before, after = (max(gains(s, cfg, start), default=0.0) for s in (sigmas, out))
        inside = sum(s > 0 and s in SigmaWindow(start, 0.0) for s in out.tolist())
        return text_result(
            f"{len(out) - 1} steps (was {len(sigmas) - 1}), {inside} of them in the window: {stability(after)}, was "
            f"{before:.2f}." + ("" if after < 2 else " Notice: raise steps_below."),
            out,
        )


NODES = (DisturbanceSchedule,)
