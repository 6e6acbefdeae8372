"""Conditional sampling by particles: inpainting that leans towards the exact conditional.

After Cardoso, El Idrissi, Le Corff, Moulines, "Monte Carlo guided Diffusion for Bayesian linear inverse problems"
(MCGDiff, 2308.07983), for a noiseless mask. In variance-exploding variables (the flow is mapped there by y =
x/(1-s), r = s/(1-s)), with k the known part, the targets are

    pi_s(x) ~ p_s(x) N(k_s; k0, s^2)          at s = 0 the true conditional p(u | k0)

and one reverse step from s to s' with the network's mean m and std e = s' sqrt(1 - s'^2/s^2) (eta 1) gives in closed
form

    proposal   u' ~ N(m_u, e^2),   k' ~ N((s'^2 m_k + e^2 k0)/(e^2 + s'^2), e^2 s'^2/(e^2 + s'^2))
    weight     N(m_k; k0, e^2 + s'^2) / N(k_s; k0, s^2)

so the weights are exact for the discretised reverse process, and the result converges to the conditional with the
number of particles and of levels. Each picture keeps its own P particles; they are resampled (systematic) when the
effective number falls below half of P.

Departures: the last level is drawn from the weights, so that one particle per picture comes out. In many known
dimensions the weights degenerate towards the single best particle: then this is a best-of-P search along the way,
hence "leaning".
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, as_level, check_descending, report, wide
from .repaint import blend


def _ratio(process: NoiseProcess, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(signal a, noise-to-signal r) of a level in float64; a is 0 and r infinite at s = 1 of the flow."""
    sigma = as_level(sigma)
    a = process.signal(sigma)
    return a, sigma / a


def systematic(weights: Tensor, uniform: Tensor) -> Tensor:
    """Systematic resampling: weights [B, P] summing to 1, uniform [B, 1] in [0, 1) -> indices [B, P]."""
    count = weights.shape[1]
    places = (torch.arange(count, device=weights.device) + uniform) / count
    return torch.searchsorted(weights.cumsum(1).contiguous(), places.contiguous()).clamp(max=count - 1)


def effective(log_weights: Tensor) -> Tensor:
    """Effective number of particles, log_weights [B, P] -> [B] in [1, P]."""
    return 1 / log_weights.softmax(1).square().sum(1)


def sample_conditional_particles(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    source: Tensor,
    mask: Tensor,
    process: NoiseProcess,
    noise: NoiseSource,
    particles: int,
    seed: int = 0,
    threshold: float = 0.5,
    callback: Callback | None = None,
) -> Tensor:
    """One draw per picture that leans to p(x | known part), [B, C, ...]; costs N calls on `particles` times as many
    rows.

    x [P*B, C, ...]: noise at sigmas[0], every picture's first particle, then every picture's second, ..., as prompts
    and hints for B pictures are repeated; `noise` draws that shape.
    source [B, C, ...] clean; mask [B or 1, 1 or C, ...], read as repaint where it is >= 0.5 (weights need a sharp
    known part); there the draw and the source are mixed by the mask's value at the end. seed: of the resampling.
    Raises ValueError if the rows don't fit."""
    check_descending(sigmas)
    batch = len(source)
    if len(x) != batch * particles:
        raise ValueError(
            f"{particles} particles for {batch} pictures need {batch * particles} rows of noise; got {len(x)}."
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    known = torch.cat([(mask < 0.5).expand(batch, *source.shape[1:])] * particles)
    clean = torch.cat([source] * particles)
    pictures = torch.arange(batch, device=x.device)
    log_w = wide(torch.zeros(batch, particles), x.device)
    a, r = _ratio(process, sigmas[0])
    if torch.isfinite(r):  # the known part starts from its own target N(k0, s^2)
        x = torch.where(known, process.noised(clean, sigmas[0], noise()), x)

    def log_normal(value, variance):  # [B, P], known part only, up to constants that all particles share
        squares = torch.where(known, wide(value - clean) ** 2, 0.0).flatten(1).sum(1)
        return (-0.5 * squares / variance).reshape(particles, batch).T

    for i in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = denoise(x, sigma)
        report(callback, i, x, sigma, denoised)
        if float(sigma_next) == 0:
            log_w = log_w + log_normal(denoised, r**2) - (log_normal(x / a, r**2) if torch.isfinite(r) else 0)
            break
        mean, std = process.transition(x, denoised, sigma, sigma_next)
        a_next, r_next = _ratio(process, sigma_next)
        y, e2 = mean / a_next, (as_level(std) / a_next) ** 2
        log_w = log_w + log_normal(y, e2 + r_next**2) - (log_normal(x / a, r**2) if torch.isfinite(r) else 0)
        share = r_next**2 / (e2 + r_next**2)
        centre = torch.where(known, share * y + (1 - share) * clean, y)
        spread = torch.where(known, (e2 * share).sqrt().to(x), e2.sqrt().to(x))
        x = (a_next * (centre + spread * noise())).to(x.dtype)
        a, r = a_next, r_next
        poor = effective(log_w) < threshold * particles
        if bool(poor.any()):
            uniform = torch.rand(batch, 1, generator=generator, dtype=torch.float64).to(log_w)
            chosen = torch.where(
                poor[:, None], systematic(log_w.softmax(1), uniform), torch.arange(particles, device=x.device)
            )
            x = x[(chosen.T * batch + pictures).flatten()]
            log_w = torch.where(poor[:, None], torch.zeros_like(log_w), log_w)

    best = torch.multinomial(log_w.softmax(1).cpu(), 1, generator=generator).to(x.device)[:, 0]
    winner = denoised[best * batch + pictures]
    return blend(torch.where(mask < 0.5, torch.zeros_like(mask), mask), winner, source)


def sample_particles(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    source: Tensor,
    mask: Tensor | None,
    process: NoiseProcess,
    noise: NoiseSource,
    particles: int,
    full_noise: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """`sample_conditional_particles` from a start of one row per picture: x [B, C, ...] is the first particle, the
    others start from noise of their own: alone (full_noise), or around the source. mask None: nothing is known, one
    particle is as good as many."""
    mask = torch.ones_like(source) if mask is None else mask
    draw = lambda: torch.cat([noise() for _ in range(particles)])
    shows = torch.zeros_like(source) if full_noise else source
    start = process.noised(torch.cat([shows] * particles), sigmas[0], draw())
    start[: len(x)] = x
    return sample_conditional_particles(
        denoise,
        start,
        sigmas,
        source=source,
        mask=mask,
        process=process,
        noise=draw,
        particles=particles,
        callback=callback,
    )
