"""The start of a run as a NOISE: it undoes what ComfyUI's sampling run does to noise and latent.

A run starts from  x = gain * noise + share * latent  (variance exploding: gain s, or sqrt(1 + s^2) at full noise, share
1; flow: gain s, share 1 - s), latent being the LATENT in model space. So noise = (x_T - share * latent) / gain. The
model's part in this is noted in the inversion when it is made, for a NOISE is asked without a model at hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..samplers.inversion.record import Inversion
from .comfy import is_empty


def model_notes(model, sigma_max: float) -> dict:
    """What an INVERSION must know of its MODEL later: JSON values for its metadata.

    latent_gain, latent_offset: LATENT = gain * x + offset per channel. full_gain: d start / d noise at sigma_max."""
    fmt, sampling = model.get_model_object("latent_format"), model.get_model_object("model_sampling")
    dims = getattr(fmt, "latent_dimensions", 2)
    shape = (1, fmt.latent_channels, *(1,) * dims)
    zero, one = fmt.process_out(torch.zeros(shape)), fmt.process_out(torch.ones(shape))
    trained = float(sampling.sigma_max)
    full = math.isclose(trained, sigma_max, rel_tol=1e-5) or sigma_max > trained
    sigma = torch.full((1,) * len(shape), sigma_max)
    gain = sampling.noise_scaling(sigma, torch.ones(shape), torch.zeros(shape), full)
    return {
        "latent_gain": (one - zero).flatten().tolist(),
        "latent_offset": zero.flatten().tolist(),
        "full_gain": float(gain.flatten()[0]),
    }


def _channels(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values).view(1, -1, *(1,) * (like.ndim - 2))


def source_latent(inversion: Inversion) -> Tensor:
    """The inverted latent as LATENT samples [B, C, ...]."""
    x = inversion.source
    return x * _channels(inversion.metadata["latent_gain"], x) + _channels(inversion.metadata["latent_offset"], x)


class StartNoise:
    """NOISE that makes a run start at x [B, C, ...], with an empty latent or the one that x0 [B, C, ...] is in model
    space (None: only an empty one): gain and share as above. Its result is exact up to rounding."""

    seed = 0

    def __init__(self, start: Tensor, gain: float, share: float = 1.0, x0: Tensor | None = None):
        self.start, self.gain, self.share, self.x0 = start, gain, share, x0

    def check(self, samples: Tensor) -> None:
        """ValueError unless this NOISE fits LATENT samples [B, C, ...]."""
        if samples.shape != self.start.shape:
            raise ValueError(
                f"The start noise was optimised for latents of shape {list(self.start.shape)}, this one "
                f"has {list(samples.shape)}: wire a latent of that size."
            )

    def generate_noise(self, latent: dict) -> Tensor:
        """[B, C, ...] for a LATENT. ValueError if that doesn't fit."""
        self.check(latent["samples"].detach().float().cpu())
        x0 = 0 if self.x0 is None or is_empty(latent) else self.x0
        return (self.start - self.share * x0) / self.gain


class InversionNoise(StartNoise):
    """NOISE that makes a run over `inversion.sigmas[first:]` start at trajectory[first], whatever sampler walks it."""

    def __init__(self, inversion: Inversion, first: int = 0):
        if "full_gain" not in inversion.metadata:
            raise ValueError("This inversion doesn't know its model's scalings: make it again with Invert Image.")
        sigma = float(inversion.sigmas[first])
        gain = inversion.metadata["full_gain"] if first == 0 else sigma or math.inf  # at sigma 0 there is no noise
        share = 1 - sigma if inversion.process == "flow" else 1.0
        super().__init__(inversion.trajectory[first], gain, share, inversion.source)
        self.inversion, self.first = inversion, first

    def check(self, samples: Tensor) -> None:
        self.inversion.check_latent(samples.shape)
        source = source_latent(self.inversion)
        close = torch.allclose(samples, source, rtol=1e-3, atol=1e-3 * float(source.abs().max()))
        if not close and not is_empty({"samples": samples}):
            raise ValueError(
                "The latent is not the one that was inverted: wire the latent of Inversion Parts (or an empty one) to "
                "the sampler that gets its noise."
            )
