"""How far fills are from the true conditional, on the mixtures of mixtures.py, and what they cost: RePaint's part of
from_image.

Error: the Wasserstein-1 distance between the drawn values and their exact conditional (by its quantiles), averaged
over the unknown coordinates, so that mean, spread and mode shares all count. Fixed seeds. The paper's schedules run on
SD's noise table, ours on its own levels of that range. Judged per mixture, as a ratio to the error of the authors'
250/10/10: a good mean can hide a bad one. What was chosen by the TUNING mixtures is judged by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...samplers.core import VE, gaussian
from ...samplers.picture.particles import sample_conditional_particles
from ...samplers.picture.repaint import karras_sigmas, sample_repaint
from ...samplers.picture.repaint_schedules import DEFAULT, PRESETS, Schedule
from ...samplers.walk import Eta, network_calls
from ..harness import Bench
from .mixtures import ALL, UNSEEN, Case

SMALLEST, LARGEST = 0.0292, 14.61  # SD's sigmas
_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
_BAR = (1 - _BETAS).cumprod(0)
_TABLE = ((1 - _BAR) / _BAR).sqrt()
NAIVE = "naive, 250 calls"
EXACT = "exact-leaning, 100 levels x 8 rows"


def respaced(steps: int) -> Tensor:
    """[steps + 1] sigmas at evenly spaced times of SD's table, and 0."""
    return torch.cat([_TABLE[torch.linspace(999, 0, steps).round().long()], torch.zeros(1, dtype=torch.float64)])


def exact_quantiles(case: Case, n: int) -> Tensor:
    """The n mid-quantiles of every unknown coordinate given the known ones, ascending: [n, unknown]."""
    truth, found = case.truth, []
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for i in (case.mask > 0.5).nonzero().flatten().tolist():
        width = 12 * float(truth.variance[i].sqrt())
        grid = float(truth.mean[i]) + torch.linspace(-width, width, 100001, dtype=torch.float64)
        parts = zip(truth.shares, truth.mode_means[:, i], truth.mode_variances[:, i])
        cdf = sum(w * torch.special.ndtr((grid - m) / v.sqrt()) for w, m, v in parts)
        found.append(grid[torch.searchsorted(cdf, middle).clamp(max=len(grid) - 1)])
    return torch.stack(found, 1)


def distance(fill: Tensor, case: Case) -> float:
    """fill [n, D] against the true conditional; the known coordinates do not count."""
    unknown = fill[:, case.mask > 0.5]
    return float((unknown.sort(0).values - exact_quantiles(case, len(fill))).abs().mean())


def error(case: Case, sample: Callable[..., Tensor], sigmas: Tensor, n: int, rows: int = 1) -> float:
    """Error of n fills, `rows` of the batch for each."""
    noise = gaussian(torch.empty(n * rows, len(case.values), dtype=torch.float64), 0)
    known = {"source": case.values.expand(n, -1), "mask": case.mask[None], "process": VE, "noise": noise}
    fill = sample(case.mixture.denoise, sigmas[0] * noise(), sigmas, **known)
    return distance(fill, case)


def repaint_error(case: Case, sigmas: Tensor, path: Sequence[int], n: int, eta: Eta = 1.0) -> float:
    return error(case, partial(sample_repaint, path=path, eta=eta), sigmas, n)


def levels_of(plan: Schedule, scale: float) -> Tensor:
    """The levels that a schedule walks over SD's range, for data of that scale."""
    sigmas = plan.sigmas(SMALLEST, LARGEST, scale=scale)
    return respaced(plan.levels) if sigmas is None else sigmas


def scheduled_error(case: Case, plan: Schedule, n: int) -> float:
    sigmas = levels_of(plan, case.scale)
    return repaint_error(case, sigmas, plan.path(sigmas, scale=case.scale), n, plan.eta(scale=case.scale))


def exact_error(case: Case, levels: int, particles: int, n: int) -> float:
    """The exact-leaning fill's."""
    sample = partial(sample_conditional_particles, particles=particles)
    return error(case, sample, karras_sigmas(levels, SMALLEST, LARGEST), n, particles)


def floor_error(case: Case, n: int, repeats: int = 10) -> float:
    """What n draws from the true conditional itself show, the mean of `repeats`: the measure's own noise."""
    quantiles, draws, found = exact_quantiles(case, 100001), torch.Generator().manual_seed(5), []
    for _ in range(repeats):
        place = (torch.rand(n, quantiles.shape[1], generator=draws) * 100000).long()
        unknown = torch.zeros(n, len(case.values), dtype=torch.float64)
        unknown[:, case.mask > 0.5] = quantiles.gather(0, place)
        found.append(distance(unknown, case))
    return sum(found) / repeats


def key_of(name: str) -> str:
    """A preset's name in a figure's key: paper_105."""
    return f"{name.split(',')[0]}_{calls_of(PRESETS[name])}"


def calls_of(plan: Schedule) -> int:
    """Network calls of a schedule on its own levels."""
    return network_calls(plan.path(levels_of(plan, 1.0)))


def measured(bench: Bench, n: int) -> dict[str, dict]:
    """By the name of a way: {"calls": its calls, mixture: its error}, kept one by one. The last is the measure's
    noise."""
    ways = {name: (calls_of(plan), lambda case, p=plan: scheduled_error(case, p, n)) for name, plan in PRESETS.items()}
    ways[NAIVE] = (250, lambda case: repaint_error(case, respaced(250), range(251), n))
    ways[EXACT] = (800, lambda case: exact_error(case, 100, 8, max(n // 4, 250)))
    ways["draws of the true conditional"] = (0, lambda case: floor_error(case, n))
    return {
        name: {"calls": calls}
        | {m: bench.once(f"conditional of {n}: {name}, {m}", lambda c=c, w=compute: w(c)) for m, c in ALL.items()}
        for name, (calls, compute) in ways.items()
    }


def ratios(rows: dict[str, dict], name: str) -> dict[str, float]:
    """Each mixture's error over that of the authors' 250/10/10."""
    paper = next(row for row in rows.values() if row["calls"] == 2410)
    return {m: rows[name][m] / paper[m] for m in ALL}


def worst_unseen(rows: dict[str, dict], name: str) -> float:
    found = ratios(rows, name)
    return max(found[m] for m in UNSEEN)


def figures(rows: dict[str, dict]) -> dict[str, float]:
    """What the bench prints of the default, and the worst of every other preset."""
    out = {"repaint_worst_ratio_default": worst_unseen(rows, DEFAULT), "repaint_calls_default": rows[DEFAULT]["calls"]}
    out |= {f"repaint_ratio_{m}": ratio for m, ratio in ratios(rows, DEFAULT).items()}
    for name in PRESETS:
        out[f"repaint_worst_ratio_{key_of(name)}"] = worst_unseen(rows, name)
    return out
