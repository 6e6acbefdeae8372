"""Pivots: ways from an image to noise along the very sigma pairs that sampling will walk, and the two that need it
their own way back.

    ddim           x_hi = x + (s_hi - s_lo) d(X, s_hi),  X = x c_in(s_lo)/c_in(s_hi)
                   DDIM inversion (2010.02502 sec. 4.3) in the form that the code released with 2211.09794 runs: it
                   evaluates the raw VP latent of the lower level at the higher timestep. For VE that rescales x by
                   sqrt((1 + s_hi^2)/(1 + s_lo^2)); for flow c_in = 1.
    ddim_lower     x_hi = x + (s_hi - s_lo) d(x, s_lo): the inversion as the ODE's own Euler step upwards, the network
                   asked where x lies (2010.02502 eq. 13 read upwards). d has no value at s_lo = 0: the first step is
                   `ddim`'s.
    fixed_point    x_hi = x + (s_hi - s_lo) d(x_hi, s_hi), solved by iteration from the DDIM estimate (2309.04907,
                   2403.14602): where it converges, plain Euler steps undo it.
    exact_pair     x_{i+1} = x_i + (s_{i+1} - s_i) d_i + g (x_{i-1} - x_i - (s_{i-1} - s_i) d_i)
                   two-step and solvable for x_{i-1} without error. O-BELM (2410.07273): g = (h_i/h_{i-1})^2,
                   h_i = s_i - s_{i+1}, second order. BDIA (2307.10829 eq. 16): g = gamma c_in(s_{i-1})/c_in(s_{i+1}).
                   Below gamma = 1 its inversion grows as gamma^-N.
    edit_friendly  x_i = noised(x0, s_i, n_i), every n_i drawn anew; residual_i = x_{i+1} - mean_i (2304.06140 alg. 1)
    random         x_i = noised(x0, s_i, n), one n for all levels: the ablation of 2211.09794

One code path for eps, v and flow: only c_in, `noised` and `transition` know the noise process.

Departures. No epsilon is added to any sigma, and no network is asked at sigma 0, in inverting or in sampling: every
method but `ddim_lower` evaluates at the upper end of a step. Edit-friendly keeps whole residuals, std times the paper's
z, so that the last one, where std = 0, is kept too and the replay is exact (the authors set it to 0 and lose the last
step). The exact pair does its bookkeeping in float64 whatever the network's dtype: its inverse multiplies rounding by
the square of h_first/h_last, and a guided network multiplies it further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, Sigma, check_descending, expand, report, to_d
from ..walk import After, Step

Tick = Callable[[], None]


class Pivot(NamedTuple):
    """What an inversion leaves: index 0 at sigmas[0], the noise end."""

    trajectory: Tensor  #: [N+1, B, C, ...], the last is x0
    residuals: Tensor | None = None  #: [N, B, C, ...], edit-friendly
    pair: Tensor | None = None  #: [2, B, C, ...] float64, x at sigmas[0] and sigmas[1], exact pair


def _counted(denoise: Denoise, tick: Tick | None) -> Denoise:
    """denoise, with `tick` called after each call."""
    if tick is None:
        return denoise

    def ask(x, sigma):
        denoised = denoise(x, sigma)
        tick()
        return denoised

    return ask


def _euler_up(
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
    check_descending(sigmas)
    ask = _counted(denoise, tick)
    levels = [x0]
    for i in reversed(range(len(sigmas) - 1)):
        x, denoised = _euler_up(ask, levels[-1], sigmas[i + 1], sigmas[i], process, iterations, tolerance)
        report(callback, len(levels) - 1, x, sigmas[i], denoised)
        levels.append(x)
    return Pivot(torch.stack(levels[::-1]))


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
    check_descending(sigmas)
    ask = _counted(denoise, tick)
    levels = [x0]
    for i in reversed(range(len(sigmas) - 1)):
        x, lo, hi = levels[-1], sigmas[i + 1], sigmas[i]
        if lo > 0:
            denoised = ask(x, lo)
            x = x + (expand(hi, x) - expand(lo, x)) * to_d(x, lo, denoised)
        else:
            x, denoised = _euler_up(ask, x, lo, hi, process, 0, 0.0)
        report(callback, len(levels) - 1, x, hi, denoised)
        levels.append(x)
    return Pivot(torch.stack(levels[::-1]))


def pair_weight(sigmas: Tensor, i: int, process: NoiseProcess, gamma: float | None) -> float:
    """g of the step sigmas[i] -> sigmas[i + 1], i >= 1: O-BELM's for gamma None, else BDIA's."""
    above, here, below = (float(s) for s in sigmas[i - 1 : i + 2])
    if gamma is None:
        return ((here - below) / (above - here)) ** 2
    return gamma * process.input_scale(above) / process.input_scale(below)


def invert_exact_pair(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    gamma: float | None = None,
    iterations: int = 5,
    callback: Callback | None = None,
    tick: Tick | None = None,
) -> Pivot:
    """The exactly invertible pair: N + iterations calls, the first step up by fixed point, N >= 2.

    gamma None: O-BELM; a number: BDIA (1 is the only one that inverts stably). Replay with `sample_exact_pair`, the
    same denoiser, the same gamma."""
    check_descending(sigmas)
    if len(sigmas) < 3:
        raise ValueError("The exactly invertible pair needs at least 2 steps.")
    ask, s, wide = _in_double(_counted(denoise, tick), x0.dtype), sigmas.to("cpu", torch.float64), _wide(x0)
    last = len(sigmas) - 2
    first, denoised = _euler_up(ask, wide, s[last + 1], s[last], process, iterations, 0.0)
    report(callback, 0, first.to(x0), sigmas[last], denoised.to(x0))
    levels = [wide, first]
    for i in reversed(range(1, last + 1)):
        below, x = levels[-2], levels[-1]
        denoised = ask(x, s[i])
        report(callback, len(levels) - 1, x.to(x0), sigmas[i], denoised.to(x0))
        d = to_d(x, s[i], denoised)
        levels.append(
            x + (s[i - 1] - s[i]) * d + (below - x - (s[i + 1] - s[i]) * d) / pair_weight(s, i, process, gamma)
        )
    trajectory = torch.stack(levels[::-1])
    return Pivot(trajectory.to(x0.dtype), pair=trajectory[:2].clone())


def sample_exact_pair(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    pair: Tensor | None = None,
    gamma: float | None = None,
    after: After | None = None,
) -> Tensor:
    """The way back. pair [2, B, C, ...]: where to start instead of x, N - 1 calls; None: x and an Euler step, N calls.

    From the pair of `invert_exact_pair`, with its denoiser and gamma, it returns x0 but for rounding. after: a
    technique's line behind every step that is walked, as in `sample_walk`."""
    check_descending(sigmas)
    ask, s, dtype = _in_double(denoise, x.dtype), sigmas.to("cpu", torch.float64), x.dtype
    if pair is not None:
        above, x = _wide(pair, x.device)
    else:
        above = _wide(x)
        denoised = ask(above, s[0])
        report(callback, 0, above.to(dtype), sigmas[0], denoised.to(dtype))
        x = above + (s[1] - s[0]) * to_d(above, s[0], denoised)
        x = _touched(after, x, Step(0, sigmas[0], sigmas[1], denoised.to(dtype)))
    for i in range(1, len(sigmas) - 1):
        denoised = ask(x, s[i])
        report(callback, i, x.to(dtype), sigmas[i], denoised.to(dtype))
        d = to_d(x, s[i], denoised)
        g = pair_weight(s, i, process, gamma)
        above, x = x, x + (s[i + 1] - s[i]) * d + g * (above - x - (s[i - 1] - s[i]) * d)
        x = _touched(after, x, Step(i, sigmas[i], sigmas[i + 1], denoised.to(dtype)))
    return x.to(dtype)


