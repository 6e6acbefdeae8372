"""Trains the demo model from nothing: `make train`, or `python demo train STAGE`.

Each stage runs for --minutes, saves its EMA weights into .training/ and can be called again to go on, from there or
from the committed weights. The autoencoder is frozen once the diffusion has begun: its latents are what everything
above it has learnt.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import captions, nets, scenes
from .checkpoint import CHECKPOINT, fit_rgb_factors, read_part, write_checkpoint
from .model import TextToImage, empty_rows, generate
from .training import DEVICE, STATE, Trainer, chunks, die, grid, precision, psnr


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


# --------------------------------------------------------------------------------------------------- autoencoder

def train_autoencoder(device: torch.device, minutes: float, batch: int, slim: bool, folder=STATE) -> nn.Module:
    """L1 + L2 + gradient loss on crops of fresh scenes; latents are drawn towards zero mean and unit variance."""
    torch.manual_seed(0)
    net = nets.AutoEncoder(nets.SLIM_SIZE if slim else nets.TAESD_SIZE).to(device).to(memory_format=torch.channels_last)
    trainer = Trainer("autoencoder_slim" if slim else "autoencoder", net, minutes, lr=1.2e-3, ema=.998, folder=folder)
    draws = generator(device, trainer.samples + 1)
    gpu = device.type == "cuda"
    encode = torch.compile(net.taesd_encoder) if gpu else net.encode
    decode = torch.compile(net.taesd_decoder) if gpu else net.decode
    crops = 4  # 64 px crops of one drawing, half of them around its objects: more variety for the same arithmetic

    def images():
        batch_scenes = scenes.sample(max(1, batch // crops), draws)
        image, mask = scenes.draw(batch_scenes)
        heavy = F.avg_pool2d(mask.sum(1, keepdim=True), 64, 4)  # object area of every crop, corners 4 px apart
        odds = (heavy > 0).flatten(1).float() + .02
        corner = torch.multinomial(odds, crops, replacement=True, generator=draws)
        corner = torch.where(torch.rand(corner.shape, generator=draws, device=device) < .5, corner,
                             torch.randint(odds.shape[1], corner.shape, generator=draws, device=device))
        side = heavy.shape[-1]
        cut = [image[i, :, y:y + 64, x:x + 64] for i in range(len(image))
               for y, x in zip((corner[i] // side * 4).tolist(), (corner[i] % side * 4).tolist(), strict=True)]
        return torch.stack(cut).contiguous(memory_format=torch.channels_last)

    def step(_):
        image = images()
        with precision(device):
            z = encode(image).float()
            out = decode(z + .03 * torch.randn_like(z)).float()
        error = out - image
        edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
        flat = z.transpose(0, 1).flatten(1)
        shape = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()
        shape = shape + (z.abs() - 2.6).clamp(min=0).square().mean()
        return {"loss": error.abs().mean() + 6 * error.square().mean() + .5 * edges + .05 * shape,
                "mse": error.square().mean(), "shape": shape}

    test = scenes.draw(scenes.sample(32, generator(device, 7), "held_out"))[0]

    @torch.no_grad()
    def report():
        out = trainer.average.decode(trainer.average.encode(test)).clamp(0, 1)
        grid(torch.cat([test[:8], out[:8], test[8:16], out[8:16]]), trainer.path.parent / "autoencoder_samples.png")
        return f"{psnr(test, out):.2f} dB on held-out scenes"

    return trainer.run(step, batch, report)


def load_autoencoder(device: torch.device, folder=STATE) -> nets.AutoEncoder:
    """The trained autoencoder, frozen: what `folder` holds, else the committed one."""
    files = [(folder / "autoencoder.safetensors", nets.TAESD_SIZE),
             (folder / "autoencoder_slim.safetensors", nets.SLIM_SIZE)]
    found = next(((load_file(path), size) for path, size in files if path.exists()), None)
    if found is None:
        if not CHECKPOINT.exists():
            die("There is no trained autoencoder yet: run `python demo train autoencoder` first.")
        wide = read_part(CHECKPOINT, "autoencoder")
        slim = nets.slimmed(wide)
        found = (wide, nets.TAESD_SIZE) if slim is None else (slim, nets.SLIM_SIZE)
    net = nets.AutoEncoder(found[1])
    net.load_state_dict(found[0])
    return net.to(device).eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------- diffusion

FIGURES = CHECKPOINT.parents[2] / "output" / "bench" / "demo_model.figures.json"
#: weight of an object's latent pixels in the loss; timesteps where outlines are decided (sigma about 1 to 40)
ON_OBJECT, OUTLINES = 4.0, (300, 950)
USES = 6  # times that a scene is seen on average before it is replaced


class Latents:
    """A pool of encoded scenes on the device, refreshed a little at a time so that no scene is seen often."""

    def __init__(self, size: int, autoencoder: nn.Module, draws: torch.Generator):
        self.autoencoder, self.draws, self.size = autoencoder, draws, size
        at_once = 1024 if draws.device.type == "cuda" else 64  # more would fall out of a CPU's cache
        parts = [self._make(part.stop - part.start) for part in chunks(size, at_once)]
        self.latent, self.mask = (torch.cat([part[i] for part in parts]) for i in range(2))
        self.scenes = scenes.cat([part[2] for part in parts])

    @torch.no_grad()
    def _make(self, n):
        batch = scenes.sample(n, self.draws)
        image, mask = scenes.draw(batch)
        with precision(image.device):
            latent = self.autoencoder.encode(image.contiguous(memory_format=torch.channels_last))
        return latent.half(), F.avg_pool2d(mask, 8).half(), batch

    def refresh(self, n: int) -> None:
        latent, mask, batch = self._make(n)
        at = torch.randint(0, len(self.latent) - n + 1, (1,)).item()
        self.latent[at:at + n], self.mask[at:at + n] = latent, mask
        for field in scenes.Scenes.__dataclass_fields__:
            getattr(self.scenes, field)[at:at + n] = getattr(batch, field)

    def take(self, n: int) -> tuple[Tensor, Tensor, scenes.Scenes]:
        index = torch.randint(len(self.latent), (n,), generator=self.draws, device=self.latent.device)
        return self.latent[index].float(), self.mask[index].float(), self.scenes[index]


def caption_rows(batch: scenes.Scenes, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training captions as rows; one in ten is empty, and now and then a word is the unknown one."""
    rows, words = captions.token_rows(*captions.phrases(batch, draws))
    n, device = len(rows), rows.device

    def chance(p, *shape):
        return torch.rand(n, *shape, generator=draws, device=device) < p

    rows = torch.where((rows > 2) & chance(.1, 1) & chance(.12, rows.shape[1]), 0, rows)
    empty = chance(.1)
    return torch.where(empty[:, None], empty_rows(n, device), rows), torch.where(empty[:, None, None], 0, words)


