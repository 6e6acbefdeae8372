"""Trains the two classifiers of the demo scenes that the guidance workflows use.

    python tools classifiers pictures    models/nulltext_colours.safetensors: a torchvision net, picture -> 8 colours
    python tools classifiers latents     models/nulltext_pairs.safetensors: noise-aware, latent -> colour and shape, 48
    classes (after `python tools attributes`, which trains what it starts from)

Both on one-object scenes of the training split; unseen pairs are drawn from their own split, since a classifier must
know its 48 classes (the diffusion never saw those 8 pairs, and the classifier doesn't show it any).
"""

from __future__ import annotations

import argparse
import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..samplers.networks.latent_classifier import LatentClassifier, train_latent_classifier
from . import attributes, nets, pool, scenes
from .training import DEVICE, precision
from .weights import MODELS

COLOURS, PAIRS = MODELS / "nulltext_colours.safetensors", MODELS / "nulltext_pairs.safetensors"
PAIR_NAMES = [f"{c} {s}" for c in scenes.COLOURS for s in scenes.SHAPES]


def pair_index(batch: scenes.Scenes) -> Tensor:
    """The class of each scene's first object among PAIR_NAMES."""
    return batch.colour[:, 0] * len(scenes.SHAPES) + batch.shape[:, 0]


def write(path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in state.items()}
    save_file(halves, path, metadata)
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)", flush=True)


def train_pictures(steps: int, batch: int, device: torch.device) -> None:
    """shufflenet_v2_x0_5 on 64 px pictures, some blurred or noisy, as decoded estimates are."""
    import torchvision.models

    torch.manual_seed(0)
    net = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=len(scenes.COLOURS)).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    draws = torch.Generator(device).manual_seed(21)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for i in range(steps):
        scene = scenes.sample(batch, draws, two=0)
        image = scenes.draw(scene, 64)[0]
        if i % 3 == 0:
            image = F.interpolate(F.avg_pool2d(image, 4), 64, mode="bilinear", align_corners=False)
        image = image + 0.05 * torch.rand((), generator=draws, device=device) * torch.randn(
            image.shape, generator=draws, device=device
        )
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (i + 1) / 30) * (0.5 + 0.5 * math.cos(math.pi * i / steps))
        loss = F.cross_entropy(net((image - mean) / std), scene.colour[:, 0], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % 50 == 0:
            print(f"pictures: step {i} of {steps}, loss {loss.item():.3f}", flush=True)
    net.eval()
    test = scenes.sample(512, torch.Generator(device).manual_seed(22), "held_out", two=0)
    with torch.no_grad():
        right = (net((scenes.draw(test, 64)[0] - mean) / std).argmax(1) == test.colour[:, 0]).float().mean()
    metadata = {"architecture": "shufflenet_v2_x0_5", "labels": json.dumps(scenes.COLOURS), "size": "64"}
    write(COLOURS, net.state_dict(), metadata | {"accuracy_held_out": f"{float(right):.4f}"})
    print(f"pictures: {float(right):.1%} of 512 held-out scenes", flush=True)


def train_latents(steps: int, batch: int, size: int, device: torch.device) -> None:
    """The trunk of demo attributes with one logit for each of the 48 pairs, colour's plus shape's; then, if asked for,
    steps of the node's own training function. The steps are 0 by default: 350 of them on the trunk's own pool learned
    the pool by heart (held-out accuracy at sigma .1 fell from .75 to .27)."""
    from .train_autoencoder import load_autoencoder

    torch.manual_seed(0)
    autoencoder = load_autoencoder(device)
    net = LatentClassifier(PAIR_NAMES, {"out": len(PAIR_NAMES)} | attributes.TRUNK)
    with torch.no_grad():
        for p, value in zip(
            attributes.started(net.net).pool.out.parameters(), attributes.pair_head(attributes.trained()), strict=True
        ):
            p.copy_(value)
    net = net.to(device).eval()

    def say(i, loss, accuracy):
        if i % 50 == 0:
            print(f"latents: step {i} of {steps}, loss {loss:.3f}, {accuracy:.1%} right over all levels", flush=True)

    if steps:
        seen = pool.make(size, autoencoder, torch.Generator(device).manual_seed(31))
        seen = seen[seen.scenes.count == 1]
        with precision(device):
            train_latent_classifier(
                net,
                seen.latents,
                pair_index(seen.scenes),
                nets.sigmas(),
                steps=steps,
                batch=batch,
                lr=5e-4,
                callback=say,
            )
    test = scenes.sample(256, torch.Generator(device).manual_seed(32), "held_out", two=0)
    x0 = pool.encode(test, autoencoder)[0]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(33)).to(device)
    figures = {}
    with torch.no_grad():
        for s in (0.1, 0.5, 1.0, 2.0, 4.0):
            right = (net(x0 + s * noise, s).argmax(1) == pair_index(test)).float().mean()
            figures[f"accuracy_sigma_{s:g}"] = f"{float(right):.4f}"
    write(PAIRS, net.state_dict(), net.metadata() | figures)
    print(f"latents: {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("pictures", "latents"))
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=10_000, help="scenes drawn and encoded for the latent classifier")
    args = parser.parse_args()
    device = args.device
    if args.which == "pictures":
        train_pictures(args.steps or 500, args.batch, device)
    else:
        train_latents(args.steps or 0, args.batch, args.pool, device)


if __name__ == "__main__":
    main()
