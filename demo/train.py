"""Trains the demo model from nothing: `make train`, or `python tools train STAGE`.

Each stage runs for --minutes, saves its EMA weights into .training/ and can be called again to go on, from there or
from the committed weights. The autoencoder is frozen once the diffusion has begun: its latents are what everything
above it has learnt.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..samplers.ode import sample_euler
from . import captions, control, nets, scenes
from .latents import USES, Latents, generator, rectified_flow, v_prediction, weighed_loss
from .model import TextToImage, denoiser, empty_rows, generate, schedule
from .packing import pack, pack_network, write_figures
from .text_encoder import TextEncoder
from .train_autoencoder import load_autoencoder, train_autoencoder, train_decoder
from .training import DEVICE, STATE, Trainer, grid, precision, set_aside
from .weights import BOTTLENECK, CHECKPOINT, FLOW, committed_diffusion, committed_network, read_part


def caption_rows(batch: scenes.Scenes, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training captions as rows; one in ten is empty, and now and then a word is the unknown one."""
    rows, words = captions.token_rows(*captions.phrases(batch, draws))
    n, device = len(rows), rows.device

    def chance(p, *shape):
        return torch.rand(n, *shape, generator=draws, device=device) < p

    rows = torch.where((rows > 2) & chance(0.1, 1) & chance(0.12, rows.shape[1]), 0, rows)
    empty = chance(0.1)
    return torch.where(empty[:, None], empty_rows(n, device), rows), torch.where(empty[:, None, None], 0, words)


