"""How far fills are from the true conditional, on two stated mixtures, and what they cost: RePaint's part of
from_image.

BIMODAL     two equal modes N((-1, -1.5), 0.25 I), N((1, 1.5), 0.25 I), first coordinate known to be 0.5
CORRELATED  one Gaussian of unit variances and correlation 0.9, first coordinate known to be 1.5

Error: the Wasserstein-1 distance between the drawn second coordinates and the exact conditional (by its quantiles),
so that mean, spread and mode shares all count. Fixed seeds. The official schedule runs on SD's noise table, ours on
its own levels of that range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..samplers.core import VE, gaussian
from ..samplers.mixture import GaussianMixture
from ..samplers.particles import sample_conditional_particles
from ..samplers.repaint import (
    HIGH,
    JUMP,
    LEVELS,
    LOW,
    RESAMPLES,
    karras_sigmas,
    official_path,
    ranged_path,
    sample_repaint,
)
from ..samplers.walk import network_calls

BIMODAL = (GaussianMixture([[-1.0, -1.5], [1.0, 1.5]], 0.5), 0.5)
CORRELATED = (GaussianMixture.correlated([[0.0, 0.0]], [[[1.0, 0.9], [0.9, 1.0]]]), 1.5)
MIXTURES = {"bimodal": BIMODAL, "correlated": CORRELATED}
MASK = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
SMALLEST, LARGEST = 0.0292, 14.61  # SD's sigmas
_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
_BAR = (1 - _BETAS).cumprod(0)
_TABLE = ((1 - _BAR) / _BAR).sqrt()


def respaced(steps: int) -> Tensor:
    """[steps + 1] sigmas at evenly spaced times of SD's table, and 0."""
    return torch.cat([_TABLE[torch.linspace(999, 0, steps).round().long()], torch.zeros(1, dtype=torch.float64)])


def exact_quantiles(mixture: GaussianMixture, known: float, n: int) -> Tensor:
    """The n mid-quantiles of p(second | first = known), ascending."""
    truth = mixture.conditional(torch.tensor([known, 0.0]), MASK[0])
    grid = torch.linspace(-8, 8, 200001, dtype=torch.float64)
    parts = zip(truth.shares, truth.mode_means[:, 1], truth.mode_variances[:, 1])
    cdf = sum(w * torch.special.ndtr((grid - m) / v.sqrt()) for w, m, v in parts)
    return grid[torch.searchsorted(cdf, (torch.arange(n, dtype=torch.float64) + 0.5) / n).clamp(max=len(grid) - 1)]


def distance(fill: Tensor, mixture: GaussianMixture, known: float) -> float:
    return float((fill.sort().values - exact_quantiles(mixture, known, len(fill))).abs().mean())


def _source(known: float, n: int) -> Tensor:
    return torch.tensor([[known, 0.0]], dtype=torch.float64).expand(n, 2)


def repaint_error(sigmas: Tensor, path: Sequence[int], n: int, seed: int = 0) -> dict[str, float]:
    """Error on each mixture and their mean."""
    out = {}
    for name, (mixture, known) in MIXTURES.items():
        noise = gaussian(torch.empty(n, 2, dtype=torch.float64), seed)
        fill = sample_repaint(
            mixture.denoise,
            sigmas[0] * noise(),
            sigmas,
            source=_source(known, n),
            mask=MASK,
            process=VE,
            noise=noise,
            path=path,
        )
        out[name] = distance(fill[:, 1], mixture, known)
    return {**out, "mean": sum(out.values()) / len(out), "calls": network_calls(path)}


def exact_error(levels: int, particles: int, n: int, seed: int = 0) -> dict[str, float]:
    """The same for the exact-leaning fill; calls count rows of the network per picture."""
    out, sigmas = {}, karras_sigmas(levels, SMALLEST, LARGEST)
    for name, (mixture, known) in MIXTURES.items():
        noise = gaussian(torch.empty(n * particles, 2, dtype=torch.float64), seed)
        fill = sample_conditional_particles(
            mixture.denoise,
            sigmas[0] * noise(),
            sigmas,
            source=_source(known, n),
            mask=MASK,
            process=VE,
            noise=noise,
            particles=particles,
            seed=seed,
        )
        out[name] = distance(fill[:, 1], mixture, known)
    return {**out, "mean": sum(out.values()) / len(out), "calls": levels * particles}


