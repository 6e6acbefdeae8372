"""Writes what was trained into the demo model's files of weights: the last stages of `make train`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import captions, nets, scenes
from .autoencoder import widened
from .latents import generator
from .train_autoencoder import load_autoencoder
from .training import STATE, die
from .weights import CHECKPOINT, committed_diffusion, fit_rgb_factors, write_checkpoint, write_network

FIGURES = CHECKPOINT.parents[2] / "output" / "bench" / "demo_model.figures.json"
RARE_STRENGTH = 0.5  # of a rare word's own direction, beside the norm of the unknown word's row


def set_rare_rows(text: dict[str, Tensor]) -> None:
    """Give the rare words their rows in a text encoder's state: the unknown word's row, which means "any word", plus a
    fixed random direction of `RARE_STRENGTH` times its norm. So each is as neutral as an unknown word and still its
    own."""
    table = text["embeddings.token_embedding.weight"]
    directions = torch.randn(len(captions.RARE), table.shape[1], generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    table[-len(captions.RARE) :] = table[0] + RARE_STRENGTH * table[0].norm() * directions


def pack_network(name: str, path: Path) -> None:
    """Write one trained UNet into a file for Load Diffusion Model."""
    with safe_open(STATE / f"{name}.safetensors", "pt") as f:
        samples = f.metadata()["samples"]
    state = load_file(STATE / f"{name}.safetensors")
    unet = {k.removeprefix("unet."): v for k, v in state.items() if not k.startswith("text.")}
    with safe_open(CHECKPOINT, "pt") as f:
        factors = f.get_tensor("latent_rgb_factors")
    write_network(
        path,
        unet,
        prediction=None if name == "flow" else "v",
        latent_rgb=factors,
        metadata={"samples_seen": samples, "figures": {}},
    )
    print(f"{path.name}: {samples} samples seen, {path.stat().st_size / 1e6:.1f} MB")


def pack() -> None:
    """Write the checkpoint from what was trained, and what was not from the committed one, with its metadata; its
    figures are added by `write_figures`."""
    autoencoder = load_autoencoder(torch.device("cpu"))
    images = scenes.draw(scenes.sample(64, generator(torch.device("cpu"), 3)))[0]
    with torch.no_grad():
        factors = fit_rgb_factors(autoencoder.encode(images), images)
    trained = STATE / "diffusion.safetensors"
    if trained.exists():
        state = load_file(trained)
        with safe_open(trained, "pt") as f:
            samples = int(f.metadata()["samples"])
    else:
        state, samples = committed_diffusion()
    part = {
        name: {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(name + ".")} for name in ("text", "unet")
    }
    set_rare_rows(part["text"])
    config = {
        "channels": nets.CHANNELS,
        "context": nets.CONTEXT,
        "heads": nets.HEADS,
        "betas": [nets.LINEAR_START, nets.LINEAR_END],
    }
    write_checkpoint(
        CHECKPOINT,
        part["unet"],
        part["text"],
        widened(autoencoder.state_dict()),
        captions.VOCABULARY,
        prediction="v",
        latent_rgb=factors,
        metadata={
            "config": config,
            "samples_seen": samples,
            "map_layers": list(nets.MAP_LAYERS),
            "attention_loss": "0.01 x -log share of attention inside the named object's mask",
            "figures": {},
        },
    )
    print(f"{CHECKPOINT.name}: {samples} samples seen, {CHECKPOINT.stat().st_size / 1e6:.1f} MB")


def write_figures(path: Path = CHECKPOINT, measured: Path = FIGURES) -> None:
    """Put the last `make bench NAME=demo_model` into the checkpoint's metadata; no tensor changes."""
    if not measured.exists():
        die("Nothing is measured yet: run `make bench NAME=demo_model` first.")
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    tensors = load_file(path)
    save_file(tensors, path, metadata | {"figures": measured.read_text().strip()})
