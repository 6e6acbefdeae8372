"""What the page asks the server for, without a model: the words of a prompt, and a schedule before it runs.

GET /nulltext/words?text=...             {"words": ["a", "red", ...]}      as CLIP's tokenizer cuts them
GET /nulltext/schedule?kind=repaint&...  what `drawing` returns, or 400 {"error": one sentence}
GET /nulltext/sample?name=...            a picture of the pack, by the name that Load Picture lists

The sigmas drawn are those of the checkpoint's family where its name tells it (the demo model), else Stable Diffusion
1's; `drawing["noise"]` names it. The node's report has the figures of the run itself.
"""

from __future__ import annotations

import asyncio
import functools
import math
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from ..engine import comfy, demo_family, samples
from ..engine.comfy import time_to_sigma
from ..engine.words import describe
from ..samplers.attention.alignment import normal_word
from ..samplers.picture.disturbance_schedules import disturbance_schedule, gains
from ..samplers.window import SigmaWindow
from .disturbance_schedule import picture_sigmas, stability
from .repaint import RESAMPLING, chosen, cost, visits

LONGEST = 20_000  # characters of a prompt
MOST_LEVELS = 2000


@functools.cache
def _tokenizer():
    """CLIP-L's tokenizer as a CLIP object holds it; ComfyUI ships its vocabulary."""
    tokenizer = comfy.get("sd1_clip").SD1Tokenizer()
    return SimpleNamespace(
        tokenizer=tokenizer,
        tokenize=lambda text, return_word_ids=True: tokenizer.tokenize_with_weights(text, return_word_ids),
    )


def words(text: str) -> list[str]:
    """The prompt's words in order, repeats kept, in the spelling that the nodes' word fields understand."""
    found = describe(_tokenizer(), text[:LONGEST])["words"]
    return [word for word in (normal_word(entry["text"]) for entry in found) if word]


@functools.cache
def _sampling(demo: bool):
    """(an object with the one method of a MODEL that schedules need, what its family is called)."""
    config = SimpleNamespace(sampling_settings=demo_family.family().sampling_settings if demo else {})
    sampling = comfy.get("model_sampling").ModelSamplingDiscrete(config)
    title = "the demo model" if demo else "Stable Diffusion 1"
    return SimpleNamespace(get_model_object=lambda name: sampling, sampling=sampling), title


def _number(options: Mapping[str, str], name: str, default: float) -> float:
    value = float(options.get(name, default))
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number.")
    return value


def _count(options: Mapping[str, str], name: str, default: int) -> int:
    return int(_number(options, name, default))


def _scheduled(model, options: Mapping[str, str]) -> Tensor:
    steps, scheduler = min(_count(options, "steps", 20), MOST_LEVELS), options.get("scheduler", "normal")
    scheduler = scheduler if scheduler in comfy.schedulers() else "normal"
    return comfy.get("samplers").calculate_sigmas(model.sampling, scheduler, steps).float()


def _repaint(model, options):
    """The box (it has `levels`) makes its own sigmas, the sampler takes the wired ones; drawn for data of scale 1."""
    plan = chosen(
        options.get("schedule", ""),
        _count(options, "jump", 5),
        _count(options, "resamples", 5),
        _number(options, "low", 0.0),
        _number(options, "high", 1000.0),
        options.get("noise", ""),
        min(_count(options, "levels", 50), MOST_LEVELS),
    )
    sigmas = None
    if "levels" in options:
        sigmas = plan.sigmas(float(model.sampling.sigma_min), float(model.sampling.sigma_max))
        options = {"steps": str(plan.levels), "scheduler": "normal", **options}
    sigmas = _scheduled(model, options) if sigmas is None else sigmas.float()
    mode = options.get("mode", RESAMPLING)
    text = cost(plan, mode, _count(options, "particles", 1), sigmas)
    limited = plan.low > 0 or plan.high < float(sigmas[0])
    return sigmas, visits(plan, mode, sigmas), (plan.high, plan.low) if limited else (0.0, 0.0), text


def _disturbance(model, options):
    sigma_at, low = time_to_sigma(model), float(model.sampling.sigma_min)
    cfg, start = _number(options, "cfg", 10.0), _number(options, "start_percent", 0.7)
    end = _number(options, "end_percent", 1.0)
    above, below = _count(options, "steps_above", 0) or None, _count(options, "steps_below", 0) or None
    if "denoise" in options:
        if _number(options, "denoise", 1.0) <= 0:
            return torch.zeros(1), [0], (0.0, 0.0), "denoise is 0: the latent comes back as it is"
        sigmas = picture_sigmas(sigma_at, low, _number(options, "denoise", 1.0), cfg, start, above, below)
    elif "steps_below" in options:
        sigmas = disturbance_schedule(_scheduled(model, options), cfg, sigma_at(1 - start), above=above, below=below)
    else:
        sigmas = _scheduled(model, options)
    window = sigma_at(1 - start), sigma_at(1 - end)
    inside = sum(float(s) in SigmaWindow(*window) for s in sigmas[:-1])
    worst = max(gains(sigmas, cfg, *window), default=0.0)
    return (
        sigmas,
        list(range(len(sigmas))),
        window,
        f"{len(sigmas) - 1} steps, {inside} in the window; {stability(worst)}",
    )


KINDS = {"repaint": _repaint, "disturbance": _disturbance}


def drawing(options: Mapping[str, str]) -> dict:
    """{"sigmas": one per noise level, "path": their numbers as they are visited, "window": (from, to) in sigma,
    "calls": network calls, "said": one line, "noise": the model family}. options: the widgets as text, `kind` (a key of
    KINDS), `ckpt`.

    ValueError for what makes no schedule."""
    kind = options.get("kind", "")
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}; got {kind!r}.")
    model, noise = _sampling(options.get("ckpt", "").startswith(demo_family.NAME))
    sigmas, path, window, text = KINDS[kind](model, options)
    calls = sum(b > a for a, b in zip(path, path[1:]))
    drawn = {"sigmas": [float(s) for s in sigmas], "path": path, "window": list(window)}
    return {**drawn, "calls": calls, "said": text, "noise": noise}


def register() -> bool:
    """Add the addresses to the server that runs in this process; False where none does."""
    place = next((name for name in ("comfy.cmd.server", "server") if name in sys.modules), None)
    server = getattr(getattr(sys.modules.get(place), "PromptServer", None), "instance", None)
    if server is None:
        return False
    from aiohttp import web

    @server.routes.get("/nulltext/words")
    async def get_words(request):
        return web.json_response({"words": await asyncio.to_thread(words, request.query.get("text", ""))})

    @server.routes.get("/nulltext/schedule")
    async def get_schedule(request):
        try:
            return web.json_response(await asyncio.to_thread(drawing, dict(request.query)))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    @server.routes.get("/nulltext/sample")
    async def get_sample(request):
        path = samples.sample_path(request.query.get("name", ""))
        return web.FileResponse(path) if path else web.json_response({"error": "There is no such sample."}, status=404)

    return True
