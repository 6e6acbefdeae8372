"""What a picture can be guided by: losses on embeddings, logits, feature maps and pixels, each one number per sample
[B].

A loss is lower when better; a guidance takes its negative as log-likelihood. All are per sample: the mean over a batch
would divide the guidance by the batch size.

* spherical: 2 asin(|u - v| / 2)^2 of unit vectors, half the squared angle (Katherine Crowson, the CLIP guided diffusion
  notebooks).
* contrastive: -log softmax(100 cos(u, captions))[target], the target against distractors (Kitichotkul & Inkaew,
  CLIP-conditioned sampling from diffusion models, a Stanford course report). Its gradient vanishes as p -> 1, and is
  identically zero for one caption alone, which is refused.
* cosine: 1 - cos(u, v).
* style: squared distance of Gram matrices (Gatys 1508.06576; SDG 2112.05744). SDG's released code merges the batch
  into the channels; here a Gram matrix belongs to one sample.
* content: squared distance of feature maps. total variation and range: on pixels, after the CLIP guidance notebooks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def spherical(u: Tensor, v: Tensor) -> Tensor:
    """[..., D] against [..., D] -> [...], in [0, pi^2/2]. Finite gradients at u = v and u = -v."""
    half = (F.normalize(u, dim=-1) - F.normalize(v, dim=-1)).pow(2).sum(-1) / 4  # sin^2(angle / 2)
    # angle/2 = atan2(sin, cos); its square is smooth in sin^2, but autograd's sqrt and atan2 are not at the two ends
    eps = torch.finfo(u.dtype).eps
    half = half.clamp(max=1 - eps)
    small = half < 1e-4
    safe = torch.where(small, torch.full_like(half, 0.25), half)
    series = half + half**2 / 3 + half**3 * (8 / 45)  # asin(sqrt(h))^2 about 0
    return 2 * torch.where(small, series, torch.asin(safe.sqrt()).pow(2))


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """1 - cos(u, v) over the last dimension, in [0, 2]."""
    return 1 - F.cosine_similarity(u, v, dim=-1)


def caption_log_probs(u: Tensor, captions: Tensor, temperature: float = 100.0) -> Tensor:
    """log softmax over K captions [K, D] of temperature * cos(u [..., D], caption): [..., K]."""
    return torch.log_softmax(temperature * F.normalize(u, dim=-1) @ F.normalize(captions, dim=-1).T, dim=-1)


def contrastive(u: Tensor, target: Tensor, distractors: Tensor, temperature: float = 100.0) -> Tensor:
    """-log p(target | u) against distractors [K, D]; u [..., D], target [D] -> [...]. ValueError without a
    distractor."""
    if distractors.shape[0] == 0:
        raise ValueError(
            "The contrastive loss needs at least one distractor caption: with the target alone its gradient is 0."
        )
    return -caption_log_probs(u, torch.cat([target[None], distractors]), temperature)[..., 0]


def weighted(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i L_i / |sum_i w_i|; negative weights push away. ValueError when the weights cancel."""
    total = abs(sum(weights))
    if total < 1e-3 * max((abs(w) for w in weights), default=0) or total == 0:
        raise ValueError(f"The target weights {list(weights)} sum to zero: change one of them.")
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / total


def class_log_prob(logits: Tensor, label: Tensor | int) -> Tensor:
    """log softmax(logits [B, K])[label] -> [B]; label one index or [B]."""
    index = torch.as_tensor(label, device=logits.device).expand(logits.shape[0])
    return torch.log_softmax(logits, dim=-1).gather(1, index[:, None])[:, 0]


def gram(features: Tensor) -> Tensor:
    """Gram matrices [B, C, C] of feature maps [B, C, H, W], divided by C H W; one matrix per sample."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def style(features: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the relative squared distance of Gram matrices -> [B].

    Relative to the reference's own squared norm, so that layers of any width weigh the same (SDG uses one constant,
    1e10/5, fitted to RN50x16). Position-free by construction."""
    terms = []
    for f, r in zip(features, references, strict=True):
        g, want = gram(f), gram(r)
        terms.append((g - want).pow(2).sum((1, 2)) / want.pow(2).sum((1, 2)).clamp(min=1e-12))
    return torch.stack(terms).mean(0)


def content(features: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the relative squared distance of feature maps, position by position -> [B]."""
    terms = [
        (f - r).pow(2).flatten(1).sum(1) / r.pow(2).flatten(1).sum(1).clamp(min=1e-12)
        for f, r in zip(features, references, strict=True)
    ]
    return torch.stack(terms).mean(0)


def total_variation(image: Tensor) -> Tensor:
    """Mean squared difference of neighbours of [B, C, H, W], borders replicated -> [B]."""
    padded = F.pad(image, (0, 1, 0, 1), mode="replicate")
    dx = padded[..., :-1, 1:] - padded[..., :-1, :-1]
    dy = padded[..., 1:, :-1] - padded[..., :-1, :-1]
    return (dx**2 + dy**2).flatten(1).mean(1)


def out_of_range(image: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Mean squared excess of [B, C, H, W] beyond [low, high] -> [B]. A clamp has no gradient out there; this has."""
    return (image - image.clamp(low, high)).pow(2).flatten(1).mean(1)
