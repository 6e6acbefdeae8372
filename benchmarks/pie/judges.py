"""The networks of PIE-Bench's table (Ju et al. 2310.01506), each from files on this machine, each optional.

* Structure distance: keys of DINO ViT-B/8's last layer at 224 pixels (a folder of facebook/dino-vitb8).
* CLIP similarity: ViT-L/14's two towers (a folder of openai/clip-vit-large-patch14).
* LPIPS (Zhang et al. 1801.03924) on SqueezeNet 1.1: features of seven places, each pixel's made unit length, squared
  differences weighed per channel, mean over pixels, summed over places. One safetensors file with the state dict of the
  `lpips` package's or torchmetrics' squeeze network.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ...samplers.measure import metrics


def _normalised(image: Tensor, mean: tuple, std: tuple, size: int | None = 224) -> Tensor:
    """[B, 3, H, W] in 0..1 -> as a network was trained, at `size` pixels."""
    if size:
        image = F.interpolate(image, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class _Fire(nn.Module):
    """SqueezeNet's block: narrow, then 1x1 and 3x3 side by side."""

    def __init__(self, n_in: int, narrow: int, wide: int):
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, narrow, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class Lpips(nn.Module):
    """LPIPS on SqueezeNet 1.1 from one safetensors file. ValueError for a file that holds something else."""

    #: behind which of SqueezeNet's layers features are compared
    PLACES = (1, 4, 7, 9, 10, 11, 12)

    def __init__(self, path: str | Path):
        super().__init__()
        pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
        sizes = [
            (64, 16, 64),
            (128, 16, 64),
            None,
            (128, 32, 128),
            (256, 32, 128),
            None,
            (256, 48, 192),
            (384, 48, 192),
            (384, 64, 256),
            (512, 64, 256),
        ]
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), *(pool() if size is None else _Fire(*size) for size in sizes)
        )
        state = {}
        for name, value in load_file(str(path)).items():
            if found := re.fullmatch(r"net\.slices?\.?\d+\.(\d+)\.(.+)", name):
                state[f"features.{found[1]}.{found[2]}"] = value
            elif found := re.fullmatch(r"lin(\d)\.model\.1\.weight", name):
                state[f"weight{found[1]}"] = value
        for k, width in enumerate((64, 128, 256, 384, 384, 512, 512)):
            self.register_buffer(f"weight{k}", torch.zeros(1, width, 1, 1))
        try:
            self.load_state_dict({k: v.float() for k, v in state.items()})
        except RuntimeError as error:
            raise ValueError(
                f"{Path(path).name} is not LPIPS on SqueezeNet: save the state dict of lpips.LPIPS(net='squeeze') "
                "with safetensors."
            ) from error
        self.eval().requires_grad_(False)

    def _at_places(self, image: Tensor) -> list[Tensor]:
        # the shift and scale are the authors', for images in -1..1
        x, found = _normalised(2 * image - 1, (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450), None), []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.PLACES:
                found.append(F.normalize(x, dim=1, eps=1e-10))
        return found

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [B] of images [B, 3, H, W] in 0..1."""
        pairs = zip(self._at_places(a), self._at_places(b), strict=True)
        return sum(
            ((x - y).square() * getattr(self, f"weight{k}")).sum(1).mean((1, 2)) for k, (x, y) in enumerate(pairs)
        )


class Judges:
    """The networks that are on this machine: folders of Hugging Face checkpoints, and LPIPS' file. FileNotFoundError
    for one that is named and not there."""

    def __init__(self, dino: str | None = None, clip: str | None = None, lpips: str | None = None):
        self.dino = self.clip = self.lpips = None
        for name, path in (("--dino", dino), ("--clip", clip), ("--lpips", lpips)):
            if path and not Path(path).exists():
                raise FileNotFoundError(f"{name} {path} is not there; without {name} its column stays empty.")
        if dino:
            from transformers import ViTModel

            self.dino = ViTModel.from_pretrained(dino, local_files_only=True, add_pooling_layer=False).eval()
        if clip:
            from transformers import CLIPModel, CLIPTokenizer

            self.clip = CLIPModel.from_pretrained(clip, local_files_only=True).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(clip, local_files_only=True)
        if lpips:
            self.lpips = Lpips(lpips)

    @torch.no_grad()
    def keys(self, image: Tensor) -> Tensor:
        """[1, T, D] keys of the last layer at 224 pixels (DINO's normalisation)."""
        image = _normalised(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        kept = []
        layer = self.dino.encoder.layer[-1].attention.attention.key
        handle = layer.register_forward_hook(lambda module, args, out: kept.append(out))
        try:
            self.dino(image, interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return kept[0]

    @torch.no_grad()
    def similarity(self, image: Tensor, text: str) -> float:
        """100 max(0, cos) of one image [1, 3, H, W] and a text in CLIP's space."""
        image = _normalised(
            image,
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
            self.clip.config.vision_config.image_size,
        )
        tokens = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        return float(
            metrics.clip_similarity(self.clip.get_image_features(image), self.clip.get_text_features(**tokens))[0]
        )
