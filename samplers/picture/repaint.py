"""RePaint: inpainting with an unconditional model by travelling up and down in noise (Lugmayr et al. 2201.09865).

Masks: 1 means repaint, 0 means known (the paper's m is the opposite). At each new level s', in our coordinates:

    x_known   = noised(x0, s', fresh noise)                       eq. 8a
    x_unknown = reverse step of the whole x                       eq. 8b
    x         = mask * x_unknown + (1 - mask) * x_known           eq. 8c
    jump up   x_hi ~ q(x_hi | x_lo) of the whole x                Algorithm 1, line 11

The schedule is a path of level numbers. `official_path(250, 10, 10)` is the authors' schedule: 2410 network calls;
(20, 5, 2) makes 35. Smaller ones, and one of our own, stand in repaint_schedules.py.

Departures: one draw carries a jump of j levels (equal in law to j single ones); the known part is injected at the level
that was reached (the authors inject it just before the next call, at the same level); soft masks keep the variance
of the noise (`blend`), which a plain linear mix of two independent noises would lower; and resampling may be limited
to a range of sigmas: far above the data's scale it changes nothing, far below the modes no longer mix.

RePaint sees the known part through noise, so it is not an exact conditional sampler, and more resampling only comes
nearer. `sample_conditional_particles` of particles.py leans towards the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..core import VE, Callback, Denoise, NoiseProcess, NoiseSource, Sigma, expand
from ..walk import After, Eta, Step, network_calls, sample_walk
from ..window import SigmaWindow


def official_path(steps: int, jump: int = 10, resamples: int = 10) -> list[int]:
    """The authors' schedule over `steps` reverse steps as level numbers 0..steps (their t is steps - 1 - level).

    At t = 0, j, 2j, ... < steps - j the walk goes back up j levels, resamples - 1 times each."""
    return jump_path(steps, jump, resamples, lambda level: True)


def jump_path(steps: int, jump: int, resamples: int, allowed: Callable[[int], bool]) -> list[int]:
    """Level numbers from 0 down to `steps`, with `resamples` - 1 jumps up of `jump` levels at every jump-th level
    that is allowed.

    jump >= 1 in levels, resamples >= 1 (1: no jumps)."""
    if steps < 1 or jump < 1 or resamples < 1:
        raise ValueError(f"RePaint needs at least one step, jump and resample; got {steps}, {jump}, {resamples}.")
    left = dict.fromkeys(_jumped_from(steps, jump, allowed), resamples - 1)
    path = [0]
    while path[-1] < steps:
        level = path[-1] + 1
        path.append(level)
        if left.get(level, 0) > 0:
            left[level] -= 1
            path.append(level - jump)
    return path


def _jumped_from(steps: int, jump: int, allowed: Callable[[int], bool]) -> list[int]:
    return [steps - 1 - t for t in range(0, steps - jump, jump) if allowed(steps - 1 - t)]


def path_length(steps: int, jump: int, resamples: int, allowed: Callable[[int], bool]) -> int:
    """len(jump_path(...)) without making it: each jump adds its landing and `jump` levels down again."""
    return steps + 1 + (resamples - 1) * (jump + 1) * len(_jumped_from(steps, jump, allowed))


def noise_to_signal(sigma: Sigma, process: NoiseProcess) -> float:
    """s / a of x_s = a x0 + s n: sigma itself for VE, s / (1 - s) for flow (infinite at 1)."""
    sigma = float(sigma)
    signal = float(process.signal(torch.tensor(sigma, dtype=torch.float64)))
    return sigma / signal if signal > 0 else math.inf


def ranged_path(
    sigmas: Tensor,
    jump: int = 1,
    resamples: int = 10,
    low: float = 0.0,
    high: float = math.inf,
    process: NoiseProcess = VE,
) -> list[int]:
    """A schedule that resamples only where low <= s/a <= high (noise to signal), at the level that is jumped from."""
    return jump_path(len(sigmas) - 1, jump, resamples, within(sigmas, low, high, process))


def within(sigmas: Tensor, low: float, high: float, process: NoiseProcess = VE) -> Callable[[int], bool]:
    """level number -> whether low <= s/a <= high there."""
    levels = [noise_to_signal(s, process) for s in sigmas]
    return lambda level: levels[level] in SigmaWindow(high, low)


def karras_sigmas(levels: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """`levels` sigmas of Karras et al. 2206.00364 eq. 5 and a final 0, float64 [levels + 1]."""
    ramp = torch.linspace(0, 1, levels, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def blend(mask: Tensor, x: Tensor, known: Tensor, signal: Tensor | None = None) -> Tensor:
    """mask * x + (1 - mask) * known, where both carry independent noise of the same strength around their own signals.

    signal [B, C, ...]: what the mix would be without noise (already scaled by the process). Where 0 < mask < 1 the
    noise around it is brought back to full strength; where the mask is 0 or 1 the values pass to the bit. None: a
    plain linear mix."""
    mixed = mask * x + (1 - mask) * known
    if signal is not None:
        mixed = signal + (mixed - signal) / (mask**2 + (1 - mask) ** 2).sqrt()
    return torch.where(mask == 1, x, torch.where(mask == 0, known, mixed))


def hold_known(
    source: Tensor, mask: Callable[[Sigma], Tensor] | Tensor, process: NoiseProcess, noise: NoiseSource
) -> After:
    """The known part, noised to the level just reached, put where the mask is 0; exact at sigma 0.

    mask [B or 1, 1 or C, ...] in [0, 1], or a function of sigma that gives one (progressive masks)."""

    def after(x: Tensor, step: Step) -> Tensor:
        m = mask(step.sigma_next) if callable(mask) else mask
        if float(step.sigma_next) == 0:
            return blend(m, x, source)
        known = process.noised(source, step.sigma_next, noise())
        clean = m * step.denoised + (1 - m) * source
        return blend(m, x, known, expand(process.signal(step.sigma_next), x) * clean)

    return after


def sample_repaint(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    source: Tensor,
    mask: Tensor,
    process: NoiseProcess,
    noise: NoiseSource,
    path: Sequence[int] | None = None,
    eta: Eta = 1.0,
    of_source: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """RePaint along `path` (None: straight down, the naive fill).

    x [B, C, ...] is noise at sigmas[0], or, of_source, the source noised to it; source [B, C, ...] is the clean picture
    in model space, mask [B or 1, 1 or C, ...] in [0, 1]. The result equals `source` to the bit where the mask is 0."""
    clean = source if of_source else (1 - mask) * source
    known = process.noised(source, sigmas[0], noise())
    x = blend(mask, x, known, expand(process.signal(sigmas[0]), x) * clean)
    return sample_walk(
        denoise,
        x,
        sigmas,
        process=process,
        noise=noise,
        eta=eta,
        path=path,
        after=hold_known(source, mask, process, noise),
        callback=callback,
    )


def describe(sigmas: Tensor, path: Sequence[int]) -> str:
    """One line on what a schedule costs, told before it starts."""
    ups = [(float(sigmas[a]), float(sigmas[b])) for a, b in pairwise(path) if b < a]
    jumps = "1 jump" if len(ups) == 1 else f"{len(ups)} jumps"
    text = f"{network_calls(path)} network calls over {len(sigmas) - 1} levels, {jumps} up"
    return text + (f" between sigma {min(a for a, _ in ups):.3g} and {max(b for _, b in ups):.3g}" if ups else "")
