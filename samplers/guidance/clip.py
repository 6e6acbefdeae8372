"""CLIP guidance: how well a picture agrees with texts and other pictures, as a log-likelihood per sample.

After Katherine Crowson's CLIP guided diffusion (spherical loss over random cutouts), Kitichotkul & Inkaew (contrastive
loss: the target caption against distractors) and Blended Diffusion 2111.14818 (the masked picture only, outside it
mid-grey: 0 in that paper's -1..1).
With e the image tower, c_j the cutouts and t_i targets of weight w_i:

    spherical, cosine   L = mean_j sum_i w_i dist(e(c_j), t_i) / |sum_i w_i|
    contrastive         L = mean_j sum_i w_i (-log softmax_{t_i, distractors}(100 cos(e(c_j), .))_i) / |sum_i w_i|

Departures: the picture is that of the estimate D, not of a blend of D and x_s (the CLIP towers were never shown noise);
every sample of a batch sees the same cutouts, so that a batch equals its single runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Sigma
from .cutouts import Cutouts
from .losses import contrastive, cosine, out_of_range, spherical, total_variation, weighted
from .terms import LogLikelihood, generator_at

LOSSES = ("contrastive", "spherical", "cosine")
GREY = 0.5  # outside a mask: the middle of 0..1, which is 0 in Blended Diffusion's -1..1


@dataclass(frozen=True)
class ImageLoss:
    """A loss of pictures [B, 3, H, W] in 0..1 at a noise level -> [B].

    embed: [N, 3, h, w] -> [N, D]. targets [K, D] (texts or pictures) with weights [K]; distractors [M, D], M >= 1 for
    the contrastive loss. mask [1 or B, 1, H, W], 1 = the part that is judged. tv, range: weights of smoothness and of
    staying within 0..1. distance "contrastive" | "spherical" | "cosine"."""

    embed: Callable[[Tensor], Tensor]
    targets: Tensor
    weights: tuple[float, ...]
    distance: str = "spherical"
    distractors: Tensor | None = None
    temperature: float = 100.0
    cutouts: Cutouts = field(default_factory=lambda: Cutouts(count=1))
    mask: Tensor | None = None
    tv: float = 0.0
    range: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.distance not in LOSSES:
            raise ValueError(f"The loss {self.distance!r} is not one of {', '.join(LOSSES)}.")
        if len(self.targets) == 0:
            raise ValueError("Guidance needs at least one target: a text or a picture.")
        weighted([torch.zeros(1)] * len(self.weights), self.weights)  # refuse weights that cancel before any work
        if self.distance == "contrastive" and (self.distractors is None or len(self.distractors) == 0):
            raise ValueError(
                "The contrastive loss needs at least one distractor caption: with the target alone its gradient is 0."
            )

    def __call__(self, image: Tensor, sigma: Sigma) -> Tensor:
        seen = image if self.mask is None else inside(self.mask, image)
        crops = self.cutouts(seen, generator_at(self.seed, sigma))
        u = self.embed(crops.flatten(0, 1)).float().unflatten(0, crops.shape[:2])  # [cutouts, B, D]
        losses = [self._distance(u, target.to(u)).mean(0) for target in self.targets]
        total = weighted(losses, self.weights)
        if self.tv:
            total = total + self.tv * total_variation(image)
        return total + self.range * out_of_range(image) if self.range else total

    def noisy_log_likelihood(self, embed: Callable[[Tensor, Sigma], Tensor]) -> LogLikelihood:
        """-L of x_s itself by a noise-aware tower (x_s, sigma) -> [B, D], for a Guidance of mode `latent`; no
        cutouts."""

        def log_likelihood(x, sigma, _denoised):
            u = embed(x, sigma).float()
            return -weighted([self._distance(u, target.to(u)) for target in self.targets], self.weights)

        return log_likelihood

    def _distance(self, u: Tensor, target: Tensor) -> Tensor:
        if self.distance == "contrastive":
            return contrastive(u, target, self.distractors.to(u), self.temperature)
        return (spherical if self.distance == "spherical" else cosine)(u, target)

    def log_likelihood(self, decode: Callable[[Tensor], Tensor]) -> LogLikelihood:
        """-L of the decoded estimate, for a Guidance of mode `network` or `decoder`; decode: D -> pictures."""
        return lambda _x, sigma, denoised: -self(decode(denoised), sigma)


def fit_mask(mask: Tensor, image: Tensor) -> Tensor:
    """A mask [H, W], [B, H, W] or [B, 1, H, W] at the picture's size, [B or 1, 1, H, W]."""
    mask = mask.to(image)
    mask = mask[None] if mask.ndim == 2 else mask
    mask = mask[:, None] if mask.ndim == 3 else mask
    if len(mask) not in (1, len(image)):
        raise ValueError(f"There are {len(mask)} masks for {len(image)} pictures: give one, or one for each.")
    if mask.shape[-2:] != image.shape[-2:]:
        mask = torch.nn.functional.interpolate(mask, image.shape[-2:], mode="bilinear", align_corners=False)
    return mask


def inside(mask: Tensor, image: Tensor) -> Tensor:
    """The picture [B, 3, H, W] in 0..1 where the mask is 1, mid-grey where it is 0."""
    mask = fit_mask(mask, image)
    return image * mask + GREY * (1 - mask)


def rank(
    embed: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    weights: tuple[float, ...],
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Order pictures [B, 3, H, W] by their mean weighted cosine similarity to targets [K, D]: indices best first, and
    the similarities [B] in the given order. Blended Diffusion ranks its 64 candidates so, by the masked picture."""
    u = embed(images if mask is None else inside(mask, images)).float()
    score = weighted([1 - cosine(u, target.to(u)) for target in targets], weights)
    return score.argsort(descending=True), score
