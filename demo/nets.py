"""The demo model's UNet in plain torch, with the parameter names of a Stable Diffusion 1 checkpoint.

The trainer needs neither ComfyUI nor its in-place operations; that these networks, the autoencoder and the text encoder
compute what ComfyUI's own modules compute from the same file is held by tests/engine/family/test_networks.py. The UNet
has 5.9M parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

CHANNELS, CONTEXT, HEADS = 64, 128, 4
#: the second, unconditional net, for edits in the bottleneck: attention at 4 x 4 only, one skip left open (the first
#: convolution's, into the last block)
BOTTLENECK = {"channels": 32, "mult": (1, 2, 4), "attention": (2,)}
OPEN_SKIPS = (5,)
LINEAR_START, LINEAR_END = 0.00085, 0.02  # scaled-linear betas; the larger end hides the mean colour at t = 999
#: cross-attention layers with an attention loss in training, and the ones that heat maps read
MAP_LAYERS = ("output_4", "output_5")


def sigmas() -> Tensor:
    """[1000] sigma of every timestep, as ComfyUI computes it from the two betas."""
    betas = torch.linspace(LINEAR_START**0.5, LINEAR_END**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)
    return ((1 - bar) / bar).sqrt().float()


def conv(n_in, n_out, **kwargs):
    return nn.Conv2d(n_in, n_out, 3, padding=1, **kwargs)


class GroupNorm(nn.GroupNorm):
    """In fp32 under autocast: torch's bf16 kernel for the CPU takes twenty times as long."""

    def forward(self, x):
        return super().forward(x.float())


class ResBlock(nn.Module):
    def __init__(self, n_in, n_out, emb):
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(32, n_in), nn.SiLU(), conv(n_in, n_out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, n_out))
        self.out_layers = nn.Sequential(GroupNorm(32, n_out), nn.SiLU(), nn.Dropout(0), conv(n_out, n_out))
        self.skip_connection = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, emb):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, x, context, want_map=False):
        b, n, c = x.shape
        q, k, v = (
            t.view(b, t.shape[1], HEADS, -1).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        if want_map or torch.is_autocast_enabled("cpu"):  # the CPU's fused kernel is slow in bf16, its products are not
            weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(-1)
            out, maps = weights.to(v.dtype) @ v, weights.mean(1) if want_map else None
        else:
            out, maps = F.scaled_dot_product_attention(q, k, v), None
        return self.to_out(out.transpose(1, 2).reshape(b, n, c)), maps


class GEGLU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, inner * 2)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, width * 4), nn.Dropout(0), nn.Linear(width * 4, width))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(width, width), Attention(width, CONTEXT), FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context, want_map):
        n = self.norm1(x)
        x = x + self.attn1(n, n)[0]
        out, maps = self.attn2(self.norm2(x), context, want_map)
        x = x + out
        return x + self.ff(self.norm3(x)), maps


class SpatialTransformer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width)])

    def forward(self, x, context, want_map=False):
        b, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        y, maps = self.transformer_blocks[0](y, context, want_map)
        return x + self.proj_out(y.transpose(1, 2).reshape(b, c, h, w)), maps


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = conv(width, width, stride=2)

    def forward(self, x):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    half = width // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    args = t[:, None].float() * freqs
    return torch.cat([torch.cos(args), torch.sin(args)], -1)


def through(layers, h: Tensor, emb: Tensor, context: Tensor, name: str, maps: dict, map_layers: tuple[str, ...]):
    """One block of a UNet, layer by layer; its attention map goes into `maps` where `name` is asked for."""
    for layer in layers:
        if isinstance(layer, ResBlock):
            h = layer(h, emb)
        elif isinstance(layer, SpatialTransformer):
            h, m = layer(h, context, name in map_layers)
            if m is not None:
                maps[name] = m
        else:
            h = layer(h)
    return h


