"""One stochastic loop for every technique that only adds something after a step.

    x_s' ~ N(mean, std^2) of `NoiseProcess.transition`     (DDPM 2006.11239 eq. 6 at eta 1, DDIM 2010.02502 eq. 12 at
    eta 0)
    x_s' <- after(x_s', step)                              the technique: RePaint's, ILVR's, blended diffusion's line

The walk follows a path of level numbers, plain data: k, k+1 is a reverse step and costs one network call; k, j with
j < k is a jump up in noise (one draw of the forward process, equal in law to the single ones) and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .core import Callback, Denoise, NoiseProcess, NoiseSource, Sigma, check_descending, report


@dataclass(frozen=True)
class Step:
    """What `after` may know of the step that has just been taken from level `index` to level `index + 1`."""

    index: int
    sigma: Tensor  #: 0-d, the level the step left
    sigma_next: Tensor  #: 0-d, the level x is at now
    denoised: Tensor  #: [B, C, ...], the network's answer at `sigma`


#: (x at step.sigma_next [B, C, ...], step) -> x
After = Callable[[Tensor, Step], Tensor]
#: eta of every step, or (sigma, sigma_next) -> eta; above 1 more noise than the posterior's, see `transition`
Eta = float | Callable[[Sigma, Sigma], float]


def network_calls(path: Sequence[int]) -> int:
    """How often a walk along this path asks the network."""
    return sum(b > a for a, b in pairwise(path))


def check_path(path: Sequence[int], levels: int) -> None:
    """Raise ValueError unless the path starts at level 0, ends at the last, and goes down by single levels."""
    if (
        not path
        or path[0] != 0
        or path[-1] != levels - 1
        or any(b != a + 1 and not 0 <= b < a for a, b in pairwise(path))
    ):
        raise ValueError(
            f"A path over {levels} levels must start at 0, end at {levels - 1}, go down one level at a time "
            f"and jump back up to a level that exists."
        )


def sample_walk(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    noise: NoiseSource,
    eta: Eta = 1.0,
    path: Sequence[int] | None = None,
    after: After | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling (eta 1), DDIM (eta 0) or between, along `path` (default: straight down), with `after` each
    step.

    x [B, C, ...] is at sigmas[0]; sigmas [N+1] fall strictly. The noise source is asked only where noise is added.
    The callback's "i" counts network calls, so that a progress bar of `network_calls(path)` is right."""
    check_descending(sigmas)
    path = range(len(sigmas)) if path is None else path
    check_path(path, len(sigmas))
    calls = 0
    for here, there in pairwise(path):
        sigma, sigma_next = sigmas[here], sigmas[there]
        if there < here:
            x = process.renoise(x, sigma, sigma_next, noise())
            continue
        denoised = denoise(x, sigma)
        report(callback, calls, x, sigma, denoised)
        strength = eta(sigma, sigma_next) if callable(eta) else eta
        x, std = process.transition(x, denoised, sigma, sigma_next, strength)
        if float(std) > 0:
            x = x + std * noise()
        if after is not None:
            x = after(x, Step(here, sigma, sigma_next, denoised))
        calls += 1
    return x
