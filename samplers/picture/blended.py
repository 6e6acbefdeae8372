"""Blended diffusion: repaint inside a mask, hold the background (Avrahami et al. 2111.14818; latent form 2206.02779).

After each step, with m = 1 where the picture may change:      x = m x + (1 - m) noised(x0, s')          (Algorithm 2)

`repaint.hold_known` is that line (straight down, no jumps). Here are the parts of the latent form around it:

    shrinking masks   thin masks vanish on the latent grid; start from a dilated one and shrink to the user's
    (2206.02779 section 4.3)
    start             the loop begins at a chosen share of the time from the noised picture; under the mask from that,
                      or from its noise alone
    fresh or fixed    the known part's noise drawn anew at each step (the paper) or once for the run (as
                      ComfyUI's own noise mask, which mixes x before the network call and the estimate after
                      it, nothing after the step)

and the first variant of 2111.14818 (section 3.1), which holds the background by a loss instead, so that its failure
can be seen:

    D' = D - f(s) grad_x sum (1 - m) weight |D - x0|^2              background drifts, as their Fig. 2 shows

Departures: blended at the level that was reached (the authors: one above), and before the first call (as their papers'
algorithms and their first code; their script for Stable Diffusion 2 begins in noise without the background); their
perceptual loss (LPIPS) on decoded pixels is replaced by the squared error of differences between neighbouring latent
cells, so that it needs no other network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, Sigma, as_level, expand
from ..masks import dilate
from ..walk import sample_walk
from .repaint import hold_known


def shrinking_masks(mask: Tensor, cells: int, steps: int) -> list[Tensor]:
    """The mask of each of `steps` steps: grown by `cells` at first, then one cell less at equal intervals, at last
    the user's own."""
    grown = functools.cache(lambda by: dilate(mask, by))
    return [*(grown(cells - (k * (cells + 1)) // steps) for k in range(steps - 1)), mask]


def mask_by_sigma(masks: list[Tensor], sigmas: Tensor) -> Callable[[Sigma], Tensor]:
    """The mask of the step that reaches sigma: masks[k] for sigmas[k + 1]."""
    levels = as_level(sigmas)[1:]

    def at(sigma: Sigma) -> Tensor:
        return masks[int((levels - as_level(sigma).max()).abs().argmin())]

    return at


def fixed(noise: NoiseSource) -> NoiseSource:
    """One draw, given again and again."""
    kept: list[Tensor] = []

    def draw() -> Tensor:
        if not kept:
            kept.append(noise())
        return kept[0]

    return draw


def noise_under(mask: Tensor, x: Tensor, source: Tensor, sigma: Sigma, process: NoiseProcess) -> Tensor:
    """x, which is `source` noised to sigma, with only its noise where the mask is 1."""
    return x - expand(process.signal(sigma), x) * mask * source


def background_loss(denoised: Tensor, source: Tensor, mask: Tensor, detail: float = 1.0) -> Tensor:
    """Sum per picture [B] of (1 - m)(D - x0)^2 and `detail` times the same of neighbouring cells' differences."""
    gap = (denoised - source) * (1 - mask)
    rows, columns = gap.diff(dim=-2).square().flatten(1).sum(1), gap.diff(dim=-1).square().flatten(1).sum(1)
    return gap.square().flatten(1).sum(1) + detail * (rows + columns)


def background_guided(
    denoise: Denoise, source: Tensor, mask: Tensor, weight: float, process: NoiseProcess, detail: float = 1.0
) -> Denoise:
    """The first variant: D' = D - f(s) weight grad_x background_loss(D(x)). `denoise` must be differentiable in x;
    weight 0 is D.

    The step is limited to the gap it wants to close: where |f weight grad| exceeds |D - x0| per picture, it is
    scaled down to it."""
    if weight == 0:
        return denoise

    def guided(x: Tensor, sigma: Sigma) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            denoised = denoise(leaf, sigma)
            (gradient,) = torch.autograd.grad(background_loss(denoised, source, mask, detail).sum(), leaf)
        denoised = denoised.detach()
        factor = process.guidance_weight(torch.as_tensor(sigma, dtype=x.dtype)).clamp(
            max=1e6
        )  # infinite at s = 1 of flow
        shift = expand(factor, x) * weight * gradient
        norms = [
            t.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) for t in (shift, (denoised - source) * (1 - mask))
        ]
        return denoised - shift * (norms[1] / norms[0].clamp(min=1e-12)).clamp(max=1)

    return guided


def sample_blended(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    source: Tensor,
    mask: Tensor | None,
    process: NoiseProcess,
    noise: NoiseSource,
    shrink: int = 0,
    fresh: bool = True,
    from_noise: bool = False,
    eta: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Blended latent diffusion: the mask [B or 1, 1 or C, H, W] starts grown by `shrink` cells and shrinks to itself.

    x [B, C, H, W] is `source` noised to sigmas[0]; from_noise leaves only its noise under the first mask. fresh: see
    the head of this file. Outside the mask the result is the source to the bit."""
    mask = torch.ones_like(source) if mask is None else mask
    masks = shrinking_masks(mask, shrink, len(sigmas) - 1)
    if from_noise:
        x = noise_under(masks[0], x, source, sigmas[0], process)
    at = mask_by_sigma(masks, sigmas)
    hold = hold_known(source, at, process, noise if fresh else fixed(noise))
    return sample_walk(denoise, x, sigmas, process=process, noise=noise, eta=eta, after=hold, callback=callback)
