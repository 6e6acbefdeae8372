"""Pivots: ways from an image to noise along the very sigma pairs that sampling will walk.

    ddim           x_hi = x + (s_hi - s_lo) d(X, s_hi),  X = x c_in(s_lo)/c_in(s_hi)
                   DDIM inversion (2010.02502 sec. 4.3) in the form that the code released with 2211.09794 runs: it
                   evaluates the raw VP latent of the lower level at the higher timestep. For eps and v that
                   rescales x by sqrt((1 + s_hi^2)/(1 + s_lo^2)); for flow c_in = 1.
    ddim_lower     x_hi = x + (s_hi - s_lo) d(x, s_lo): the inversion as the ODE's own Euler step upwards, the network
                   asked where x lies (2010.02502 eq. 13 read upwards). d has no value at s_lo = 0: the first step is
                   `ddim`'s.
    fixed_point    x_hi = x + (s_hi - s_lo) d(x_hi, s_hi), solved by iteration from the DDIM estimate (2309.04907,
                   2403.14602): where it converges, plain Euler steps undo it.
    random         x_i = noised(x0, s_i, n), one n for all levels: the ablation of 2211.09794

Two more need a way back of their own: exact_pair.py, edit_friendly.py. One code path for eps, v and flow: only c_in,
`noised` and `transition` know the noise process.

Departures. No epsilon is added to any sigma, and no network is asked at sigma 0, in inverting or in sampling: every
method but `ddim_lower` evaluates at the upper end of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, Sigma, check_descending, expand, report, to_d, wide

Tick = Callable[[], None]


class Pivot(NamedTuple):
    """What an inversion leaves: index 0 at sigmas[0], the noise end."""

    trajectory: Tensor  #: [N+1, B, C, ...], the last is x0
    residuals: Tensor | None = None  #: [N, B, C, ...], edit-friendly
    pair: Tensor | None = None  #: [2, B, C, ...] float64, x at sigmas[0] and sigmas[1], exact pair


def counted(denoise: Denoise, tick: Tick | None) -> Denoise:
    """denoise, with `tick` called after each call."""
    if tick is None:
        return denoise

    def ask(x, sigma):
        denoised = denoise(x, sigma)
        tick()
        return denoised

    return ask


def euler_up(
    ask: Denoise, x: Tensor, lo: Sigma, hi: Sigma, process: NoiseProcess, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """One step up from lo to hi: DDIM's estimate, then `iterations` of the fixed point. Returns x_hi and the last D."""
    h = expand(hi, x) - expand(lo, x)
    at = x * expand(process.input_scale(lo), x) / expand(process.input_scale(hi), x)
    denoised = ask(at, hi)
    x_hi = x + h * to_d(at, hi, denoised)
    for _ in range(iterations):
        denoised = ask(x_hi, hi)
        before, x_hi = x_hi, x + h * to_d(x_hi, hi, denoised)
        if tolerance > 0 and float((x_hi - before).abs().max() / expand(hi, x)) <= tolerance:
            break
    return x_hi, denoised


def _climb(
    up: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], x0: Tensor, sigmas: Tensor, callback: Callback | None
) -> Pivot:
    """Level by level from x0 at the schedule's end to its first sigma: up(x, lo, hi) -> x at hi and its D."""
    check_descending(sigmas)
    levels = [x0]
    for i in reversed(range(len(sigmas) - 1)):
        x, denoised = up(levels[-1], sigmas[i + 1], sigmas[i])
        report(callback, len(levels) - 1, x, sigmas[i], denoised)
        levels.append(x)
    return Pivot(torch.stack(levels[::-1]))


def invert_ddim(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    callback: Callback | None = None,
    tick: Tick | None = None,
) -> Pivot:
    """DDIM inversion of x0 [B, C, ...]: N calls."""
    return invert_fixed_point(denoise, x0, sigmas, process=process, iterations=0, callback=callback, tick=tick)


def invert_fixed_point(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    iterations: int = 5,
    tolerance: float = 0.0,
    callback: Callback | None = None,
    tick: Tick | None = None,
) -> Pivot:
    """Implicit Euler inversion: at most N (1 + iterations) calls.

    tolerance: stop a step's iteration when x moves by no more than this times sigma. The iteration contracts where
    (s_hi - s_lo) |dd/dx| < 1, which a guidance scale above about 3 may break: invert at cfg 1."""
    ask = counted(denoise, tick)

    def up(x, lo, hi):
        return euler_up(ask, x, lo, hi, process, iterations, tolerance)

    return _climb(up, x0, sigmas, callback)


def invert_ddim_lower(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    callback: Callback | None = None,
    tick: Tick | None = None,
) -> Pivot:
    """DDIM inversion of x0 [B, C, ...] with the prediction at each step's lower level: N calls."""
    ask = counted(denoise, tick)

    def up(x, lo, hi):
        if lo > 0:
            denoised = ask(x, lo)
            return x + (expand(hi, x) - expand(lo, x)) * to_d(x, lo, denoised), denoised
        return euler_up(ask, x, lo, hi, process, 0, 0.0)

    return _climb(up, x0, sigmas, callback)


def random_pivot(x0: Tensor, sigmas: Tensor, *, process: NoiseProcess, noise: NoiseSource) -> Pivot:
    """x0 noised with one draw at every level: no call, and no network's path."""
    check_descending(sigmas)
    n = noise()
    return Pivot(torch.stack([process.noised(x0, s, n) for s in sigmas]))


def whiteness(x: Tensor, sigma: Sigma) -> tuple[float, float]:
    """How far x [B, C, H, W] at the noise end is from white noise: its std over sigma (1 is white), and the correlation
    of horizontal and vertical neighbours (0 is white)."""
    x = wide(x)
    z = x - x.mean()
    pairs = [(z[..., 1:], z[..., :-1]), (z[..., 1:, :], z[..., :-1, :])]
    neighbours = sum(float((a * b).mean()) for a, b in pairs) / 2
    return float(x.std() / torch.as_tensor(sigma)), neighbours / float((z**2).mean())
