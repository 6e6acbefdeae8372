"""x_T optimised inside a sampling run of the engine, and handed on as a NOISE."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..samplers.core import gaussian
from ..samplers.guidance.losses import weighted
from ..samplers.guidance.start_noise import optimise_start_noise
from . import guide
from .comfy import check_latent, latent_out
from .gradients import grad_mode, normal
from .noise import model_notes
from .run import sample_with


class StartNoise:
    """NOISE that makes a run over the same sigmas start at x_T [B, C, ...], with an empty latent or the given one."""

    seed = 0

    def __init__(self, start: Tensor, gain: float, share: float, x0: Tensor | None):
        self.start, self.gain, self.share, self.x0 = start, gain, share, x0

    def generate_noise(self, latent: dict) -> Tensor:
        """[B, C, ...] for a LATENT. ValueError if its shape is another."""
        samples = latent["samples"]
        if samples.shape != self.start.shape:
            raise ValueError(
                f"The start noise was optimised for latents of shape {list(self.start.shape)}, this one "
                f"has {list(samples.shape)}: wire a latent of that size."
            )
        empty = not bool(torch.count_nonzero(samples))
        x0 = 0 if empty or self.x0 is None else self.x0
        return (self.start - self.share * x0) / self.gain


@dataclass
class Result:
    latent: dict
    noise: StartNoise
    sigmas: Tensor
    losses: Tensor  #: [iterations + 1, B]
    calls: int
    seconds: float


def optimise(
    model,
    positive,
    negative,
    latent: dict,
    sigmas: Tensor,
    *,
    seed: int,
    cfg: float,
    iterations: int,
    learning_rate: float,
    prior: float,
    inversion=None,
) -> Result:
    """Optimise x_T against the guidance terms of the MODEL. ValueError if it has none."""
    terms = [t for t in guide.terms_of(model) if not callable(t.guidance.scale)]
    if not terms:
        raise ValueError(
            "There is no loss: put CLIP Guidance, Classifier Guidance or Semantic Guidance on the "
            "model; their targets are what the start noise is optimised for."
        )
    plain = guide.without_terms(model)
    if inversion is not None:
        samples, sigmas = latent_out(plain, inversion.source), inversion.sigmas.float()
        inversion.check_latent(samples.shape)
    else:
        samples = check_latent(plain, latent)
    scales = [float(t.guidance.scale) for t in terms]
    modules = tuple({id(m): m for t in terms for m in t.modules}.values())
    calls_each = len(sigmas) - 1
    began = time.time()

    def body(run):
        start = inversion.trajectory[0].to(run.device) if inversion is not None else _start(run, sigmas, seed)
        level = torch.tensor(run.sigma_min, device=run.device)
        guide.load_models_if_away([p for t in terms for p in t.patchers], run.device)
        for module in modules:
            if not any(p.device == start.device for p in module.parameters()):
                guide.ready(module, run.device)
        with run.gradients(), grad_mode(*modules):
            denoise = _differentiable(run, cfg)

            def loss(x0):
                x = x0.float()
                return weighted([-t.guidance.log_likelihood(x, level, x) * 1.0 for t in terms], scales)

            try:
                found = optimise_start_noise(
                    denoise,
                    normal(start).float(),
                    normal(sigmas.to(run.device)).float(),
                    loss,
                    steps=iterations,
                    lr=learning_rate,
                    prior=prior,
                    tick=run.tick,
                    callback=run.callback,
                )
            except torch.cuda.OutOfMemoryError:
                raise ValueError(
                    "Not enough GPU memory for one network backward: use a smaller latent or batch; "
                    "nothing cheaper than this exists for the start noise, guidance in decoder mode "
                    "would fit."
                ) from None
        return found, run.calls

    total = calls_each * (iterations + 2)
    found, calls = sample_with(
        plain, {"positive": positive, "negative": negative}, samples, sigmas, body, total=total, seed=seed
    )
    gain = model_notes(plain, float(sigmas[0]))["full_gain"]
    process = "flow" if inversion is not None and inversion.process == "flow" else None
    share = 1 - float(sigmas[0]) if process else 1.0
    noise = StartNoise(found.x.detach().cpu(), gain, share, inversion.source if inversion is not None else None)
    out = {"samples": latent_out(plain, found.result.detach().cpu())}
    return Result(out, noise, sigmas.cpu(), found.losses, calls, time.time() - began)


def _start(run, sigmas: Tensor, seed: int) -> Tensor:
    """The engine's own start from noise alone, drawn from the CPU's generator."""
    noise = gaussian(torch.zeros(run.latent.shape), seed)().to(run.device)
    sampling = run.model.model_sampling
    full = float(sigmas[0]) >= run.sigma_max * (1 - 1e-5)
    level = sigmas[0].to(run.device).view((1,) * noise.ndim)
    return sampling.noise_scaling(level, noise, torch.zeros_like(noise), full)


def _differentiable(run, cfg: float):
    """CFG of the run's two conditions on ordinary copies of them, so that gradients pass."""
    conds = [normal(run.guider.conds["positive"])] + ([normal(run.guider.conds["negative"])] if cfg != 1 else [])

    def denoise(x, sigma):
        out = run.predictions(x, sigma, conds)
        return out[0] if len(out) == 1 else out[1] + cfg * (out[0] - out[1])

    return denoise
