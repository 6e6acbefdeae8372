"""The demo model's autoencoder in plain torch, with the parameter names of TAESD: 2.5M parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nets import conv


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x):
        return F.relu(self.conv(x) + x)


#: (channels, blocks) at full, half, quarter and eighth resolution
TAESD_SIZE = ((64, 1), (64, 3), (64, 3), (64, 3))
SLIM_SIZE = ((16, 1), (32, 1), (64, 2), (64, 3))
#: the committed decoder, grown from the slim one when it was trained further; its encoder stayed slim
DECODER_SIZE = ((32, 1), (48, 2), (64, 3), (64, 3))


def _encoder_layers(size) -> list[tuple[int, nn.Module]]:
    """(index in TAESD's Sequential, layer); places of absent blocks are left out."""
    layers, at, before = [(0, conv(3, size[0][0]))], 1, size[0][0]
    for level, (width, blocks) in enumerate(size):
        if level:
            layers.append((at, conv(before, width, stride=2, bias=False)))
            at += 1
        layers += [(at + i, Block(width)) for i in range(blocks)]
        at, before = at + TAESD_SIZE[level][1], width
    return [*layers, (at, conv(before, 4))]


def _decoder_layers(size) -> list[tuple[int, nn.Module]]:
    layers, at = [(0, Clamp()), (1, conv(4, size[3][0])), (2, nn.ReLU())], 3
    for level in (3, 2, 1, 0):
        width, blocks = size[level]
        layers += [(at + i, Block(width)) for i in range(blocks)]
        at += TAESD_SIZE[level][1]
        if level:
            layers += [(at, nn.Upsample(scale_factor=2)), (at + 1, conv(width, size[level - 1][0], bias=False))]
            at += 2
    return [*layers, (at, conv(size[0][0], 3))]


class Indexed(nn.Module):
    """A Sequential whose children keep TAESD's indices although some blocks are left out."""

    def __init__(self, layers: list[tuple[int, nn.Module]]):
        super().__init__()
        for index, layer in layers:
            self.add_module(str(index), layer)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class AutoEncoder(nn.Module):
    """Images in 0..1 <-> latents [B, 4, H/8, W/8] of about unit variance.

    TAESD's shape is fixed, for ComfyUI to detect it, and heavy for a CPU. `SLIM_SIZE` is the same net with fewer
    channels and blocks; `widened` writes it into TAESD's shape with zeros (a block of zeros passes a positive input
    through), so a slim net trains several times faster and computes exactly the same."""

    def __init__(self, size=TAESD_SIZE, decoder_size=None):
        super().__init__()
        self.decoder_size = decoder_size or size
        self.taesd_encoder = Indexed(_encoder_layers(size))
        self.taesd_decoder = Indexed(_decoder_layers(self.decoder_size))
        for module in self.modules():  # the signal keeps its size along the trunk; every block starts as the identity
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.conv[-1].weight)
        for last in (list(self.taesd_encoder.children())[-1], list(self.taesd_decoder.children())[-1]):
            nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
        nn.init.constant_(last.bias, 0.5)

    def encode(self, image: Tensor) -> Tensor:
        return self.taesd_encoder(image)

    def decode(self, latent: Tensor) -> Tensor:
        return self.taesd_decoder(latent)


def widened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a slim autoencoder, written into TAESD's shape with zeros."""
    full = {k: torch.zeros_like(v) for k, v in AutoEncoder().state_dict().items()}
    for key, value in state.items():
        full[key][tuple(slice(n) for n in value.shape)] = value
    return full


def narrow(state: dict[str, Tensor]) -> AutoEncoder:
    """The smallest autoencoder of the sizes above that computes what `state`, in TAESD's shape, computes."""
    for decoder_size in (SLIM_SIZE, DECODER_SIZE):
        net = AutoEncoder(SLIM_SIZE, decoder_size)
        part = {k: state[k][tuple(slice(n) for n in v.shape)].clone() for k, v in net.state_dict().items()}
        full = widened(part)
        if all(torch.equal(full[k], v) for k, v in state.items()):
            net.load_state_dict(part)
            return net
    net = AutoEncoder()
    net.load_state_dict(state)
    return net


def grown(net: AutoEncoder) -> AutoEncoder:
    """The same autoencoder with a decoder of DECODER_SIZE: new channels start at random, but nothing old reads them, so
    at first it computes the same."""
    wide = AutoEncoder(SLIM_SIZE, DECODER_SIZE)
    state = wide.state_dict()
    for key, value in net.state_dict().items():
        old = tuple(slice(n) for n in value.shape)
        if value.ndim == 4:
            state[key][old[0], value.shape[1] :] = 0
        state[key][old] = value
    wide.load_state_dict(state)
    return wide
