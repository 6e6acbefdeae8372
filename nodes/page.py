"""What the page asks the server for, without a model: the words of a prompt, and a schedule before it runs.

GET /nulltext/words?text=...             {"words": ["a", "red", ...]}      as CLIP's tokenizer cuts them
GET /nulltext/schedule?kind=repaint&...  what `drawing` returns, or 400 {"error": one sentence}
GET /nulltext/sample?name=...            a picture of the pack, by the name that Load Picture lists

Every number is held to its widget's own range and every answer to a size, so that no address can be made to work long.

The sigmas drawn are those of the checkpoint's family where its name tells it (the demo model), else Stable Diffusion
1's; `drawing["noise"]` names it. The node's report has the figures of the run itself.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch
from torch import Tensor

from ..engine import comfy, demo_family, samples
from ..engine.comfy import time_to_sigma
from ..engine.gate import short
from ..engine.words import describe
from ..samplers.attention.alignment import normal_word
from ..samplers.picture.disturbance_schedules import disturbance_schedule, gains
from ..samplers.window import SigmaWindow
from .base import Input, Int
from .disturbance import Disturbance, DisturbanceSampler
from .disturbance_schedule import DisturbanceSchedule, picture_sigmas, stability
from .repaint import EXACT, RESAMPLING, RePaint, RePaintSampler, chosen, cost, visits

LONGEST = 20_000  # characters of a prompt
MOST_LEVELS = 2000
MOST_VISITS = 20_000  #: points of a path that the panel draws


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


#: how the numbers of a schedule that is wired are held; ComfyUI's own schedulers have these widgets
_WIRED = {each.name: each for each in (Int("steps", 20, "", 1, 10_000),)}


def _widgets(*boxes: type) -> dict[str, Input]:
    """The inputs of these boxes by name: a number of the page is held to its widget's own range."""
    return _WIRED | {each.name: each for box in boxes for each in box.INPUTS}


_INPUTS = {
    "repaint": _widgets(RePaint, RePaintSampler),
    "disturbance": _widgets(Disturbance, DisturbanceSampler, DisturbanceSchedule),
}


def read(options: Mapping[str, str]) -> dict:
    """The widgets' texts as values. ValueError in one sentence for what its widget doesn't take."""
    inputs, out = _INPUTS[options["kind"]], {}
    for name, text in options.items():
        widget = inputs.get(name)
        if widget is None or widget.kind == "STRING":
            continue
        if widget.kind in ("INT", "FLOAT"):
            try:
                out[name] = widget.checked(float(text))
            except ValueError:
                out[name] = widget.checked(text)  # not a number, or out of its range: the widget's own sentence
        elif not isinstance(widget.kind, str) and name != "scheduler":  # one of another pack is drawn as "normal"
            out[name] = widget.checked(text)
    return out


def _scheduled(model, given: dict, scheduler: str = "normal") -> Tensor:
    steps = min(given.get("steps", 20), MOST_LEVELS)
    scheduler = scheduler if scheduler in comfy.schedulers() else "normal"
    return comfy.get("samplers").calculate_sigmas(model.sampling, scheduler, steps).float()


def _repaint(model, given, scheduler):
    """The box (it has `levels`) makes its own sigmas, the sampler takes the wired ones; drawn for data of scale 1."""
    widgets = {"schedule": "", "jump": 5, "resamples": 5, "low": 0.0, "high": 1000.0, "noise": "", "levels": 50}
    plan = chosen(**{name: given.get(name, default) for name, default in widgets.items()})
    sigmas = None
    if "levels" in given:
        sigmas = plan.sigmas(float(model.sampling.sigma_min), float(model.sampling.sigma_max))
        given, scheduler = {"steps": plan.levels, **given}, scheduler or "normal"
    sigmas = _scheduled(model, given, scheduler) if sigmas is None else sigmas.float()
    mode = given.get("mode", RESAMPLING)
    visited = 1 if mode == EXACT else plan.visits(sigmas)
    if visited > MOST_VISITS:
        raise ValueError(
            f"This schedule visits {visited} noise levels, and {MOST_VISITS} are drawn at the most: lower resamples."
        )
    text = cost(plan, mode, given.get("particles", 1), sigmas)
    limited = plan.low > 0 or plan.high < float(sigmas[0])
    return sigmas, visits(plan, mode, sigmas), (plan.high, plan.low) if limited else (0.0, 0.0), text


def _disturbance(model, given, scheduler):
    sigma_at, low = time_to_sigma(model), float(model.sampling.sigma_min)
    cfg, start, end = given.get("cfg", 10.0), given.get("start_percent", 0.7), given.get("end_percent", 1.0)
    above, below = given.get("steps_above") or None, given.get("steps_below") or None
    if "denoise" in given:
        if given["denoise"] <= 0:
            return torch.zeros(1), [0], (0.0, 0.0), "denoise is 0: the latent comes back as it is"
        sigmas = picture_sigmas(sigma_at, low, given["denoise"], cfg, start, above, below)
    elif "steps_below" in given:
        sigmas = disturbance_schedule(
            _scheduled(model, given, scheduler), cfg, sigma_at(1 - start), above=above, below=below
        )
    else:
        sigmas = _scheduled(model, given, scheduler)
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
        raise ValueError(f"kind is one of {', '.join(KINDS)}; got {short(repr(kind), 60)}.")
    model, noise = _sampling(options.get("ckpt", "").startswith(demo_family.NAME))
    sigmas, path, window, text = KINDS[kind](model, read(options), options.get("scheduler", "normal"))
    calls = sum(b > a for a, b in zip(path, path[1:]))
    drawn = {"sigmas": [float(s) for s in sigmas], "path": path, "window": list(window)}
    return {**drawn, "calls": calls, "said": text, "noise": noise}


def foreign(headers: Mapping[str, str]) -> bool:
    """Whether a page of another site asks. The newer engine refuses that for every address of a server on this
    machine; the older one has no such check."""
    if headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        return True
    origin, host = headers.get("Origin"), headers.get("Host")
    return bool(origin and host) and origin.rpartition("//")[2].lower() != host.lower()


def register() -> bool:
    """Add the addresses to the server that runs in this process; False where none does."""
    place = next((name for name in ("comfy.cmd.server", "server") if name in sys.modules), None)
    server = getattr(getattr(sys.modules.get(place), "PromptServer", None), "instance", None)
    if server is None:
        return False
    from aiohttp import web

    worker = ThreadPoolExecutor(1, "nulltext-page")  # one drawing at a time: a flood of requests waits, it doesn't pile

    async def answered(request, make: Callable[[], dict]):
        """What `make` returns as JSON; nothing is made for a client that has left."""
        if not comfy.allows_other_origins() and foreign(request.headers):
            return web.json_response({"error": "Pages of another site may not ask this address."}, status=403)

        def work():
            return None if request.transport is None or request.transport.is_closing() else make()

        try:
            return web.json_response(await asyncio.get_running_loop().run_in_executor(worker, work))
        except ValueError as error:
            return web.json_response({"error": short(str(error))}, status=400)

    @server.routes.get("/nulltext/words")
    async def get_words(request):
        return await answered(request, lambda: {"words": words(request.query.get("text", ""))})

    @server.routes.get("/nulltext/schedule")
    async def get_schedule(request):
        return await answered(request, lambda: drawing(dict(request.query)))

    @server.routes.get("/nulltext/sample")
    async def get_sample(request):
        path = samples.sample_path(request.query.get("name", ""))
        return web.FileResponse(path) if path else web.json_response({"error": "There is no such sample."}, status=404)

    return True
