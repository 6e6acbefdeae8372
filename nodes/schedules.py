"""Schedules as a page draws them before anything runs: noise levels from widgets, without a model.

The levels are those of the checkpoint's family where its name tells it (the demo model), else Stable Diffusion 1's;
`drawing["noise"]` says which. What a run does is told by the node's report.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from ..engine import comfy, demo_family
from ..engine.comfy import time_to_sigma
from ..samplers.picture.disturbance_schedules import disturbance_schedule, gains
from ..samplers.picture.repaint import describe
from ..samplers.picture.repaint_schedules import PRESETS, Schedule
from ..samplers.picture.sdedit import sdedit_sigmas
from ..samplers.window import SigmaWindow

MOST_LEVELS = 2000


@functools.cache
def _sampling(demo: bool):
    """(an object with the one method of a MODEL that schedules need, what its levels are called)."""
    config = SimpleNamespace(sampling_settings=demo_family.family().sampling_settings if demo else {})
    sampling = comfy.get("model_sampling").ModelSamplingDiscrete(config)
    title = "the demo model" if demo else "Stable Diffusion 1"
    return SimpleNamespace(get_model_object=lambda name: sampling, sampling=sampling), title


def picture_sigmas(
    sigma_at: Callable[[float], float],
    low: float,
    denoise: float,
    cfg: float,
    start_percent: float,
    above: int | None,
    below: int | None,
) -> Tensor:
    """The Disturbance Sampler's own schedule: from the noise that `denoise` asks for to 0, enough steps below the
    window's start. low: the smallest sigma of the model."""
    base = sdedit_sigmas(sigma_at, denoise, 100)
    base = torch.cat([base[base > low * 1.01], torch.tensor([low, 0.0], dtype=base.dtype)]).float()
    return disturbance_schedule(base, cfg, sigma_at(1 - start_percent), above=above, below=below)


def _scheduled(model, options: Mapping[str, str]) -> Tensor:
    steps = min(_whole(options, "steps", 20), MOST_LEVELS)
    scheduler = options.get("scheduler", "normal")
    known = comfy.schedulers()
    return (
        comfy.get("samplers")
        .calculate_sigmas(model.sampling, scheduler if scheduler in known else "normal", steps)
        .float()
    )


def _whole(options: Mapping[str, str], name: str, default: int) -> int:
    return int(float(options.get(name, default)))


def _number(options: Mapping[str, str], name: str, default: float) -> float:
    value = float(options.get(name, default))
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number.")
    return value


def _repaint(model, options):
    """A box (it has levels) makes its own levels, a sampler takes the wired ones; drawn for data of scale 1."""
    low, high = _number(options, "low", 0.0), _number(options, "high", 1000.0)
    plan = PRESETS.get(options.get("schedule", "")) or Schedule(
        min(_whole(options, "levels", 50), MOST_LEVELS),
        _whole(options, "jump", 5),
        _whole(options, "resamples", 5),
        low,
        high,
        options.get("noise", "").startswith("renewed"),
    )
    sigmas = None
    if "levels" in options:
        sigmas = plan.sigmas(float(model.sampling.sigma_min), float(model.sampling.sigma_max))
        options = {"steps": str(plan.levels), "scheduler": "normal", **options}
    sigmas = _scheduled(model, options) if sigmas is None else sigmas.float()
    if options.get("mode", "resampling").startswith("resampling"):
        path = plan.path(sigmas)
        said = describe(sigmas, path)
    else:
        path = list(range(len(sigmas)))
        said = f"{describe(sigmas, path)}, each on {_whole(options, 'particles', 1)} rows per picture"
    limited = plan.low > 0 or plan.high < float(sigmas[0])
    return sigmas, path, (plan.high, plan.low) if limited else (0.0, 0.0), said


def _disturbance(model, options):
    sigma_at, low = time_to_sigma(model), float(model.sampling.sigma_min)
    cfg, start = _number(options, "cfg", 10.0), _number(options, "start_percent", 0.7)
    end = _number(options, "end_percent", 1.0)
    above, below = _whole(options, "steps_above", 0) or None, _whole(options, "steps_below", 0) or None
    if "denoise" in options:
        if _number(options, "denoise", 1.0) <= 0:
            return torch.zeros(1), [0], (0.0, 0.0), "denoise is 0: the latent comes back as it is"
        sigmas = picture_sigmas(sigma_at, low, _number(options, "denoise", 1.0), cfg, start, above, below)
    elif "steps_below" in options:
        sigmas = disturbance_schedule(_scheduled(model, options), cfg, sigma_at(1 - start), above=above, below=below)
    else:
        sigmas = _scheduled(model, options)
    window = sigma_at(1 - start), sigma_at(1 - end)
    worst = max(gains(sigmas, cfg, *window), default=0.0)
    inside = sum(float(s) in SigmaWindow(*window) for s in sigmas[:-1])
    said = f"{len(sigmas) - 1} steps, {inside} in the window; largest cfg (1 - r) {worst:.2f}"
    return sigmas, list(range(len(sigmas))), window, said + (" (stable)" if worst < 2 else " (above the border 2)")


KINDS = {"repaint": _repaint, "disturbance": _disturbance}


def drawing(options: Mapping[str, str]) -> dict:
    """{"sigmas": per level, "path": level numbers as they are visited, "window": (from, to) in sigma, "calls": network
    calls, "said": one line, "noise": whose levels}. options: the widgets as text, `kind` (a key of KINDS), `ckpt`.

    ValueError for what makes no schedule."""
    kind = options.get("kind", "")
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}; got {kind!r}.")
    model, noise = _sampling(options.get("ckpt", "").startswith(demo_family.NAME))
    sigmas, path, window, said = KINDS[kind](model, options)
    calls = sum(b > a for a, b in zip(path, path[1:]))
    return {
        "sigmas": [float(s) for s in sigmas],
        "path": path,
        "window": list(window),
        "calls": calls,
        "said": said,
        "noise": noise,
    }
