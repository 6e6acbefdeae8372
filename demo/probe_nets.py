"""The nets of the probes: two judges of different build, and a net of features for KID."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nets import GroupNorm
from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, STYLES, TEXTURES

#: per place: is an object there, its colour, shape, size
SLOT = (("present", 2), ("colour", len(COLOURS)), ("shape", len(SHAPES)), ("size", len(SIZES)))
WHOLE = (("background", len(BACKGROUNDS)), ("texture", len(TEXTURES)), ("style", len(STYLES)))
OUT = len(PLACES) * sum(n for _, n in SLOT) + sum(n for _, n in WHOLE)


def conv_block(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1), GroupNorm(8, n_out), nn.SiLU())


class ConvProbe(nn.Module):
    """128 px image in 0..1 -> logits, by strided convolutions down to 8x8."""

    def __init__(self, width: int = 24):
        super().__init__()
        w = width
        self.body = nn.Sequential(
            conv_block(3, w, 2),
            conv_block(w, 2 * w, 2),
            conv_block(2 * w, 2 * w, 1),
            conv_block(2 * w, 3 * w, 2),
            conv_block(3 * w, 3 * w, 1),
            conv_block(3 * w, 4 * w, 2),
            conv_block(4 * w, 4 * w, 1),
            nn.Conv2d(4 * w, w, 1),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(64 * w, 192)
        self.out = nn.Linear(192, OUT)

    def features(self, image: Tensor) -> Tensor:
        return self.hidden(self.body((image - 0.5) * 4))

    def forward(self, image: Tensor) -> Tensor:
        return self.out(F.silu(self.features(image)))


class Mix(nn.Module):
    """A wide depthwise convolution and a perceptron over the channels, added to what came in."""

    def __init__(self, width: int):
        super().__init__()
        self.spread, self.norm = nn.Conv2d(width, width, 7, 1, 3, groups=width), GroupNorm(1, width)
        self.mix = nn.Sequential(nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(self.spread(x)))


class QueryProbe(nn.Module):
    """The second judge: 4 px patches, wide depthwise convolutions, and one learned query per place that looks for its
    object over the whole picture; nothing of it is strided or flattened as in the first."""

    def __init__(self, width: int = 40):
        super().__init__()
        w, self.heads = 2 * width, 4
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, 4),
            Mix(width),
            Mix(width),
            nn.Conv2d(width, w, 2, 2),
            Mix(w),
            Mix(w),
            GroupNorm(1, w),
        )
        self.place = nn.Parameter(torch.randn(256, w) * 0.5)
        self.query = nn.Parameter(torch.randn(len(PLACES) + 1, 2 * w) * 0.5)
        self.key, self.value = nn.Linear(w, 2 * w), nn.Linear(w, 2 * w)
        self.join = nn.Sequential(nn.Linear(2 * w, 2 * w), nn.GELU())
        self.slot, self.whole = nn.Linear(2 * w, sum(n for _, n in SLOT)), nn.Linear(2 * w, sum(n for _, n in WHOLE))

    def forward(self, image: Tensor) -> Tensor:
        x = self.body((image - 0.5) * 4).flatten(2).transpose(1, 2)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)) for part in (self.query, self.key(x + self.place), self.value(x))
        )
        seen = torch.einsum("qhc,bnhc->bhqn", query, key) * query.shape[-1] ** -0.5
        read = self.join(torch.einsum("bhqn,bnhc->bqhc", seen.softmax(-1), value).flatten(2))
        slots = self.slot(read[:, :-1]).split([n for _, n in SLOT], -1)
        return torch.cat([part.flatten(1) for part in slots] + [self.whole(read[:, -1])], 1)


class FeatureNet(nn.Module):
    """128 px image in 0..1 -> 128 features that know the attributes and how damaged a picture is (blur, noise)."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.probe = ConvProbe(width)
        self.probe.hidden = nn.Linear(64 * width, 128)
        self.probe.out = nn.Linear(128, OUT + 2)

    def features(self, image: Tensor) -> Tensor:
        return self.probe.features(image)

    def forward(self, image: Tensor) -> Tensor:
        return self.probe(image)
