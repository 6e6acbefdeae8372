"""One noise for the rows of a picture's source and of its edits, where a sampler draws along the way."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable

from torch import Tensor

from ..samplers.core import gaussian
from .comfy import get
from .sampler import is_own, sampler_name


def with_shared_noise(sampler, rows: int, spread: Callable[[Tensor], Tensor]):
    """The SAMPLER whose draws along the way are made for the first `rows` rows of x, and spread over all of them.

    One of ComfyUI's that takes a `noise_sampler` gets its own kind; one that draws without asking stays as it is."""
    shared = copy.copy(sampler)
    if is_own(sampler):
        shared.draws = lambda x, seed: _spread(gaussian(x[:rows], seed), spread)
        return shared
    function = getattr(sampler, "sampler_function", None)
    options = getattr(sampler, "extra_options", {})
    if function is None or "noise_sampler" in options or "noise_sampler" not in inspect.signature(function).parameters:
        return sampler

    @functools.wraps(function)
    def together(model, x, sigmas, extra_args=None, **more):
        seed = (extra_args or {}).get("seed")
        noise_sampler = _spread(_core_noise(sampler_name(sampler), x[:rows], sigmas, seed), spread)
        return function(model, x, sigmas, extra_args=extra_args, noise_sampler=noise_sampler, **more)

    shared.sampler_function = together
    return shared


def _spread(draw: Callable[..., Tensor], spread: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *levels: spread(draw(*levels))


def _core_noise(name: str, x: Tensor, sigmas: Tensor, seed: int | None) -> Callable[..., Tensor]:
    """The noise_sampler that ComfyUI's sampler of that name makes for itself: (sigma, sigma_next) -> noise like x."""
    library = get("k_diffusion.sampling")
    if name.startswith("dpmpp") and "sde" in name:
        ends = sigmas[sigmas > 0].min(), sigmas.max()
        return library.BrownianTreeNoiseSampler(x, *ends, seed=seed, cpu=not name.endswith("gpu"))
    default = library.default_noise_sampler  # older engines draw from the global generator
    return default(x, seed=seed) if "seed" in inspect.signature(default).parameters else default(x)