def encoded(net, x: Tensor, emb: Tensor, context: Tensor, hint: Tensor | None = None, maps=None, map_layers=()):
    """The outputs of a net's input blocks and, last, of its middle block. hint: added after the first convolution."""
    maps, features, h = {} if maps is None else maps, [], x
    for i, layers in enumerate(net.input_blocks):
        h = through(layers, h, emb, context, f"input_{i}", maps, map_layers)
        if i == 0 and hint is not None:
            h = h + hint
        features.append(h)
    return [*features, through(net.middle_block, h, emb, context, "middle_0", maps, map_layers)]


class UNet(nn.Module):
    """Noisy latent [B, 4, h, w], timestep [B], context [B, 77, 128] -> v [B, 4, h, w] (and maps {layer: [B, hw, 77]}).

    channels: of the first level; mult: every level's multiple of it; attention: the levels (0 is the finest) that have
    self- and cross-attention, beside the middle."""

    def __init__(
        self, channels: int = CHANNELS, mult: tuple[int, ...] = (1, 2, 2), attention: tuple[int, ...] = (0, 1)
    ):
        super().__init__()
        self.channels, emb = channels, channels * 4
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        widths = [channels * m for m in mult]

        def block(n_in, level, *more):
            transformer = [SpatialTransformer(widths[level])] if level in attention else []
            return nn.ModuleList([ResBlock(n_in, widths[level], emb), *transformer, *more])

        inputs, skips, at = [nn.ModuleList([conv(4, channels)])], [channels], channels
        for level, width in enumerate(widths):
            inputs.append(block(at, level))
            at = width
            skips.append(width)
            if level + 1 < len(widths):
                inputs.append(nn.ModuleList([Down(width)]))
                skips.append(width)
        self.input_blocks = nn.ModuleList(inputs)
        self.middle_block = nn.ModuleList([ResBlock(at, at, emb), SpatialTransformer(at), ResBlock(at, at, emb)])
        outputs = []
        self.trunk_widths = []  # channels of h in front of each output block's skip
        for level in reversed(range(len(widths))):
            for last in (False, True):
                up = [Up(widths[level])] if last and level else []
                self.trunk_widths.append(at)
                outputs.append(block(at + skips.pop(), level, *up))
                at = widths[level]
        self.output_blocks = nn.ModuleList(outputs)
        self.out = nn.Sequential(GroupNorm(32, channels), nn.SiLU(), conv(channels, 4))
        for module in self.modules():  # every residual branch starts at zero
            for last in (getattr(module, "proj_out", None), getattr(module, "out_layers", [None])[-1]):
                if last is not None:
                    nn.init.zeros_(last.weight)
                    nn.init.zeros_(last.bias)
        nn.init.zeros_(self.out[-1].weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        map_layers: tuple[str, ...] = (),
        control: Sequence[Tensor] | None = None,
    ):
        """control: what a ControlNet (control.py) adds to each skip and, last, to the middle block's output."""
        emb, maps = self.time_embed(timestep_embedding(t, self.channels)), {}
        *skips, h = encoded(self, x, emb, context, maps=maps, map_layers=map_layers)
        if control is not None:
            *added, middle = control
            skips, h = [skip + c for skip, c in zip(skips, added, strict=True)], h + middle
        for i, layers in enumerate(self.output_blocks):
            h = through(layers, torch.cat([h, skips.pop()], 1), emb, context, f"output_{i}", maps, map_layers)
        h = self.out(h)
        return (h, maps) if map_layers else h

    @torch.no_grad()
    def close_skips(self, but: tuple[int, ...]) -> None:
        """Let every output block but these ignore its skip, for good: those columns of its weights become 0 and get no
        gradient. An ordinary UNet all the same, whose middle block has to know what the skips no longer say."""
        for i, (block, width) in enumerate(zip(self.output_blocks, self.trunk_widths, strict=True)):
            if i in but:
                continue
            for weight in (block[0].in_layers[-1].weight, block[0].skip_connection.weight):
                open_columns = torch.zeros_like(weight)
                open_columns[:, :width] = 1
                weight.mul_(open_columns)
                weight.register_hook(lambda gradient, open_columns=open_columns: gradient * open_columns)
