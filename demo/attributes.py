"""Training by every attribute of a scene at once: what gets the small networks of the demo off the ground.

Told only which of 48 colour-shape pairs it sees, an encoder stays at chance for thousands of steps, since it must find
the object before anything helps; told colour, shape, size, place, background and texture apart, it reads background
and place after a hundred (9,600 latents: colour 49 %, place 94 %, background 98 %; by pairs alone 8 % of the pairs).

`python tools attributes` trains the trunk that the latent classifier and both image towers start from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..samplers.networks.encoder import Encoder, ResBlock, level_embedding
from . import nets, pool, scenes
from .training import DEVICE, STATE, Trainer, precision

HEADS = {
    "colour": scenes.COLOURS,
    "shape": scenes.SHAPES,
    "size": scenes.SIZES,
    "place": scenes.PLACES,
    "background": scenes.BACKGROUNDS,
    "texture": scenes.TEXTURES,
}
OUT = sum(map(len, HEADS.values()))
#: a shape is the last to be read through noise and what limits guidance: at sigma 1 the rest is right where it is half
WEIGHTS = {"shape": 3.0}
#: the noise-aware encoder of latents that both start from
TRUNK = {"in_channels": 4, "widths": (40, 80, 120), "blocks": 2, "attention": (1, 2), "size": 16, "noise_aware": True}


def split(out: Tensor) -> dict[str, Tensor]:
    """Logits [B, OUT] by attribute."""
    return dict(zip(HEADS, out.float().split([len(v) for v in HEADS.values()], -1), strict=True))


def truth(batch: scenes.Scenes, name: str) -> Tensor:
    """[B] the attribute's index, of the first object where it belongs to an object."""
    value = getattr(batch, name)
    return value[:, 0] if value.ndim == 2 else value


def loss(out: Tensor, batch: scenes.Scenes) -> Tensor:
    """Sum of the cross-entropies by WEIGHTS, object attributes for one-object scenes only."""
    one, total = (batch.count == 1).float(), 0.0
    for name, logits in split(out).items():
        value = WEIGHTS.get(name, 1.0) * F.cross_entropy(logits, truth(batch, name), reduction="none")
        of_object = getattr(batch, name).ndim == 2
        total = total + ((value * one).sum() / one.sum().clamp(min=1) if of_object else value.mean())
    return total


def pair_head(trunk: Encoder) -> tuple[Tensor, Tensor]:
    """Weight [48, width] and bias [48] of the last layer whose logit of a pair is colour's plus shape's."""
    weight, bias = trunk.pool.out.weight.detach(), trunk.pool.out.bias.detach()
    n, m = len(scenes.COLOURS), len(scenes.SHAPES)
    joined = [(t[:n, None] + t[None, n : n + m]).flatten(0, 1) for t in (weight, bias)]
    return joined[0], joined[1]


def started(net: Encoder, folder: Path = STATE) -> Encoder:
    """`net`, of TRUNK's configuration but for its outputs, with the trained trunk's weights except the last layer's."""
    kept = {k: v for k, v in trained(folder).state_dict().items() if not k.startswith("pool.out.")}
    missing, unexpected = net.load_state_dict(kept, strict=False)
    assert not unexpected and all(k.startswith("pool.out.") for k in missing)
    return net


def trained(folder: Path = STATE) -> Encoder:
    """The trunk with its attribute outputs."""
    path, net = Path(folder) / "attributes.safetensors", Encoder(out=OUT, **TRUNK)
    if not path.exists():
        raise SystemExit("There is no trained trunk: run `python tools attributes` first.")
    net.load_state_dict(load_file(path))
    return net


