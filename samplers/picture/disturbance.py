"""Null-text disturbance: cartoons from classifier-free guidance whose null branch looks at another latent
(Zhao et al., "Null-text Guidance in Diffusion Models is Secretly a Cartoon-style Creator", 2305.06710).

Inside a window of late steps, with the current timestep in both branches (VP form, the paper's eq. 3):

    eps = eps(x_sig, null, t) + g (eps(x_t, prompt, t) - eps(x_sig, null, t))

    Back-D (rollback)   x_sig = x_{t+b}: the run's own earlier latent, as it was, neither rescaled nor noised again
    Image-D             x_sig = z: the clean latent of a picture

In our coordinates, with c the input scale (1/sqrt(1 + s^2) for eps and v, 1 for flow), the network must see x_sig:

    X' = X_old c(s_old)/c(s)   (Back-D)      X' = z / c(s)   (Image-D)
    D_u' = D_null(X', s)                     D_u_eff = X - (X' - D_u')         then ordinary guidance with D_u_eff

Only the difference X' - D_u' (the noise the null branch sees) enters: feeding D_u' itself into the guidance would be
off by X' - X. No extra network calls.

Departures. The authors' code appends the latent before it looks b/10 entries back, so that it rolls back one step
less than asked, and for b = 0 takes the initial noise; here s_old = sigma(t + b) is looked up by sigma (interpolated
between two stored latents) and b = 0 is off. Their history lives on the sampler; ours is one run's.
Strength mixes the null branch's input, X + strength (X' - X): 0 is ordinary guidance, 1 the paper's, and both cost
the same. Above the first sigma of a run that starts from a picture, X_old = z + s_old n with the run's own noise n,
as theirs. Nobody has published it on a flow model: experimental there.

Not of the paper. `matched_uncond` (an option, off by default) bounds the noise that the null branch sees by the
conditional branch's own: at a strongly rolled-back latent a network's estimate is larger than the noise that is there,
and cfg multiplies the surplus into noise. It is a smoothing filter of its own, which also acts where the null branch
looks at x itself (`Disturbance(itself=True)`), without any disturbance. The bound falls along the window
(`match_bound`): high up surplus makes borders firm, further down grain.

How long steps may be before the null term grows: disturbance_schedules.py. The run's own latents: history.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Denoise, NoiseProcess, Sigma, apply_cfg, as_level, expand, repeated, wide
from ..window import SigmaWindow
from .history import History

#: Bounds of `matched_uncond` at the window's start and at sigma MATCHED_TO, chosen on 32 training scenes of the demo
#: model (Back-D at cfg 10, Image-D at cfg 6): more texture lost per loss at the borders than by a constant bound
MATCH_ROLLBACK, MATCH_PICTURE, MATCHED_TO = (1.25, 0.4), (0.75, 0.45), 0.03
#: The highest sigma at which a window counts as begun for that bound (SD's largest, about)
MATCHED_FROM = 15.0


def at_other_level(x_old: Tensor, sigma_old: Sigma, sigma: Sigma, process: NoiseProcess) -> Tensor:
    """X' whose network input at sigma equals that of x_old at sigma_old (0 for a clean latent)."""
    scale = process.input_scale(as_level(sigma_old)) / process.input_scale(as_level(sigma))
    return x_old * expand(scale, x_old)


def disturbed_input(x: Tensor, other: Tensor, strength: float | Tensor) -> Tensor:
    """What the null branch is given: X + strength (X' - X); the other latent to the bit at strength 1."""
    if isinstance(strength, float | int) and strength == 1:
        return other
    return x + strength * (other - x)


def effective_uncond(x: Tensor, given: Tensor, denoised: Tensor) -> Tensor:
    """D_u_eff = X - (X' - D_u'), from the null branch's input X' and its answer D_u'."""
    return x - (given - denoised)


def match_bound(sigma: Sigma, start: float, bounds: tuple[float, float]) -> float:
    """The bound of `matched_uncond` at sigma: bounds[0] at the window's start (at most MATCHED_FROM), bounds[1] at
    MATCHED_TO, evenly in the log between."""
    first, last = bounds
    start = min(start, MATCHED_FROM)
    if start <= MATCHED_TO:
        return last
    share = math.log(float(torch.as_tensor(sigma).max()) / MATCHED_TO) / math.log(start / MATCHED_TO)
    return last + min(1.0, max(0.0, share)) * (first - last)


