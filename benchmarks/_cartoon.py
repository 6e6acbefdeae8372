"""What null-text disturbance does to textured scenes, beside plain SDEdit and a blur.

Scenes with a texture are redrawn from 0.3 of the time with and without the disturbance, same seed, cfg and noise.
Texture energy is the mean squared brightness gradient of the background away from objects, edge contrast the mean
gradient along the object's border.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo import probe, scenes
from ..samplers.core import VE, gaussian, guided
from ..samplers.disturbance import Disturbance, disturbance_schedule, disturbed
from ..samplers.ode import sample_euler
from ..samplers.sdedit import sdedit_sigmas
from ._demo import Demo, some
from .harness import Bench, table

CARTOON_CFG, WINDOW, ROLLBACK, EDIT_CFG = 10.0, 0.3, 0.3, 5.0


def gradients(image: Tensor) -> Tensor:
    """Squared brightness gradient [B, H, W]."""
    grey = image.mean(1)
    return F.pad(grey.diff(dim=-1), (0, 1)) ** 2 + F.pad(grey.diff(dim=-2), (0, 0, 0, 1)) ** 2


def texture_and_edges(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(texture energy of the background, edge contrast along the object's border), each [B]."""
    g = gradients(image)
    grown = F.max_pool2d(mask[:, None], 17, 1, 8)[:, 0]  # the shadow lies within 8 pixels
    flat = (grown < 0.01).float()
    border = ((F.max_pool2d(mask[:, None], 5, 1, 2) + F.max_pool2d(-mask[:, None], 5, 1, 2))[:, 0] > 0.5).float()
    mean = lambda values, where: (values * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)
    return mean(g, flat), mean(g.sqrt(), border)


def blurred(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, int(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).reshape(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.mT, groups=3)


def blur_of_equal_drop(image: Tensor, mask: Tensor, energy: float) -> Tensor:
    """The image blurred until its mean texture energy is `energy`."""
    low, high = 0.05, 12.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        now = float(texture_and_edges(blurred(image, middle), mask)[0].mean())
        low, high = (middle, high) if now > energy else (low, middle)
    return blurred(image, high)


@torch.no_grad()
def cartoon(demo: Demo, part: scenes.Scenes, seed: int) -> dict[str, Tensor]:
    """Images [B, 3, 128, 128] of each way, same noise and cfg."""
    image, _ = scenes.draw(part)
    z = demo.autoencoder.encode(image)
    cond, uncond = demo.pair(part)
    start, low = demo.at(WINDOW), demo.at(0.001)
    base = torch.cat([sdedit_sigmas(demo.at, WINDOW, 100)[:-1], torch.tensor([low, 0.0], dtype=torch.float64)]).float()
    sigmas = disturbance_schedule(base.unique().flip(0), CARTOON_CFG, start)
    noise = gaussian(z, seed)()
    x = VE.noised(z, sigmas[0], noise)
    time_of = lambda s: float((demo.sigmas - s).abs().argmin()) / 999
    older = lambda s: demo.at(time_of(s) + ROLLBACK)
    run = lambda denoise: demo.decode(sample_euler(denoise, x, sigmas))
    looks = {"backd": Disturbance(VE, start, older=older, reference=z), "imaged": Disturbance(VE, start, reference=z)}
    out = {name: run(disturbed(cond, uncond, CARTOON_CFG, look)) for name, look in looks.items()}
    out["plain"] = run(guided(cond, uncond, CARTOON_CFG))
    sde = sdedit_sigmas(demo.at, 0.5, 34).float()
    out["sdedit"] = demo.decode(sample_euler(guided(cond, uncond, EDIT_CFG), VE.noised(z, sde[0], noise), sde))
    out["source"] = demo.decode(z)
    return out


def measure_cartoon(bench: Bench, demo: Demo) -> dict[str, float]:
    n = 4 if bench.quick else 16
    truth = some(n, 31, lambda s: s.texture > 0)
    judge = probe.load("conv")

    def compute(items):
        part = truth[torch.tensor(items)]
        mask = scenes.draw(part)[1][:, 0]
        made = cartoon(demo, part, seed=100 + items[0])
        energy = float(texture_and_edges(made["backd"], mask)[0].mean())
        made["blur"] = blur_of_equal_drop(made["plain"], mask, energy)
        rows = [{} for _ in items]
        for name, image in made.items():
            texture, edge = texture_and_edges(image, mask)
            seen = probe.read(judge, image)
            right = (seen.at_place("colour") == part.colour[:, 0]) & (seen.at_place("shape") == part.shape[:, 0])
            far = (image - made["source"]).square().mean((1, 2, 3)).sqrt()
            for i, row in enumerate(rows):
                row[name] = [float(texture[i]), float(edge[i]), int(right[i]), float(far[i])]
        return rows

    rows = bench.each("cartoon", range(n), compute, batch=8)
    mean = lambda name, k: sum(row[name][k] for row in rows) / len(rows)
    out, lines = {}, []
    for name in ("source", "plain", "backd", "imaged", "sdedit", "blur"):
        drop, change = 1 - mean(name, 0) / mean("plain", 0), mean(name, 1) / mean("plain", 1) - 1
        lines.append([name, drop, change, mean(name, 2), mean(name, 3)])
        out[name] = drop, change
    print(table(("cartoon", "texture drop", "edge change", "object read", "rms to source"), lines))
    return {
        "cartoon_texture_drop_backd": out["backd"][0],
        "cartoon_texture_drop_imaged": out["imaged"][0],
        "cartoon_edge_change_backd": out["backd"][1],
        "cartoon_edge_change_imaged": out["imaged"][1],
    }
