"""Reads the attributes off an image: a convolutional probe, a second judge of another build, and a feature net for KID.

`python demo probe train` makes all three (minutes on a GPU, an hour or so on a CPU); they are committed as
models/probes.safetensors and models/features.safetensors. Two judges, because what one net has guided another must judge.
Trained on scenes half of which went through the autoencoder, some blurred or noisy, so that a sample's small flaws are
not read as another attribute.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import scenes
from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, STYLES, TEXTURES, Scenes

MODELS = Path(__file__).resolve().parent.parent / "models"
PROBES, FEATURES = MODELS / "probes.safetensors", MODELS / "features.safetensors"
#: per place: is an object there, its colour, shape, size
_SLOT = (("present", 2), ("colour", len(COLOURS)), ("shape", len(SHAPES)), ("size", len(SIZES)))
_WHOLE = (("background", len(BACKGROUNDS)), ("texture", len(TEXTURES)), ("style", len(STYLES)))
_OUT = len(PLACES) * sum(n for _, n in _SLOT) + sum(n for _, n in _WHOLE)


def conv_block(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1), nn.GroupNorm(8, n_out), nn.SiLU())


class ConvProbe(nn.Module):
    """128 px image in 0..1 -> logits, by strided convolutions down to 8x8."""

    def __init__(self, width: int = 24):
        super().__init__()
        w = width
        self.body = nn.Sequential(conv_block(3, w, 2), conv_block(w, 2 * w, 2), conv_block(2 * w, 2 * w, 1),
                                  conv_block(2 * w, 3 * w, 2), conv_block(3 * w, 3 * w, 1), conv_block(3 * w, 4 * w, 2),
                                  conv_block(4 * w, 4 * w, 1), nn.Conv2d(4 * w, w, 1), nn.SiLU(), nn.Flatten())
        self.hidden = nn.Linear(64 * w, 192)
        self.out = nn.Linear(192, _OUT)

    def features(self, image: Tensor) -> Tensor:
        return self.hidden(self.body((image - .5) * 4))

    def forward(self, image: Tensor) -> Tensor:
        return self.out(F.silu(self.features(image)))


class PatchProbe(nn.Module):
    """The second judge: 8 px patches and attention, no convolution over the image."""

    def __init__(self, width: int = 112, layers: int = 4):
        super().__init__()
        self.patch = nn.Linear(192, width)
        self.place = nn.Parameter(torch.randn(256, width) * .2)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(width, 4, width * 2, 0., "gelu", batch_first=True,
                                                                norm_first=True) for _ in range(layers)])
        self.read = nn.Parameter(torch.randn(1, 6, width) * .2)
        self.out = nn.Linear(6 * width, _OUT)

    def forward(self, image: Tensor) -> Tensor:
        x = F.pixel_unshuffle((image - .5) * 4, 8).flatten(2).transpose(1, 2)
        x = torch.cat([self.read.expand(len(x), -1, -1), self.patch(x) + self.place], 1)
        for layer in self.layers:
            x = layer(x)
        return self.out(x[:, :6].flatten(1))


class FeatureNet(nn.Module):
    """128 px image in 0..1 -> 128 features that know the attributes and how damaged a picture is (blur, noise)."""

    def __init__(self, width: int = 20):
        super().__init__()
        self.probe = ConvProbe(width)
        self.probe.hidden = nn.Linear(64 * width, 128)
        self.probe.out = nn.Linear(128, _OUT + 2)

    def features(self, image: Tensor) -> Tensor:
        return self.probe.features(image)

    def forward(self, image: Tensor) -> Tensor:
        return self.probe(image)


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
    for name, n in _SLOT:
        logits[name] = out[:, at:at + 5 * n].reshape(len(out), 5, n)
        at += 5 * n
    for name, n in _WHOLE:
        logits[name] = out[:, at:at + n]
        at += n
    return logits


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
        there.scatter_(1, s.place[:, i:i + 1], torch.where(on, 1, there.gather(1, s.place[:, i:i + 1])[:, 0])[:, None])
        for name, _ in _SLOT[1:]:
            at = logits[name][torch.arange(len(s)), s.place[:, i]]
            slot_loss = slot_loss + (F.cross_entropy(at, getattr(s, name)[:, i], reduction="none") * on).mean()
    whole = sum(F.cross_entropy(logits[name], getattr(s, name)) for name, _ in _WHOLE)
    return F.cross_entropy(logits["present"].flatten(0, 1), there.flatten()) * 2 + slot_loss + whole


def accuracy(net: nn.Module, image: Tensor, s: Scenes) -> dict[str, float]:
    """Shares read right on one-object scenes (colour, shape, size at the place that was read)."""
    one = s.count == 1
    reading, truth = read(net, image[one]), s[one]
    right = {name: reading.at_place(name) == getattr(truth, name)[:, 0] for name in ("colour", "shape", "size")}
    right["place"] = reading.place == truth.place[:, 0]
    right |= {name: getattr(reading, name) == getattr(truth, name) for name, _ in _WHOLE}
    return {k: float(v.float().mean()) for k, v in right.items()}


# --------------------------------------------------------------------------------------------------- training

def _damage(image: Tensor, autoencoder: nn.Module, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half through the autoencoder, some blurred, some noisy; and how much of the last two, [B, 2]."""
    n, device = len(image), image.device
    u = torch.rand(n, 4, generator=draws, device=device)
    half = n // 2
    with torch.no_grad():
        latent = autoencoder.encode(image[:half])
        latent = latent + .15 * u[:half, 0, None, None, None] * torch.randn_like(latent)
        image = torch.cat([autoencoder.decode(latent).clamp(0, 1).to(image.dtype), image[half:]])
    blur = (u[:, 1] - .7).clamp(min=0)[:, None, None, None] * 3
    image = image + blur * (F.avg_pool2d(F.pad(image, (2, 2, 2, 2), "reflect"), 5, 1) - image)
    noise = (u[:, 2] - .7).clamp(min=0)[:, None, None, None] * .3
    image = image + noise * torch.randn(image.shape, generator=draws, device=device)
    return image.clamp(0, 1), torch.cat([blur.flatten(1), noise.flatten(1) * 10], 1)


