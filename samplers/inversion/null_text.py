"""Null-text optimisation (Mokady et al., "Null-text Inversion for Editing Real Images using Guided Diffusion Models",
2211.09794, alg. 1) over a pivot trajectory x*_0 .. x*_N, index 0 the noise end, s_i = sigmas[i].

    x_0 = x*_0
    for each step i:   D(phi) = D_u(x_i, phi) + cfg (D_c(x_i) - D_u(x_i, phi))
                       rec(phi) = x_i + (s_{i+1} - s_i) (x_i - D(phi))/s_i                        (DDIM, eta 0)
                       phi_i = argmin c_in(s_{i+1})^2 mean (rec(phi) - x*_{i+1})^2, Adam from phi_{i-1}
                       x_{i+1} = rec(phi_i)

c_in^2 is 1/(1 + s^2) for VE: the loss is the paper's, which measures variance-preserving latents, and its thresholds
hold. For flow c_in = 1, as x has about unit variance at every level already.

What it costs: at most 1 + inner + 1 forwards and `inner` backwards per step; the conditional branch is asked once, and
gradients go to the embedding alone. The net may run in any dtype: phi, Adam's state, x and the loss are fp32 (float64
for a float64 trajectory). Gradient checkpointing is the caller's, who opens the gradient context (`Run.gradients`).

The embedding kept is the last, as in the authors' code, also where an earlier one had a smaller loss.

Departures. The threshold is looked at before a backward, so a step that is good already costs one forward (the authors
update once more); the last evaluation also serves as the step itself. The rate 1e-2 (1 - i/100) and the threshold
1e-5 + 2e-5 i are stretched to other step numbers than 50. In a batch every image has its own loss, Adam state and early
stop. `start_towards` starts elsewhere than at the empty prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, check_descending, euler_step, expand, report
from .corrections import Net


@dataclass(frozen=True)
class Schedule:
    """Per step: Adam's rate and the loss at which to stop; and the most inner steps."""

    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    inner: int = 10


def paper_schedule(steps: int, inner: int = 10, tolerance: float = 1e-5, rate: float = 1e-2) -> Schedule:
    """The authors' numbers at 50 steps; tolerance 1e-5 is theirs, the growth with i keeps its proportion to it."""
    place = [i * 50 / steps for i in range(steps)]
    return Schedule(tuple(rate * (1 - p / 100) for p in place), tuple(tolerance * (1 + 2 * p) for p in place), inner)


def start_towards(null: Tensor, source: Tensor, share: float) -> Tensor:
    """Where to start phi, [B, T, D]: null + share (source - null), of [1 or B, T, D] both.

    share 0 is the paper's start, the empty prompt. A departure above: with the source prompt in the null branch
    guidance cancels and DDIM's own way back is left (negative-prompt inversion, 2305.16807, is share 1 without an
    update), so the losses are small from the first step on. benchmarks/peers prints what it saves and what edits
    lose."""
    return torch.lerp(*torch.broadcast_tensors(null, source), share)


def default_rate(width: int) -> float:
    """Adam's first rate for embeddings of that width: the authors' 1e-2 at 768 (Stable Diffusion 1) and above.

    A departure below 768: an update moves every number by the rate, so fewer numbers move the prediction less. On
    earlier weights of the demo model (width 128) 1e-2 used every inner step and ended at 37.7 dB, 6e-2 at 42.9 dB in
    half the calls; benchmarks/inversion prints both for the present ones."""
    return 1e-2 * max(1.0, 768 / width)


@dataclass
class Stats:
    """Network work done. A row is one image in one call."""

    forwards: int = 0
    backwards: int = 0
    forward_rows: int = 0
    backward_rows: int = 0


@dataclass
class NullText:
    embeddings: Tensor  #: [N, B, T, D] fp32 on the CPU
    reconstruction: Tensor  #: [B, C, ...] x at sigmas[-1]
    losses: list[list[float]]  #: [N][B] of the embedding kept at each step
    first_losses: list[list[float]]  #: [N][B] before the step's first update
    stats: Stats = field(default_factory=Stats)


