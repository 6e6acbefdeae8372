"""Asyrp on the second demo UNet: does a direction in h edit inverted held-out pictures? Part of `make bench
NAME=latent_directions`.

The directions are mean differences over training pairs (`_bottleneck.py`'s); the strength and t_edit are chosen on
training scenes; two probes judge held-out ones. Beside it: the symmetric process, a random direction of the same norm,
and no shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...demo import probe, scenes
from ...samplers.core import VE
from ...samplers.inversion.pivots import invert_ddim
from ...samplers.tuning.h_direction import Direction, together
from ...samplers.tuning.h_space import sample_asyrp
from ...samplers.window import SigmaWindow
from ..demo_model.bottleneck import TARGETS, Bottleneck, groups_of, one_object, read_off
from ..harness import Bench, ratio

STRENGTHS, T_EDIT = (0.3, 0.6, 1.0, 1.5), (0.5, 0.0)
STRIP = (0.0, 0.5, 1.0, 1.5)
JUDGES = ("conv", "query")


class Edits:
    """Pictures of one split of an attribute, inverted, and their way back along a direction."""

    def __init__(self, model: Bottleneck, attribute: str, n: int, split: str, seed: int):
        self.model, self.attribute, self.target = model, attribute, TARGETS[attribute]
        self.scenes = one_object(n, split, seed, attribute, self.target)
        self.start = invert_ddim(
            model.denoise, model.encode(scenes.draw(self.scenes)[0]), model.sigmas, process=VE
        ).trajectory[0]

    def images(
        self, directions: list[Direction], strength: float, t_edit: float = 0.0, symmetric: bool = False
    ) -> Tensor:
        """[B, 3, 128, 128]. directions: one for each group of pictures; t_edit: a share of the time."""
        window = SigmaWindow(float("inf"), float(self.model.table[int(999 * t_edit)]) if t_edit else 0.0)
        groups, out = groups_of(self.scenes, self.attribute), torch.zeros(len(self.scenes), 3, 128, 128)
        for g in groups.unique().tolist():
            own = groups == g

            def pair(x, sigma, change):
                plain = self.model.denoise(x, sigma)
                if change is None:
                    return plain, plain
                return plain, self.model.denoise(x, sigma, change(self.model.h))

            changes = together([(directions[g], strength)], len(self.model.sigmas) - 1)
            x = sample_asyrp(
                pair, self.start[own], self.model.sigmas, changes=changes, window=window, symmetric=symmetric
            )
            out[own] = self.model.autoencoder.decode(x).clamp(0, 1)
        return out

    def judged(self, judge, images: Tensor) -> tuple[float, float]:
        return read_off(judge, images, self.scenes, self.attribute, self.target)


def directions_of(model: Bottleneck, attribute: str, pairs: int) -> tuple[list[Direction], list[Direction]]:
    """(mean differences, random ones of the same norm at each level), one for each group."""
    target = TARGETS[attribute]
    sources = one_object(pairs * (5 if attribute == "colour" else 1), "train", 32, attribute, target)
    shifts = model.mean_shift(sources, sources.changed(attribute, target), groups_of(sources, attribute))
    found, generator = torch.stack(shifts, 1), torch.Generator().manual_seed(35)  # [G, N, C, 4, 4]
    noise = torch.randn(found.shape, generator=generator)
    size = (found.flatten(2).norm(dim=2) / noise.flatten(2).norm(dim=2))[..., None, None, None]
    return tuple([Direction(model.sigmas, d) for d in each] for each in (found, noise * size))


@torch.no_grad()
def measure(bench: Bench, path) -> tuple[dict[str, float], list[list]]:
    """The figures, and lines for the table."""
    model, n, pairs = Bottleneck(path), 6 if bench.quick else 64, 8 if bench.quick else 64
    judges = {name: probe.load(name) for name in JUDGES}
    figures, lines = {}, []
    for attribute in ["background"] if bench.quick else TARGETS:

        def compute(attribute=attribute):
            steered, control = directions_of(model, attribute, pairs)
            some = Edits(model, attribute, n, "train", 33)
            tried = {(k, t): some.judged(judges["conv"], some.images(steered, k, t)) for k in STRENGTHS for t in T_EDIT}
            strength, t_edit = max(tried, key=lambda way: min(tried[way][0] / 0.7, tried[way][1] / 0.75))
            held = Edits(model, attribute, n, "held_out", 34)
            ways = {
                "asymmetric": held.images(steered, strength, t_edit),
                "symmetric": held.images(steered, strength, t_edit, symmetric=True),
                "random direction": held.images(control, strength, t_edit),
                "no shift": held.images(steered, 0.0),
            }
            strip = [held.judged(judges["query"], held.images(steered, k * strength, t_edit))[0] for k in STRIP]
            return {
                "strength": strength,
                "t_edit": t_edit,
                "strip": strip,
                "ways": {
                    way: {j: held.judged(net, images) for j, net in judges.items()} for way, images in ways.items()
                },
            }

        found = bench.once(f"asyrp {attribute} {n}", compute)
        ways, strip = found["ways"], found["strip"]
        for way, seen in ways.items():
            lines += [
                [f"Asyrp {attribute}, {way}, k {found['strength']:g}, t_edit {found['t_edit']:g}", judge, reached, kept]
                for judge, (reached, kept) in seen.items()
            ]
        reached, kept = ways["asymmetric"]["query"]
        figures |= {
            f"asyrp_target_{attribute}": reached,
            f"asyrp_rest_kept_{attribute}": kept,
            f"asyrp_symmetric_{attribute}": ways["symmetric"]["query"][0],
            f"asyrp_random_{attribute}": ways["random direction"]["query"][0],
            f"asyrp_monotone_{attribute}": float(all(a <= b for a, b in zip(strip, strip[1:]))),
        }
    figures["asyrp_time"] = bench.once("asyrp time", lambda: step_time(model))
    return figures, lines


@torch.no_grad()
def step_time(model: Bottleneck) -> float:
    """A step of two rows in one call, over two calls of one row."""
    x, sigma = torch.randn(1, 4, 16, 16), model.sigmas[3]
    model.denoise(x, sigma)
    shift = torch.zeros_like(model.h)
    both = torch.cat([shift, shift])
    return ratio(
        lambda: model.denoise(torch.cat([x, x]), sigma, both),
        lambda: (model.denoise(x, sigma), model.denoise(x, sigma, shift)),
        15,
    )
