"""Asyrp (Kwon et al. 2210.10960): a frozen net is edited in h, the output of its UNet's middle block.

With D = P_t the net's prediction, D~ that of the same net with h + dh, and d = (x - D)/s from the UNSHIFTED net:

    asymmetric   VE    x' = D~ + s' d                     flow  x' = (1 - s') D~ + s' (D + d)
                 both  x' = Euler(x; D) + a(s') (D~ - D),  a = 1 (VE), 1 - s' (flow): a step and a jump
    symmetric    x' = Euler(x; D~): the jump is (1 - s'/s)(D~ - D), which on fine steps is s/(s - s') times smaller

dh acts while s >= s_edit. Below s_boost the walk is stochastic (DDIM with eta 1, "quality boosting"). Made on N steps
and used on M, dh is taken N/M times; several directions are summed and divided by sqrt(n) (both from the authors' code,
in no equation of the paper).

    s_edit    lowest level with distance(P_s, x0) >= .33 cos(E_T(source), E_T(target))
    s_boost   lowest level with distance(x_s, x0) >= 1.2 (the code's own default is .1, its scripts pass 1.2)

The distance is LPIPS in the paper, a mean over a data set; here it is `perceptual.py`'s, and the levels are read off
the path of the very pictures that are edited or trained on.

f is trained by `directional.py`'s loss between D~ on the edited walk and the source picture, its L1 against D on the
unedited walk and times that cosine; one optimiser step a level. dh without training: `h_direction.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core import VE, Callback, NoiseProcess, NoiseSource, Sigma, check_descending, euler_step, expand, report
from ..window import ALWAYS, SigmaWindow
from .diffusion_clip import Pictures
from .directional import EditLoss
from .walks import Walks

#: distances at which s_edit (times the cosine of the two texts) and s_boost lie
EDIT_DISTANCE, BOOST_DISTANCE = 0.33, 1.2
#: of a training's unedited walks in main memory: so much of predictions, and of pictures
_KEPT_BYTES = 2**30

#: h [R, C, ...] -> dh, of h's shape or one that broadcasts to it
Change = Callable[[Tensor], Tensor]
#: (x [B, C, ...], sigma, change) -> (D, D~); change None: (D, D)
Pair = Callable[[Tensor, Sigma, Change | None], tuple[Tensor, Tensor]]
#: sigma -> what is added to h there, None for nothing
Changes = Callable[[Sigma], Change | None]


def two_rows(denoise: Callable[[Tensor, Sigma, Change | None], Tensor]) -> Pair:
    """D and D~ from one call of twice the rows: denoise(x, sigma, change) shifts h of the second half of its rows."""

    def pair(x, sigma, change):
        if change is None:
            denoised = denoise(x, sigma, None)
            return denoised, denoised
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        both = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]) if sigma.ndim else sigma, change)
        plain, shifted = both.chunk(2)
        return plain, shifted

    return pair


def jump(denoised: Tensor, shifted: Tensor, sigma_next: Sigma, process: NoiseProcess) -> Tensor:
    """What the asymmetric shift adds to a step to s': a(s') (D~ - D)."""
    change = shifted - denoised
    return expand(process.signal(torch.as_tensor(sigma_next, dtype=change.dtype)), change) * change


def sample_asyrp(
    pair: Pair,
    x: Tensor,
    sigmas: Tensor,
    *,
    changes: Changes,
    process: NoiseProcess = VE,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    window: SigmaWindow = ALWAYS,
    boost: float = 0.0,
    symmetric: bool = False,
) -> Tensor:
    """x [B, C, ...] at sigmas[0] -> x at sigmas[-1]: 2 rows a sample and step where h is shifted, 1 elsewhere.

    window: levels at which h is shifted, down to s_edit. boost: s_boost in sigma; steps from levels below it are
    stochastic and ask `noise`; 0: none. symmetric: the paper's counterexample, both terms shifted, so that the step is
    that of D~ and moves (1 - s'/s)(D~ - D). Without a shift and boost it is Euler's method to the bit."""
    check_descending(sigmas)
    if boost > 0 and noise is None:
        raise ValueError("Quality boosting draws noise: give a noise source.")
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        change = changes(s) if s in window else None
        denoised, shifted = pair(x, s, change)
        report(callback, i, x, s, shifted)
        std, taken = 0.0, shifted if symmetric else denoised
        if float(s) < boost:
            after, std = process.transition(x, taken, s, s_next, 1.0)
        else:
            after = euler_step(x, taken, s, s_next)
        if change is not None and not symmetric:
            after = after + jump(denoised, shifted, s_next, process)
        x = after + std * noise() if float(std) > 0 else after
    return x


def lowest_level(
    sigmas: Tensor | Sequence[float],
    distances: Tensor | Sequence[float],
    threshold: float,
    otherwise: float | None = None,
) -> float:
    """The smallest sigma > 0 whose distance to x0 is at least the threshold: s_edit and s_boost.

    distances: one for each sigma > 0. Where none is reached: `otherwise`, the largest sigma for None."""
    levels = [float(s) for s in sigmas if float(s) > 0]
    if len(levels) != len(distances):
        raise ValueError(f"{len(levels)} levels need as many distances; got {len(distances)}.")
    reached = [s for s, distance in zip(levels, distances) if float(distance) >= threshold]
    if reached:
        return min(reached)
    return max(levels) if otherwise is None else otherwise


def edit_and_boost(
    sigmas: Tensor, predicted: Sequence[float], noisy: Sequence[float], cosine: float = 1.0
) -> tuple[float, float]:
    """(s_edit, s_boost) of the distances of P_s and x_s at every level s > 0, by the authors' thresholds. cosine: of
    the source's and the target's text. No boost where x_s never stands as far off."""
    return (
        lowest_level(sigmas, predicted, EDIT_DISTANCE * cosine),
        lowest_level(sigmas, noisy, BOOST_DISTANCE, otherwise=0.0),
    )


def distances(
    trajectory: Tensor,
    sigmas: Tensor,
    distance: Callable[[Tensor], Tensor],
    process: NoiseProcess = VE,
    on_level: Callable[[], None] | None = None,
) -> tuple[list[float], list[float]]:
    """(distance(P_s), distance(x_s)) at every level s > 0 of an inversion's path, each the batch's mean.

    trajectory [N+1, B, C, ...] at sigmas [N+1]. distance(latents [B, C, ...]) -> [B], from the picture that was
    inverted. P_s is what the path's own step says was predicted, x_s - s (x_s' - x_s)/(s' - s), so that no network is
    asked; x_s is brought to the variance of a picture first, x_s / sqrt(a(s)^2 + s^2), as the paper's nets see it.
    on_level() after each level."""
    predicted, noisy = [], []
    for x, after, (s, s_next) in zip(trajectory, trajectory[1:], pairwise(sigmas.tolist())):
        predicted.append(float(distance(x - s / (s_next - s) * (after - x)).mean()))
        noisy.append(float(distance(x / math.hypot(process.signal(s), s)).mean()))
        if on_level is not None:
            on_level()
    return predicted, noisy


class _Room:
    """Tensors by name in main memory, as many as fit into so many bytes; each is made the first time it is asked."""

    def __init__(self, size: int):
        self.size, self.held = size, {}

    def get(self, name, make: Callable[[], Tensor]) -> Tensor:
        if name in self.held:
            device, value = self.held[name]
            return value.to(device)
        value = make()
        if value.nbytes <= self.size:
            self.size -= value.nbytes
            self.held[name] = value.device, value.cpu()
        return value


def training_step(
    pair: Callable[[Any], Pair],
    pictures: Pictures,
    sigmas: Tensor,
    changes: Changes,
    decode: Callable[[Tensor], Tensor],
    loss: EditLoss,
    process: NoiseProcess = VE,
    on_call: Callable[[], None] | None = None,
) -> Walks:
    """The authors' training: at every level of a picture's walk (sigmas [N+1], the last one s_edit's lower neighbour)
    one optimiser step on the loss of D~, states detached.

    pair(condition) -> D and D~ of a net whose D~ has gradients to what `changes` holds. loss's L1 compares with D of
    the unedited walk, which is the same in every pass: as much of it as fits into `_KEPT_BYTES` is asked and decoded
    once. Scale L1's weight by `text_cosine` beforehand."""
    predictions, shown = _Room(_KEPT_BYTES), _Room(_KEPT_BYTES)

    def begin(generator):
        i = pictures.draw(generator)
        return pictures.starts[i], pictures.starts[i], i

    def advance(state, i):
        x, plain, picture = state
        s, s_next = sigmas[i], sigmas[i + 1]
        ask = pair(pictures.conditions[picture])
        if on_call is not None:
            on_call()
        denoised, shifted = ask(x, s, changes(s))
        with torch.no_grad():
            reference = predictions.get((picture, i), lambda: ask(plain, s, None)[0])
            kept = shown.get((picture, i), lambda: decode(reference))
        losses = loss(decode(shifted), pictures.sources[picture], kept)
        with torch.no_grad():
            after = euler_step(x, denoised, s, s_next) + jump(denoised, shifted, s_next, process)
            plain = euler_step(plain, reference, s, s_next)
        return losses, (after.detach(), plain.detach(), picture)

    return Walks(len(sigmas) - 1, begin, advance)
