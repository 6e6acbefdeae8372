"""DiffEdit: find where two prompts disagree, and edit there (Couairon et al. 2210.11427).

Step 1, the mask: noise the picture to strength 0.5, n times; where do source and target prompt predict different noise?

    h = mean over maps and channels of |eps(x_s, target) - eps(x_s, source)|,     |eps difference| = |D_t - D_s| / s
    clamp, scale to [0, 1], threshold at 0.5 (the paper's); clamp at 3 times the mean of h: so h > half of 3 mean h, or
    of the largest h where that is less. The paper says only that extreme values are removed; 3 is the value of
    diffusers' pipeline, which divides by 3 mean h even where no h is as large: then a change of the whole background
    gives an empty mask, for no large region can be 1.5 times as hot as the mean

Step 2: invert the picture (DDIM) to a chosen depth, keeping every latent. Step 3: decode with the target prompt, and
after each step put the stored latent back outside the mask:  x = m x + (1 - m) trajectory[s'].

Departures: a map without any disagreement gives an empty mask (the authors' normalisation would divide by 0); the
last step blends with the clean latent, so that outside the mask the picture is exact; a map can be blurred a little
before the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, Sigma, expand
from ..walk import After, sample_walk
from .repaint import blend

CLAMP, THRESHOLD = 3.0, 0.5  # diffusers' value, the paper's


def difference_map(
    pair: Callable[[Tensor, Sigma], Sequence[Tensor]],
    x0: Tensor,
    sigma: Sigma,
    *,
    process: NoiseProcess,
    noise: NoiseSource,
    maps: int = 10,
) -> Tensor:
    """h [B, H, W]: mean |eps_target - eps_source| over `maps` noisings of x0 [B, C, ..., H, W] to sigma, over channels
    and frames.

    pair(x, sigma) -> (D_source, D_target), without guidance: guidance multiplies the difference by the scale and so
    leaves the mask alone."""
    total = torch.zeros_like(x0.flatten(1, -3)[:, 0])
    s = torch.as_tensor(sigma, dtype=x0.dtype, device=x0.device)
    for _ in range(maps):
        source, target = pair(process.noised(x0, s, noise()), s)
        total = total + ((target - source).abs() / expand(s, x0)).flatten(1, -3).mean(1)
    return total / maps


def smoothed(h: Tensor, cells: int) -> Tensor:
    """h [B, H, W] averaged over squares of 2 cells + 1, edges included; 0 leaves it."""
    return h if cells <= 0 else F.avg_pool2d(h[:, None], 2 * cells + 1, 1, cells, count_include_pad=False)[:, 0]


def normalised(h: Tensor, clamp: float = CLAMP) -> Tensor:
    """h [B, H, W] clamped at `clamp` times its mean and scaled so that the largest is 1; 0 where nothing differs."""
    each = h.flatten(1)
    top = torch.minimum(clamp * each.mean(1), each.amax(1)).reshape(-1, *[1] * (h.ndim - 1))
    return torch.where(top > 0, (h / top.clamp(min=torch.finfo(h.dtype).tiny)).clamp(0, 1), 0)


def edit_mask(h: Tensor, threshold: float = THRESHOLD, clamp: float = CLAMP) -> Tensor:
    """1 where the two prompts disagree: normalised(h) > threshold, [B, H, W] in {0, 1}."""
    return (normalised(h, clamp) > threshold).to(h.dtype)


def hold_trajectory(trajectory: Tensor, mask: Tensor) -> After:
    """The stored latents outside the mask: trajectory [N+1, B, C, ...] lies on the walk's own sigmas, noise first."""

    def after(x, step):
        return blend(mask.to(x), x, trajectory[step.index + 1].to(x))

    return after


def sample_diffedit(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    trajectory: Tensor,
    edit: Tensor,
    process: NoiseProcess,
    noise: NoiseSource,
    callback: Callback | None = None,
) -> Tensor:
    """Step 3: DDIM with the target prompt from x = trajectory[0], the stored latents outside `edit` [B or 1, 1, H,
    W]."""
    hold = hold_trajectory(trajectory, edit)
    return sample_walk(denoise, x, sigmas, process=process, noise=noise, eta=0.0, after=hold, callback=callback)
