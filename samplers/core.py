"""One coordinate system for every technique: `denoise(x, sigma) -> D`, sigma descending, the last one 0.

Two noise families, told apart by a `NoiseProcess`:

* `VE`  (eps, v-prediction, EDM):  x_s = x0 + s n
* `Flow` (SD3, Flux, ...):         x_s = (1 - s) x0 + s n

In both, d(x, s) = (x - D) / s is dx/ds, so DDIM is Euler in s and every deterministic method is written once.
Stochastic methods differ only in the transitions below (Song et al. 2010.02502 eq. 12 and 16, in k-diffusion's
variables; the flow form is the same posterior mapped through y = x/(1-s), r = s/(1-s), rearranged so that it stays
finite at s = 1).

Shapes: x is [B, C, ...]; sigma is a float, a 0-d tensor or [B].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .finite import all_finite

Sigma = float | Tensor
#: (x [B, C, ...], sigma) -> denoised [B, C, ...]
Denoise = Callable[[Tensor, Sigma], Tensor]
#: () -> standard normal, shaped like the latent; its own generator, never the global one
NoiseSource = Callable[[], Tensor]
#: k-diffusion's step report: {"x", "i", "sigma", "sigma_hat", "denoised"}
Callback = Callable[[dict], None]


def expand(sigma: Sigma, x: Tensor) -> Tensor:
    """sigma as a tensor that broadcasts against x [B, C, ...], in x's dtype and device."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) if sigma.ndim else sigma


def repeated(rows: Tensor, copies: int) -> Tensor:
    """The whole batch several times, one after the other; as it is for one copy, and where one row stands for all."""
    return rows if copies == 1 or len(rows) == 1 else torch.cat([rows] * copies)


#: GPUs without float64: Apple's, Intel's Arc, those that DirectML drives
_NO_FLOAT64 = ("mps", "xpu", "privateuseone")


def wide(x: Tensor, device: torch.device | None = None) -> Tensor:
    """x on its device or another, in float64; in fp32 on GPUs that have no float64."""
    device = torch.device(device or x.device)
    if device.type in _NO_FLOAT64:
        return x.to(torch.float32).to(device)
    return x.to(device).to(torch.float64)  # first where float64 exists


def as_level(sigma: Sigma | Sequence[float]) -> Tensor:
    """One noise level, or several, for bookkeeping: float64 on the CPU, from wherever it lies."""
    return wide(sigma.detach(), "cpu") if isinstance(sigma, Tensor) else torch.as_tensor(sigma, dtype=torch.float64)


def to_d(x: Tensor, sigma: Sigma, denoised: Tensor) -> Tensor:
    """d(x, s) = (x - D)/s: eps for VE, velocity for flow. sigma > 0."""
    return (x - denoised) / expand(sigma, x)


def euler_step(x: Tensor, denoised: Tensor, sigma: Sigma, sigma_next: Sigma) -> Tensor:
    """x + (s' - s) d(x, s), DDIM's step with eta 0. Written so that s' = 0 gives D to the bit."""
    ratio = expand(sigma_next, x) / expand(sigma, x)
    return denoised + ratio * (x - denoised)


