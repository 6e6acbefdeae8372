"""Reads the attributes off an image: a convolutional probe, a second judge of another build, and a feature net for KID.

`python tools probe train` makes all three in one loop (minutes on a GPU, an hour or so on a CPU); they are committed as
models/probes.safetensors and models/features.safetensors. Two judges, because what one net has guided another must
judge. Trained on scenes half of which went through the autoencoder, some blurred or noisy, so that a sample's small
flaws are not read as another attribute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import scenes
from .attributes import truth as value_of
from .probe_nets import OUT, SLOT, WHOLE, ConvProbe, FeatureNet, QueryProbe
from .scenes import Scenes
from .training import DEVICE, STATE, Trainer, precision
from .weights import MODELS

PROBES, FEATURES = MODELS / "probes.safetensors", MODELS / "features.safetensors"
OF_OBJECT = tuple(name for name, _ in SLOT[1:])


@dataclass(frozen=True)
class Reading:
    """What a probe saw. Object attributes are [B, 5], one column a place; the others [B]. `logits` keeps everything."""

    present: Tensor  # probability
    colour: Tensor
    shape: Tensor
    size: Tensor
    background: Tensor
    texture: Tensor
    style: Tensor
    logits: dict[str, Tensor]

    @property
    def place(self) -> Tensor:
        """[B] the place of the most certain object."""
        return self.present.argmax(1)

    def at_place(self, attribute: str, place: Tensor | None = None) -> Tensor:
        """[B] an object attribute read at `place` (default: where the most certain object is)."""
        place = self.place if place is None else place
        return getattr(self, attribute).gather(1, place[:, None])[:, 0]


def split_logits(out: Tensor) -> dict[str, Tensor]:
    """{"colour": [B, 5, 8], ..., "background": [B, 12], ...}"""
    logits, at = {}, 0
    for name, n in SLOT:
        logits[name] = out[:, at : at + 5 * n].reshape(len(out), 5, n)
        at += 5 * n
    for name, n in WHOLE:
        logits[name] = out[:, at : at + n]
        at += n
    return logits


def right(reading: Reading, s: Scenes, names: Iterable[str], place: Tensor | None = None) -> dict[str, Tensor]:
    """{attribute: [B] whether it was read right}; an object's is the first object's, read at `place` (default: where
    the most certain object is)."""
    seen = {k: reading.at_place(k, place) if k in OF_OBJECT else getattr(reading, k) for k in names}
    return {k: values == value_of(s, k) for k, values in seen.items()}


@torch.no_grad()
def read(net: nn.Module, image: Tensor) -> Reading:
    """image [B, 3, 128, 128] in 0..1."""
    logits = split_logits(net(image).float())
    best = {k: v.argmax(-1) for k, v in logits.items() if k != "present"}
    return Reading(present=logits["present"].softmax(-1)[..., 1], logits=logits, **best)


def loss(logits: dict[str, Tensor], s: Scenes) -> Tensor:
    """Cross-entropy of everything that is there to be read."""
    there = torch.zeros(len(s), 5, dtype=torch.long, device=s.count.device)
    slot_loss = 0
    for i in range(2):
        on = s.count > i
        there.scatter_(
            1, s.place[:, i : i + 1], torch.where(on, 1, there.gather(1, s.place[:, i : i + 1])[:, 0])[:, None]
        )
        for name, _ in SLOT[1:]:
            at = logits[name][torch.arange(len(s)), s.place[:, i]]
            slot_loss = slot_loss + (F.cross_entropy(at, getattr(s, name)[:, i], reduction="none") * on).mean()
    whole = sum(F.cross_entropy(logits[name], getattr(s, name)) for name, _ in WHOLE)
    return F.cross_entropy(logits["present"].flatten(0, 1), there.flatten()) * 2 + slot_loss + whole


def accuracy(net: nn.Module, image: Tensor, s: Scenes) -> dict[str, float]:
    """Shares read right on one-object scenes (colour, shape, size at the place that was read)."""
    one = s.count == 1
    names = (*OF_OBJECT, "place", *(name for name, _ in WHOLE))
    return {k: float(v.float().mean()) for k, v in right(read(net, image[one]), s[one], names).items()}


# --------------------------------------------------------------------------------------------------- training


class Pictures:
    """A ring of drawn scenes, every other one passed through the autoencoder, a few replaced at every step: drawing and
    encoding cost more than the small nets that learn from them."""

    def __init__(self, size: int, autoencoder: nn.Module, draws: torch.Generator):
        self.autoencoder, self.draws, self.at = autoencoder, draws, 0
        parts = [self._make(min(32, size - i)) for i in range(0, size, 32)]
        self.image, self.scenes = torch.cat([p[0] for p in parts]), scenes.cat([p[1] for p in parts])

    @torch.no_grad()
    def _make(self, n: int) -> tuple[Tensor, Scenes]:
        batch = scenes.sample(n, self.draws, "any")
        image = scenes.draw(batch)[0]
        with precision(image.device):
            latent = self.autoencoder.encode(image[::2].contiguous(memory_format=torch.channels_last)).float()
            spread = torch.rand(len(latent), 1, 1, 1, generator=self.draws, device=latent.device)
            latent = latent + 0.15 * spread * torch.randn(latent.shape, generator=self.draws, device=latent.device)
            image[::2] = self.autoencoder.decode(latent).float().clamp(0, 1)
        return (image * 255).round().byte(), batch

    def renew(self, n: int) -> None:
        image, batch = self._make(n)
        index = (torch.arange(n, device=image.device) + self.at) % len(self.image)
        self.at = (self.at + n) % len(self.image)
        self.image[index] = image
        for field in Scenes.__dataclass_fields__:
            getattr(self.scenes, field)[index] = getattr(batch, field)

    def take(self, n: int) -> tuple[Tensor, Tensor, Scenes]:
        """Images, some of them blurred or noisy; how much of the two, [n, 2]; the scenes."""
        index = torch.randint(len(self.image), (n,), generator=self.draws, device=self.image.device)
        image = self.image[index].float() / 255
        u = torch.rand(n, 2, 1, 1, 1, generator=self.draws, device=image.device)
        blur, noise = ((u[:, i] - 0.7).clamp(min=0) / 0.3 for i in range(2))
        image = image + 0.9 * blur * (F.avg_pool2d(F.pad(image, (2, 2, 2, 2), "reflect"), 5, 1) - image)
        image = image + 0.1 * noise * torch.randn(image.shape, generator=self.draws, device=image.device)
        return image.clamp(0, 1), torch.cat([blur.flatten(1), noise.flatten(1)], 1), self.scenes[index]


def all_nets() -> nn.ModuleDict:
    return nn.ModuleDict({"conv": ConvProbe(), "query": QueryProbe(), "features": FeatureNet()})


def train(device: torch.device, minutes: float, batch: int, ring: int, renewed: int, folder: Path) -> nn.Module:
    """All three at once, from the same pictures, each with its own loss."""
    from .latents import generator
    from .train_autoencoder import load_autoencoder

    torch.manual_seed(1)
    nets = all_nets().to(device, memory_format=torch.channels_last)
    autoencoder = load_autoencoder(device, folder)
    trainer = Trainer("probes", nets, minutes, lr=2e-3, ema=0.998, folder=folder, weight_decay=1e-3)
    draws = generator(device, trainer.samples + 3)
    pictures = Pictures(ring, autoencoder, draws)
    truth = scenes.sample(256, generator(device, 9), "held_out")
    with torch.no_grad():
        test = torch.cat(
            [autoencoder.decode(autoencoder.encode(part)).clamp(0, 1) for part in scenes.draw(truth)[0].split(64)]
        )

    def step(_):
        pictures.renew(renewed)
        image, harm, what = pictures.take(batch)
        image = image.contiguous(memory_format=torch.channels_last)
        with precision(device):
            out = {name: net(image).float() for name, net in nets.items()}
        losses = {name: loss(split_logits(o), what) for name, o in out.items()}
        damage = F.mse_loss(out["features"][:, OUT:], harm)
        return {"loss": sum(losses.values()) + 3 * damage, **losses, "damage": damage}

    def report():
        return " | ".join(
            f"{name}: " + " ".join(f"{k} {v:.3f}" for k, v in accuracy(net, test, truth).items())
            for name, net in trainer.average.items()
        )

    return trainer.run(step, batch, report, save_every=120)


def load(which: str = "conv") -> nn.Module:
    """The committed probe ("conv" or "query") or the feature net ("features"), on the CPU, fp32."""
    from safetensors.torch import load_file

    net = all_nets()[which]
    state = load_file(FEATURES if which == "features" else PROBES)
    net.load_state_dict({k[len(which) + 1 :]: v.float() for k, v in state.items() if k.startswith(which + ".")})
    return net.eval().requires_grad_(False)


def pack() -> None:
    """Write models/probes.safetensors and models/features.safetensors, fp16, from what was trained."""
    from safetensors.torch import load_file, save_file

    state = {k: v.half() for k, v in load_file(STATE / "probes.safetensors").items()}
    for path, names in ((PROBES, ("conv", "query")), (FEATURES, ("features",))):
        save_file({k: v for k, v in state.items() if k.split(".")[0] in names}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "pack"))
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--device", **DEVICE)
    args = parser.parse_args()
    device = args.device
    if args.command == "train":
        gpu = device.type == "cuda"
        train(device, args.minutes or (3 if gpu else 60), *((256, 30_000, 128) if gpu else (32, 4000, 5)), STATE)
    pack()


if __name__ == "__main__":
    main()
