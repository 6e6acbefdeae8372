"""Trains the demo model's autoencoder, two stages of `make train`: all of it, then the decoder further."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ..samplers.measure.metrics import psnr
from . import scenes
from .autoencoder import SLIM_SIZE, TAESD_SIZE, AutoEncoder, grown, narrow, widened
from .latents import generator
from .training import STATE, Trainer, die, grid, precision
from .weights import CHECKPOINT, read_part


def train_autoencoder(device: torch.device, minutes: float, batch: int, slim: bool, folder=STATE) -> nn.Module:
    """L1 + L2 + gradient loss on crops of fresh scenes; latents are drawn towards zero mean and unit variance."""
    torch.manual_seed(0)
    net = AutoEncoder(SLIM_SIZE if slim else TAESD_SIZE).to(device).to(memory_format=torch.channels_last)
    trainer = Trainer("autoencoder_slim" if slim else "autoencoder", net, minutes, lr=1.2e-3, ema=0.998, folder=folder)
    draws = generator(device, trainer.samples + 1)
    gpu = device.type == "cuda"
    encode = torch.compile(net.taesd_encoder) if gpu else net.encode
    decode = torch.compile(net.taesd_decoder) if gpu else net.decode
    crops = 4  # 64 px crops of one drawing, half of them around its objects: more variety for the same arithmetic

    def images():
        batch_scenes = scenes.sample(max(1, batch // crops), draws)
        image, mask = scenes.draw(batch_scenes)
        heavy = F.avg_pool2d(mask.sum(1, keepdim=True), 64, 4)  # object area of every crop, corners 4 px apart
        odds = (heavy > 0).flatten(1).float() + 0.02
        corner = torch.multinomial(odds, crops, replacement=True, generator=draws)
        corner = torch.where(
            torch.rand(corner.shape, generator=draws, device=device) < 0.5,
            corner,
            torch.randint(odds.shape[1], corner.shape, generator=draws, device=device),
        )
        side = heavy.shape[-1]
        cut = [
            image[i, :, y : y + 64, x : x + 64]
            for i in range(len(image))
            for y, x in zip((corner[i] // side * 4).tolist(), (corner[i] % side * 4).tolist(), strict=True)
        ]
        return torch.stack(cut).contiguous(memory_format=torch.channels_last)

    def step(_):
        image = images()
        with precision(device):
            z = encode(image).float()
            out = decode(z + 0.03 * torch.randn_like(z)).float()
        error = out - image
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        flat = z.transpose(0, 1).flatten(1)
        shape = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()
        shape = shape + (z.abs() - 2.6).clamp(min=0).square().mean()
        return {
            "loss": error.abs().mean() + 6 * error.square().mean() + 0.5 * edges + 0.05 * shape,
            "mse": error.square().mean(),
            "shape": shape,
        }

    test = scenes.draw(scenes.sample(32, generator(device, 7), "held_out"))[0]

    @torch.no_grad()
    def report():
        out = trainer.average.decode(trainer.average.encode(test)).clamp(0, 1)
        grid(torch.cat([test[:8], out[:8], test[8:16], out[8:16]]), trainer.path.parent / "autoencoder_samples.png")
        return f"{psnr(test, out).mean():.2f} dB on held-out scenes"

    return trainer.run(step, batch, report)


def train_decoder(device: torch.device, minutes: float, batch: int, lr: float, folder=STATE) -> nn.Module:
    """The decoder trained further on the mean squared error of whole pictures, half of them with objects in any colour
    at all. The encoder, and with it every latent that other nets have learnt, stays."""
    torch.manual_seed(0)
    net = load_autoencoder(device, folder)
    if net.decoder_size == SLIM_SIZE:
        net = grown(net)
    net = net.to(device).to(memory_format=torch.channels_last)
    net.taesd_decoder.requires_grad_(True)
    trainer = Trainer("decoder", net, minutes, lr=lr, ema=0.998, folder=folder, weight_decay=0.0)
    draws = generator(device, trainer.samples + 6)

    def step(_):
        drawn = scenes.sample(batch, draws)
        plain, any_colour = drawn[: batch // 2], drawn[batch // 2 :]
        paint = torch.rand(len(any_colour), 2, 3, generator=draws, device=device)
        image = torch.cat([scenes.draw(plain)[0], scenes.draw(any_colour, paint=paint)[0]])
        image = image.contiguous(memory_format=torch.channels_last)
        with precision(device):
            with torch.no_grad():
                z = net.encode(image).float()
            out = net.decode(z).float()
        error = (out - image).square().flatten(1).mean(1)
        # log: the figure is a mean of decibels, in which a picture that is drawn well counts as one drawn badly
        return {"loss": error.clamp(min=1e-6).log().mean(), "mse": error.mean()}

    test = scenes.sample(32, generator(device, 7), "held_out")
    pictures = [scenes.draw(test)[0], scenes.draw(test, paint=scenes.unseen_paint(len(test)).to(device))[0]]

    @torch.no_grad()
    def report():
        out = [trainer.average.decode(trainer.average.encode(p)).clamp(0, 1) for p in pictures]
        rows = torch.cat([part[:8] for pair in zip(pictures, out, strict=True) for part in pair])
        grid(rows, trainer.path.with_name("decoder_samples.png"))
        seen, unseen = (float(psnr(a, b).mean()) for a, b in zip(pictures, out, strict=True))
        return f"{seen:.2f} dB on held-out scenes, {unseen:.2f} dB in unseen colours"

    return trainer.run(step, batch, report, save_every=60 if device.type == "cuda" else 420)


def load_autoencoder(device: torch.device, folder=STATE) -> AutoEncoder:
    """The trained autoencoder, frozen: what `folder` holds, else the committed one."""
    files = ("decoder", "autoencoder", "autoencoder_slim")
    path = next((p for name in files if (p := folder / f"{name}.safetensors").exists()), None)
    if path is None and not CHECKPOINT.exists():
        die("There is no trained autoencoder yet: run `python tools train autoencoder` first.")
    net = narrow(read_part(CHECKPOINT, "autoencoder") if path is None else widened(load_file(path)))
    return net.to(device).eval().requires_grad_(False)
