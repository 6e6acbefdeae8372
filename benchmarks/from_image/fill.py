"""RePaint on scenes whose fill is determined, against core's noise mask at equal calls.

Half of a striped or checkered background is removed and filled; seam is |gradient across the border - the true one|,
fill the rms error against the true scene, both in pixels (0..1) of the autoencoder's own decode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo import scenes
from ...samplers.core import VE, gaussian, guided
from ...samplers.ode import sample_ancestral, sample_euler
from ...samplers.picture.repaint_schedules import DEFAULT, OURS, PRESETS, data_scale, sample_repaint_scheduled
from ...samplers.picture.sdedit import sdedit_sigmas
from ..edits import CELL
from ..harness import Bench, table
from ..lab import Demo, some
from .conditional import calls_of, key_of

FILL_CFG = 3.0

OPPOSITE = {
    "left": (slice(None), slice(8, 16)),
    "right": (slice(None), slice(0, 8)),
    "top": (slice(8, 16), slice(None)),
    "bottom": (slice(0, 8), slice(None)),
}


def filling(n: int, seed: int = 32, **more) -> scenes.Scenes:
    """Striped and checkered scenes whose object, not a large one, stands away from the hole: their fill is determined.
    `more` goes to `some`."""
    middle = scenes.PLACES.index("middle")

    def determined(s):
        return ((s.texture == 1) | (s.texture == 2)) & (s.place[:, 0] != middle) & (s.size[:, 0] < 2)

    return some(n, seed, determined, **more)


def holes(part: scenes.Scenes) -> Tensor:
    """[B, 1, 16, 16]: the half away from the object."""
    mask = torch.zeros(len(part), 1, 16, 16)
    for i, place in enumerate(part.place[:, 0].tolist()):
        mask[(i, 0, *OPPOSITE[scenes.PLACES[place]])] = 1
    return mask


def core_noise_mask(denoise, z: Tensor, mask: Tensor, noise: Tensor):
    """What ComfyUI's sampling does with a noise mask: one fixed noise before the network, the clean latent after it."""

    def held(x, sigma):
        x = x * mask + (z + sigma * noise) * (1 - mask)
        return denoise(x, sigma) * mask + z * (1 - mask)

    return held


def seam_and_fill(fill: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Error of the gradient across the border, rms error inside; mask [B, 1, 128, 128]."""
    errors, weights = 0, 0
    for dim in (-1, -2):
        across = mask.diff(dim=dim).abs()
        gap = (fill.diff(dim=dim) - truth.diff(dim=dim)).abs().mean(1, keepdim=True)
        errors, weights = errors + (gap * across).flatten(1).sum(1), weights + across.flatten(1).sum(1)
    inside = ((fill - truth).square().mean(1, keepdim=True) * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    return errors / weights, inside.sqrt()


def seam_and_fill_of(demo: Demo, latent: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a filled latent beside the whole scene's z; mask [B, 1, 16, 16], outside of which z is shown."""
    pixels = F.interpolate(mask, scale_factor=CELL)
    return seam_and_fill(demo.decode(latent * mask + z * (1 - mask)), demo.decode(z), pixels)


def measure_fill(bench: Bench, demo: Demo) -> dict[str, float]:
    n = 4 if bench.quick else 16
    truth = filling(n)
    plans = {key_of(name): plan for name, plan in PRESETS.items()}
    if bench.quick:
        plans = {key: plan for key, plan in plans.items() if plan.levels <= 25}
    calls = calls_of(OURS)
    ordinary = sdedit_sigmas(demo.at, 1.0, 5 if bench.quick else calls).float()

    @torch.no_grad()
    def compute(items, made_by):
        part = truth[torch.tensor(items)]
        z, mask = demo.encode(scenes.draw(part)[0]), holes(part)
        noise = gaussian(z, 200 + items[0])
        latent = made_by(guided(*demo.pair(part), FILL_CFG), z, mask, noise)
        return [[float(a), float(b)] for a, b in zip(*seam_and_fill_of(demo, latent, z, mask))]

    def scheduled(plan):
        def make(denoise, z, mask, noise):
            scale = data_scale(z, mask)
            levels = plan.sigmas(demo.at(0.001), demo.at(1.0), scale=scale)
            levels = sdedit_sigmas(demo.at, 1.0, plan.levels) if levels is None else levels
            levels = levels.float()
            known = {"source": z, "mask": mask, "process": VE, "noise": noise}
            return sample_repaint_scheduled(denoise, levels[0] * noise(), levels, **known, schedule=plan, scale=scale)

        return make

    def core(ancestral):
        def make(denoise, z, mask, noise):
            x, held = ordinary[0] * noise(), core_noise_mask(denoise, z, mask, noise())
            if ancestral:
                return sample_ancestral(held, x, ordinary, process=VE, noise=noise)
            return sample_euler(held, x, ordinary)

        return make

    ways = {key: scheduled(plan) for key, plan in plans.items()} | {
        f"core_euler_{calls}": core(False),
        f"core_ancestral_{calls}": core(True),
    }
    found = {}
    for key, way in ways.items():
        rows = bench.each(f"fill {key}", range(n), lambda items, w=way: compute(items, w), batch=8)
        found[key] = [sum(row[k] for row in rows) / n for k in (0, 1)]
    print(table(("fill", "seam", "fill rms"), [[key, *both] for key, both in found.items()]))
    best = min((key for key in found if key.startswith("core")), key=lambda key: found[key][1])
    named = {key: both for key, both in found.items() if not key.startswith("core")} | {"core_noise_mask": found[best]}
    named |= {"default": found[key_of(DEFAULT)]} if not bench.quick else {}
    return {f"repaint_{what}_{key}": both[k] for key, both in named.items() for k, what in enumerate(("seam", "fill"))}
