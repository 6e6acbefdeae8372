"""Guidance by a log-likelihood: classifiers, CLIP, feature losses, all through one mechanism.

Dhariwal & Nichol 2105.05233 (section 4.2 and algorithm 2) shift the implied noise by the gradient of log p(y | x_s):
eps' = eps - s g with g = grad_x log p(y | x_s). In our coordinates, for both noise families,

    D' = D + f(s) k g        f = s^2 (VE), s^2 / (1 - s) (flow); k the scale

Terms add up; k multiplies log p. At k = 1 with the exact noised likelihood the samples follow p(x0 | y); at any other
scale they do not follow p(x0) p(y | x0)^k, because the power of a noised likelihood is not the noised power.

Three ways to a gradient, named for what they pass through:

* `network`: x -> D(x) -> log p. Exact for a likelihood of the estimate; one backward of the network per call.
* `decoder`: D -> log p, the network taken as dD/dx ~ a v / (a^2 v + s^2), the denoiser of a Gaussian of variance v (a
  = 1 for VE, 1 - s for flow). The weight becomes f dD/dx = s^2 v / (a^2 v + s^2); s^2 alone would be 200 times too
  much at SD1's first sigma.
* `latent`: x -> log p directly, for a likelihood that was trained on noisy latents. Exact, no network, no decoder.

Departures: the gradient is taken per sample (the sum over the batch, never the mean). Guidance changes the denoiser
itself, so what a multistep sampler reuses is the guided field; `every` > 1 makes that field jump between steps, which
such samplers extrapolate: use it with one-step samplers.

Where less than LEAST_SIGNAL of x_s is the picture (a / sqrt(a^2 + s^2): s > 50, for flow s > .98) the modes `network`
and `latent` are off: a model of zero terminal SNR and a flow begin there. The push is a gradient that vanishes times a
factor without end, and of a trained network only its error times that factor is left, which threw the first step out of
the data. All of a run above that level moves x by 2 % of D, so that little is lost.

An option that is off unless asked for, and not in the paper: a bound on the push. The CLIP guidance notebooks after
Katherine Crowson's limit the size of the gradient; here the rms of the change of D is held below a number of times the
estimate's own uncertainty sqrt(s^2 v / (a^2 v + s^2)), which is about s at low noise and the data's std at high noise
(a bound by s alone would let the first steps throw D far outside the data). Where it acts, the law above is lost: with
an exact classifier at k = 1 it takes a tenth (bound 1) to a quarter (.5) of the samples out of the class, and a larger
k does not bring them back (`make bench NAME=guidance`). So each evaluation reports which samples it limited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import VE, Denoise, NoiseProcess, Sigma, expand, step_index
from ..window import SigmaWindow

MODES = ("network", "decoder", "latent")
#: the least share of the picture in x_s at which a gradient with respect to x_s is asked for
LEAST_SIGNAL = 0.02
#: (x [B, C, ...], sigma, D [B, C, ...]) -> log p(y | .) [B], differentiable in what the mode differentiates
LogLikelihood = Callable[[Tensor, Sigma, Tensor], Tensor]
#: told after each evaluation: {"name", "sigma", "log_likelihood" [B], "rms" [B] of the push, "limited" [B] 1 where the
#: bound shrank it}
Report = Callable[[dict], None]


@dataclass(frozen=True)
class Guidance:
    """One guidance term.

    scale: k, a number or a function of sigma. window: (sigma_start, sigma_end), see `SigmaWindow`.
    every: active on every n-th step of the schedule, counted from its first. bound: largest rms per
    sample of the change of D, in units of sqrt(s^2 v / (a^2 v + s^2)), None for no bound. variance: v of that and of
    the `decoder` mode, in model space."""

    log_likelihood: LogLikelihood
    mode: str = "network"
    scale: float | Callable[[float], float] = 1.0
    window: tuple[float, float] = (math.inf, 0.0)
    every: int = 1
    bound: float | None = None
    variance: float = 1.0
    name: str = "guidance"

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"Gradient mode {self.mode!r} is not one of {', '.join(MODES)}.")
        if self.every < 1:
            raise ValueError(f"A guidance acts on every n-th step with n >= 1; got {self.every}.")
        if self.bound is not None and self.bound <= 0:
            raise ValueError(f"The bound on the guidance step must be positive; got {self.bound}.")
        if self.variance <= 0:
            raise ValueError(f"The data variance must be positive; got {self.variance}.")

    def scale_at(
        self, sigma: Sigma, sigmas: Sequence[float] | Tensor | None = None, process: NoiseProcess = VE
    ) -> float:
        """k at sigma, 0 where the term is inactive. `sigmas` (the whole schedule) is needed when every > 1."""
        value = float(torch.as_tensor(sigma).max())
        if value <= 0 or value not in SigmaWindow(*self.window):
            return 0.0
        signal = process.signal(value)
        if self.mode != "decoder" and signal < LEAST_SIGNAL * math.hypot(signal, value):
            return 0.0
        if self.every > 1:
            if sigmas is None:
                raise ValueError("Guidance on every n-th step needs the whole schedule of sigmas.")
            if step_index(value, sigmas) % self.every:
                return 0.0
        return float(self.scale(value) if callable(self.scale) else self.scale)


def estimate_weight(process: NoiseProcess, sigma: Sigma, like: Tensor, variance: float) -> Tensor:
    """f(s) dD/dx for a Gaussian prior of variance v: s^2 v / (a^2 v + s^2), the weight of a gradient towards D."""
    s = expand(sigma, like)
    return s**2 * variance / (process.signal(s) ** 2 * variance + s**2)


def generator_at(seed: int, sigma: Sigma, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for one noise level: equal for equal (seed, sigma), so that a run is repeatable, Heun's
    two looks at one level agree, and no sampler's random numbers are used up."""
    level = int(round(float(torch.as_tensor(sigma).max()) * 1e6))
    return torch.Generator(device).manual_seed((seed * 1_000_003 + level * 7_919 + 12_345) % 2**63)


