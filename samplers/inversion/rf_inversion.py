"""RF-Inversion: inversion and editing of a rectified flow by two controllers (Rout et al. 2410.10792).

    forward (alg. 1, eq. 8)     dY = [ u(Y) + gamma (u(Y | y1) - u(Y)) ] dt      from the picture to the noise y1
    reverse (alg. 2, eq. 15)    dX = [ v(X) + eta_t (v(X | y0) - v(X)) ] dt      back, held to the picture y0

where u(Y | y1) is the straight way to one drawn noise n, and v(X | y0) the straight way to the picture. In our
coordinates, with dx/ds = d(x, D) = (x - D)/s:

    forward     d = (1 - gamma) d(x, D) + gamma d_n,    d_n = (n - x)/(1 - s)
    reverse     D' = (1 - eta_t) D + eta_t x0

The forward run asks the network without a prompt, as the authors do. gamma 0 is DDIM inversion, gamma 1 ends in n
itself (on a variance-exploding model in x0 + s n); eta 1 to the last step gives the picture back exactly. eta holds
from step `start` to before step `stop` (the authors' s and tau; Flux: gamma 0.5, eta 0.9, 28 steps, stop 6 to 9), and
may fall linearly to 0 over them.

Departures. No network is asked at sigma 0: a forward step asks at its upper end, x scaled to it, as DDIM inversion here
does (pivots.py). A variance-exploding model is one, too: x = x0 + s n gives d_n = n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, VarianceExploding, check_descending, expand, report, to_d
from ..ode import sample_euler

#: how eta goes on over its steps
FADES = ("constant", "linear decrease")


def invert_rf(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    noise: Tensor,
    gamma: float = 0.5,
    callback: Callback | None = None,
) -> Tensor:
    """The structured noise [B, C, ...] at sigmas[0] of a picture x0, drawn towards `noise` (standard normal).

    denoise: the network without a prompt; one call per step. gamma in [0, 1]."""
    check_descending(sigmas)
    _check("gamma", gamma)
    x = x0
    for i in reversed(range(len(sigmas) - 1)):
        lo, hi = (expand(sigmas[k], x) for k in (i + 1, i))
        at = x * expand(process.input_scale(sigmas[i + 1]), x) / expand(process.input_scale(sigmas[i]), x)
        denoised = denoise(at, sigmas[i])
        straight = noise if isinstance(process, VarianceExploding) else (noise - x) / (1 - lo)
        x = x + (hi - lo) * ((1 - gamma) * to_d(at, sigmas[i], denoised) + gamma * straight)
        report(callback, len(sigmas) - 2 - i, x, sigmas[i], denoised)
    return x


def strengths(steps: int, eta: float, start: int, stop: int, fade: str = FADES[0]) -> list[float]:
    """eta_t of each step: `eta` from step `start` to before `stop`, 0 elsewhere. fade: one of FADES."""
    _check("eta", eta)
    if not 0 <= start <= stop <= steps:
        raise ValueError(f"Of {steps} steps eta must hold from a start to a stop behind it; got {start} and {stop}.")
    if fade not in FADES:
        raise ValueError(f'eta can fade as {" or ".join(FADES)}; got "{fade}".')
    inside = stop - start
    falls = [1 - k / inside if fade == FADES[1] else 1.0 for k in range(inside)]
    return [0.0] * start + [eta * f for f in falls] + [0.0] * (steps - stop)


def sample_rf(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, source: Tensor, etas: list[float], callback: Callback | None = None
) -> Tensor:
    """From structured noise x at sigmas[0] to the edit [B, C, ...], held to the picture `source` by etas [steps].

    denoise: the target prompt's guided prediction; one call per step."""
    check_descending(sigmas)
    if len(etas) != len(sigmas) - 1:
        raise ValueError(f"{len(sigmas) - 1} steps need as many etas; got {len(etas)}.")
    levels = [float(s) for s in sigmas[:-1]]

    def held(x: Tensor, sigma) -> Tensor:
        eta = etas[levels.index(float(torch.as_tensor(sigma).max()))]
        denoised = denoise(x, sigma)
        return denoised if eta == 0 else torch.lerp(denoised, source, eta)

    return sample_euler(held, x, sigmas, callback=callback)


def _check(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} lies between 0 (no control) and 1 (control alone); got {value:g}.")
