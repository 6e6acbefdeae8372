"""Cross-attention maps: what a word looks at, as a heat map, a mask, and Prompt-to-Prompt's local blend (2208.01626,
section 4).

A map is the mean over heads and layers of M[:, j], summed over a word's tokens, on the layer's pixel grid.
LocalBlend adds them up over the steps so far, takes a 3x3 maximum, brings them to the latent's size, divides by the
largest value and cuts at a threshold; source and target masks are united, the words to leave out are taken away (no
maximum there), and

    x_tgt <- x_src + mask (x_tgt - x_src)        from step int(0.2 N) on,

which is linear and so the same in every noise family's coordinates.

Departure: the authors fix the five 16x16 layers of SD1 at 512 pixels (a quarter of the latent), down and up. Here the
grid is the network's coarsest with at least a quarter of the latent's side and at least 16 tokens, or else its finest,
and of its layers the up blocks', whose maps are the sharper ones; "up, down" are the authors'. A transformer has one
grid and no up blocks: all its layers are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from .indices import constant
from .layers import ALWAYS, Controller, Layer, Moment, Needs, StepWindow, Window

PLACES = {"down": "input", "mid": "middle", "up": "output"}
#: blocks of a transformer, which have no sides: every layer sees the picture on one grid
JOINT = ("double", "single")


def map_scale(latent: tuple[int, int], scales: Sequence[int]) -> int:
    """The factor of the grid that maps are read from by default: see the head of the file."""
    side = max(latent)
    fitting = [s for s in scales if ceil(side / s) >= max(16, side / 4)]
    return max(fitting) if fitting else min(scales)


class LayerChoice:
    """Which cross-attention layers maps come from: "auto" ("up", in a transformer "all"), "up", "down", "mid" (on the
    default grid; "mid" has its own), "all", "output.3" (all of a block) or "output.3.1" (one of its depth), "double.3",
    "single.3"; several of them together."""

    def __init__(self, *names: str):
        self.names = list(map(str.lower, names or ("auto",)))
        for name in self.names:
            block, *numbers = name.split(".")
            known = block in (*PLACES.values(), *JOINT)
            named = known and 1 <= len(numbers) <= 2 and all(n.isdigit() for n in numbers)
            if not named and name not in ("auto", "all", *PLACES):
                raise ValueError(
                    f'"{name}" names no layers: use auto, all, up, mid, down, or blocks such as "output.3".'
                )

    def names_block(self, block: str, number: int, depth: int) -> bool:
        """Whether a transformer's block is among them."""
        return any(name in ("auto", "all") or _named(name, block, number, depth) for name in self.names)

    def __contains__(self, layer: Layer) -> bool:
        scale = map_scale(layer.latent, layer.scales)
        on_grid = layer.grid == tuple(ceil(n / scale) for n in layer.latent)
        for name in self.names:
            if name == "auto":
                name = "all" if layer.block in JOINT else "up"
            if name in ("all", "mid"):
                fits = name == "all" or layer.block == "middle"
            elif name in PLACES:
                fits = on_grid and layer.block == PLACES[name]
            else:
                fits = _named(name, layer.block, layer.number, layer.depth)
            if fits and layer.cross:
                return True
        return False


def _named(name: str, block: str, number: int, depth: int) -> bool:
    """Whether "output.3" or "output.3.1" names a block."""
    of, *numbers = name.split(".")
    return of == block and [number, depth][: len(numbers)] == [int(n) for n in numbers]


