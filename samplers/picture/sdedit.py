"""SDEdit: a picture or a scribble, noised to level t0 and denoised again (Meng et al. 2108.01073).

    x_{t0} ~ q(x_{t0} | guide)        then the reverse process from t0 to 0                     (Algorithm 1)

t0 in (0, 1] is the share of the diffusion's time: 0.3 keeps most of the picture, 0.6 keeps layout and colours, 1
keeps nothing. Small t0 is faithful, large t0 realistic. `steps` are spent between t0 and 0 (the paper's N, evenly in
time).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: What a noise level means, as measured on the demo model (docs/benchmarks.md: distance and KID over t0); larger models
#: keep more (the paper's Fig. 3; its own choice is 0.3 to 0.6 for scribbles)
MEANING = (
    (0.2, "places and background kept; what the prompt says otherwise may have changed"),
    (0.5, "layout and colours kept"),
    (0.7, "little kept on a small model, the layout on a large one"),
    (1.0, "hardly anything kept"),
)


def meaning(t0: float) -> str:
    """t0 in plain words."""
    return next((words for bound, words in MEANING if t0 <= bound), MEANING[-1][1])


def sdedit_sigmas(sigma_at: Callable[[float], float], t0: float, steps: int) -> Tensor:
    """`steps` reverse steps evenly in time from t0 to 0: [steps + 1] float64, the last 0.

    sigma_at: time in [0, 1] -> sigma of the model. Levels that a model's table repeats are dropped. t0 0 gives no
    step: [0]."""
    if not 0 <= t0 <= 1:
        raise ValueError(f"The noise level t0 lies between 0 (nothing changes) and 1 (nothing is kept); got {t0}.")
    if t0 == 0:
        return torch.zeros(1, dtype=torch.float64)
    times = torch.linspace(t0, 0, steps + 1, dtype=torch.float64)[:-1]
    levels: list[float] = []
    for time in times.tolist():
        sigma = float(sigma_at(time))
        if sigma > 0 and (not levels or sigma < levels[-1]):
            levels.append(sigma)
    return torch.tensor([*levels, 0.0], dtype=torch.float64)
