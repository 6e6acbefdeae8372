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
from .files import of_file
from .gradients import bring, grad_mode


def load_image_text(path: Path) -> ImageText:
    """An image-text model of this pack's own format."""
    return of_file(path, ImageText.build, "image-text model")


#: what any CLIP can name, in RGB of 0..1
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 0.6, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}


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
        self._projection = _text_projection(clip)
        told = self._projection.weight.shape[0]
        if told != len(weight):
            raise ValueError(
                f"The CLIP vision model speaks {len(weight)} numbers, the text encoder {told}: they are not of one "
                "CLIP model; load the pair that belongs together."
            )

        self.width = len(weight)

    @property
    def device(self):
        return self.vision.load_device

    def embed_text(self, texts: list[str]) -> Tensor:
        """[N, D]. The projection is made here: whether a prompt's pooled vector went through it is for each engine and
        family to choose, and most leave it out for Stable Diffusion 1."""
        with torch.inference_mode():  # the engine loads the encoder here
            pooled = torch.cat([_pooled(self.clip, text) for text in texts])
            found = F.linear(pooled.cpu(), self._projection.weight.float().cpu())
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

    def colours_named(self) -> int:
        """How many of `COLOURS` it names in plain pictures of them: all, if the halves belong together; one, by chance.
        Taken off is what a text is like to all of them."""
        pictures = torch.tensor([*COLOURS.values()]).view(-1, 3, 1, 1)
        texts = F.normalize(self.embed_text([f"a plain {name} picture" for name in COLOURS]).cpu(), dim=1)
        ready(self)
        with grad_mode(*modules_of(self)), torch.no_grad():
            seen = F.normalize(self.embed_image(pictures.expand(-1, -1, *[self.image_size] * 2)).cpu(), dim=1)
        likeness = seen @ texts.T
        named = (likeness - likeness.mean(0)).argmax(1)
        return int((named == torch.arange(len(COLOURS))).sum())


def _pooled(clip, text: str) -> Tensor:
    """A text's pooled vector [1, P] before the projection. Of several encoders the engine says which ones give it."""
    pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled="unprojected")[1]
    return torch.zeros(1, 0) if pooled is None else pooled.float()


def _text_projection(clip) -> nn.Module:
    """The layer, of weight [D, P], that belongs to the CLIP's pooled vector. ValueError where there is none,
    or none that was trained: where a file lacks it, engines leave an identity there or unwritten memory."""
    stage = clip.cond_stage_model
    parts = [getattr(part, "transformer", None) for part in (stage, *stage.children())]
    found = [getattr(part, "text_projection", None) for part in parts]
    found = [layer for layer in found if isinstance(layer, nn.Module) and _was_trained(layer.weight)]
    if not found:
        raise ValueError(
            "This text encoder has no projection into the space it shares with pictures (the text "
            "encoder of a Stable Diffusion 1 checkpoint lacks it): load the full CLIP text model "
            "that belongs to the CLIP vision model, with its text_projection."
        )
    with torch.inference_mode():
        width = _pooled(clip, "").shape[-1]
    fitting = [layer for layer in found if layer.weight.shape[1] == width]
    if not fitting:
        raise ValueError(
            f"This text encoder tells {width} numbers of a whole text, which fit none of its projections into the "
            "space it shares with pictures: load the one CLIP text model that belongs to the CLIP vision model."
        )
    return fitting[0]


def _was_trained(weight: Tensor) -> bool:
    """Whether a projection is neither an identity nor memory that nobody wrote: what a trained one makes of a vector is
    neither nothing nor endlessly long."""
    weight = weight.float().cpu()
    if weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight))):
        return False
    gain = float(weight.square().sum(1).mean().sqrt())  # root mean square of what a vector of ones' size becomes
    return 0.03 < gain < 100  # CLIP's own are near 1; False for NaN


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


def vision_features(clip_vision, images: Tensor) -> Tensor:
    """images [B, 3, H, W] in [0, 1] -> token features [B, T, D] of the last but one layer, without the class token."""
    return clip_vision.encode_image(images.movedim(1, -1))["penultimate_hidden_states"][:, 1:].float().cpu()
