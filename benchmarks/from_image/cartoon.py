"""What null-text disturbance does to textured scenes, beside its controls (docs/benchmarks.md has the figures).

Held-out scenes with a texture are redrawn from 0.3 of the time, same noise, in the ways of LOOKS; beside them, with one
noise seed, those of BESIDE, SDEdit from 0.5, and the ordinary run blurred until it has lost as much texture as
imaged_paper. The strength of every disturbance fades alike where a step is too long for cfg, as in the node.

Flat texture is the mean squared brightness gradient over the flattest half of the background and of the objects. What
is lost counts against the ordinary run of the same cfg and noise; a figure is the median over the scenes, then over
SEEDS noise seeds, its spread the largest median minus the smallest; the same for the mean gradient along the objects'
borders (`edges`). Medians, because a few scenes with hardly any texture outweigh all others in a mean.
"""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo import probe, scenes
from ...samplers.core import VE, gaussian, guided
from ...samplers.ode import sample_euler
from ...samplers.picture.disturbance import MATCH_PICTURE, MATCH_ROLLBACK, Disturbance, disturbed
from ...samplers.picture.disturbance_schedules import disturbance_schedule, stable_strength
from ...samplers.picture.sdedit import sdedit_sigmas
from ..harness import Bench, kept_pictures, table
from ..lab import Demo, some
from .strips import cartoon_strip

EDIT_CFG = 5.0
SEEDS = 3
WAYS = "imaged_paper", "backd_paper", "bound_alone", "imaged_match", "backd_match"  # whose figures are published
FLAT = 0.5  # share of a region's pixels that counts as flat


def gradients(image: Tensor) -> Tensor:
    """Squared brightness gradient [B, H, W]."""
    grey = image.mean(1)
    return F.pad(grey.diff(dim=-1), (0, 1)) ** 2 + F.pad(grey.diff(dim=-2), (0, 0, 0, 1)) ** 2


def flattest(values: Tensor, where: Tensor, share: float) -> Tensor:
    """Mean [B] of the lowest share of each picture's values [B, H, W] inside where (bool); nan for few pixels."""
    lowest = lambda v, w: v[w].sort().values[: int(share * int(w.sum()))].mean()
    return torch.stack([lowest(v, w) if int(w.sum()) >= 20 else v.new_tensor(torch.nan) for v, w in zip(values, where)])


def textures(image: Tensor, mask: Tensor, share: float = FLAT) -> Tensor:
    """Texture energy [B, 2] of each picture's background away from objects and of its objects' insides: of each one's
    flattest share of pixels (1: of everything inside, the pattern's own borders too)."""
    g = gradients(image)
    background = F.max_pool2d(mask[:, None], 17, 1, 8)[:, 0] < 0.01  # the shadow lies within 8 pixels
    inside = -F.max_pool2d(-mask[:, None], 9, 1, 4)[:, 0] > 0.99
    return torch.stack([flattest(g, background, share), flattest(g, inside, share)], 1)


def edges(image: Tensor, mask: Tensor) -> Tensor:
    """Mean brightness gradient [B] along each picture's object borders, 2 pixels to either side."""
    border = (F.max_pool2d(mask[:, None], 5, 1, 2) + F.max_pool2d(-mask[:, None], 5, 1, 2))[:, 0] > 0.5
    return torch.stack([g[where].mean() for g, where in zip(gradients(image).sqrt(), border)])


def drops(image: Tensor, plain: Tensor, mask: Tensor, share: float = FLAT) -> Tensor:
    """1 - energy / the plain run's of each scene [B], mean of background and objects."""
    return 1 - (textures(image, mask, share) / textures(plain, mask, share)).nanmean(1)


def median(values: Tensor) -> float:
    """Over the scenes [B] that can be measured."""
    return float(values.nanmedian())