class Adam:
    """Adam (1412.6980) on rows of a tensor, state in its dtype; rows that are done don't move."""

    def __init__(self, like: Tensor, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        self.m, self.v, self.t = torch.zeros_like(like), torch.zeros_like(like), 0
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def step(self, value: Tensor, gradient: Tensor, rate: float, rows: Tensor) -> Tensor:
        """A new tensor; rows: bool [B]."""
        self.t += 1
        self.m.lerp_(gradient, 1 - self.beta1)
        self.v.lerp_(gradient**2, 1 - self.beta2)
        move = self.m / (1 - self.beta1**self.t) / ((self.v / (1 - self.beta2**self.t)).sqrt() + self.eps)
        return value - rate * move * expand(rows.to(value.dtype), value)


class _Problem:
    """One branch's embedding against a pivot, with the other branch held: D = weight net(phi) + (1 - weight) fixed."""

    def __init__(
        self,
        net: Net,
        fixed: Denoise,
        trajectory: Tensor,
        sigmas: Tensor,
        start: Tensor,
        weight: float,
        process: NoiseProcess,
        tick: Callable[[], None] | None,
    ):
        check_descending(sigmas)
        if len(trajectory) != len(sigmas):
            raise ValueError(f"{len(sigmas)} sigmas need a trajectory of as many levels; got {len(trajectory)}.")
        dtype = torch.float64 if trajectory.dtype == torch.float64 else torch.float32
        self.pivot, self.sigmas = trajectory.clone().to(dtype), sigmas.clone()
        self.phi = start.detach().clone().to(trajectory.device, dtype).expand(trajectory.shape[1], -1, -1)
        self.net, self.fixed, self.weight, self.process, self.tick = net, fixed, weight, process, tick
        self.stats = Stats()

    def count(self, rows: int) -> None:
        self.stats.forwards += 1
        self.stats.forward_rows += rows
        if self.tick is not None:
            self.tick()

    def held(self, x: Tensor, i: int) -> Tensor:
        """The other branch's part of D, without gradients."""
        with torch.no_grad():
            denoised = self.fixed(x, self.sigmas[i]).clone().to(x.dtype)
        self.count(len(x))
        return (1 - self.weight) * denoised

    def evaluate(self, phi: Tensor, x: Tensor, held: Tensor, target: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """rec [B, C, ...], D [B, C, ...] and the loss [B] of step i; differentiable if phi asks for it."""
        with torch.set_grad_enabled(phi.requires_grad):
            denoised = held + self.weight * self.net(x, self.sigmas[i], phi).to(x.dtype)
            rec = euler_step(x, denoised, self.sigmas[i], self.sigmas[i + 1])
            scale = float(self.process.input_scale(self.sigmas[i + 1])) ** 2
            loss = scale * (rec - target).square().flatten(1).mean(1)
        self.count(len(x))
        if not bool(torch.isfinite(loss).all()):
            raise ValueError(f"The null-text loss is not a number at step {i + 1}: load the model in bf16 or fp32.")
        return rec, denoised, loss

    def gradient(self, loss: Tensor, phi: Tensor, going: Tensor) -> Tensor:
        """Of the losses of the images that go on; of the others 0."""
        self.stats.backwards += 1
        self.stats.backward_rows += len(phi)
        return torch.autograd.grad(loss, phi, going.to(loss.dtype))[0].detach()


def optimise_null_text(
    net: Net,
    fixed: Denoise,
    trajectory: Tensor,
    sigmas: Tensor,
    start: Tensor,
    *,
    cfg: float,
    process: NoiseProcess,
    schedule: Schedule | None = None,
    branch: str = "null",
    drop_finished: bool = True,
    callback: Callback | None = None,
    tick: Callable[[], None] | None = None,
) -> NullText:
    """One embedding per step. Call it where gradients may be had (no inference mode).

    net, start [B or 1, T, D]: the branch that is optimised and its first embedding; fixed: the other branch's denoiser.
    branch "null": net is unconditional, fixed is the source prompt (the paper). branch "conditional": the reverse, the
    paper's ablation. trajectory [N+1, B, C, ...], on the network's device. drop_finished: images that reached their
    threshold leave the batch of inner calls; not for nets whose other inputs are tied to the batch's rows. tick is
    called after every forward.
    At cfg 1 the null branch has no weight: its embedding is returned as it was, and its network is not asked."""
    weight = {"null": 1 - cfg, "conditional": cfg}[branch]
    work = _Problem(net, fixed, trajectory, sigmas, start, weight, process, tick)
    steps = len(sigmas) - 1
    schedule = paper_schedule(steps) if schedule is None else schedule
    x, phi = work.pivot[0], work.phi
    out = NullText(torch.empty(0), x, [], [], work.stats)
    kept = []
    for i in range(steps):
        held = work.held(x, i)
        if weight == 0:
            rec, denoised, loss = euler_step(x, held, sigmas[i], sigmas[i + 1]), held, torch.zeros(len(x))
            first = loss
        else:
            phi, rec, denoised, loss, first = _descend(work, phi, x, held, i, schedule, drop_finished)
        report(callback, i, x, sigmas[i], denoised)
        x = rec
        kept.append(phi.to("cpu", torch.float32))
        out.losses.append(loss.tolist())
        out.first_losses.append(first.tolist())
    out.embeddings, out.reconstruction = torch.stack(kept), x
    return out


def _descend(
    work: _Problem, phi: Tensor, x: Tensor, held: Tensor, i: int, schedule: Schedule, drop_finished: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The inner loop of step i: phi, rec, D and the loss [B] of each image's last evaluation; the first loss [B]."""
    target, rows = work.pivot[i + 1], torch.arange(len(x), device=x.device)
    going = torch.ones(len(x), dtype=torch.bool, device=x.device)
    adam = Adam(phi)
    last, first = (torch.empty_like(x), torch.empty_like(x), x.new_empty(len(x))), None
    for j in range(schedule.inner + 1):
        leaf = phi[rows].clone().requires_grad_(j < schedule.inner)
        rec, denoised, loss = work.evaluate(leaf, x[rows], held[rows], target[rows], i)
        first = loss.detach() if first is None else first
        for kept, new in zip(last, (rec, denoised, loss), strict=True):
            kept[rows] = new.detach()
        going[rows] &= loss.detach() > schedule.thresholds[i]
        if j == schedule.inner or not bool(going.any()):
            break
        gradient = torch.zeros_like(phi)
        gradient[rows] = work.gradient(loss, leaf, going[rows])
        phi = adam.step(phi, gradient, schedule.rates[i], going)
        if drop_finished:
            rows = going.nonzero()[:, 0]
    return phi, *last, first


def optimise_global_null(
    net: Net,
    fixed: Denoise,
    trajectory: Tensor,
    sigmas: Tensor,
    start: Tensor,
    *,
    cfg: float,
    process: NoiseProcess,
    rounds: int = 10,
    rate: float = 1e-2,
    tick: Callable[[], None] | None = None,
) -> NullText:
    """The paper's ablation: one embedding for all steps, every step's loss taken at the pivot itself (x_i = x*_i).

    One Adam over `rounds` passes down the trajectory, rate falling linearly to half of itself: about the calls of the
    per-step form. The result holds N equal embeddings; its reconstruction is the replay with them."""
    work = _Problem(net, fixed, trajectory, sigmas, start, 1 - cfg, process, tick)
    steps, phi = len(sigmas) - 1, work.phi
    helds = [work.held(work.pivot[i], i) for i in range(steps)]
    adam, everyone = Adam(phi), torch.ones(len(phi), dtype=torch.bool, device=phi.device)
    out = NullText(torch.empty(0), work.pivot[0], [], [], work.stats)
    for k in range(rounds * steps if work.weight else 0):
        i = k % steps
        leaf = phi.clone().requires_grad_()
        _, _, loss = work.evaluate(leaf, work.pivot[i], helds[i], work.pivot[i + 1], i)
        if k < steps:
            out.first_losses.append(loss.tolist())
        phi = adam.step(phi, work.gradient(loss, leaf, everyone), rate * (1 - k / (2 * rounds * steps)), everyone)
    x = work.pivot[0]
    for i in range(steps):
        x, _, loss = work.evaluate(phi, x, work.held(x, i), work.pivot[i + 1], i)
        out.losses.append(loss.tolist())
    out.embeddings, out.reconstruction = phi.to("cpu", torch.float32).repeat(steps, 1, 1, 1), x
    return out