class MapSum:
    """A running mean of maps per (image, sigma, grid), and over the steps: words x grid floats each, nothing more.

    One step's are added up where the network runs; they come to the CPU, which waits for a GPU, when the next step
    begins or when maps are asked for."""

    def __init__(self):
        self.sums: dict[tuple[int, float, tuple[int, int]], Tensor] = {}
        self.counts: dict[tuple[int, float, tuple[int, int]], float] = {}
        self._totals: dict[tuple[int, tuple[int, int]], Tensor] = {}  # over sigma
        self._here: dict[tuple[int, float, tuple[int, int]], Tensor] = {}  # what the step at hand adds

    def add(self, image: int, layer: Layer, pixels: slice, values: Tensor) -> None:
        """values [words, some pixels], mean over heads."""
        key = (image, layer.moment.sigma, layer.grid)
        if key not in self._here:
            if any(sigma != layer.moment.sigma for _, sigma, _ in self._here):
                self._fetch()
            with torch.inference_mode(False):  # the next call may be guidance's, outside inference mode
                self._here[key] = torch.zeros(values.shape[0], layer.tokens, device=values.device)
        self._here[key][:, pixels] += values.detach().float()
        self.counts[key] = self.counts.get(key, 0.0) + (pixels.stop - pixels.start) / layer.tokens

    def _fetch(self) -> None:
        with torch.inference_mode(False):
            for (image, sigma, grid), new in self._here.items():
                new = new.cpu()
                for kept, key in ((self.sums, (image, sigma, grid)), (self._totals, (image, grid))):
                    kept[key] = kept[key] + new if key in kept else new
        self._here.clear()

    def clear(self) -> None:
        for kept in (self._here, self.sums, self._totals, self.counts):
            kept.clear()

    def images(self) -> list[int]:
        return sorted({key[0] for key in self.counts})

    def sigmas(self, image: int = 0) -> list[float]:
        """Levels that were seen, noisiest first."""
        return sorted({key[1] for key in self.counts if key[0] == image}, reverse=True)

    def maps(self, image: int = 0, sigma: float | None = None) -> Tensor:
        """[words, h, w] on the finest grid seen, mean over layers and, without `sigma`, over the steps."""
        keys = [key for key in self.counts if key[0] == image and sigma in (None, key[1])]
        if not keys:
            raise ValueError(
                "No attention map was recorded: no step of the run fell into the window and layers chosen."
            )
        self._fetch()
        grids = dict.fromkeys(grid for _, _, grid in keys)
        size = max(grids, key=lambda grid: grid[0] * grid[1])
        total, weight = 0, sum(self.counts[key] for key in keys)
        for grid in grids:
            part = self._totals[image, grid] if sigma is None else self.sums[image, sigma, grid]
            total = total + F.interpolate(part.view(1, -1, *grid), size=size, mode="bilinear", align_corners=False)[0]
        return total / weight


def _word_maps(probabilities: Tensor, columns: Sequence[Sequence[int]]) -> Tensor:
    """[heads, pixels, tokens] -> [words, pixels]: mean over heads, sum over each word's columns."""
    mean = probabilities.mean(0)
    none = mean.new_zeros(mean.shape[0])
    return torch.stack([mean[:, constant(c, mean.device)].sum(-1) if c else none for c in columns])


class MapRecorder(Controller):
    """Keeps the maps of chosen words: `columns[p]` lists, per word, its columns in prompt p."""

    def __init__(
        self, columns: Sequence[Sequence[Sequence[int]]], layers: LayerChoice | None = None, window: Window = ALWAYS
    ):
        self.columns, self.layers, self.window = columns, layers or LayerChoice(), window
        self.maps = MapSum()
        #: runs of one job that filled the maps since they were last shown
        self.runs, self.job, self._filled, self._shown = 0, None, False, False

    def begin(self, job: str | None = None, climbs: bool = False) -> None:
        """A run of that job begins, and its maps take the place of those of the run before. climbs: it is the next step
        of a rising run, as an inversion's, and counts with it."""
        self.maps.clear()
        if self._shown or job != self.job:
            self.runs = 0
        self._filled = climbs and self._filled and self.runs > 0
        self.job, self._shown = job, False

    def shown(self) -> int:
        """Note that somebody looks at the maps; how many runs filled them since somebody did before."""
        self._shown = True
        return self.runs

    def needs(self, layer):
        return Needs.PROBABILITIES if layer in self.layers and layer.moment in self.window else Needs.NOTHING

    def watch(self, target, source, rows, layer, pixels):
        self.runs += not self._filled
        self._filled = True
        for i, (prompt, image) in enumerate(zip(rows.prompt, rows.image, strict=True)):
            self.maps.add(image, layer, pixels, _word_maps(target[i], self.columns[prompt]))