def map_loss(maps: dict[str, Tensor], words: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """-log of the share of each word's attention that falls on its object; words [B, 2, 2], mask [B, 2, 16, 16]."""
    total = 0
    for m in maps.values():
        side = int(m.shape[1] ** 0.5)
        inside = F.adaptive_avg_pool2d(mask, side).flatten(2)[:, :, None]  # [B, 2, 1, hw]
        columns = m.transpose(1, 2).gather(1, words.flatten(1)[..., None].expand(-1, -1, m.shape[1]))
        columns = columns.reshape(*words.shape, m.shape[1])
        share = (columns * inside).sum(-1) / columns.sum(-1).clamp(min=1e-8)
        there = (words > 0) * weight[:, None, None]
        total = total - ((share + 0.01).log() * there).sum() / there.sum().clamp(min=1)
    return total / len(maps)


def committed_twin(net: TextToImage) -> tuple[dict[str, Tensor], int]:
    """The state of `net` with the committed flow twin as its UNet, and the samples that this had seen."""
    unet, samples = committed_network(FLOW)
    return net.state_dict() | {f"unet.{k}": v for k, v in unet.items()}, samples


def train_diffusion(
    device: torch.device,
    minutes: float,
    batch: int,
    pool: int,
    lr: float,
    go_on: bool = True,
    folder=STATE,
    flow: bool = False,
) -> nn.Module:
    """v-prediction, or with `flow` its twin: the UNet alone as a rectified flow, on the committed text encoder's words,
    begun from the committed v-prediction UNet. The cross-attention of two layers is taught to look at the named object.

    Shapes are a few latent pixels at medium noise and were learnt last under a plain loss: so the loss weighs an
    object and its rim `ON_OBJECT` times, and every other timestep is drawn where outlines are decided."""
    torch.manual_seed(0)
    autoencoder = load_autoencoder(device, folder)
    net = TextToImage().to(device)
    if flow:
        net.load_state_dict(committed_diffusion()[0])
        net.text.requires_grad_(False)
        committed = committed_twin(net) if go_on and FLOW.exists() else (net.state_dict(), 0)
    else:
        committed = committed_diffusion() if go_on else None
    trainer = Trainer(
        "flow" if flow else "diffusion",
        net,
        minutes,
        lr=lr,
        ema=0.9995 if device.type == "cuda" else 0.998,
        folder=folder,
        warmup=300,
        committed=committed,
    )
    corrupt = rectified_flow if flow else v_prediction
    draws = generator(device, trainer.samples + 2)
    latents = Latents(pool, autoencoder, draws)
    unet = torch.compile(net.unet) if device.type == "cuda" else net.unet
    text = torch.compile(net.text) if device.type == "cuda" else net.text
    spread = latents.latent[:4096].float().std()
    print(f"diffusion: pool of {len(latents.latent)} scenes, latent std {spread:.3f}", flush=True)

    def step(i):
        if i % 8 == 7:
            latents.refresh(min(batch * 8 // USES, pool))
        x0, mask, batch_scenes = latents.take(batch)
        rows, words = caption_rows(batch_scenes, draws)
        seen = corrupt(x0, draws)
        with precision(device):
            v, maps = unet(seen.x, seen.timestep, text(rows), nets.MAP_LAYERS)
        loss = weighed_loss(v, seen.target, mask)
        attention = map_loss({k: m.float() for k, m in maps.items()}, words, mask, seen.attend.float())
        return {"loss": loss + 0.01 * attention, "v": loss, "attention": attention}

    draw_test = generator(device, 11)
    test = scenes.sample(32, draw_test, "held_out")

    @torch.no_grad()
    def report():
        images = generate(trainer.average, autoencoder, test, 30, 5.0, seed=5, flow=flow)
        grid(images, trainer.path.with_name(f"{trainer.name}_samples.png"))
        return "sample sheet written"

    return trainer.run(step, batch, report, save_every=60 if device.type == "cuda" else 420)


def train_bottleneck(
    device: torch.device, minutes: float, batch: int, pool: int, lr: float, go_on: bool = True, folder=STATE
) -> nn.Module:
    """A second, small v-prediction UNet without words, one object a scene, whose middle block matters: all skips but
    the first convolution's are closed, so what stands where has to pass through the 4 x 4 bottleneck."""
    torch.manual_seed(0)
    autoencoder = load_autoencoder(device, folder)
    net = nets.UNet(**nets.BOTTLENECK)
    net.close_skips(but=nets.OPEN_SKIPS)
    net.to(device)
    committed = committed_network(BOTTLENECK) if go_on and BOTTLENECK.exists() else None
    trainer = Trainer("bottleneck", net, minutes, lr=lr, ema=0.998, folder=folder, warmup=300, committed=committed)
    draws = generator(device, trainer.samples + 4)
    latents = Latents(pool, autoencoder, draws, two=0.0)
    text = TextEncoder()
    text.load_state_dict(read_part(CHECKPOINT, "text"))
    with torch.no_grad():
        empty = text.to(device)(empty_rows(1, device))

    def step(i):
        if i % 8 == 7:
            latents.refresh(min(batch * 8 // (2 * USES), pool))
        x0, mask, _ = latents.take(batch)
        seen = v_prediction(x0, draws)
        with precision(device):
            v = net(seen.x, seen.timestep, empty.expand(batch, -1, -1))
        return {"loss": weighed_loss(v, seen.target, mask)}

    @torch.no_grad()
    def report():
        table = nets.sigmas().to(device)
        start = torch.randn(32, 4, 16, 16, generator=torch.Generator().manual_seed(5)).to(device) * table[-1]
        x = sample_euler(denoiser(trainer.average, empty.expand(32, -1, -1), table), start, schedule(30, table))
        grid(autoencoder.decode(x), trainer.path.with_name("bottleneck_samples.png"))
        return "sample sheet written"

    return trainer.run(step, batch, report, save_every=60 if device.type == "cuda" else 420)


#: stage -> minutes, pictures a step, scenes encoded ahead: on a GPU, on a CPU
AMOUNTS = {
    "autoencoder": ((6.5, 512, 0), (600, 16, 0)),
    "decoder": ((6, 256, 0), (60, 16, 0)),
    "diffusion": ((15, 1024, 200_000), (1200, 32, 4096)),
    "flow": ((10, 1024, 200_000), (120, 32, 4096)),
    "bottleneck": ((10, 1024, 200_000), (90, 64, 8192)),
    "controlnet": ((5, 256, 20_000), (60, 32, 1024)),
}


#: stage -> what it keeps in .training/, and what another autoencoder makes worthless
KEPT = {stage: (stage,) for stage in AMOUNTS} | {"autoencoder": ("autoencoder", "autoencoder_slim", "decoder")}
KEPT["all"] = (*KEPT["autoencoder"], "diffusion")


def amounts(stage: str, args: argparse.Namespace) -> list[float]:
    """Minutes, pictures a step and scenes ahead of a stage: what was asked for, else its own."""
    own = AMOUNTS[stage][args.device.type != "cuda"]
    return [asked or usual for asked, usual in zip((args.minutes, args.batch, args.pool), own)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "stage",
        nargs="?",
        default="all",
        choices=(
            "autoencoder",
            "decoder",
            "diffusion",
            "flow",
            "bottleneck",
            "controlnet",
            "pack",
            "pack_flow",
            "pack_bottleneck",
            "pack_controlnet",
            "figures",
            "all",
        ),
        help="all: text encoder and UNet (20 hours on a CPU, 15 minutes on a GPU), then pack; with --from-nothing the "
        "autoencoder before (10 hours, 7 minutes). Flow twin, second UNet, ControlNet, judges and towers have commands "
        "of their own: demo/README.md",
    )
    parser.add_argument(
        "--from-nothing",
        action="store_true",
        help="go on neither from the committed weights nor from .training/ (whose files are renamed to *.old)",
    )
    parser.add_argument("--minutes", type=float, default=None, help="length of this piece (per stage)")
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--pool", type=int, default=None, help="scenes encoded ahead")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    args = parser.parse_args()
    device = args.device
    gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    if args.from_nothing:
        set_aside(KEPT.get(args.stage, ()), STATE)
    go_on = CHECKPOINT.exists() and not args.from_nothing
    # the committed autoencoder stays: another one would invalidate everything that was trained on its latents
    if args.stage == "autoencoder" or args.stage == "all" and not go_on:
        minutes, batch, _ = amounts("autoencoder", args)
        train_autoencoder(device, minutes, batch, slim=not gpu)
    if args.stage == "decoder":
        minutes, batch, _ = amounts("decoder", args)
        train_decoder(device, minutes, batch, args.lr)
    if args.stage in ("diffusion", "all"):
        train_diffusion(device, *amounts("diffusion", args), args.lr, go_on)
    if args.stage == "flow":
        train_diffusion(device, *amounts("flow", args), args.lr, not args.from_nothing, flow=True)
    if args.stage == "bottleneck":
        train_bottleneck(device, *amounts("bottleneck", args), args.lr, not args.from_nothing)
    if args.stage == "controlnet":
        control.train(device, load_autoencoder(device), *amounts("controlnet", args), args.lr)
    if args.stage in ("pack", "all"):
        pack()
    if args.stage == "pack_controlnet":
        control.pack(STATE / "controlnet.safetensors")
    for name, path in (("flow", FLOW), ("bottleneck", BOTTLENECK)):
        if args.stage == f"pack_{name}":
            pack_network(name, path)
    if args.stage == "figures":
        write_figures()


if __name__ == "__main__":
    main()
