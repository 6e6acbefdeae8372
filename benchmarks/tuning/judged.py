"""What the parts of the tuning bench share: nodes run with the demo's numbers, sampling, and reading what came out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...demo import probe, scenes
from ...demo.scenes import Scenes
from ...engine import comfy, folders
from ...engine.sampler import core_sampler, sample_latent
from ..lab import decode, encode, loaded

STEPS, CFG = 20, 5.0
#: the demo's own numbers; the nodes' defaults are for real checkpoints
DREAMBOOTH = {"preset": "diffusers", "steps": 300, "learning_rate": 2e-3, "rank": 8, "alpha": 8.0, "batch": 2}
TEXTUAL_INVERSION = {"steps": 300, "learning_rate": 0.3, "batch": 4}
IMAGIC = {"embedding_steps": 60, "embedding_rate": 0.0115, "model_steps": 90, "model_rate": 2e-3, "batch": 4, "rank": 8}
UNITUNE = {"preset": "UniTune", "steps": 0, "learning_rate": 2e-3}  # 0: the preset's
JUDGES = ("conv", "query")


def defaults(box, **own) -> dict:
    """A node's inputs at their defaults, with these in their place; nothing is shown meanwhile."""
    wanted = box.INPUT_TYPES()["required"]
    return {n: spec[1]["default"] for n, spec in wanted.items() if "default" in spec[1]} | {"sample_every": 0} | own


@torch.inference_mode()
def drawn(model, clip, vae, captions: list[str], seed: int, steps: int = STEPS, cfg: float = CFG) -> Tensor:
    """Pictures [N, 3, 128, 128] in 0..1 of these captions by Euler steps, each from the noise of its number."""
    sigmas, sampler = comfy.sigmas_of(model, "normal", steps), core_sampler("euler")
    negative, out = comfy.encode(clip, ""), []
    for i, text in enumerate(captions):
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        positive = comfy.encode(clip, text)
        made = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed + i)["samples"]
        out.append(decode(vae, made))
    return torch.cat(out)


@torch.inference_mode()
def through_autoencoder(images: Tensor) -> Tensor:
    """What is left of a drawn picture after encoding and decoding: the best that any training can reach."""
    _, _, vae = loaded()
    return torch.cat([decode(vae, encode(vae, image[None])) for image in images])


def right(images: Tensor, s: Scenes, names: tuple[str, ...]) -> dict[str, float]:
    """Share read right by attribute, the mean of both judges. colour and shape are read at the asked place."""
    shares = dict.fromkeys(names, 0.0)
    for judge in JUDGES:
        seen = probe.read(probe.load(judge), images)
        for name, got in probe.right(seen, s, names, s.place[:, 0]).items():
            shares[name] += float(got.float().mean()) / len(JUDGES)
    return shares


def one_object(n: int, seed: int, **fixed: int) -> Scenes:
    """n scenes of one object, never trained combinations among them, with these attributes fixed."""
    s = scenes.sample(n, torch.Generator().manual_seed(seed), "any", two=0.0)
    for name, value in fixed.items():
        s = s.changed(name, value)
    return s


def lora_file_kb(name: str) -> float:
    path: Path = folders.model_file("loras", name)
    return path.stat().st_size / 1000
