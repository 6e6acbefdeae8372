"""Under which schedules null-text disturbance (disturbance.py) is stable, and at which strength.

The null term does not depend on the noise in X, so a step to r = s'/s multiplies the remaining error by 1 - G (1 - r)
with G = 1 + (g - 1) strength. The error shrinks while G (1 - r) < 2, and keeps its sign while that is <= 1. The last
step to 0 is left out of `gains` (r = 0 there, every schedule breaks it); `stable_strength` fades it. With
`matched_uncond` where it binds, the null term's size follows the conditional's, and the factor is no longer exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..window import SigmaWindow

#: Largest G (1 - r) that a faded strength may leave. 2 is the border of growth; at 1 errors fall in one step.
STABLE_GAIN = 1.5


def gains(
    sigmas: Sequence[float] | Tensor, cfg: float, start: float, end: float = 0.0, strength: float = 1.0
) -> list[float]:
    """G (1 - r) of every step [N]: 0 outside the window and for a last step to 0. Below 2 errors decay."""
    levels = [float(s) for s in sigmas]
    gain, window = 1 + (cfg - 1) * strength, SigmaWindow(start, end)
    return [gain * (1 - low / high) if high in window and low > 0 else 0.0 for high, low in zip(levels, levels[1:])]


def stable_strength(
    sigmas: Sequence[float] | Tensor, cfg: float, strength: float = 1.0, limit: float = STABLE_GAIN
) -> list[float]:
    """The strength of each step [N] that keeps G (1 - r) <= limit; the asked one where that already holds.

    The last step to 0 (r = 0) fades on every schedule: it would hand the null branch's error on cfg-fold."""
    levels = [float(s) for s in sigmas]
    if cfg <= 1:
        return [strength] * (len(levels) - 1)
    bound = lambda high, low: (limit / (1 - low / high) - 1) / (cfg - 1)
    return [min(strength, max(0.0, bound(high, low))) for high, low in zip(levels, levels[1:])]


def disturbance_schedule(
    sigmas: Tensor, cfg: float, start: float, above: int | None = None, below: int | None = None, gain: float = 1.0
) -> Tensor:
    """Few steps above the window, enough below: a schedule under which the disturbance is stable.

    Below as given where no step can be too long (cfg up to `gain`), or where nothing of the schedule is below.

    sigmas [N+1] falling, the last 0 or above. start: the window's first sigma (made a level if the schedule reaches
    above it). above: steps from the first sigma to `start`, evenly by index of the given ones (None: as many as are
    there). below: steps evenly in log sigma from `start` to the last positive sigma (None: the fewest with cfg (1 -
    r) <= gain)."""
    levels = [float(s) for s in sigmas]
    ends_at_zero = levels[-1] == 0
    positive = levels[:-1] if ends_at_zero else levels
    last = positive[-1]
    top = min(start, positive[0])
    window = SigmaWindow(top, 0.0)
    upper = [s for s in positive[:-1] if s not in window]
    lower = positive[len(upper) :]
    if above is not None and len(upper) > above:
        places = torch.linspace(0, len(upper), above + 1)[:-1].round().long().tolist()
        upper = [upper[i] for i in dict.fromkeys(places)]
    if last < top and (cfg > gain or below is not None):
        if below is None:
            below = math.ceil(math.log(last / top) / math.log(1 - gain / cfg))
        between = torch.logspace(math.log10(top), math.log10(last), below + 1, dtype=torch.float64)[1:-1]
        lower = [top, *between.tolist(), last]
    return torch.tensor([*upper, *lower, *([0.0] if ends_at_zero else [])], dtype=torch.float64).to(sigmas)