@torch.no_grad()
def start_pictures(net: Encoder, trunk: Encoder, seen: pool.Pool, n: int = 600, sigma: float = 0.03) -> float:
    """Give an encoder of 64 px pictures the trunk's weights: its stem, which reads the same 16 x 16 grid, by least
    squares from pictures to what the trunk's stem makes of their latents; the noise level's scales and shifts at a low
    level folded into the norms. Returns the share of the stem's variance that the fit explains."""
    own = {
        k: v
        for k, v in trunk.state_dict().items()
        if not k.startswith(("stem.", "pool.out.", "level.")) and ".film." not in k
    }
    missing, unexpected = net.load_state_dict(own, strict=False)
    assert not unexpected and all(k.startswith(("stem.", "pool.out.")) for k in missing)
    level = F.silu(trunk.level(level_embedding(torch.full((1,), sigma, device=next(net.parameters()).device))))
    blocks = [[m for m in e.modules() if isinstance(m, ResBlock)] for e in (net, trunk)]
    for mine, theirs in zip(*blocks, strict=True):
        a, b = theirs.film(level)[0].chunk(2)
        mine.norm2.weight.mul_(1 + a)
        mine.norm2.bias.mul_(1 + a).add_(b)
    stem, picked = net.stem, seen[torch.arange(min(n, len(seen)), device=seen.latents.device)]
    patches = (
        F.unfold(2 * picked.pictures.float() / 255 - 1, stem.kernel_size, padding=stem.padding, stride=stem.stride)
        .transpose(1, 2)
        .flatten(0, 1)
    )
    rows = torch.cat([patches, torch.ones_like(patches[:, :1])], 1).double()
    want = trunk.stem(picked.latents).flatten(2).transpose(1, 2).flatten(0, 1).double()
    gram = rows.T @ rows + 1e-3 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    fit = torch.linalg.solve(gram, rows.T @ want)
    stem.weight.copy_(fit[:-1].T.reshape(stem.weight.shape))
    stem.bias.copy_(fit[-1])
    return float(1 - (rows @ fit - want).square().mean() / (want - want.mean(0)).square().mean())


def train(minutes: float, batch: int, size: int, device: torch.device, folder: Path = STATE) -> Encoder:
    from .latents import generator
    from .train_autoencoder import load_autoencoder

    torch.manual_seed(0)
    net = Encoder(out=OUT, **TRUNK).to(device)
    trainer = Trainer("attributes", net, minutes, lr=2e-3, ema=0.995, folder=folder, warmup=50)
    draws = generator(device, trainer.samples + 6)
    autoencoder = load_autoencoder(device, folder)
    seen = pool.make(size, autoencoder, generator(device, 31), folder)
    seen = seen[seen.scenes.count == 1]
    table = nets.sigmas().to(device)
    test = scenes.sample(256, generator(device, 13), "held_out", two=0)
    latents = pool.encode(test, autoencoder)[0]

    def look(x0, sigma, net):
        s = sigma[:, None, None, None]
        noise = torch.randn(x0.shape, generator=draws, device=device)
        return net((x0 + s * noise) * (1 + s * s) ** -0.5, sigma)

    def step(_):
        index = torch.randint(len(seen), (batch,), generator=draws, device=device)
        # levels where something can be told, a third over the whole table
        u = torch.rand(batch, generator=draws, device=device)
        sigma = 0.05 * (3.0 / 0.05) ** u
        sigma[: batch // 3] = table[(u[: batch // 3] * len(table)).long()]
        with precision(device):
            out = look(seen.latents[index], sigma, trainer.net)
        return {"loss": loss(out, seen.scenes[index])}

    @torch.no_grad()
    def report():
        said = []
        for s in (0.1, 0.5, 1.0, 2.0):
            told = split(look(latents, torch.full((len(latents),), s, device=device), trainer.average))
            said.append(
                f"sigma {s:g}: "
                + " ".join(f"{k} {float((v.argmax(1) == truth(test, k)).float().mean()):.2f}" for k, v in told.items())
            )
        return " | ".join(said)

    return trainer.run(step, batch, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=10_000, help="scenes drawn and encoded")
    args = parser.parse_args()
    device = args.device
    train(args.minutes or (2 if device.type == "cuda" else 15), args.batch, args.pool, device)


if __name__ == "__main__":
    main()
