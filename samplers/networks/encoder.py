"""The encoder half of a diffusion UNet with attention pooling: latent classifier, image tower, noise-aware image tower.

After guided-diffusion's classifier (Dhariwal & Nichol 2105.05233, section 4): residual blocks with scale-shift norm,
one level per halving, self-attention at the coarse levels, then CLIP's attention pool (mean token prepended, learned
places) to the outputs. The noise level enters as y (1 + a) + b after each block's second norm, as in both that
classifier and SDG's noise-aware CLIP tower (2112.05744, section 3.3); without a noise level the same network is an
ordinary image encoder.

Departure: the level is told by log(sigma)/4 (EDM's c_noise) in sinusoids, not by an integer timestep, so that one
network serves every schedule; the learned places are resampled when the grid has another size.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..core import NoiseProcess, Sigma, expand
from ..record_file import Fields, Unsound


def noisy_input(x: Tensor, sigma: Sigma, process: NoiseProcess) -> tuple[Tensor, Sigma]:
    """What a noise-aware encoder is shown of x_s = a x0 + s n: x_s / sqrt(a^2 + s^2), of unit scale, and the noise over
    the signal s/a (a held at 1e-3 or above) as its level.

    Both families come out alike, so an encoder trained on the noisy latents of one judges the other's too."""
    s = torch.as_tensor(sigma)
    a = process.signal(s)
    return x * expand((a**2 + s**2) ** -0.5, x), s / a.clamp(min=1e-3)


def level_embedding(sigma: Tensor, width: int = 64) -> Tensor:
    """Sinusoids [B, width] of log(sigma)/4, sigma [B] > 0."""
    frequencies = torch.exp(torch.linspace(0, math.log(100.0), width // 2, device=sigma.device))
    angles = sigma.float().clamp(min=1e-4).log()[:, None] / 4 * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(width, 16), width)


class ResBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, level_width: int = 0):
        super().__init__()
        self.norm1, self.norm2 = _norm(n_in), _norm(n_out)
        self.conv1, self.conv2 = nn.Conv2d(n_in, n_out, 3, padding=1), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        self.film = nn.Linear(level_width, 2 * n_out) if level_width else None
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None:
            a, b = self.film(F.silu(level))[:, :, None, None].chunk(2, 1)
            h = h * (1 + a) + b
        return self.skip(x) + self.conv2(F.silu(h))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, _norm(width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w))


class AttentionPool(nn.Module):
    """[B, C, H, W] -> [B, out]: one query, the mean, over the grid and itself."""

    def __init__(self, width: int, out: int, grid: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(1, width, grid, grid) / width**0.5)
        self.mean_place = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        place = self.place
        if place.shape[-2:] != x.shape[-2:]:
            place = F.interpolate(place, x.shape[-2:], mode="bilinear", align_corners=False)
        mean = x.flatten(2).mean(2)[:, None] + self.mean_place
        tokens = torch.cat([mean, (x + place).flatten(2).transpose(1, 2)], 1)
        b, n, c = tokens.shape
        q = self.q(mean).view(b, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(tokens).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, c))


class Encoder(nn.Module):
    """Picture or latent [B, in_channels, H, W] -> [B, out].

    widths: channels per level, each level half the size of the one before; stem_stride: a first reduction, for
    pictures; attention: levels (from 0) that attend to themselves; size: the H = W it is made for; noise_aware: takes
    a sigma."""

    def __init__(
        self,
        in_channels: int,
        out: int,
        *,
        widths=(32, 64, 128),
        blocks: int = 1,
        attention=(2,),
        size: int = 16,
        stem_stride: int = 1,
        noise_aware: bool = False,
    ):
        super().__init__()
        self.config = {
            "in_channels": in_channels,
            "out": out,
            "widths": list(widths),
            "blocks": blocks,
            "attention": list(attention),
            "size": size,
            "stem_stride": stem_stride,
            "noise_aware": noise_aware,
        }
        self.noise_aware = noise_aware
        level = 4 * widths[0] if noise_aware else 0
        if noise_aware:
            self.level = nn.Sequential(nn.Linear(64, level), nn.SiLU(), nn.Linear(level, level))
        self.stem = nn.Conv2d(in_channels, widths[0], 2 * stem_stride + 1, stride=stem_stride, padding=stem_stride)
        self.stages, width = nn.ModuleList(), widths[0]
        for i, n in enumerate(widths):
            layers = [nn.AvgPool2d(2)] if i else []
            for _ in range(blocks):
                layers.append(ResBlock(width, n, level))
                width = n
            if i in attention:
                layers.append(SelfAttention(n, max(1, n // 32)))
            self.stages.append(nn.ModuleList(layers))
        self.norm = _norm(width)
        self.pool = AttentionPool(width, out, max(1, size // stem_stride // 2 ** (len(widths) - 1)))

    @staticmethod
    def checked(fields: Fields) -> dict:
        """The arguments in a file's table. ValueError that names the field where one is no size of an encoder."""
        widths = fields.wholes("widths", 8, 1, 4096, least=1)
        attention = fields.wholes("attention", 8, 0, 7, default=[2])
        uneven = [n for i, n in enumerate(widths) if i in attention and n % max(1, n // 32)]
        if uneven or widths[-1] % 4:
            raise Unsound(f"the field {fields.name}.widths has {(uneven or widths[-1:])[0]}, which no heads divide")
        return {
            "in_channels": fields.whole("in_channels", 1, 4096),
            "out": fields.whole("out", 1, 100_000),
            "widths": widths,
            "blocks": fields.whole("blocks", 1, 32, default=1),
            "attention": attention,
            "size": fields.whole("size", 1, 4096, default=16),
            "stem_stride": fields.whole("stem_stride", 1, 64, default=1),
            "noise_aware": fields.switch("noise_aware", default=False),
        }

    def features(self, x: Tensor, sigma: Sigma | None = None) -> list[Tensor]:
        """The feature map after each level, finest first."""
        level = None
        if self.noise_aware:
            if sigma is None:
                raise ValueError("This encoder was trained on noisy input: it needs the noise level.")
            level = self.level(level_embedding(torch.as_tensor(sigma, device=x.device).expand(x.shape[0])).to(x))
        h, maps = self.stem(x), []
        for stage in self.stages:
            for layer in stage:
                h = layer(h, level) if isinstance(layer, ResBlock) else layer(h)
            maps.append(h)
        return maps

    def forward(self, x: Tensor, sigma: Sigma | None = None) -> Tensor:
        return self.pool(F.silu(self.norm(self.features(x, sigma)[-1])))
