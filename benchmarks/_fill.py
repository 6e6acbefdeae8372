"""RePaint on scenes whose fill is determined, against core's noise mask at equal calls.

Half of a striped or checkered background is removed and filled; seam is |gradient across the border - the true one|,
fill the rms error against the true scene, both in pixels (0..1) of the autoencoder's own decode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo import scenes
from ..samplers.core import VE, gaussian, guided
from ..samplers.ode import sample_ancestral, sample_euler
from ..samplers.repaint import HIGH, JUMP, LEVELS, LOW, RESAMPLES, ranged_path, repaint_sigmas, sample_repaint_ranged
from ..samplers.sdedit import sdedit_sigmas
from ..samplers.walk import network_calls
from ._demo import Demo, some
from .harness import Bench, table

FILL_CFG = 3.0

OPPOSITE = {
    "left": (slice(None), slice(8, 16)),
    "right": (slice(None), slice(0, 8)),
    "top": (slice(8, 16), slice(None)),
    "bottom": (slice(0, 8), slice(None)),
}


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


def measure_fill(bench: Bench, demo: Demo) -> dict[str, float]:
    n = 4 if bench.quick else 16
    middle = scenes.PLACES.index("middle")
    truth = some(
        n, 32, lambda s: ((s.texture == 1) | (s.texture == 2)) & (s.place[:, 0] != middle) & (s.size[:, 0] < 2)
    )
    levels = repaint_sigmas(LEVELS, demo.at(0.001), demo.at(1.0)).float()
    calls = network_calls(ranged_path(levels, JUMP, RESAMPLES, LOW, HIGH))
    ordinary = sdedit_sigmas(demo.at, 1.0, calls).float()

    @torch.no_grad()
    def compute(items):
        part = truth[torch.tensor(items)]
        z, mask = demo.autoencoder.encode(scenes.draw(part)[0]), holes(part)
        denoise = guided(*demo.pair(part), FILL_CFG)
        seed = 200 + items[0]
        noise = gaussian(z, seed)
        x = levels[0] * noise()
        core = core_noise_mask(denoise, z, mask, noise())
        made = {
            "default": sample_repaint_ranged(denoise, x, levels, source=z, mask=mask, process=VE, noise=noise),
            "core euler": sample_euler(core, x, ordinary),
            "core ancestral": sample_ancestral(core, x, ordinary, process=VE, noise=noise),
        }
        rows, pixels, original = [{} for _ in items], F.interpolate(mask, scale_factor=8), demo.decode(z)
        for name, latent in made.items():
            seam, fill = seam_and_fill(demo.decode(latent * mask + z * (1 - mask)), original, pixels)
            for i, row in enumerate(rows):
                row[name] = [float(seam[i]), float(fill[i])]
        return rows

    key = f"fill renewed {LEVELS}, {JUMP}, {RESAMPLES} in {LOW:g}..{HIGH:g}"
    rows = bench.each(key, range(n), compute, batch=8)
    mean = lambda name, k: sum(row[name][k] for row in rows) / len(rows)
    names = ("default", "core euler", "core ancestral")
    print(
        table((f"fill at {calls} calls", "seam", "fill rms"), [[name, mean(name, 0), mean(name, 1)] for name in names])
    )
    core = min(names[1:], key=lambda name: mean(name, 1))  # the better of core's two
    return {
        "repaint_seam_default": mean("default", 0),
        "repaint_seam_core_noise_mask": mean(core, 0),
        "repaint_fill_default": mean("default", 1),
        "repaint_fill_core_noise_mask": mean(core, 1),
    }