def shift(
    guidances: Sequence[Guidance],
    x: Tensor,
    sigma: Sigma,
    denoised: Tensor,
    *,
    process: NoiseProcess = VE,
    network: Denoise | None = None,
    graph: tuple[Tensor, Tensor] | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    report: Report | None = None,
) -> Tensor | None:
    """sum_i f k_i g_i [B, C, ...], what to add to D; None when no term is active at sigma.

    network: the denoiser to differentiate in `network` mode, asked once; `graph` = (x leaf, D(x leaf)) when the
    caller has already run it. denoised: D as it is (the other modes look at it)."""
    live = [(g, k) for g in guidances if (k := g.scale_at(sigma, sigmas, process)) != 0]
    if not live:
        return None
    x, denoised = x.detach(), denoised.detach()
    through = [g for g, _ in live if g.mode == "network"]
    with torch.enable_grad():
        if through and graph is None:
            if network is None:
                raise ValueError("A gradient through the network needs the network.")
            leaf = x.clone().requires_grad_()
            graph = leaf, network(leaf, sigma)
        total = torch.zeros_like(denoised)
        for g, k in live:
            if g.mode == "network":
                wrt, estimate = graph
                value = g.log_likelihood(wrt, sigma, estimate)
            elif g.mode == "decoder":
                wrt = denoised.clone().requires_grad_()
                value = g.log_likelihood(x, sigma, wrt)
            else:
                wrt = x.clone().requires_grad_()
                value = g.log_likelihood(wrt, sigma, denoised)
            if value.shape != x.shape[:1]:
                raise ValueError(
                    f"A log-likelihood is one number per sample; got shape {tuple(value.shape)} for a "
                    f"batch of {x.shape[0]}."
                )
            keep = g.mode == "network" and g is not through[-1]
            gradient = torch.autograd.grad(value.sum(), wrt, retain_graph=keep)[0].to(denoised)
            factor = (
                estimate_weight(process, sigma, denoised, g.variance)
                if g.mode == "decoder"
                else process.guidance_weight(expand(sigma, denoised))
            )
            unit = estimate_weight(process, sigma, denoised, g.variance).sqrt()
            change, rms, limited = bounded(k * factor * gradient, unit, g.bound)
            total = total + change.detach()
            if report:
                report(
                    {
                        "name": g.name,
                        "sigma": sigma,
                        "log_likelihood": value.detach(),
                        "rms": rms.detach(),
                        "limited": limited,
                    }
                )
    return total


def bounded(change: Tensor, unit: Tensor | float, bound: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """The change of D, shrunk so that its rms per sample stays <= bound * unit; that rms [B] in the unit; and 1.0 [B]
    where it had to be shrunk."""
    rms = (change / expand(unit, change)).flatten(1).pow(2).mean(1).sqrt()
    if bound is None:
        return change, rms, torch.zeros_like(rms)
    limited = (rms > bound).to(rms)
    factor = (bound / rms.clamp(min=torch.finfo(change.dtype).tiny)).clamp(max=1)
    return change * expand(factor, change), rms * factor, limited


def with_guidance(
    denoise: Denoise,
    guidances: Sequence[Guidance],
    *,
    process: NoiseProcess = VE,
    sigmas: Sequence[float] | Tensor | None = None,
    report: Report | None = None,
) -> Denoise:
    """A guided denoiser D' = D + sum f k g. Where no term is active it is `denoise` itself, to the bit.

    Put it after CFG: k is then independent of the CFG scale."""

    def guided(x, sigma):
        live = [g for g in guidances if g.scale_at(sigma, sigmas, process) != 0]
        if not live:
            return denoise(x, sigma)
        graph = None
        if any(g.mode == "network" for g in live):
            with torch.enable_grad():
                leaf = x.detach().clone().requires_grad_()
                graph = leaf, denoise(leaf, sigma)
            denoised = graph[1].detach()
        else:
            denoised = denoise(x, sigma).detach()
        return denoised + shift(live, x, sigma, denoised, process=process, graph=graph, sigmas=sigmas, report=report)

    return guided
