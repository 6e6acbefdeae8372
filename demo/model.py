"""The demo model outside ComfyUI: its networks as denoisers. For training and benchmarks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..samplers.core import Denoise, guided
from ..samplers.ode import sample_euler
from . import captions, nets
from .autoencoder import AutoEncoder
from .scenes import Scenes
from .text_encoder import TextEncoder
from .weights import CHECKPOINT, FLOW, read_network, read_part


class TextToImage(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self):
        super().__init__()
        self.text, self.unet = TextEncoder(), nets.UNet()


def load(path: Path = CHECKPOINT, flow: bool = False) -> tuple[TextToImage, AutoEncoder]:
    """The committed networks on the CPU, fp32, frozen; with `flow` the UNet's twin, a rectified flow.
    FileNotFoundError without the file."""
    net, autoencoder = TextToImage(), AutoEncoder()
    net.text.load_state_dict(read_part(path, "text"))
    net.unet.load_state_dict(read_network(FLOW) if flow else read_part(path, "unet"))
    autoencoder.load_state_dict(read_part(path, "autoencoder"))
    return net.eval().requires_grad_(False), autoencoder.eval().requires_grad_(False)


def empty_rows(n: int, device=None) -> Tensor:
    """Rows of the empty caption, [n, 77]."""
    rows = torch.full((n, captions.LENGTH), 2, device=device)
    rows[:, 0] = 1
    return rows


def denoiser(unet: nn.Module, context: Tensor, table: Tensor) -> Denoise:
    """v-prediction as a denoiser; context [B, 77, 128], sigma is taken at the nearest of the 1000 trained levels."""

    def denoise(x, sigma):
        s = torch.as_tensor(sigma, device=x.device, dtype=x.dtype)
        t = (table.log() - s.clamp(min=1e-9).log()).abs().argmin().expand(len(x))
        a = (1 + s * s).rsqrt()
        return a * a * x - s * a * unet(a * x, t, context)

    return denoise


def flow_denoiser(unet: nn.Module, context: Tensor) -> Denoise:
    """The rectified flow twin as a denoiser: D = x - s v(x, 1000 s), sigma in (0, 1]."""

    def denoise(x, sigma):
        s = torch.as_tensor(sigma, device=x.device, dtype=x.dtype)
        return x - s * unet(x, (1000 * s).expand(len(x)), context)

    return denoise


def schedule(steps: int, table: Tensor) -> Tensor:
    """[steps + 1] sigmas at timesteps spaced evenly from 999 down, and 0."""
    times = torch.linspace(999, 0, steps + 1, device=table.device).round().long()[:-1]
    return torch.cat([table[times], table.new_zeros(1)])


def drawn(autoencoder: nn.Module, denoise: Denoise, sigmas: Tensor, n: int, seed: int) -> Tensor:
    """n images [n, 3, 128, 128] in 0..1 by Euler steps from the seed's noise."""
    noise = torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(sigmas.device)
    return autoencoder.decode(sample_euler(denoise, noise * sigmas[0], sigmas)).clamp(0, 1)


@torch.no_grad()
def generate(
    net: TextToImage, autoencoder: nn.Module, scenes: Scenes, steps: int, cfg: float, seed: int, flow: bool = False
) -> Tensor:
    """Images [B, 3, 128, 128] in 0..1 for the full captions of `scenes`, by Euler steps (DDIM; flow: from s = 1)."""
    device = scenes.count.device
    table = nets.sigmas().to(device)
    rows, _ = captions.token_rows(*captions.phrases(scenes))
    contexts = [net.text(r) for r in (rows, empty_rows(len(rows), device))]
    cond, uncond = (flow_denoiser(net.unet, c) if flow else denoiser(net.unet, c, table) for c in contexts)
    sigmas = torch.linspace(1, 0, steps + 1, device=device) if flow else schedule(steps, table)
    return drawn(autoencoder, guided(cond, uncond, cfg), sigmas, len(rows), seed)
