"""Semantic diffusion guidance (SDG, "More Control for Free!" 2112.05744): text, image content, structure and style.

    F = w_text cos(E(x), E_T(y)) + w_content cos(E(x), E(ref))
        - w_structure |f(x) - f(ref)|^2 / |f(ref)|^2 - w_style |G(x) - G(ref)|^2 / |G(ref)|^2

with E the image tower, f its feature maps, G their Gram matrices per sample; F is the log-likelihood, its gradient
scaled by the w (the released code runs with 100 to 160). Two ways to look at x:

* noise-aware tower: E(x_s, s) of the noisy latent itself, the reference noised to the same level with noise that is
  fresh at every level (section 3.3). Mode `latent`: no gradient through network or decoder.
* any other model: E of the decoded estimate, the reference clean. Modes `decoder`, `network`. Not in the paper.

Departures: feature distances are relative (losses.style); content and structure are the paper's "image content" and
"image layout" terms told apart by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import NoiseProcess, Sigma
from .losses import content, cosine, style
from .terms import LogLikelihood, generator_at

Embed = Callable[[Tensor], Tensor]
Features = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Semantics:
    """What is wanted. text [D]: a text embedding. Weights of 0 switch a term off; layers: which feature maps, finest
    0."""

    text: Tensor | None = None
    text_weight: float = 0.0
    content_weight: float = 0.0
    structure_weight: float = 0.0
    style_weight: float = 0.0
    layers: tuple[int, ...] = (0, 1)

    def __post_init__(self):
        if self.text_weight and self.text is None:
            raise ValueError("The text weight needs a text.")

    @property
    def needs_reference(self) -> bool:
        return bool(self.content_weight or self.structure_weight or self.style_weight)

    def value(
        self, embedding: Tensor, maps: list[Tensor], reference: Tensor | None, reference_maps: list[Tensor]
    ) -> Tensor:
        """F [B] from the picture's embedding [B, D] and feature maps, and the reference's (batch 1 or B)."""
        total = embedding.new_zeros(embedding.shape[0])
        if self.text_weight:
            total = total + self.text_weight * (1 - cosine(embedding, self.text.to(embedding)))
        if self.content_weight:
            total = total + self.content_weight * (1 - cosine(embedding, reference))
        chosen = [i for i in self.layers if i < len(maps)]
        here, there = [maps[i].float() for i in chosen], [reference_maps[i].float() for i in chosen if reference_maps]
        if self.structure_weight:
            total = total - self.structure_weight * content(here, there)
        return total - self.style_weight * style(here, there) if self.style_weight else total

    def of_estimate(self, decode: Embed, embed: Embed, features: Features, reference: Tensor | None) -> LogLikelihood:
        """F of the decoded estimate against clean pictures [1 or B, 3, H, W]."""
        self._check(reference)
        memory: dict = {}  # the reference is looked at once per run of this likelihood

        def log_likelihood(_x, _sigma, denoised):
            image = decode(denoised)
            if reference is not None and "ref" not in memory:
                with torch.no_grad():
                    ref = reference.to(image)
                    memory["ref"] = embed(ref).float(), features(ref)
            ref, maps = memory.get("ref", (None, []))
            return self.value(embed(image).float(), features(image), ref, maps)

        return log_likelihood

    def of_noisy(
        self,
        embed: Callable[[Tensor, Sigma], Tensor],
        features: Callable[[Tensor, Sigma], list[Tensor]],
        reference: Tensor | None,
        process: NoiseProcess,
        seed: int = 0,
    ) -> LogLikelihood:
        """F of x_s by a noise-aware tower; reference: x_0 of the picture [1, C, H, W] in model space,
        brought to the size of x."""
        self._check(reference)
        sized: dict[tuple, Tensor] = {}  # the reference at the size of x, shrunk once

        def log_likelihood(x, sigma, _denoised):
            ref, maps = None, []
            if reference is not None:
                with torch.no_grad():
                    size = tuple(x.shape[-2:])
                    if size not in sized:
                        same = tuple(reference.shape[-2:]) == size
                        sized[size] = (
                            reference
                            if same
                            else F.interpolate(reference, size, mode="bilinear", antialias=True, align_corners=False)
                        )
                    clean = sized[size].to(x)
                    noise = torch.randn(clean.shape, generator=generator_at(seed, sigma)).to(x)
                    noisy = process.noised(clean, torch.as_tensor(sigma, device=x.device).max(), noise)
                    ref, maps = embed(noisy, sigma).float(), features(noisy, sigma)
            return self.value(embed(x, sigma).float(), features(x, sigma), ref, maps)

        return log_likelihood

    def _check(self, reference: Tensor | None) -> None:
        if self.needs_reference and reference is None:
            raise ValueError("Content, structure and style weights need a reference picture.")
