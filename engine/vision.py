"""CLIP's two towers, as ComfyUI holds them, for scores."""

from __future__ import annotations

import torch
from torch import Tensor


def vision_features(clip_vision, images: Tensor) -> tuple[Tensor, Tensor]:
    """images [B, 3, H, W] in [0, 1] -> token features [B, T, D] of the last but one layer, projected embedding [B,
    P]."""
    out = clip_vision.encode_image(images.movedim(1, -1))
    tokens, embedding = out["penultimate_hidden_states"], out["image_embeds"]
    return tokens[:, 1:].float().cpu(), embedding.float().cpu()  # without the class token


def text_embedding(conditioning: list, image: Tensor) -> Tensor:
    """The prompt's pooled embedding [1, P]. ValueError unless it lives in the image embedding's space."""
    pooled = conditioning[0][1].get("pooled_output")
    if not isinstance(pooled, Tensor) or pooled.shape[-1] != image.shape[-1]:
        has = "none" if not isinstance(pooled, Tensor) else f"{pooled.shape[-1]} numbers"
        raise ValueError(
            f"The prompt's pooled embedding ({has}) does not belong to this CLIP vision model ({image.shape[-1]} "
            "numbers): use the text encoder of the same CLIP."
        )
    return torch.as_tensor(pooled[:1]).float().cpu()