@dataclass(frozen=True)
class NoiseProcess:
    """How noise is added at level s and how a sample moves between two levels."""

    name: str = ""

    def signal(self, sigma: Sigma) -> Sigma:
        """The factor a in x_s = a x0 + s n (1 for VE, 1 - s for flow)."""
        raise NotImplementedError

    def noised(self, x0: Tensor, sigma: Sigma, noise: Tensor) -> Tensor:
        """A draw of q(x_s | x0) from a standard normal `noise`."""
        raise NotImplementedError

    def renoise(self, x: Tensor, sigma_lo: Sigma, sigma_hi: Sigma, noise: Tensor) -> Tensor:
        """A draw of q(x_hi | x_lo), sigma_hi >= sigma_lo: the forward process between two levels."""
        raise NotImplementedError

    def transition(
        self, x: Tensor, denoised: Tensor, sigma: Sigma, sigma_next: Sigma, eta: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Mean [B, C, ...] and std (broadcastable) of the reverse step s -> s' < s.

        eta 1 is the posterior q(x_s' | x_s, x0 = D) (DDPM, ancestral); eta 0 is DDIM/Euler with std 0; above 1 more of
        the noise at s' is new, at most all of it when std reaches s'."""
        raise NotImplementedError

    def guidance_weight(self, sigma: Sigma) -> Sigma:
        """The factor f in D' = D + f * grad_x log p(y | x_s): s^2 (VE), s^2/(1-s) (flow; 1 - s is held at 1e-3 or
        above, for at s = 1 the gradient is 0 and only the limit of the product exists)."""
        raise NotImplementedError

    def input_scale(self, sigma: Sigma) -> Sigma:
        """c_in: what the network's input is multiplied by, relative to sigma 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class VarianceExploding(NoiseProcess):
    """data, power: of the network's c_in(s)/c_in(0) = (1 + (s/data)^power)^(-1/power): 1 and 2 for eps and v,
    sigma_data and 2 for EDM, 1 and 1 for Cosmos-Predict2. Nothing else depends on them."""

    name: str = "ve"
    data: float = 1.0
    power: float = 2.0

    def signal(self, sigma):
        return sigma * 0 + 1

    def noised(self, x0, sigma, noise):
        return x0 + expand(sigma, x0) * noise

    def renoise(self, x, sigma_lo, sigma_hi, noise):
        lo, hi = expand(sigma_lo, x), expand(sigma_hi, x)
        return x + (hi**2 - lo**2).clamp(min=0).sqrt() * noise

    def transition(self, x, denoised, sigma, sigma_next, eta=1.0):
        s, s_next = expand(sigma, x), expand(sigma_next, x)
        std = eta * s_next * (1 - (s_next / s) ** 2).clamp(min=0).sqrt()
        down = (s_next**2 - std**2).clamp(min=0).sqrt()
        return denoised + (down / s) * (x - denoised), std

    def guidance_weight(self, sigma):
        return sigma**2

    def input_scale(self, sigma):
        return (1 + (sigma / self.data) ** self.power) ** (-1 / self.power)


@dataclass(frozen=True)
class RectifiedFlow(NoiseProcess):
    name: str = "flow"

    def signal(self, sigma):
        return 1 - sigma

    def noised(self, x0, sigma, noise):
        s = expand(sigma, x0)
        return (1 - s) * x0 + s * noise

    def renoise(self, x, sigma_lo, sigma_hi, noise):
        lo, hi = expand(sigma_lo, x), expand(sigma_hi, x)
        # at lo = 1 there is no signal left to scale: hi can only be 1 too, and x stays as it is
        a = torch.where(lo < 1, (1 - hi) / (1 - lo).clamp(min=torch.finfo(x.dtype).tiny), torch.ones_like(lo))
        return a * x + (hi**2 - (a * lo) ** 2).clamp(min=0).sqrt() * noise

    def transition(self, x, denoised, sigma, sigma_next, eta=1.0):
        s, s_next = expand(sigma, x), expand(sigma_next, x)
        rho = s_next * (1 - s) / (s * (1 - s_next))  # r'/r, 0 at s = 1
        std = eta * s_next * (1 - rho**2).clamp(min=0).sqrt()
        down = (s_next**2 - std**2).clamp(min=0).sqrt()
        # y' = D + (r_down/r)(y - D) + ..., times (1 - s'), with every 1/(1-s) cancelled
        return (1 - s_next - down * (1 - s) / s) * denoised + (down / s) * x, std

    def guidance_weight(self, sigma):
        gap = 1 - sigma
        return sigma**2 / (gap.clamp(min=1e-3) if isinstance(gap, Tensor) else max(gap, 1e-3))

    def input_scale(self, sigma):
        return sigma * 0 + 1


VE = VarianceExploding()
FLOW = RectifiedFlow()
PROCESSES = {p.name: p for p in (VE, FLOW)}


def report(callback: Callback | None, i: int, x: Tensor, sigma: Sigma, denoised: Tensor) -> None:
    """Step i's report to a callback that may be None."""
    if callback is not None:
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})


