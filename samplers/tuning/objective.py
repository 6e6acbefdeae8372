"""One training objective for every denoiser: w(s) * mean |D - x0|^2, over examples, levels and noises.

With x_s from a `NoiseProcess` and e = mean |D(x_s, s) - x0|^2 per sample, every published loss is w(s) e, and w depends
on the level only through the signal-to-noise ratio SNR = (signal/s)^2 (VE: 1/s^2, flow: ((1 - s)/s)^2):

    eps        |n - eps^|^2                        w = SNR
    v          |v - v^|^2 (Salimans & Ho)          w = 1 + SNR                 VE: (1 + s^2)/s^2
    flow       |(n - x0) - u^|^2                   w = (1 + sqrt(SNR))^2       flow: 1/s^2
    min-SNR    Hang et al. 2303.09556              w = min(SNR, gamma), the same for nets that predict eps and v
    constant   |x0 - D|^2                          w = 1

Levels are drawn as a quantile u in (0, 1) that a table of sigmas or the flow's own line turns into sigma: u uniform
(Ho et al. 2006.11239), or sigmoid of a normal (Esser et al. 2403.03206), which also gives the shift of the flow.
Departures: pictures are drawn with replacement, not in shuffled passes, so that a run's state is its generator alone;
min-SNR on a flow is the paper's formula with the flow's SNR, which the paper doesn't treat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import NoiseProcess, Sigma

#: net(x [B, C, ...], sigma [B], conditions: one for each row) -> D [B, C, ...]
Net = Callable[[Tensor, Tensor, Sequence[Any]], Tensor]
#: step(generator) -> {"loss": 0-d, and whatever else is worth a line in the log}
Step = Callable[[torch.Generator], dict[str, Tensor]]

#: w as a function of (SNR, gamma)
WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "eps": lambda snr, gamma: snr,
    "v": lambda snr, gamma: 1 + snr,
    "flow": lambda snr, gamma: (1 + snr.sqrt()) ** 2,
    "min-SNR": lambda snr, gamma: snr.clamp(max=gamma),
    "constant": lambda snr, gamma: torch.ones_like(snr),
}
LEVELS = ("uniform", "logit-normal")


@dataclass(frozen=True)
class Objective:
    """w(s) * mean |D - x0|^2. weight: a name of `WEIGHTS`; gamma > 0: where min-SNR cuts (the paper's 5)."""

    process: NoiseProcess
    weight: str = "eps"
    gamma: float = 5.0

    def __post_init__(self):
        if self.weight not in WEIGHTS:
            raise ValueError(f"There is no loss weight {self.weight!r}: choose one of {', '.join(WEIGHTS)}.")
        if not self.gamma > 0:
            raise ValueError(f"min-SNR's gamma must be above 0; got {self.gamma:g}.")

    def weights(self, sigma: Sigma) -> Tensor:
        """w at sigma > 0, in sigma's shape."""
        sigma = torch.as_tensor(sigma)
        snr = (self.process.signal(sigma) / sigma) ** 2
        return WEIGHTS[self.weight](snr, self.gamma)

    def losses(self, denoised: Tensor, x0: Tensor, sigma: Tensor, mask: Tensor | None = None) -> Tensor:
        """w(s) e of each row [B]; D and x0 [B, C, ...], sigma [B].

        mask [B, 1, ...] in 0..1: e becomes the mask's weighted mean, so a small region weighs as much as a large one.
        """
        square = (denoised - x0).square()
        if mask is None:
            error = square.flatten(1).mean(1)
        else:
            mask = mask.to(square).expand_as(square)
            error = (mask * square).flatten(1).sum(1) / mask.flatten(1).sum(1)
        return self.weights(sigma.to(error)) * error


@dataclass(frozen=True)
class Levels:
    """A distribution over noise levels. name: one of `LEVELS`.

    table [n]: the sigmas that a discrete model was trained at, in either order; None: a flow, u on (0, 1) itself.
    mean, std: of the normal whose sigmoid u is (logit-normal). shift > 0 moves a flow's levels towards noise:
    s = shift u / (1 + (shift - 1) u); 1 leaves them. A table has its shift inside: there shift must be 1."""

    name: str = "uniform"
    table: Tensor | None = None
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self):
        if self.name not in LEVELS:
            raise ValueError(f"There is no distribution of levels {self.name!r}: choose one of {', '.join(LEVELS)}.")
        if not self.std > 0 or not self.shift > 0:
            raise ValueError(f"std and shift must be above 0; got {self.std:g} and {self.shift:g}.")
        if self.table is not None:
            if self.shift != 1:
                raise ValueError("A table of sigmas has its shift inside: leave shift at 1.")
            table = self.table.detach().cpu().double().flatten().clone()
            table = table[table > 0].sort().values
            if not len(table):
                raise ValueError("The table of sigmas holds no level above 0.")
            object.__setattr__(self, "table", table)

    def at(self, u: Tensor) -> Tensor:
        """sigma at the quantile u of the uniform distribution, u in (0, 1); fp64, u's shape."""
        if self.table is not None:
            return self.table[(u * len(self.table)).long().clamp(max=len(self.table) - 1)]
        return self.shift * u / (1 + (self.shift - 1) * u)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n levels [n], fp64 on the CPU."""
        if self.name == "uniform":
            u = torch.rand(n, generator=generator, dtype=torch.float64)
        else:
            u = torch.sigmoid(self.mean + self.std * torch.randn(n, generator=generator, dtype=torch.float64))
        return self.at(u.clamp(1e-6, 1 - 1e-6))

    def spread(self, n: int) -> Tensor:
        """n levels at the distribution's own quantiles (i + 1/2)/n: rising, the same every time; fp64."""
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        if self.name == "logit-normal":
            u = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        return self.at(u)


