"""What null-text disturbance does to textured scenes, beside plain SDEdit and a blur.

Scenes with a texture are redrawn from 0.3 of the time with and without the disturbance, same seed, cfg and noise:
Back-D with rollback 0.3 at the paper's cfg 10, Image-D at cfg 6 (the demo model is made for 5). Settings and the bounds
of `match` were chosen on training scenes.
Texture energy inside flat regions is the mean squared brightness gradient over the flattest half of the background and
of the objects: the borders of stripes and cells are borders between regions, which a cartoon makes firmer. The drop
over everything inside, borders of the pattern included, is printed and published beside it (`_whole`). Edge contrast
is the mean gradient along the objects' borders. Controls: SDEdit from 0.5, and the plain run blurred to Image-D's
drop. A strip of the first scenes goes to the help page.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo import probe, scenes
from ..samplers.core import VE, gaussian, guided
from ..samplers.disturbance import (
    MATCH_PICTURE,
    MATCH_ROLLBACK,
    Disturbance,
    disturbance_schedule,
    disturbed,
    stable_strength,
)
from ..samplers.ode import sample_euler
from ..samplers.sdedit import sdedit_sigmas
from ._demo import Demo, kept_pictures, some
from ._strips import cartoon_strip
from .harness import Bench, table

EDIT_CFG = 5.0
WAYS = "backd", "imaged"  # whose figures are published
FLAT = 0.5  # share of a region's pixels that counts as flat


def gradients(image: Tensor) -> Tensor:
    """Squared brightness gradient [B, H, W]."""
    grey = image.mean(1)
    return F.pad(grey.diff(dim=-1), (0, 1)) ** 2 + F.pad(grey.diff(dim=-2), (0, 0, 0, 1)) ** 2


def flattest(values: Tensor, where: Tensor, share: float) -> Tensor:
    """Mean over pictures of the lowest share of values [B, H, W] inside where (bool); pictures with few pixels are
    left out."""
    lowest = lambda v, w: v[w].sort().values[: int(share * int(w.sum()))].mean()
    return torch.stack([lowest(v, w) for v, w in zip(values, where) if int(w.sum()) >= 20]).mean()


def texture(image: Tensor, mask: Tensor, share: float = FLAT) -> Tensor:
    """Texture energy [2] of the background away from objects and of the objects' insides: of each one's flattest share
    of pixels (1: of everything inside, the pattern's own borders too)."""
    g = gradients(image)
    background = F.max_pool2d(mask[:, None], 17, 1, 8)[:, 0] < 0.01  # the shadow lies within 8 pixels
    inside = -F.max_pool2d(-mask[:, None], 9, 1, 4)[:, 0] > 0.99
    return torch.stack([flattest(g, background, share), flattest(g, inside, share)])


def edge_contrast(image: Tensor, mask: Tensor) -> float:
    """Mean brightness gradient along the objects' borders, 2 pixels to either side."""
    border = (F.max_pool2d(mask[:, None], 5, 1, 2) + F.max_pool2d(-mask[:, None], 5, 1, 2))[:, 0] > 0.5
    return float(gradients(image).sqrt()[border].mean())


def texture_drop(image: Tensor, plain: Tensor, mask: Tensor, share: float = FLAT) -> float:
    """1 - energy / the plain run's, mean of background and objects."""
    return float(1 - (texture(image, mask, share) / texture(plain, mask, share)).mean())


def blurred(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, int(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).reshape(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.mT, groups=3)


def blur_of_equal_drop(image: Tensor, mask: Tensor, drop: float) -> Tensor:
    """The image blurred until its texture has dropped by `drop` against itself (0 or less: hardly blurred)."""
    low, high = 0.05, 12.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if texture_drop(blurred(image, middle), image, mask) < drop else (low, middle)
    return blurred(image, high)


@dataclass(frozen=True)
class Look:
    """How one way is run: cfg, the share of the time that is redrawn, rollback (None: looks at the picture)."""

    cfg: float
    window: float
    rollback: float | None
    bounds: tuple[float, float]


LOOKS = {
    "backd": Look(10.0, 0.3, 0.3, MATCH_ROLLBACK),
    "imaged": Look(6.0, 0.3, None, MATCH_PICTURE),
    # for which of the two stays nearer to the source, which the settings must not decide
    "imaged, as backd": Look(10.0, 0.3, None, MATCH_PICTURE),
}


def plain_of(name: str) -> str:
    """The name of a look's ordinary run, which looks of the same cfg and window share."""
    same = (LOOKS[name].cfg, LOOKS[name].window)
    return "plain of " + next(n for n, look in LOOKS.items() if (look.cfg, look.window) == same)


def redrawn(demo: Demo, part: scenes.Scenes, z: Tensor, seed: int, name: str) -> dict[str, Tensor]:
    """The disturbed run, the plain one unless another look makes it, and, of a rollback, the unmatched one."""
    look = LOOKS[name]
    cond, uncond = demo.pair(part)
    start, low = demo.at(look.window), demo.at(0.001)
    base = torch.cat([sdedit_sigmas(demo.at, look.window, 100)[:-1], torch.tensor([low, 0.0]).double()]).float()
    sigmas = disturbance_schedule(base.unique().flip(0), look.cfg, start)
    x = VE.noised(z, sigmas[0], gaussian(z, seed)())
    time_of = lambda s: float((demo.sigmas - s).abs().argmin()) / 999
    older = None if look.rollback is None else lambda s: demo.at(time_of(s) + look.rollback)
    disturbance = Disturbance(VE, start, older=older, reference=z)
    faded = dict(zip(sigmas.tolist(), stable_strength(sigmas, look.cfg)))  # as the all-in-one does it
    strength = lambda s: faded[min(faded, key=lambda level: abs(level - s))]
    run = lambda denoise: demo.decode(sample_euler(denoise, x, sigmas))
    out = {name: run(disturbed(cond, uncond, look.cfg, disturbance, strength, look.bounds))}
    if plain_of(name) == f"plain of {name}":
        out[plain_of(name)] = run(guided(cond, uncond, look.cfg))
    if look.rollback is not None:
        out[f"{name}, unmatched"] = run(disturbed(cond, uncond, look.cfg, disturbance))
    return out


@torch.no_grad()
def cartoon(demo: Demo, part: scenes.Scenes, seed: int) -> dict[str, Tensor]:
    """Images [B, 3, 128, 128] of each way and its plain run, same noise."""
    z = demo.autoencoder.encode(scenes.draw(part)[0])
    out = {}
    for name in LOOKS:
        out |= redrawn(demo, part, z, seed, name)
    sde = sdedit_sigmas(demo.at, 0.5, 34).float()
    denoise = guided(*demo.pair(part), EDIT_CFG)
    out["sdedit"] = demo.decode(sample_euler(denoise, VE.noised(z, sde[0], gaussian(z, seed)()), sde))
    out["source"] = demo.decode(z)
    return out


def measure_cartoon(bench: Bench, demo: Demo) -> dict[str, float]:
    n = 4 if bench.quick else 48
    truth = some(n, 31, lambda s: s.texture > 0)
    make = lambda items: cartoon(demo, truth[torch.tensor(items)], 100 + items[0])
    key = "cartoon " + " ".join(f"{name} {look}" for name, look in LOOKS.items())
    made = kept_pictures(bench, f"cartoon {hashlib.sha256(key.encode()).hexdigest()[:8]}", n, make, 8)
    mask = scenes.draw(truth)[1][:, 0]
    plain = made["plain of imaged"]  # also what the controls are compared with
    made["blur"] = blur_of_equal_drop(plain, mask, texture_drop(made["imaged"], plain, mask))
    judge = probe.load("conv") if probe.PROBES.exists() else None
    out, lines = {}, []
    for name, image in made.items():
        look = name.removesuffix(", unmatched")
        own = made[plain_of(look)] if look in LOOKS else plain
        background, inside = (1 - texture(image, mask) / texture(own, mask)).tolist()
        out[name] = {
            "texture_drop": texture_drop(image, own, mask),
            "edge_change": edge_contrast(image, mask) / edge_contrast(own, mask) - 1,
            "whole": texture_drop(image, own, mask, 1.0),
            "read": objects_read(judge, image, truth),
            "rms": float((image - made["source"]).square().mean((1, 2, 3)).sqrt().mean()),
        }
        lines.append([name, background, inside, *("no probe" if v is None else v for v in out[name].values())])
    header = ("cartoon", "flat background", "flat objects", "flat drop", "edge change", "whole drop", "object read",
              "rms to source")
    print(table(header, lines))
    cartoon_strip(bench, made, {name: (row["texture_drop"], row["edge_change"]) for name, row in out.items()})
    figures = {f"cartoon_{what}_{way}": out[way][what] for what in ("texture_drop", "edge_change") for way in WAYS}
    figures |= {f"cartoon_texture_drop_{way}_whole": out[way]["whole"] for way in WAYS}
    figures |= {"cartoon_rms_backd": out["backd"]["rms"], "cartoon_rms_imaged": out["imaged, as backd"]["rms"]}
    for way in WAYS:
        figures[f"cartoon_read_{way}"] = out[way]["read"]
        figures[f"cartoon_read_plain_{way}"] = out[f"plain of {way}"]["read"]
    return figures


def objects_read(judge, image: Tensor, truth: scenes.Scenes) -> float | None:
    """Share of pictures whose object's colour and shape the probe reads right; None where there is no probe."""
    if judge is None:
        return None
    seen = probe.read(judge, image)
    right = (seen.at_place("colour") == truth.colour[:, 0]) & (seen.at_place("shape") == truth.shape[:, 0])
    return float(right.float().mean())
