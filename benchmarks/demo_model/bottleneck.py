"""Does the middle block of the second demo UNet matter, and can it be steered? Part of `make bench NAME=demo_model`.

    zero     |D with h = 0  -  D| / |D| on noised held-out scenes; h is the middle block's output
    steer    pictures are inverted (DDIM, no words) and come back by the asymmetric step of Asyrp (2210.10960),
             x' = D~ + (s'/s)(x - D), D~ from h + k dh, where dh is, per level, the mean of h over scenes with one
             attribute changed less its mean over the scenes themselves (Haas et al. 2303.11073). h is 4 x 4 places, and
             what changes where depends on the place of the object, so that each of the five has a direction, and a
             picture gets that of its own. What misses by these means on training scenes is tried by others, too, over
             training scenes with the same object: what moves an object must know which one.
             As in the paper h is shifted down to the level t_edit only; below it the plain step draws the details

The kind of mean, the strength k and the level t_edit are chosen on training scenes; the held-out ones judge, read by a
probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...demo import nets, probe, scenes
from ...demo.weights import BOTTLENECK, read_network
from ...samplers.core import VE, euler_step
from ...samplers.inversion.pivots import invert_ddim
from ..edits import value_of
from ..lab import Demo, of_split, some

STEPS, PAIRS, OF_OBJECT = 20, 64, 24  # pairs of a mean: of a place, of an object
BARS = (0.6, 0.7)  # of reached and kept
#: (strength k, the lowest sigma at which h is shifted)
SETTINGS = tuple((k, low) for low in (0.0, 1.0, 2.0, 3.0) for k in (0.35, 0.5, 0.7, 1.0, 2.0, 3.0))
#: those of means over one object, which are slow to make: at the levels from LOWEST only
LOWEST = 1.0
OF_OBJECT_SETTINGS = tuple((k, low) for low in (1.0, 1.5, 2.0, 3.0) for k in (0.7, 0.85, 1.0, 1.2, 1.5, 2.0))
#: attribute -> the value that pictures are steered to
TARGETS = {
    "background": scenes.BACKGROUNDS.index("blue"),
    "place": scenes.PLACES.index("left"),
    "colour": scenes.COLOURS.index("red"),
}


class Bottleneck(Demo):
    """The second UNet as a denoiser whose middle block can be read, shifted and silenced."""

    def __init__(self, path=BOTTLENECK):
        super().__init__(STEPS)
        self.net.unet = nets.UNet(**nets.BOTTLENECK)
        self.net.unet.load_state_dict(read_network(path))
        self.net.eval().requires_grad_(False)
        self.no_words, self._shift, self._factor, self.h = self.empty(1), None, 1.0, None
        self.net.unet.middle_block[-1].register_forward_hook(self._middle)

    def _middle(self, _module, _inputs, h: Tensor) -> Tensor:
        self.h = h
        h = h * self._factor
        return h if self._shift is None else h + self._shift

    def denoise(self, x: Tensor, sigma, shift: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """D [B, 4, 16, 16] at sigma with h -> factor h + shift."""
        self._shift, self._factor = shift, factor
        return super().denoise(x, sigma, self.no_words.expand(len(x), -1, -1))

    def zero_change(self, x0: Tensor, sigma: float) -> float:
        """Relative change of D when h is 0."""
        x = x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        plain, silent = self.denoise(x, sigma), self.denoise(x, sigma, factor=0.0)
        return float((silent - plain).norm() / plain.norm())

    def mean_shift(
        self, sources: scenes.Scenes, targets: scenes.Scenes, groups: Tensor, lowest: float = 0.0
    ) -> list[Tensor]:
        """dh [G, C, 4, 4] of every step: the mean over each group's pairs, both noised alike. groups [B] in 0..G-1; of
        one that has no pair, and below the level `lowest`, it is 0."""
        generator = torch.Generator().manual_seed(2)
        pairs = [self.encode(scenes.draw(s)[0]) for s in (sources, targets)]
        found = []
        for sigma in self.sigmas[:-1]:
            if sigma < lowest:
                found.append(torch.zeros_like(found[0]))
                continue
            noise = torch.randn(pairs[0].shape, generator=generator)
            read = []
            for x0 in pairs:
                self.denoise(x0 + sigma * noise, sigma)
                read.append(self.h)
            change = read[1] - read[0]
            means = [change[groups == g].mean(0).nan_to_num(0.0) for g in range(int(groups.max()) + 1)]
            found.append(torch.stack(means))
        return found

    def edit(self, x: Tensor, shifts: Sequence[Tensor], strength: float, low: float = 0.0) -> Tensor:
        """Pictures [B, 3, 128, 128] from x at the noise end, by the asymmetric step while sigma >= low.

        shifts: of every step, [B, C, 4, 4]."""
        for i, (sigma, lower) in enumerate(zip(self.sigmas, self.sigmas[1:])):
            plain = self.denoise(x, sigma)
            shifted = strength and float(sigma) >= low
            steered = self.denoise(x, sigma, strength * shifts[i]) if shifted else plain
            x = euler_step(x, plain, sigma, lower) + steered - plain
        return self.decode(x)


def with_object(truth: scenes.Scenes, n: int, seed: int) -> scenes.Scenes:
    """n training scenes for each scene, in its order: its object, where it stands, in other surroundings."""
    draws, found = torch.Generator().manual_seed(seed), []
    for i in range(len(truth)):
        own = {name: int(getattr(truth, name)[i, 0]) for name in ("shape", "colour", "size", "place")}
        drawn = of_split(8 * n, "train", lambda _: scenes.sample(8 * n, draws, "any", 0.0), **own)
        drawn = drawn[drawn.background != own["colour"]]
        if len(drawn) < n:
            raise ValueError(f"Only {len(drawn)} of {n} training scenes have this object: draw more.")
        found.append(drawn[:n])
    return scenes.cat(found)


def random_like(shifts: Sequence[Tensor]) -> list[Tensor]:
    """Random directions, at each level of the shifts' norm."""
    generator = torch.Generator().manual_seed(35)
    noise = [torch.randn(s.shape, generator=generator) for s in shifts]
    return [r * s.norm() / r.norm() for r, s in zip(noise, shifts)]


