"""Schedules of RePaint by name: the paper's, smaller ones of its kind, and our own for few calls.

The paper's (Lugmayr et al. 2201.09865): levels evenly spaced in the model's time, jumps everywhere, ancestral steps.
250 levels, jump 10 and 10 resamples are the authors' setting.

Ours departs from it in three things. The levels stand evenly in the log of noise to signal, DENSITY times closer from
`low` to `high`. The walk jumps back only there: far above the data's scale resampling changes nothing, far below the
modes no longer mix. And what a step keeps of the noise that it came from, its share 1 - zeta (as in DiffPIR
2305.08995: the next noise is sqrt(1 - zeta) eps + sqrt(zeta) n), rises from 0 above the range, where an early guess
must not bind the fill, to 1 below it, where a coarse stochastic step would only lower the variance. `low` and `high`
are in units of the data's scale (`data_scale`). It was chosen on four mixtures; benchmarks/from_image/mixtures.py names
them and those that only judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import VE, Callback, Denoise, NoiseProcess, NoiseSource, Sigma, VarianceExploding, wide
from ..walk import Eta
from .repaint import noise_to_signal, path_length, ranged_path, sample_repaint, within

#: How much closer our levels stand within the resampled range
DENSITY = 2.0


@dataclass(frozen=True)
class Schedule:
    """How many levels, and where and how often the walk jumps back up."""

    levels: int
    jump: int  #: in levels
    resamples: int  #: how often each stretch is walked; 1: no jumps
    low: float = 0.0  #: resampled from this noise to signal, in units of the data's scale,
    high: float = math.inf  #: to this one
    renew: bool = False  #: our levels and steps; False: the paper's ancestral steps

    def path(self, sigmas: Tensor, process: NoiseProcess = VE, scale: float = 1.0) -> list[int]:
        """Level numbers over the sigmas at hand, for data of that standard deviation."""
        return ranged_path(sigmas, self.jump, self.resamples, self.low * scale, self.high * scale, process)

    def visits(self, sigmas: Tensor, process: NoiseProcess = VE, scale: float = 1.0) -> int:
        """How many numbers `path` holds, told without making it."""
        allowed = within(sigmas, self.low * scale, self.high * scale, process)
        return path_length(len(sigmas) - 1, self.jump, self.resamples, allowed)

    def eta(self, process: NoiseProcess = VE, scale: float = 1.0) -> Eta:
        return renewed(self.low * scale, self.high * scale, process) if self.renew else 1.0

    def sigmas(self, smallest: float, largest: float, process: NoiseProcess = VE, scale: float = 1.0) -> Tensor | None:
        """Our levels, float64 [levels + 1]; None for the paper's, which stand evenly in the time of a model's table."""
        if not self.renew:
            return None
        return repaint_sigmas(self.levels, smallest, largest, process, self.low * scale, self.high * scale)


PAPER = Schedule(250, 10, 10)
OURS = Schedule(30, 1, 30, 0.1, 0.4, renew=True)
#: what a widget offers, the default first; CUSTOM stands for numbers of the user's own
PRESETS = {
    "paper, 2410 calls (250/10/10)": PAPER,
    "paper, 230 calls (50/5/5)": Schedule(50, 5, 5),
    "paper, 105 calls (25/5/5)": Schedule(25, 5, 5),
    "ours, about 350 calls": OURS,
}
DEFAULT = next(iter(PRESETS))
CUSTOM = "custom"


def data_scale(source: Tensor, mask: Tensor | None) -> float:
    """Standard deviation of the known part (mask 0) of a clean picture in model space; of all of it where nothing is
    known, 1 where nothing varies. source [B, C, ...], mask [B or 1, 1 or C, ...] or None (nothing is known)."""
    known = source if mask is None else source[(mask == 0).expand(source.shape)]
    values = wide(known if known.numel() > 1 else source)
    return float(values.std()) or 1.0


def repaint_sigmas(
    levels: int, sigma_min: float, sigma_max: float, process: NoiseProcess, low: float, high: float
) -> Tensor:
    """Levels evenly spaced in the log of noise to signal, DENSITY times closer from low to high (noise to signal);
    float64 [levels + 1], the last 0.

    Jumps between neighbours then mix equally well at every scale; Karras' spacing, denser below, makes short jumps
    there that hardly move a sample. A flow's first level stays sigma_max, at most 1, where the signal is gone."""
    bottom, top = noise_to_signal(sigma_min, process), min(noise_to_signal(sigma_max, process), 80.0)
    knots = np.log([top, min(max(high, bottom), top), min(max(min(low, high), bottom), top), bottom])
    place = np.concatenate([[0.0], np.cumsum(-np.diff(knots).clip(max=0) * [1.0, DENSITY, 1.0])])
    ratios = torch.from_numpy(np.interp(np.linspace(0, place[-1], levels), place, knots)).exp()
    ratios = torch.cat([ratios, torch.zeros(1, dtype=torch.float64)])
    if isinstance(process, VarianceExploding):
        return ratios
    sigmas = ratios / (1 + ratios)
    sigmas[0] = sigma_max
    return sigmas


def renewed(low: float, high: float, process: NoiseProcess = VE) -> Eta:
    """eta of a step such that the share zeta of its noise variance is new: 1 from `high` (noise to signal) up, falling
    to 0 at `low` and below, evenly in the log."""
    low = max(low, 1e-2)  # 0 stands for the whole range; below this nothing is left to renew

    def eta(sigma: Sigma, sigma_next: Sigma) -> float:
        r, r_next = noise_to_signal(sigma, process), noise_to_signal(sigma_next, process)
        if r >= high or r <= low:
            zeta = float(r >= high)
        else:
            zeta = math.log(r / low) / math.log(high / low)
        return math.sqrt(zeta / (1 - (r_next / r) ** 2))

    return eta


def sample_repaint_scheduled(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    source: Tensor,
    mask: Tensor | None,
    process: NoiseProcess,
    noise: NoiseSource,
    schedule: Schedule,
    scale: float | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """`sample_repaint` by a schedule over the sigmas at hand. scale: of the data (None: `data_scale`). mask None:
    nothing is known."""
    scale = data_scale(source, mask) if scale is None else scale
    mask = torch.ones_like(source) if mask is None else mask
    return sample_repaint(
        denoise,
        x,
        sigmas,
        source=source,
        mask=mask,
        process=process,
        noise=noise,
        path=schedule.path(sigmas, process, scale),
        eta=schedule.eta(process, scale),
        callback=callback,
    )