def rms_apart(a: Tensor, b: Tensor) -> Tensor:
    """[B]: how far two batches [B, ...] lie apart, as the root mean square of their difference."""
    return (a - b).flatten(1).square().mean(1).sqrt()


def apply_cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance D_u + cfg (D_c - D_u) (Ho & Salimans 2207.12598; ComfyUI's cfg is their 1 + w)."""
    return uncond + scale * (cond - uncond)


def measured_cfg(cond: Tensor, uncond: Tensor, denoised: Tensor, dtype: torch.dtype) -> float | None:
    """The scale that makes `denoised` of two predictions by `apply_cfg`, by least squares over the whole batch in that
    dtype, or `wide` for float64; None where the predictions agree, which any scale fits."""
    gap, moved = (wide(d) if dtype == torch.float64 else d.to(dtype) for d in (cond - uncond, denoised - uncond))
    power = float((gap * gap).sum())
    return float((gap * moved).sum()) / power if power > 0 else None


def recomputed(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same net, of whose calls backward keeps the inputs alone and makes each again."""
    return lambda *inputs: checkpoint(net, *inputs, use_reentrant=False)


def guided(cond: Denoise, uncond: Denoise, scale: float) -> Denoise:
    """`apply_cfg` of two denoisers. At cfg 1 the unconditional one is not asked: the result is D_c to the bit."""
    if scale == 1:
        return cond

    def denoise(x, sigma):
        u = uncond(x, sigma)
        return apply_cfg(cond(x, sigma), u, scale)

    return denoise


def gaussian(like: Tensor, seed: int) -> NoiseSource:
    """Standard normal draws shaped like `like`, from a CPU generator of their own (the same on every device)."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw():
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)

    return draw


def step_of(sigma: Sigma, sigmas: Sequence[float] | Tensor) -> float:
    """Where sigma lies in a descending schedule, as a fractional step index in [0, N].

    Samplers may evaluate several times per step (Heun) or between two levels (DPM-2): a technique's window is told by
    this place, never by counting calls."""
    table, value = as_level(sigmas), float(as_level(sigma).max())
    if value >= table[0]:
        return 0.0
    i = int((table > value).sum()) - 1
    if i >= len(table) - 1:
        return float(len(table) - 1)
    return i + float((table[i] - value) / (table[i] - table[i + 1]))


def step_index(sigma: Sigma, sigmas: Sequence[float] | Tensor) -> int:
    """The step 0..N-1 that sigma lies in; a level within rounding of a step's start belongs to that step."""
    return min(int(step_of(sigma, sigmas) + 1e-4), len(sigmas) - 2)


def check_descending(sigmas: Tensor) -> None:
    """Raise ValueError unless sigmas is 1-d, has at least two finite entries, and falls strictly to a last value
    >= 0."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"A schedule needs at least two sigmas in one row; got shape {tuple(sigmas.shape)}.")
    if not all_finite(sigmas):
        raise ValueError("The sigmas hold NaN or infinite values: make the schedule again.")
    if not bool((sigmas[1:] < sigmas[:-1]).all()) or float(sigmas[-1]) < 0:
        raise ValueError(f"The sigmas must fall strictly and end at 0 or above; got {_first_few(sigmas)}.")


def _first_few(sigmas: Tensor) -> str:
    told = [f"{float(s):.4g}" for s in sigmas[:8]]
    return ", ".join(told) + (f", ... ({len(sigmas)} in all)" if len(sigmas) > 8 else "")