def map_loss(maps: dict[str, Tensor], words: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """-log of the share of each word's attention that falls on its object; words [B, 2, 2], mask [B, 2, 16, 16]."""
    total = 0
    for m in maps.values():
        side = int(m.shape[1] ** .5)
        inside = F.adaptive_avg_pool2d(mask, side).flatten(2)[:, :, None]  # [B, 2, 1, hw]
        columns = m.transpose(1, 2).gather(1, words.flatten(1)[..., None].expand(-1, -1, m.shape[1]))
        columns = columns.reshape(*words.shape, m.shape[1])
        share = (columns * inside).sum(-1) / columns.sum(-1).clamp(min=1e-8)
        there = (words > 0) * weight[:, None, None]
        total = total - ((share + .01).log() * there).sum() / there.sum().clamp(min=1)
    return total / len(maps)


def committed_diffusion() -> tuple[dict[str, Tensor], int]:
    """Text encoder and UNet of the committed checkpoint, and the samples they had seen."""
    with safe_open(CHECKPOINT, "pt") as f:
        samples = json.loads((f.metadata() or {}).get("samples_seen", "0"))
    return {f"{name}.{k}": v for name in ("text", "unet") for k, v in read_part(CHECKPOINT, name).items()}, samples


def train_diffusion(device: torch.device, minutes: float, batch: int, pool: int, lr: float, go_on: bool = True,
                    folder=STATE) -> nn.Module:
    """v-prediction; the cross-attention of two layers is taught to look at the named object.

    Shapes are a few latent pixels at medium noise and were learnt last under a plain loss: so the loss weighs an
    object and its rim `ON_OBJECT` times, and every other timestep is drawn where outlines are decided."""
    torch.manual_seed(0)
    autoencoder = load_autoencoder(device, folder)
    net = TextToImage().to(device)
    trainer = Trainer("diffusion", net, minutes, lr=lr, ema=.9995 if device.type == "cuda" else .998, folder=folder,
                      warmup=300, committed=committed_diffusion() if go_on else None)
    draws = generator(device, trainer.samples + 2)
    latents = Latents(pool, autoencoder, draws)
    sigma = nets.sigmas().to(device)
    unet = torch.compile(net.unet) if device.type == "cuda" else net.unet
    text = torch.compile(net.text) if device.type == "cuda" else net.text
    spread = latents.latent[:4096].float().std()
    print(f"diffusion: pool of {len(latents.latent)} scenes, latent std {spread:.3f}", flush=True)

    def step(i):
        if i % 8 == 7:
            latents.refresh(min(batch * 8 // USES, pool))
        x0, mask, batch_scenes = latents.take(batch)
        rows, words = caption_rows(batch_scenes, draws)
        t = torch.randint(1000, (batch,), generator=draws, device=device)
        t[::2] = torch.randint(*OUTLINES, (len(t[::2]),), generator=draws, device=device)
        s = sigma[t][:, None, None, None]
        a = (1 + s * s).rsqrt()
        noise = torch.randn(x0.shape, generator=draws, device=device)
        with precision(device):
            v, maps = unet(a * x0 + s * a * noise, t, text(rows), nets.MAP_LAYERS)
        weight = 1 + (ON_OBJECT - 1) * F.max_pool2d((mask.amax(1, keepdim=True) > .05).float(), 3, 1, 1)
        loss = ((v.float() - (a * noise - s * a * x0)).square() * (weight / weight.mean())).mean()
        attention = map_loss({k: m.float() for k, m in maps.items()}, words, mask, (t < 750).float())
        return {"loss": loss + .01 * attention, "v": loss, "attention": attention}

    draw_test = generator(device, 11)
    test = scenes.sample(32, draw_test, "held_out")

    @torch.no_grad()
    def report():
        images = generate(trainer.average, autoencoder, test, 30, 5.0, seed=5)
        grid(images, STATE / "diffusion_samples.png")
        return "sample sheet written"

    return trainer.run(step, batch, report, save_every=60 if device.type == "cuda" else 420)


def pack() -> None:
    """Write the checkpoint from what was trained, with its metadata; its figures are added by `write_figures`."""
    autoencoder = load_autoencoder(torch.device("cpu"))
    images = scenes.draw(scenes.sample(64, generator(torch.device("cpu"), 3)))[0]
    with torch.no_grad():
        factors = fit_rgb_factors(autoencoder.encode(images), images)
    state = load_file(STATE / "diffusion.safetensors")
    with safe_open(STATE / "diffusion.safetensors", "pt") as f:
        samples = int(f.metadata()["samples"])
    part = {name: {k[len(name) + 1:]: v for k, v in state.items() if k.startswith(name + ".")}
            for name in ("text", "unet")}
    config = {"channels": nets.CHANNELS, "context": nets.CONTEXT, "heads": nets.HEADS,
              "betas": [nets.LINEAR_START, nets.LINEAR_END]}
    write_checkpoint(CHECKPOINT, part["unet"], part["text"], nets.widened(autoencoder.state_dict()),
                     captions.VOCABULARY, prediction="v", latent_rgb=factors,
                     metadata={"config": config, "samples_seen": samples, "map_layers": list(nets.MAP_LAYERS),
                               "attention_loss": "0.01 x -log share of attention inside the named object's mask",
                               "figures": {}})
    print(f"{CHECKPOINT.name}: {samples} samples seen, {CHECKPOINT.stat().st_size / 1e6:.1f} MB")


def write_figures(path: Path = CHECKPOINT, measured: Path = FIGURES) -> None:
    """Put the last `make bench NAME=demo_model` into the checkpoint's metadata; no tensor changes."""
    if not measured.exists():
        die("Nothing is measured yet: run `make bench NAME=demo_model` first.")
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    tensors = load_file(path)
    save_file(tensors, path, metadata | {"figures": measured.read_text().strip()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="?", default="all",
                        choices=("autoencoder", "diffusion", "pack", "figures", "all"))
    parser.add_argument("--from-nothing", action="store_true", help="don't go on from the committed weights")
    parser.add_argument("--minutes", type=float, default=None, help="length of this piece (per stage)")
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--pool", type=int, default=None, help="scenes encoded ahead")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    args = parser.parse_args()
    device = args.device
    gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    go_on = CHECKPOINT.exists() and not args.from_nothing
    # the committed autoencoder stays: another one would invalidate everything that was trained on its latents
    if args.stage == "autoencoder" or args.stage == "all" and not go_on:
        train_autoencoder(device, args.minutes or (6.5 if gpu else 600), args.batch or (512 if gpu else 16),
                          slim=not gpu)
    if args.stage in ("diffusion", "all"):
        train_diffusion(device, args.minutes or (15 if gpu else 1200), args.batch or (1024 if gpu else 32),
                        args.pool or (200_000 if gpu else 4096), args.lr, go_on)
    if args.stage in ("pack", "all"):
        pack()
    if args.stage == "figures":
        write_figures()


if __name__ == "__main__":
    main()
