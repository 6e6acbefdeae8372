"""Scenes drawn and encoded once, for the nets that look at latents: both cost more than a training step on them.

Kept in .training/ by size, autoencoder, seed and the code that draws, so that the noise-aware tower and the latent
classifier share one pool."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import scenes
from .training import STATE, chunks, precision

PICTURE = 64
SPLITS = (("train", 0.56, 0.0), ("train", 0.3, 1.0), ("unseen", 0.14, 0.0))  # (split, share of the pool, two objects)


@dataclass(frozen=True)
class Pool:
    """latents [N, 4, 16, 16], pictures [N, 3, 64, 64] uint8, the scenes: 56 % one object, 30 % two, and 14 % one object
    of a pair that the diffusion never sees."""

    latents: Tensor
    pictures: Tensor
    scenes: scenes.Scenes

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index) -> Pool:
        return Pool(self.latents[index], self.pictures[index], self.scenes[index])


@torch.no_grad()
def encode(batch: scenes.Scenes, autoencoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Latents [B, 4, 16, 16] and pictures [B, 3, 64, 64] uint8 of scenes, 64 at a time."""
    latents, pictures = [], []
    for part in chunks(len(batch), 64):
        image = scenes.draw(batch[part])[0].contiguous(memory_format=torch.channels_last)
        with precision(image.device):
            latents.append(autoencoder.encode(image).float().contiguous())
        pictures.append((F.avg_pool2d(image, image.shape[-1] // PICTURE) * 255).round().byte().contiguous())
    return torch.cat(latents), torch.cat(pictures)


def make(size: int, autoencoder: nn.Module, draws: torch.Generator, folder: Path = STATE) -> Pool:
    """The pool of `size` scenes, from `folder` where this autoencoder has made it before."""
    state = {k: v.contiguous().cpu() for k, v in autoencoder.state_dict().items()}
    made_by = [Path(scenes.__file__).read_bytes(), str(draws.initial_seed()).encode()]
    digest = hashlib.sha256(b"".join([*(v.numpy().tobytes() for v in state.values()), *made_by])).hexdigest()[:12]
    path = Path(folder) / f"pool_{size}_{digest}.safetensors"
    names = [f.name for f in fields(scenes.Scenes)]
    if not path.exists():
        batch = scenes.cat([scenes.sample(round(share * size), draws, split, two=two) for split, share, two in SPLITS])
        latents, pictures = encode(batch, autoencoder)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: getattr(batch, name).contiguous().cpu() for name in names}
        save_file(kept | {"latents": latents.cpu(), "pictures": pictures.cpu()}, path)
        print(f"pool: {len(latents)} scenes drawn and encoded", flush=True)
    kept = {k: v.to(draws.device) for k, v in load_file(path).items()}
    return Pool(kept["latents"], kept["pictures"], scenes.Scenes(*(kept[name] for name in names)))
