"""DiffEdit: find where two prompts disagree, and edit there (Couairon et al. 2210.11427).

Step 1, the mask: noise the picture to strength 0.5, n times; where do source and target prompt predict different noise?

    h = mean over maps and channels of |eps(x_s, target) - eps(x_s, source)|,     |eps difference| = |D_t - D_s| / s
    clamp at 3 times its mean, scale to [0, 1], threshold at 0.5                  (so: h > 1.5 mean h)

Step 2: invert the picture (DDIM) to a chosen depth, keeping every latent. Step 3: decode with the target prompt, and
after
each step put the stored latent back outside the mask:  x = m x + (1 - m) trajectory[s'].

Departures: a map without any disagreement gives an empty mask (the authors' normalisation would divide by 0); the
last step blends with the clean latent, so that outside the mask the picture is exact; a map can be blurred a little
before the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core import Denoise, NoiseProcess, NoiseSource, expand
from .walk import After

CLAMP, THRESHOLD = 3.0, 0.5


def difference_map(
    source: Denoise,
    target: Denoise,
    x0: Tensor,
    sigma: float,
    *,
    process: NoiseProcess,
    noise: NoiseSource,
    maps: int = 10,
) -> Tensor:
    """h [B, H, W]: mean |eps_target - eps_source| over `maps` noisings of x0 [B, C, ..., H, W] to sigma. 2 * maps
    calls."""
    total = torch.zeros_like(x0[:, 0])
    s = torch.as_tensor(sigma, dtype=x0.dtype, device=x0.device)
    for _ in range(maps):
        x = process.noised(x0, s, noise())
        total = total + ((target(x, s) - source(x, s)).abs() / expand(s, x0)).mean(1)
    return total / maps


def heat(h: Tensor, clamp: float = CLAMP) -> Tensor:
    """h [B, H, W] clamped at `clamp` times its mean and scaled to [0, 1]; 0 where nothing differs."""
    mean = h.flatten(1).mean(1).reshape(-1, *[1] * (h.ndim - 1))
    return torch.where(mean > 0, (h / (clamp * mean).clamp(min=torch.finfo(h.dtype).tiny)).clamp(0, 1), 0)


def edit_mask(h: Tensor, threshold: float = THRESHOLD, clamp: float = CLAMP) -> Tensor:
    """1 where the two prompts disagree: heat(h) > threshold, [B, H, W] in {0, 1}."""
    return (heat(h, clamp) > threshold).to(h.dtype)


def hold_trajectory(trajectory: Tensor, mask: Tensor) -> After:
    """The stored latents outside the mask: trajectory [N+1, B, C, ...] lies on the walk's own sigmas, noise first."""

    def after(x, step):
        stored = trajectory[step.index + 1].to(x)
        mixed = mask * x + (1 - mask) * stored
        return torch.where(mask == 0, stored, torch.where(mask == 1, x, mixed))

    return after