def blurred(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, int(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).reshape(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.mT, groups=3)


def blur_of_equal_drop(image: Tensor, mask: Tensor, drop: float) -> Tensor:
    """The images blurred until their flat texture's median drop against themselves is `drop` (0 or less: hardly)."""
    low, high = 0.05, 12.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if median(drops(blurred(image, middle), image, mask)) < drop else (low, middle)
    return blurred(image, high)


@dataclass(frozen=True)
class Look:
    """How one way is run: cfg, where the null branch looks (a rollback, the source picture or x itself), and the bound
    on its noise (None: the paper's formula)."""

    cfg: float
    looks: float | str
    bounds: tuple[float, float] | None


PICTURE, ITSELF = "picture", "itself"
WINDOW, ROLLBACK = 0.3, 0.3  # shares of the time: what is redrawn, and how far back Back-D looks
LOOKS = {
    "imaged_paper": Look(6.0, PICTURE, None),
    "backd_paper": Look(10.0, ROLLBACK, None),
    "bound_alone": Look(10.0, ITSELF, MATCH_ROLLBACK),
    "imaged_match": Look(6.0, PICTURE, MATCH_PICTURE),
    "backd_match": Look(10.0, ROLLBACK, MATCH_ROLLBACK),
}
BESIDE = {  # with the first noise seed only
    "bound alone, cfg 6": Look(6.0, ITSELF, MATCH_PICTURE),
    "imaged_paper, cfg 10": Look(10.0, PICTURE, None),
    # for which of the two stays nearer to the source, which the settings must not decide
    "imaged_match, cfg 10": Look(10.0, PICTURE, MATCH_PICTURE),
}


def plain_of(name: str) -> str:
    """The name of the ordinary run that a way is compared with: that of its cfg, for the controls that of cfg 6."""
    looks = LOOKS | BESIDE
    return f"plain, cfg {looks[name].cfg if name in looks else 6:g}"


def redrawn(
    demo: Demo, part: scenes.Scenes, z: Tensor, seed: int, cfg: float, looks: dict[str, Look]
) -> dict[str, Tensor]:
    """Those of the looks that have this cfg and their ordinary run, all from the same noise."""
    cond, uncond = demo.pair(part)
    start, low = demo.at(WINDOW), demo.at(0.001)
    base = torch.cat([sdedit_sigmas(demo.at, WINDOW, 100)[:-1], torch.tensor([low, 0.0]).double()]).float()
    sigmas = disturbance_schedule(base.unique().flip(0), cfg, start)
    x = VE.noised(z, sigmas[0], gaussian(z, seed)())
    time_of = lambda s: float((demo.table - s).abs().argmin()) / 999
    older = lambda s: demo.at(time_of(s) + ROLLBACK)
    faded = dict(zip(sigmas.tolist(), stable_strength(sigmas, cfg)))  # as the node does it
    strength = lambda s: faded[min(faded, key=lambda level: abs(level - s))]
    run = lambda denoise: demo.decode(sample_euler(denoise, x, sigmas))
    out = {f"plain, cfg {cfg:g}": run(guided(cond, uncond, cfg))}
    for name, look in looks.items():
        if look.cfg == cfg:
            itself = look.looks == ITSELF
            disturbance = Disturbance(
                VE, start, older=older if look.looks == ROLLBACK else None, reference=z, itself=itself
            )
            amount = (lambda s: 1.0) if itself else strength  # nothing fades where nothing is disturbed
            out[name] = run(disturbed(cond, uncond, cfg, disturbance, amount, look.bounds))
    return out


@torch.no_grad()
def cartoon(demo: Demo, part: scenes.Scenes, seed: int, beside: bool) -> dict[str, Tensor]:
    """Images [B, 3, 128, 128] of each way and its ordinary run, same noise; beside: and of what stands beside them."""
    z = demo.encode(scenes.draw(part)[0])
    looks = LOOKS | BESIDE if beside else LOOKS
    out = redrawn(demo, part, z, seed, 6.0, looks) | redrawn(demo, part, z, seed, 10.0, looks)
    if not beside:
        return out
    sde = sdedit_sigmas(demo.at, 0.5, 34).float()
    denoise = guided(*demo.pair(part), EDIT_CFG)
    out["sdedit"] = demo.decode(sample_euler(denoise, VE.noised(z, sde[0], gaussian(z, seed)()), sde))
    out["source"] = demo.decode(z)
    return out


def read_off(
    judge, made: dict[str, Tensor], source: Tensor, truth: scenes.Scenes, mask: Tensor
) -> dict[str, dict[str, float]]:
    """What one noise seed's pictures tell, by way: medians over the scenes, and the share of objects read right."""
    out = {}
    for name, image in made.items():
        own = made[plain_of(name)]
        out[name] = {
            "flat": median(drops(image, own, mask)),
            "whole": median(drops(image, own, mask, 1.0)),
            "edges": median(edges(image, mask) / edges(own, mask) - 1),
            "read": objects_read(judge, image, truth),
            "rms": float((image - source).square().mean((1, 2, 3)).sqrt().mean()),
        }
    return out


def middle(runs: list[dict], name: str, what: str) -> tuple[float | None, float | None]:
    """Median over the seeds that a way was run with, and the largest minus the smallest."""
    values = [run[name][what] for run in runs if name in run]
    if None in values:
        return None, None
    return statistics.median(values), max(values) - min(values)


def measure_cartoon(bench: Bench, demo: Demo) -> dict[str, float]:
    n = 4 if bench.quick else 32
    truth = some(n, 31, lambda s: s.texture > 0)
    mask = scenes.draw(truth)[1][:, 0]
    judge = probe.load("conv") if probe.PROBES.exists() else None
    key = hashlib.sha256(repr([LOOKS, BESIDE]).encode()).hexdigest()[:8]
    runs, shown = [], None
    for seed in range(SEEDS):
        noise = 1000 * seed + 100
        make = lambda items, noise=noise: cartoon(demo, truth[torch.tensor(items)], noise + items[0], noise == 100)
        made = kept_pictures(bench, f"cartoon {key} seed {seed}", n, make, 8)
        if shown is None:
            shown, plain = made, made["plain, cfg 6"]
            made["blur"] = blur_of_equal_drop(plain, mask, median(drops(made["imaged_paper"], plain, mask)))
        runs.append(read_off(judge, made, shown["source"], truth, mask))
    lines = []
    for name in runs[0]:
        once = name not in runs[-1]
        cells = [
            v
            for what in ("flat", "edges")
            for v in (middle(runs, name, what)[0], "one seed" if once else middle(runs, name, what)[1])
        ]
        rest = [middle(runs, name, what)[0] for what in ("whole", "read", "rms")]
        lines.append([name, *cells, *("no probe" if v is None else v for v in rest)])
    print(table(("cartoon", "flat lost", "spread", "edges", "spread", "whole lost", "object read", "rms"), lines))
    told = {name: tuple(middle(runs, name, what)[0] for what in ("flat", "edges")) for name in shown}
    cartoon_strip(bench, shown, told)
    figures = {}
    for way in WAYS:
        for what, name in (("flat", "cartoon_flat_median"), ("edges", "cartoon_edges")):
            figures[f"{name}_{way}"], figures[f"{name}_{way}_spread"] = middle(runs, way, what)
        figures[f"cartoon_read_{way}"] = middle(runs, way, "read")[0]
    for cfg in (6, 10):
        figures[f"cartoon_read_plain_cfg{cfg}"] = middle(runs, f"plain, cfg {cfg}", "read")[0]
    figures["cartoon_rms_backd"] = runs[0]["backd_match"]["rms"]
    figures["cartoon_rms_imaged"] = runs[0]["imaged_match, cfg 10"]["rms"]
    return figures


def objects_read(judge, image: Tensor, truth: scenes.Scenes) -> float | None:
    """Share of pictures whose object's colour and shape the probe reads right; None where there is no probe."""
    if judge is None:
        return None
    colour, shape = probe.right(probe.read(judge, image), truth, ("colour", "shape")).values()
    return float((colour & shape).float().mean())
