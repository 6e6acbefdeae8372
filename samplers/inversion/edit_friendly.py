"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2304.06140, alg. 1) and its way back.

    x_i = noised(x0, s_i, n_i), every n_i drawn anew        residual_i = x_{i+1} - mean_i of `transition`

Departure: whole residuals are kept, std times the paper's z, so that the last one, where std = 0, is kept too and the
replay is exact (the authors set it to 0 and lose the last step).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, check_descending, report
from ..walk import After, Step
from .pivots import Pivot, Tick, counted


def invert_edit_friendly(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    noise: NoiseSource,
    eta: float = 1.0,
    callback: Callback | None = None,
    tick: Tick | None = None,
) -> Pivot:
    """Edit-friendly DDPM inversion of x0 [B, C, ...]: N calls, N draws of noise. eta as in `transition`."""
    check_descending(sigmas)
    ask = counted(denoise, tick)
    levels = [process.noised(x0, s, noise()) for s in sigmas[:-1]] + [x0]
    residuals = []
    for i in range(len(sigmas) - 1):
        denoised = ask(levels[i], sigmas[i])
        report(callback, i, levels[i], sigmas[i], denoised)
        mean, _ = process.transition(levels[i], denoised, sigmas[i], sigmas[i + 1], eta)
        residuals.append(levels[i + 1] - mean)
        levels[i + 1] = mean + residuals[-1]  # as the replay will compute it, to the bit
    return Pivot(torch.stack(levels), torch.stack(residuals))


def sample_edit_friendly(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    residuals: Tensor,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    after: After | None = None,
) -> Tensor:
    """The posterior steps with recorded residuals [N, B, C, ...] for noise: the source again, or its edit. N calls.

    To skip the first k steps (the paper's T_skip, which keeps more of the source) give trajectory[k], sigmas[k:] and
    residuals[k:]. after: a technique's line behind every step, as in `sample_walk`."""
    check_descending(sigmas)
    if len(residuals) != len(sigmas) - 1:
        raise ValueError(f"{len(sigmas) - 1} steps need as many residuals; got {len(residuals)}.")
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        report(callback, i, x, sigmas[i], denoised)
        x = process.transition(x, denoised, sigmas[i], sigmas[i + 1], eta)[0] + residuals[i].to(x)
        if after is not None:
            x = after(x, Step(i, sigmas[i], sigmas[i + 1], denoised))
    return x
