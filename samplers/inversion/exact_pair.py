"""The exactly invertible pair: a pivot and its own way back.

    x_{i+1} = x_i + (s_{i+1} - s_i) d_i + g (x_{i-1} - x_i - (s_{i-1} - s_i) d_i)

two-step, and solvable for x_{i-1} without error. O-BELM (2410.07273): g = (h_i/h_{i-1})^2, h_i = s_i - s_{i+1}, second
order. BDIA (2307.10829 eq. 16): g = gamma c_in(s_{i-1})/c_in(s_{i+1}). Below gamma = 1 its inversion grows as gamma^-N.

Departures. O-BELM is a Taylor series about s_i: where a step goes further up than that series converges its inversion
ends in noise up to hundreds of times too strong, and `fitting_gamma` says BDIA. The bookkeeping is in float64 whatever
the network's dtype, for the inverse multiplies rounding by the square of h_first/h_last, and a guided network
multiplies it further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, as_level, check_descending, report, to_d, wide
from ..walk import After, Step
from .pivots import Pivot, Tick, counted, euler_up


def pair_weight(sigmas: Tensor, i: int, process: NoiseProcess, gamma: float | None) -> float:
    """g of the step sigmas[i] -> sigmas[i + 1], i >= 1: O-BELM's for gamma None, else BDIA's."""
    above, here, below = (float(s) for s in sigmas[i - 1 : i + 2])
    if gamma is None:
        return ((here - below) / (above - here)) ** 2
    return gamma * process.input_scale(above) / process.input_scale(below)


def fitting_gamma(sigmas: Tensor, process: NoiseProcess) -> float | None:
    """The gamma for an inversion over these sigmas: None, O-BELM, or 1, BDIA, where a step is too long for O-BELM.

    The path of data of standard deviation 1 is sqrt(1 + s^2) times noise (VE): its series about s_i converges up to
    s_i + sqrt(1 + s_i^2), one 1/c_in(s_i). The first step of a zero-terminal-SNR table is dozens of times as long."""
    s = as_level(sigmas)
    too_long = (s[:-2] - s[1:-1]) * process.input_scale(s[1:-1]) > 1
    return 1.0 if bool(too_long.any()) else None


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

    gamma None: O-BELM (`fitting_gamma`: where it fits); a number: BDIA (1 is the only one that inverts stably). Replay
    with `sample_exact_pair`, the same denoiser, the same gamma."""
    check_descending(sigmas)
    if len(sigmas) < 3:
        raise ValueError("The exactly invertible pair needs at least 2 steps.")
    ask, s, start = _in_double(counted(denoise, tick), x0.dtype), as_level(sigmas), wide(x0)
    last = len(sigmas) - 2
    first, denoised = euler_up(ask, start, s[last + 1], s[last], process, iterations, 0.0)
    report(callback, 0, first.to(x0), sigmas[last], denoised.to(x0))
    levels = [start, first]
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
    ask, s, dtype = _in_double(denoise, x.dtype), as_level(sigmas), x.dtype
    if pair is not None:
        above, x = wide(pair, x.device)
    else:
        above = wide(x)
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
    return x if out is shown else wide(out)


def _in_double(ask: Denoise, dtype: torch.dtype) -> Denoise:
    """The network in its own dtype, the state in float64."""
    return lambda x, sigma: wide(ask(x.to(dtype), sigma.to(dtype)))
