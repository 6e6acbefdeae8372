"""Image-text models in the form that guidance asks for: this pack's own, and ComfyUI's CLIP encoders.

An IMAGE_TEXT has: embed_image([B, 3, H, W] in 0..1) -> [B, D], differentiable; embed_text([str]) -> [N, D]; image_size;
unknown(text) -> words it was never shown; and what `modules_of` and `patchers_of` return for it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..samplers.networks.image_text import ImageText
from .comfy import encode
from .files import of_file
from .gradients import bring


def load_image_text(path: Path) -> ImageText:
    """An image-text model of this pack's own format."""
    return of_file(path, ImageText.build, "image-text model")


class ClipPair:
    """ComfyUI's CLIP_VISION and the text encoder of a CLIP that shares its space."""

    noisy = None

    def __init__(self, vision, clip):
        self.vision, self.clip = vision, clip
        self.image_size = getattr(vision, "image_size", 224)
        self._mean = getattr(vision, "image_mean", [0.48145466, 0.4578275, 0.40821073])
        self._std = getattr(vision, "image_std", [0.26862954, 0.26130258, 0.27577711])
        projection = getattr(vision.model, "visual_projection", None)
        weight = getattr(projection, "weight", None)
        if weight is None:
            raise ValueError(
                "This CLIP vision model has no projection into the space it shares with texts: load a "
                "CLIP vision model (ViT-L or ViT-bigG), not an image encoder of another kind."
            )
        text = _text_projection(clip)
        if text is None:
            raise ValueError(
                "This text encoder has no projection into the space it shares with pictures (the text "
                "encoder of a Stable Diffusion checkpoint lacks it): load the full CLIP text model "
                "that belongs to the CLIP vision model, with its text_projection."
            )
        if text.shape[0] != weight.shape[0]:
            raise ValueError(
                f"The CLIP vision model speaks {weight.shape[0]} numbers, the text encoder "
                f"{text.shape[0]}: they are not of one CLIP model; load the pair that belongs together."
            )

        self.width = weight.shape[0]

    @property
    def device(self):
        return self.vision.load_device

    def embed_text(self, texts: list[str]) -> Tensor:
        with torch.inference_mode():  # the engine loads the encoder here
            found = torch.cat([encode(self.clip, text)[0][1]["pooled_output"].float() for text in texts])
        return found.clone()

    def embed_image(self, image: Tensor) -> Tensor:
        """On the vision model's own device, which may be another than the picture's; `bring` it before."""
        home, image = image.device, image.to(self.device)
        size = (self.image_size, self.image_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)
        mean, std = (image.new_tensor(v).view(3, 1, 1) for v in (self._mean, self._std))
        out = self.vision.model(pixel_values=((image - mean) / std).float(), intermediate_output=-2)
        return out[2].float().to(home)

    def unknown(self, _text: str) -> list[str]:
        return []


def _text_projection(clip) -> Tensor | None:
    """The text projection's weight, None where there is none (the engine then puts an identity there)."""
    stage = clip.cond_stage_model
    model = getattr(stage, getattr(stage, "clip", getattr(stage, "clip_name", "clip_l")), stage)
    weight = getattr(getattr(getattr(model, "transformer", None), "text_projection", None), "weight", None)
    if weight is None or weight.ndim != 2:
        return None
    identity = weight.shape[0] == weight.shape[1] and torch.equal(weight.float().cpu(), torch.eye(weight.shape[0]))
    return None if identity else weight


def modules_of(tower) -> tuple[nn.Module, ...]:
    """The modules that embedding a picture runs."""
    return (tower.vision.model,) if isinstance(tower, ClipPair) else (tower,)


def patchers_of(tower) -> tuple:
    return (tower.vision.patcher,) if isinstance(tower, ClipPair) else ()


def ready(tower) -> torch.device:
    """Bring what embedding a picture runs onto its device; before `grad_mode`."""
    device = torch.device(getattr(tower, "device", "cpu"))
    bring(device, patchers_of(tower), modules_of(tower))
    return device


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
