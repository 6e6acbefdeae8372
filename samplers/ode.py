"""The plain samplers: DDIM (Song et al. 2010.02502), its stochastic form, and Heun's method (Karras et al. 2206.00364).

In our coordinates d(x, s) = (x - D)/s = dx/ds for eps, v and flow alike, and

    Euler = DDIM, eta 0   x' = x + (s' - s) d(x, s)                                        (2010.02502 eq. 13)
    ancestral, eta        x' ~ N(mean, std^2) of NoiseProcess.transition; eta 1 is DDPM     (2010.02502 eq. 12, 16)
    Heun                  x' = x + (s' - s) (d(x, s) + d(x_euler, s'))/2                    (2206.00364 alg. 1)

All take x [B, C, ...] at sigmas[0] and a schedule [N+1] that falls strictly, and return x at sigmas[-1]; with a last
sigma of 0 the last step is D itself. k-diffusion's churn is left out: `sample_ancestral` is the stochastic member here.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from .core import VE, Callback, Denoise, NoiseProcess, NoiseSource, check_descending, euler_step, expand, report, to_d
from .walk import After, Step, sample_walk


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess = VE,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    after: After | None = None,
) -> Tensor:
    """DDIM (eta 0): one network call per step. `process` and `noise` are not needed, the signature is the family's.

    after: a technique's line behind every step, as in `sample_walk`."""
    check_descending(sigmas)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, s)
        report(callback, i, x, s, denoised)
        x = euler_step(x, denoised, s, s_next)
        if after is not None:
            x = after(x, Step(i, s, s_next, denoised))
    return x


def sample_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Tensor:
    """DDPM (eta 1) to DDIM (eta 0): one network call per step, noise drawn wherever the step's std is not 0."""
    return sample_walk(denoise, x, sigmas, process=process, noise=noise, eta=eta, callback=callback)


def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess = VE,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's second order: 2 network calls per step, 1 for a step that ends at sigma 0."""
    check_descending(sigmas)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, s)
        report(callback, i, x, s, denoised)
        x_next = euler_step(x, denoised, s, s_next)
        if s_next > 0:
            d = (to_d(x, s, denoised) + to_d(x_next, s_next, denoise(x_next, s_next))) / 2
            x_next = x + (expand(s_next, x) - expand(s, x)) * d
        x = x_next
    return x
