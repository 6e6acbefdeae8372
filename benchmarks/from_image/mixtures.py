"""The mixtures that RePaint's schedules are judged on: one table, each with a mask and known values.

A schedule may be chosen by the four named TUNING; the rest (UNSEEN) only judge. KIN of these are tuning mixtures in
other units, or with their means further apart: they say little more than the tuning ones. The mixtures range from 2 to
16 dimensions, from a third to three times the unit scale, from one correlated Gaussian to twenty modes. Everything is
seeded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers.measure.mixture import Conditional, GaussianMixture


@dataclass(frozen=True)
class Case:
    """A mixture and what is known of it: values [D] where mask [D] is 0."""

    mixture: GaussianMixture
    values: Tensor
    mask: Tensor
    says: str  #: one line for the table of a page

    @property
    def truth(self) -> Conditional:
        """The true conditional, in closed form."""
        return self.mixture.conditional(self.values, self.mask)

    @property
    def scale(self) -> float:
        """Standard deviation of the data over all coordinates: the scale of what a model was trained on."""
        mean = self.mixture.weights @ self.mixture.means
        total = self.mixture.covariances().diagonal(dim1=1, dim2=2) + (self.mixture.means - mean) ** 2
        return float((self.mixture.weights @ total).mean().sqrt())


def _case(means, covariances, values, mask, says) -> Case:
    mask = torch.as_tensor(mask).double()
    mixture = GaussianMixture.correlated(torch.as_tensor(means), torch.as_tensor(covariances))
    return Case(mixture, torch.as_tensor(values).double() * (1 - mask), mask, says)


def _scaled(case: Case, factor: float, says: str) -> Case:
    """The same problem in other units."""
    means, covariances = factor * case.mixture.means, factor**2 * case.mixture.covariances()
    mixture = GaussianMixture.correlated(means, covariances, case.mixture.weights)
    return Case(mixture, factor * case.values, case.mask, says)


def _round(means, std, values, mask, says, weights=None) -> Case:
    """Modes without correlation; std one number or one for each mode."""
    mask = torch.as_tensor(mask).double()
    mixture = GaussianMixture(means, torch.as_tensor(std).double(), weights)
    return Case(mixture, torch.as_tensor(values).double() * (1 - mask), mask, says)


def _random(seed: int, size: int, modes: int, spread: float, known: int, says: str) -> Case:
    """Correlated modes around standard normal means; known: a draw of the mixture at the first coordinates."""
    draws = torch.Generator().manual_seed(seed)
    root = torch.randn(modes, size, size, generator=draws, dtype=torch.float64) * spread / size**0.5
    means = torch.randn(modes, size, generator=draws, dtype=torch.float64)
    covariances = root @ root.mT + (spread / 4) ** 2 * torch.eye(size, dtype=torch.float64)
    values = GaussianMixture.correlated(means, covariances).sample(1, draws)[0]
    return _case(means, covariances, values, [i >= known for i in range(size)], says)


def _four() -> Case:
    draws = torch.Generator().manual_seed(3)
    root = torch.randn(3, 4, 4, generator=draws, dtype=torch.float64) * 0.35
    means = torch.randn(3, 4, generator=draws, dtype=torch.float64)
    covariances = root @ root.mT + 0.05 * torch.eye(4, dtype=torch.float64)
    return _case(means, covariances, 0.7 * means[1] + 0.3 * means[2], [0, 0, 1, 1], "three correlated modes")


def _field(size: int, length: float, mask, says: str) -> Case:
    """One Gaussian whose coordinates are neighbours in a row, alike over `length` of them; known: a draw."""
    place = torch.arange(size, dtype=torch.float64)
    covariance = (-((place[:, None] - place) / length).abs()).exp()
    draw = GaussianMixture.correlated(torch.zeros(1, size), covariance[None])
    values = draw.sample(1, torch.Generator().manual_seed(11))[0]
    return _case(torch.zeros(1, size), covariance[None], values, mask, says)


def _ring(modes: int, radius: float, std: float, known: float, says: str) -> Case:
    angle = 2 * torch.pi * torch.arange(modes, dtype=torch.float64) / modes
    return _round(radius * torch.stack([angle.cos(), angle.sin()], 1), std, [known, 0.0], [0, 1], says)


def _cases() -> dict[str, Case]:
    bimodal = _round([[-1.0, -1.5], [1.0, 1.5]], 0.5, [0.5, 0.0], [0, 1], "two round modes")
    correlated = _case([[0.0, 0.0]], [[[1.0, 0.9], [0.9, 1.0]]], [1.5, 0.0], [0, 1], "one Gaussian, correlation 0.9")
    grid = torch.cartesian_prod(*[torch.tensor([-1.5, 0.0, 1.5]).double()] * 2) + torch.tensor([0.0, 0.3]).double()
    doubled = _round([[-2.0, -3.0], [2.0, 3.0]], 0.5, [0.5, 0.0], [0, 1], "bimodal, its means doubled")
    four, six = _four(), _random(6, 6, 4, 0.8, 3, "four correlated modes")
    twenty = torch.randn(20, 12, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    skewed = [[-1.0, 0.5, 1.0], [0.8, -0.6, -1.2], [0.2, 1.4, 0.0]]
    return {
        "bimodal": bimodal,
        "correlated": correlated,
        "grid": _round(grid, 0.3, [0.6, 0.0], [0, 1], "nine modes on a grid"),
        "five": _random(5, 5, 3, 1.0, 2, "three correlated modes"),
        # ---- judged only
        "four": four,
        "doubled": doubled,
        "six": six,
        "bimodal_third": _scaled(bimodal, 1 / 3, "bimodal at a third of its scale"),
        "bimodal_triple": _scaled(bimodal, 3, "bimodal at three times its scale"),
        "correlated_third": _scaled(correlated, 1 / 3, "correlated at a third of its scale"),
        "four_triple": _scaled(four, 3, "four at three times its scale"),
        "six_third": _scaled(six, 1 / 3, "six at a third of its scale"),
        "ring": _ring(8, 1.5, 0.25, 0.9, "eight modes on a ring"),
        "skewed": _round(
            skewed,
            [0.3, 0.6, 0.4],
            [0.1, 0.0, 0.0],
            [0, 1, 1],
            "three modes, unlike in size and weight",
            torch.tensor([0.6, 0.3, 0.1]),
        ),
        "eight": _field(8, 5.0, [0, 0, 1, 1, 1, 1, 0, 0], "one Gaussian of like neighbours, its middle unknown"),
        "ten": _random(10, 10, 6, 1.2, 5, "six wide correlated modes"),
        "twelve": _round(twenty, 0.5, 0.55 * twenty[3] + 0.45 * twenty[7], [0] * 4 + [1] * 8, "twenty round modes"),
        "sixteen": _random(16, 16, 5, 1.0, 8, "five correlated modes"),
    }


ALL = _cases()
TUNING = ("bimodal", "correlated", "grid", "five")
UNSEEN = tuple(name for name in ALL if name not in TUNING)
KIN = ("doubled", "bimodal_third", "bimodal_triple", "correlated_third")
