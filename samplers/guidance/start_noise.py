"""Optimise the start noise x_T through a short deterministic sampler against any loss of the result.

The second approach of Kitichotkul & Inkaew's CLIP-conditioned sampling (there with DDIM and a CLIP loss); DOODL
(2303.13703) and ReNO (2406.04312) do the same. With x_0(x_T) = the Euler/DDIM walk down `sigmas`, Adam minimises

    L(x_0(x_T)) + prior * (|x_T|^2 / |x_T at the start|^2 - 1)^2

Memory: every step is checkpointed, so that backward keeps one step's activations and N latents instead of N steps'.
Departures: the gradient is scaled to unit rms per sample before Adam (losses of any size take the same learning rate,
in units of the noise's std); the prior holds the radius, where a Gaussian's mass lies; of all x_T seen the one
of the lowest L is returned (L alone, without the prior), since Adam's loss doesn't fall at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Denoise, check_descending, recomputed
from ..ode import sample_euler


@dataclass(frozen=True)
class OptimisedStart:
    """x: the best x_T [B, C, ...]; result: x_0 of it; losses: [steps + 1, B], before each
    step and at the end."""

    x: Tensor
    result: Tensor
    losses: Tensor


def _walk(denoise: Denoise, x: Tensor, sigmas: Tensor, checkpointed: bool, tick: Callable[[], None] | None) -> Tensor:
    """sample_euler whose network calls are recomputed in backward."""
    ask = recomputed(denoise) if checkpointed else denoise

    def call(x, sigma):
        denoised = ask(x, sigma)
        if tick:
            tick()
        return denoised

    return sample_euler(call, x, sigmas)


def optimise_start_noise(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int = 20,
    lr: float = 0.02,
    prior: float = 1.0,
    checkpointed: bool = True,
    callback: Callable[[dict], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> OptimisedStart:
    """x [B, C, ...] at sigmas[0], from noise or from an inversion; loss: x_0 -> [B]. lr in stds of x per step.

    Cost: steps * N forwards and backwards (twice the forwards when checkpointed) plus one walk of N. callback gets
    {"i", "loss" [B], "denoised"}. Samples of a batch are optimised independently."""
    check_descending(sigmas)
    if steps < 1 or lr <= 0:
        raise ValueError(
            f"Optimising the start noise needs at least one step and a positive learning rate; got {steps} and {lr}."
        )
    x = x.detach()
    unit = x.flatten(1).pow(2).mean(1).sqrt().clamp(min=1e-12).reshape(-1, *[1] * (x.ndim - 1))
    leaf = (x / unit).clone()  # in units of its own rms, so that lr means the same at every sigma_max
    leaf.requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr)
    best, best_result, losses = leaf.detach().clone(), torch.zeros_like(x), []
    best_loss = torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device)

    def remember(value, result):
        better = (value < best_loss) | best_loss.isnan()  # NaN: none yet
        for kept, new in ((best, leaf), (best_result, result), (best_loss, value)):
            kept[better] = new.detach()[better]

    for i in range(steps):
        with torch.enable_grad():
            result = _walk(denoise, leaf * unit, sigmas, checkpointed, tick)
            value = loss(result)
            radius = leaf.flatten(1).pow(2).mean(1)
            gradient = torch.autograd.grad((value + prior * (radius - 1) ** 2).sum(), leaf)[0]
        value = value.detach().to(best_loss)
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError("The gradient towards the start noise is not finite: use fp32 or fewer sampling steps.")
        remember(value, result)
        losses.append(value.cpu())
        if callback:
            callback({"i": i, "loss": value, "denoised": result.detach()})
        rms = gradient.flatten(1).pow(2).mean(1).sqrt().clamp(min=1e-12).reshape(unit.shape)
        leaf.grad = gradient / rms
        optimiser.step()
    with torch.no_grad():
        result = _walk(denoise, leaf * unit, sigmas, False, tick)
        value = loss(result).to(best_loss)
        remember(value, result)
        losses.append(value.cpu())
    return OptimisedStart(best * unit, best_result, torch.stack(losses))