class Means:
    """Mean shifts of an attribute for scenes: (shifts, random ones), each of every step [B, C, 4, 4]."""

    def __init__(self, model: Bottleneck, attribute: str):
        self.model, self.attribute, self.target = model, attribute, TARGETS[attribute]

    def _of(self, sources, groups, lowest=0.0):
        return self.model.mean_shift(sources, sources.changed(self.attribute, self.target), groups, lowest)

    @cached_property
    def _places(self):
        sources = one_object(PAIRS * len(scenes.PLACES), "train", 32, self.attribute, self.target)
        found = self._of(sources, sources.place[:, 0])
        return found, random_like(found)

    def by_place(self, truth: scenes.Scenes):
        """Each picture's is that of its object's place."""
        return tuple([level[truth.place[:, 0]] for level in levels] for levels in self._places)

    def by_object(self, truth: scenes.Scenes):
        """Each picture's is over training scenes with its own object."""
        parts = []
        for first in range(0, len(truth), 4):
            part = truth[torch.arange(first, min(first + 4, len(truth)))]
            groups = torch.arange(len(part)).repeat_interleave(OF_OBJECT)
            parts.append(self._of(with_object(part, OF_OBJECT, 500 + first), groups, LOWEST))
        found = [torch.cat(level) for level in zip(*parts)]
        return found, random_like(found)


def one_object(n: int, split: str, seed: int, attribute: str, target: int) -> scenes.Scenes:
    """n scenes of the split whose attribute is not the target yet."""
    found = some(4 * n, seed, split=split)
    return found[value_of(found, attribute) != target][:n]


def read_off(judge, images: Tensor, truth: scenes.Scenes, attribute: str, target: int) -> tuple[float, float]:
    """(share that reads as the target, mean share of the other four attributes that still read as they were)."""
    wanted, names = truth.changed(attribute, target), ("background", "texture", "place", "colour", "shape")
    right = {k: float(v.float().mean()) for k, v in probe.right(probe.read(judge, images), wanted, names).items()}
    reached = right.pop(attribute)
    return reached, sum(right.values()) / len(right)


def share_of_bars(found: tuple[float, float], bars: tuple[float, float] = BARS) -> float:
    """The lower of reached and kept as a share of its bar: both pass from 1."""
    return min(value / bar for value, bar in zip(found, bars))


@torch.no_grad()
def measure_bottleneck(bench, n: int) -> tuple[dict[str, float], list[list]]:
    """The figures, and lines for the table."""
    model = Bottleneck()
    held = model.encode(scenes.draw(some(n, 31))[0])
    figures = {f"h_zero_change_sigma{s}": model.zero_change(held, float(s)) for s in (1, 5)}
    lines = []

    def walked(attribute, split, seed, count):
        target = TARGETS[attribute]
        truth = one_object(count, split, seed, attribute, target)
        z = model.encode(scenes.draw(truth)[0])
        return truth, invert_ddim(model.denoise, z, model.sigmas, process=VE).trajectory[0]

    for attribute, target in TARGETS.items():

        def compute(attribute=attribute, target=target):
            def judged(truth, x, shifts, k, low):
                return read_off(model.judge, model.edit(x, shifts, k, low), truth, attribute, target)

            means, tried = Means(model, attribute), []
            truth, x = walked(attribute, "train", 33, (n + 1) // 2)
            for kind, settings in (("by_place", SETTINGS), ("by_object", OF_OBJECT_SETTINGS)):
                shifts, _ = getattr(means, kind)(truth)
                tried += [(share_of_bars(judged(truth, x, shifts, *setting)), kind, setting) for setting in settings]
                if max(one[0] for one in tried) >= 1:
                    break
            _, kind, setting = max(tried, key=lambda one: one[0])
            truth, x = walked(attribute, "held_out", 36, n)
            shifts, control = getattr(means, kind)(truth)
            ways = {
                "steered": (shifts, *setting),
                "random shift": (control, *setting),
                "reconstruction": (shifts, 0, 0),
            }
            return kind, setting, {name: judged(truth, x, *way) for name, way in ways.items()}

        kind, (chosen, lowest), found = bench.once(f"bottleneck {attribute} {n}", compute)
        figures[f"h_steer_{attribute}"], figures[f"h_kept_{attribute}"] = found["steered"]
        lines += [
            [
                f"h: {attribute}, {name} ({kind}, k {chosen:g}, sigma >= {lowest:g}): reached",
                reached,
                f"kept {kept:.2f}",
            ]
            for name, (reached, kept) in found.items()
        ]
    return figures, lines
