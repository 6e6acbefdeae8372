"""ILVR: a picture's coarse content, everything else free (Choi et al. 2108.02938).

The paper's step (eq. 7), with phi a low-pass, y the reference, x' the unconditional proposal at the new level s':

    y_s' ~ q(y_s' | y)                 x = x' - phi(x') + phi(y_s')          `hold_coarse`, `sample_ilvr`

and its form without noise, on the denoised picture, for any sampler (the null-space form of DDNM, 2212.00490 eq. 13):

    D' = D + phi(y) - phi(D)                                                 `coarse_of`

Both stop at a chosen step: the fewer the conditioned steps, the freer the result. With phi a projector (lowpass.py),
phi(x) equals the reference's at the last conditioned step. With the authors' bicubic filter it misses it by
phi(x' - y) - phi(phi(x' - y)).

Departures: the reference is noised to the level that was reached, s' (the authors' code uses the one before).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, Sigma
from ..walk import After, sample_walk
from .lowpass import LowPass


def coarse_of(x: Tensor, reference: Tensor, low_pass: LowPass) -> Tensor:
    """x with the coarse content of the reference: x + phi(reference - x)."""
    return x + low_pass(reference - x)


def hold_coarse(
    reference: Tensor, low_pass: LowPass, active: Callable[[Sigma], bool], process: NoiseProcess, noise: NoiseSource
) -> After:
    """The paper's line after each step that reaches an active level; at sigma 0 the clean reference's own coarse
    content."""

    def after(x, step):
        if not active(step.sigma):
            return x
        noised = process.noised(reference, step.sigma_next, noise()) if float(step.sigma_next) > 0 else reference
        return coarse_of(x, noised, low_pass)

    return after


def sample_ilvr(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    reference: Tensor,
    low_pass: LowPass,
    stop: int,
    process: NoiseProcess,
    noise: NoiseSource,
    eta: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """ILVR in the paper's noisy form; the first `stop` steps are conditioned (0: none, N: all).

    x [B, C, H, W] at sigmas[0], reference the same shape in model space."""
    reference = reference.to(x)
    last = float(sigmas[stop]) if stop < len(sigmas) else -1.0
    after = hold_coarse(reference, low_pass, lambda sigma: float(sigma) > last, process, noise)
    return sample_walk(denoise, x, sigmas, process=process, noise=noise, eta=eta, after=after, callback=callback)
