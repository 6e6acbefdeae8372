"""One sampling run as ComfyUI's SamplerCustom makes it: for nodes that are a whole sampler in one box."""

from __future__ import annotations

import torch
from torch import Tensor

from .comfy import check_latent, get


def sample_latent(
    model, positive, negative, cfg: float, sampler, sigmas: Tensor, latent: dict, seed: int, mask: Tensor | None = None
) -> dict:
    """LATENT sampled by the engine's own run: its noise of `seed`, preview, progress and interrupt.

    latent: LATENT [B, C, ...]; mask [B or 1, 1, h, w] on the latent grid (1 = change here) instead of the latent's
    own noise mask. ValueError for a latent that does not fit the model."""
    samples = check_latent(model, latent)
    noise = get("sample").prepare_noise(samples, seed, latent.get("batch_index"))
    callback = get("latent_preview").prepare_callback(model, len(sigmas) - 1)
    out = get("sample").sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        samples,
        noise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return {**{k: v for k, v in latent.items() if k != "noise_mask"}, "samples": out}


def time_to_sigma(model):
    """time in [0, 1] of the diffusion (0 clean, 1 noise) -> sigma of the MODEL, within what it was trained at."""
    sampling = model.get_model_object("model_sampling")
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)

    def sigma(time: float) -> float:
        if time <= 0:
            return 0.0
        return min(high, max(low, float(sampling.percent_to_sigma(1.0 - min(time, 1.0))))) if time < 1 else high

    return sigma


def sigma_to_time(model):
    """sigma -> time in [0, 1], the inverse of `time_to_sigma` by bisection."""
    forward = time_to_sigma(model)

    def time(sigma: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if forward(middle) < sigma else (low, middle)
        return high

    return time


def to_model_space(model, latent: dict) -> Tensor:
    """A reference LATENT in model space, fp32, as an ordinary tensor on the CPU."""
    from .comfy import latent_in

    return latent_in(model, check_latent(model, latent)).clone()


def is_empty(latent: dict) -> bool:
    """Whether a LATENT is all zero: ComfyUI's empty latent, no picture."""
    return not bool(torch.count_nonzero(latent["samples"]))