def floor_error(n: int, seed: int = 5) -> dict[str, float]:
    """What n draws from the true conditional itself show: the measure's own noise."""
    out = {}
    for name, (mixture, known) in MIXTURES.items():
        quantiles = exact_quantiles(mixture, known, 100001)
        drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        out[name] = distance(quantiles[(drawn * 100000).long()], mixture, known)
    return {**out, "mean": sum(out.values()) / len(out), "calls": 0}


def curves(bench, n: int) -> dict[str, list[dict]]:
    """Error against calls of every method, kept one by one."""
    ours = karras_sigmas(LEVELS, SMALLEST, LARGEST)
    quick = bench.quick

    def run(key, compute):
        return bench.once(f"conditional {key}", compute)

    out = {"naive": [], "ours": [], "official": [], "exact-leaning": []}
    for steps in (20, 95) if quick else (20, 50, 95, 250, 1000):
        out["naive"].append(run(f"naive {steps}", lambda s=steps: repaint_error(respaced(s), range(s + 1), n)))
    for r in (RESAMPLES,) if quick else (3, 6, 10, RESAMPLES, 36, 72):
        path = ranged_path(ours, JUMP, r, LOW, HIGH)
        out["ours"].append(run(f"ours r {r}", lambda p=path: repaint_error(ours, p, n)))
    for steps, jump, r in (
        ((20, 5, 2), (250, 10, 10)) if quick else ((20, 5, 2), (30, 5, 3), (50, 5, 5), (250, 10, 5), (250, 10, 10))
    ):
        path = official_path(steps, jump, r)
        out["official"].append(
            run(f"official {steps}/{jump}/{r}", lambda s=steps, p=path: repaint_error(respaced(s), p, n))
        )
    for levels, particles in ((100, 8),) if quick else ((50, 4), (100, 8), (100, 32)):
        out["exact-leaning"].append(
            run(f"exact {levels} x {particles}", lambda a=levels, b=particles: exact_error(a, b, n))
        )
    return out


def plot(series: dict[str, list[dict]], floor: float, path: Path, width: int = 640, height: int = 400) -> None:
    """Mean error (log) against calls (log), one line per method."""
    colours = {
        "naive": (140, 140, 140),
        "ours": (214, 39, 40),
        "official": (31, 119, 180),
        "exact-leaning": (44, 160, 44),
    }
    page, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(13)
    pen = ImageDraw.Draw(page)
    left, top, right, bottom = 60, 30, width - 20, height - 45
    points = [(p["calls"], p["mean"]) for line in series.values() for p in line]
    x0, x1 = math.log10(min(c for c, _ in points)), math.log10(max(c for c, _ in points))
    y0, y1 = math.log10(min(floor, *(e for _, e in points))), math.log10(max(e for _, e in points))

    def at(calls, error):
        return (
            left + (math.log10(calls) - x0) / (x1 - x0) * (right - left),
            bottom - (math.log10(error) - y0) / (y1 - y0) * (bottom - top),
        )

    pen.rectangle((left, top, right, bottom), outline=(120, 120, 120))
    pen.text((left, 8), "error against the true conditional, mean of two mixtures", "black", font)
    pen.text(((left + right) / 2 - 70, bottom + 22), "network calls per picture", "black", font)
    for tick in (20, 50, 100, 200, 500, 1000, 2000):
        if x0 <= math.log10(tick) <= x1:
            pen.line((*at(tick, 10**y0), at(tick, 10**y0)[0], bottom + 5), fill=(120, 120, 120))
            pen.text((at(tick, 10**y0)[0] - 10, bottom + 6), str(tick), "black", font)
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if y0 <= math.log10(tick) <= y1:
            pen.text((8, at(10**x0, tick)[1] - 8), f"{tick:g}", "black", font)
    y = at(10**x0, floor)[1]
    pen.line((left, y, right, y), fill=(200, 200, 200))
    for i, (name, line) in enumerate(series.items()):
        places = [at(p["calls"], p["mean"]) for p in sorted(line, key=lambda p: p["calls"])]
        if len(places) > 1:
            pen.line([c for place in places for c in place], fill=colours[name], width=2)
        for px, py in places:
            pen.ellipse((px - 3, py - 3, px + 3, py + 3), fill=colours[name])
        pen.text((left + 10, bottom - 20 - 16 * i), name, colours[name], font)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, quality=90)