@dataclass(frozen=True)
class Examples:
    """Pictures to train on. latents: each [C, ...] in model space; sizes may differ (a batch holds one size).

    conditions: what each picture's caption is to the net (an embedding, a text; never looked into). masks: each
    [1, ...] on the latent's grid, or None: where the loss counts. empty: the condition of a dropped caption."""

    latents: tuple[Tensor, ...]
    conditions: tuple[Any, ...]
    masks: tuple[Tensor | None, ...] = ()
    empty: Any = None

    def __post_init__(self):
        for name in ("latents", "conditions", "masks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        n = len(self.latents)
        if not n:
            raise ValueError("There is no picture to train on.")
        if len(self.conditions) != n or len(self.masks) not in (0, n):
            raise ValueError(
                f"There are {n} pictures, {len(self.conditions)} captions and {len(self.masks)} masks: give one "
                "caption for each picture, and no mask or one for each."
            )
        for i, (latent, mask) in enumerate(zip(self.latents, self.masks or [None] * n)):
            if not bool(torch.isfinite(latent).all()):
                raise ValueError(f"Picture {i + 1} holds NaN or infinite values: leave it out.")
            if mask is not None and (mask.shape[1:] != latent.shape[1:] or not bool((mask > 0).any())):
                raise ValueError(f"The mask of picture {i + 1} must have its picture's size and be above 0 somewhere.")

    def __len__(self) -> int:
        return len(self.latents)

    def same_size(self, index: int) -> Tensor:
        """The indices of all pictures of that one's size."""
        shape = self.latents[index].shape
        return torch.tensor([i for i, latent in enumerate(self.latents) if latent.shape == shape])

    def batch(self, index: Tensor, sigma: Tensor, noise: Tensor, dropped: Tensor | None = None) -> Batch:
        """The pictures of that index [B] at those levels [B] with those noises; dropped [B]: caption left out."""
        rows = index.tolist()
        out = [False] * len(rows) if dropped is None else dropped.tolist()
        x0 = torch.stack([self.latents[i] for i in rows])
        mask = None
        if any(self.masks[i] is not None for i in rows) if self.masks else False:
            plain = torch.ones_like(x0[0, :1])
            mask = torch.stack([plain if self.masks[i] is None else self.masks[i].to(plain) for i in rows])
        conditions = [self.empty if gone else self.conditions[i] for i, gone in zip(rows, out)]
        return Batch(x0, sigma.to(x0), noise.to(x0), conditions, mask)


@dataclass(frozen=True)
class Batch:
    """Rows to train on: x0, noise [B, C, ...], sigma [B], a condition for each row, mask [B, 1, ...] or None."""

    x0: Tensor
    sigma: Tensor
    noise: Tensor
    conditions: list[Any]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def to(self, device) -> Batch:
        mask = None if self.mask is None else self.mask.to(device)
        x0, sigma, noise = (t.to(device) for t in (self.x0, self.sigma, self.noise))
        return replace(self, x0=x0, sigma=sigma, noise=noise, mask=mask)

    def joined(self, other: Batch) -> Batch:
        """Both as one batch; their rows must have one size."""
        mask = None
        if self.mask is not None or other.mask is not None:
            mask = torch.cat([torch.ones_like(b.x0[:, :1]) if b.mask is None else b.mask for b in (self, other)])
        x0, sigma, noise = (torch.cat([getattr(b, n) for b in (self, other)]) for n in ("x0", "sigma", "noise"))
        return Batch(x0, sigma, noise, [*self.conditions, *other.conditions], mask)


def draw(examples: Examples, size: int, levels: Levels, generator: torch.Generator, dropout: float = 0.0) -> Batch:
    """A random batch of `size` rows, all of one picture size, from `generator` in the fixed order index, level, noise,
    dropout.

    Every picture is equally likely in every row: the first row chooses the size, the others are of that size.
    dropout in 0..1: the share of captions left out; at 0 nothing is drawn for it."""
    first = int(torch.randint(len(examples), (1,), generator=generator))
    others = examples.same_size(first)
    index = others[torch.randint(len(others), (size,), generator=generator)]
    index[0] = first
    sigma = levels.draw(size, generator)
    noise = torch.randn((size, *examples.latents[first].shape), generator=generator, dtype=torch.float32)
    dropped = torch.rand(size, generator=generator) < dropout if dropout > 0 else None
    return examples.batch(index, sigma, noise, dropped)


def batch_losses(net: Net, objective: Objective, batch: Batch) -> Tensor:
    """w(s) e of each row [B]."""
    x = objective.process.noised(batch.x0, batch.sigma, batch.noise)
    return objective.losses(net(x, batch.sigma, batch.conditions), batch.x0, batch.sigma, batch.mask)


def denoising_step(
    net: Net,
    examples: Examples,
    objective: Objective,
    levels: Levels,
    size: int = 1,
    dropout: float = 0.0,
    device: torch.device | str = "cpu",
) -> Step:
    """The step of a training run on these examples: draws `size` rows and gives their mean loss.

    This alone is UniTune's training (one picture), Imagic's (its two parts differ in what is trained) and textual
    inversion's."""

    def step(generator):
        return {
            "loss": batch_losses(net, objective, draw(examples, size, levels, generator, dropout).to(device)).mean()
        }

    return step


@dataclass(frozen=True)
class FixedLoss:
    """The mean loss of fixed (picture, level, noise) triples. The training loss jumps with every level drawn; this does
    not. Its pictures are those of the training, so it falls while they are learnt by heart, too: no validation."""

    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, examples: Examples, levels: Levels, count: int = 16, seed: int = 0, size: int = 4) -> FixedLoss:
        """`count` triples at evenly spread quantiles of the levels, pictures in turn, noises by a generator of its own;
        at most `size` rows a call."""
        generator = torch.Generator("cpu").manual_seed(seed)
        sigma = levels.spread(count)[torch.randperm(count, generator=generator)]
        groups: dict[tuple, list[int]] = {}
        for k in range(count):
            groups.setdefault(tuple(examples.latents[k % len(examples)].shape), []).append(k)
        batches = []
        for shape, rows in groups.items():
            for part in (rows[i : i + size] for i in range(0, len(rows), size)):
                noise = torch.randn((len(part), *shape), generator=generator, dtype=torch.float32)
                index = torch.tensor([k % len(examples) for k in part])
                batches.append(examples.batch(index, sigma[part], noise))
        return cls(tuple(batches))

    def loss(self, net: Net, objective: Objective, device: torch.device | str = "cpu") -> float:
        """The mean loss over all triples, without gradients."""
        with torch.no_grad():
            rows = [batch_losses(net, objective, batch.to(device)).cpu().double() for batch in self.batches]
        return float(torch.cat(rows).mean())