def train(name: str, device: torch.device, minutes: float, batch: int, folder: Path) -> nn.Module:
    from .train import generator, load_autoencoder
    from .training import Trainer, precision
    torch.manual_seed({"conv": 1, "patch": 2, "features": 3}[name])
    net = {"conv": ConvProbe, "patch": PatchProbe, "features": FeatureNet}[name]().to(device)
    autoencoder = load_autoencoder(device, folder)
    trainer = Trainer(f"probe_{name}", net, minutes, lr=1e-3, ema=.998, folder=folder, weight_decay=1e-3)
    draws = generator(device, trainer.samples + 3)

    def step(_):
        batch_scenes = scenes.sample(batch, draws, "any")
        with precision(device):
            image, harm = _damage(scenes.draw(batch_scenes)[0], autoencoder, draws)
            out = net(image).float()
        total = loss(split_logits(out), batch_scenes)
        return {"loss": total + (5 * F.mse_loss(out[:, _OUT:], harm) if name == "features" else 0)}

    truth = scenes.sample(512, generator(device, 9), "held_out")
    with torch.no_grad():
        test = torch.cat([autoencoder.decode(autoencoder.encode(part)).clamp(0, 1)
                          for part in scenes.draw(truth)[0].split(64)])

    def report():
        return "  ".join(f"{k} {v:.3f}" for k, v in accuracy(trainer.average, test, truth).items())

    return trainer.run(step, batch, report, save_every=30)


def load(which: str = "conv") -> nn.Module:
    """The committed probe ("conv" or "patch") or the feature net ("features"), on the CPU, fp32."""
    from safetensors.torch import load_file
    net = {"conv": ConvProbe, "patch": PatchProbe, "features": FeatureNet}[which]()
    state = load_file(FEATURES if which == "features" else PROBES)
    prefix = "" if which == "features" else f"{which}."
    net.load_state_dict({k[len(prefix):]: v.float() for k, v in state.items() if k.startswith(prefix)})
    return net.eval().requires_grad_(False)


def main() -> None:
    from safetensors.torch import load_file, save_file

    from .training import STATE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "pack"))
    parser.add_argument("--minutes", type=float, default=None, help="for each of the three")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.command == "train":
        gpu = device.type == "cuda"
        for name in ("conv", "patch", "features"):
            train(name, device, args.minutes or (1.2 if gpu else 120), 256 if gpu else 32, STATE)
    states = {name: load_file(STATE / f"probe_{name}.safetensors") for name in ("conv", "patch", "features")}
    MODELS.mkdir(exist_ok=True)
    save_file({f"{n}.{k}": v.half() for n in ("conv", "patch") for k, v in states[n].items()}, PROBES)
    save_file({k: v.half() for k, v in states["features"].items()}, FEATURES)


if __name__ == "__main__":
    main()