def matched_uncond(x: Tensor, uncond: Tensor, cond: Tensor, bound: float = 1.0) -> Tensor:
    """D_u with its noise X - D_u scaled, per sample, to at most `bound` times the rms of the conditional's X - D_c.

    All [B, C, ...]; to the bit D_u where nothing is larger."""
    size, own = (wide(x - d).flatten(1).square().mean(1).sqrt() for d in (uncond, cond))
    share = expand((bound * own / size).nan_to_num(1.0), wide(x))
    return torch.where(share < 1, (x - share * (x - uncond)).to(x), uncond)


@dataclass
class Disturbance:
    """Where the null branch looks. `other(x, sigma)` gives X', or None where nothing is done.

    older: sigma(t) -> sigma(t + b), a rollback (Back-D); without it reference, a clean latent in model space (Image-D);
    itself: at x, for the bound of `matched_uncond` alone. start, end: the window in sigma (`SigmaWindow`). reference:
    also what a rollback above the run's start is made of."""

    process: NoiseProcess
    start: float
    end: float = 0.0
    older: Callable[[float], float] | None = None
    reference: Tensor | None = None
    itself: bool = False

    def __post_init__(self):
        if self.older is None and self.reference is None and not self.itself:
            raise ValueError("A disturbance needs a rollback or a latent to look at.")
        self.history = History()

    def active(self, sigma: Sigma) -> bool:
        """Whether sigma lies in the window."""
        return sigma in SigmaWindow(self.start, self.end)

    def other(self, x: Tensor, sigma: Sigma) -> Tensor | None:
        """X' at sigma (x as it came for `itself`), or None outside the window. Called at every evaluation of a run, so
        that the history is whole."""
        if self.itself:
            return x if self.active(sigma) else None
        reference = self.reference
        if reference is not None:
            if reference.shape[1:] != x.shape[1:] or len(x) % len(reference):
                raise ValueError(
                    f"The picture to look at has the latent shape {list(reference.shape)}, the run's is "
                    f"{list(x.shape)}: resize the picture to the size that is sampled, take one or as many as the "
                    "batch, and give no prompt an area of its own."
                )
            reference = repeated(reference.to(x), len(x) // len(reference)).expand_as(x)
        s = float(torch.as_tensor(sigma).max())
        if self.older is not None:
            self.history.record(s, x)
        if not self.active(s):
            return None
        if self.older is None:
            return at_other_level(reference, 0.0, s, self.process)
        target = self.older(s)
        if target <= s * (1 + 1e-6):
            return None
        reached, x_old = self.history.at(target, reference, self.process)
        return None if reached <= s * (1 + 1e-6) else at_other_level(x_old, reached, s, self.process)


def disturbed(
    cond: Denoise,
    uncond: Denoise,
    cfg: float,
    disturbance: Disturbance,
    strength: Callable[[float], float] = lambda s: 1.0,
    match: tuple[float, float] | None = None,
) -> Denoise:
    """Guidance D_u_eff + cfg (D_c - D_u_eff); where the disturbance is off, ordinary guidance to the bit. match: the
    bounds of `match_bound`, None for the paper's formula. For `itself` strength is the share of the bound's change."""

    def denoise(x: Tensor, sigma: Sigma) -> Tensor:
        given = x
        other, amount = disturbance.other(x, sigma), strength(float(torch.as_tensor(sigma).max()))
        on = other is not None and amount != 0
        if on and not disturbance.itself:
            given = disturbed_input(x, other, amount)
        u = uncond(given, sigma)
        u = u if given is x else effective_uncond(x, given, u)
        c = cond(x, sigma)
        if match and on:
            bounded = matched_uncond(x, u, c, match_bound(sigma, disturbance.start, match))
            u = u + amount * (bounded - u) if disturbance.itself else bounded
        return apply_cfg(c, u, cfg)

    return denoise