class LocalBlend(Controller):
    """Keeps the source outside the regions its words look at.

    `source_columns[p]`, `target_columns[p]`: columns of the blend words in the source and in edited prompt p (none
    in either: all may change but the words to leave out); `without`: the same pair of lists for words whose region
    stays the source's. `threshold` as a fraction of the largest value."""

    def __init__(
        self,
        source_columns: Sequence[Sequence[int]],
        target_columns: Sequence[Sequence[int]],
        without: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None = None,
        threshold: float = 0.3,
        without_threshold: float = 0.3,
        start: float = 0.2,
        layers: LayerChoice | None = None,
    ):
        without = without or ([[]] * len(source_columns), [[]] * len(target_columns))
        self.source_columns = [[a, b] for a, b in zip(source_columns, without[0], strict=True)]
        self.target_columns = [[a, b] for a, b in zip(target_columns, without[1], strict=True)]
        self.threshold, self.without_threshold, self.start = threshold, without_threshold, start
        self.layers = layers or LayerChoice()
        self.source, self.target = MapSum(), MapSum()

    def needs(self, layer):
        return Needs.PROBABILITIES if layer in self.layers else Needs.NOTHING

    def reset(self) -> None:
        self.source.clear()
        self.target.clear()

    def watch(self, target, source, rows, layer, pixels):
        for i, (prompt, image) in enumerate(zip(rows.prompt, rows.image, strict=True)):
            self.target.add(_pair(prompt, image), layer, pixels, _word_maps(target[i], self.target_columns[prompt]))
            self.source.add(_pair(prompt, image), layer, pixels, _word_maps(source[i], self.source_columns[prompt]))

    def mask(self, prompt: int, image: int, size: tuple[int, int]) -> Tensor:
        """[h, w] of 0 and 1 at the latent's size; 1: change here."""
        pair = _pair(prompt, image)
        masks = [
            self._masks(maps.maps(pair), size, columns[prompt])
            for maps, columns in ((self.source, self.source_columns), (self.target, self.target_columns))
        ]
        keep = masks[0][1] | masks[1][1]
        blend = masks[0][0] | masks[1][0]
        if not self.source_columns[prompt][0] and not self.target_columns[prompt][0]:
            blend = torch.ones_like(keep)  # only words to leave out: everything else may change
        return (blend & ~keep).float()

    def _masks(self, maps: Tensor, size: tuple[int, int], columns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        blend, without = (m.view(1, 1, *m.shape) for m in maps)
        return (
            binary(F.max_pool2d(blend, 3, 1, 1), size, self.threshold) & bool(columns[0]),
            binary(without, size, self.without_threshold) & bool(columns[1]),
        )

    def starts(self, moment: Moment) -> bool:
        return moment in StepWindow(self.start, 2.0, points=0)

    def between_steps(self, x, x_source, moment, prompt, image):
        ready = self.starts(moment) and self.target.counts
        return self.inside(x, x_source, prompt, image) if ready else x

    def inside(self, x: Tensor, x_source: Tensor, prompt: Sequence[int], image: Sequence[int]) -> Tensor:
        """x where each row's mask is 1, elsewhere the source."""
        masks = [self.mask(p, b, tuple(x.shape[-2:])) for p, b in zip(prompt, image, strict=True)]
        mask = torch.stack(masks).to(x).reshape(len(masks), *(1,) * (x.ndim - 3), *x.shape[-2:])
        return torch.where(mask > 0, x, x_source)  # to the bit, where x_src + mask (x_tgt - x_src) would round


class MaskBlend(LocalBlend):
    """The local blend inside masks known beforehand: `masks` [B or 1, h, w] of 0 and 1, on the latent's grid."""

    def __init__(self, masks: Tensor, start: float = 0.0):
        super().__init__([], [], start=start)
        self.masks = masks

    def needs(self, layer):
        return Needs.NOTHING

    def mask(self, prompt, image, size):
        return self.masks[image % len(self.masks)]

    def between_steps(self, x, x_source, moment, prompt, image):
        return self.inside(x, x_source, prompt, image) if self.starts(moment) else x


def _pair(prompt: int, image: int) -> int:
    """One key for (edit, image)."""
    return prompt * 2**20 + image


def binary(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """[1, 1, h, w] -> bool [H, W]: brought to `size`, divided by the largest value, above the threshold."""
    scaled = F.interpolate(maps, size=size)[0, 0]
    return scaled / scaled.max().clamp(min=torch.finfo(scaled.dtype).tiny) > threshold