def _touched(after: After | None, x: Tensor, step: Step) -> Tensor:
    """`after` on a wide state, shown in the network's dtype; left alone the state keeps its digits."""
    if after is None:
        return x
    shown = x.to(step.denoised.dtype)
    out = after(shown, step)
    return x if out is shown else _wide(out)


def _wide(x: Tensor, device: torch.device | None = None) -> Tensor:
    """x on its device or another, in float64 where that has it."""
    device = device or x.device
    return x.to(torch.float32 if device.type == "mps" else torch.float64).to(device)


def _in_double(ask: Denoise, dtype: torch.dtype) -> Denoise:
    """The network in its own dtype, the state in float64."""
    return lambda x, sigma: _wide(ask(x.to(dtype), sigma.to(dtype)))


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
    ask = _counted(denoise, tick)
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


def random_pivot(x0: Tensor, sigmas: Tensor, *, process: NoiseProcess, noise: NoiseSource) -> Pivot:
    """x0 noised with one draw at every level: no call, and no network's path."""
    check_descending(sigmas)
    n = noise()
    return Pivot(torch.stack([process.noised(x0, s, n) for s in sigmas]))


def whiteness(x: Tensor, sigma: Sigma) -> tuple[float, float]:
    """How far x [B, C, H, W] at the noise end is from white noise: its std over sigma (1 is white), and the correlation
    of horizontal and vertical neighbours (0 is white)."""
    z = x.double() - x.double().mean()
    pairs = [(z[..., 1:], z[..., :-1]), (z[..., 1:, :], z[..., :-1, :])]
    neighbours = sum(float((a * b).mean()) for a, b in pairs) / 2
    return float(x.double().std() / torch.as_tensor(sigma)), neighbours / float((z**2).mean())
