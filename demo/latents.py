"""What the diffusion trainings share: a pool of encoded scenes, what a net sees of them, and the weighed loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import nets, scenes
from .training import chunks, precision

#: weight of an object's latent pixels in the loss; timesteps where outlines are decided (sigma about 1 to 40)
ON_OBJECT, OUTLINES = 4.0, (300, 950)
FLOW_OUTLINES = (0.45, 0.98)  # the same sigmas as flow levels s / (1 + s)
USES = 6  # times that a scene is seen on average before it is replaced


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


class Latents:
    """A pool of encoded scenes on the device, refreshed a little at a time so that no scene is seen often.

    two: share of scenes with two objects, as `scenes.sample` takes it. whole: masks in pixels, not on the latent's
    grid."""

    def __init__(
        self, size: int, autoencoder: nn.Module, draws: torch.Generator, two: float = 0.35, whole: bool = False
    ):
        self.autoencoder, self.draws, self.size, self.two, self.whole = autoencoder, draws, size, two, whole
        at_once = 1024 if draws.device.type == "cuda" else 64  # more would fall out of a CPU's cache
        parts = [self._make(part.stop - part.start) for part in chunks(size, at_once)]
        self.latent, self.mask = (torch.cat([part[i] for part in parts]) for i in range(2))
        self.scenes = scenes.cat([part[2] for part in parts])

    @torch.no_grad()
    def _make(self, n):
        batch = scenes.sample(n, self.draws, two=self.two)
        image, mask = scenes.draw(batch)
        with precision(image.device):
            latent = self.autoencoder.encode(image.contiguous(memory_format=torch.channels_last))
        return latent.half(), (mask if self.whole else F.avg_pool2d(mask, 8)).half(), batch

    def refresh(self, n: int) -> None:
        latent, mask, batch = self._make(n)
        at = torch.randint(0, len(self.latent) - n + 1, (1,)).item()
        self.latent[at : at + n], self.mask[at : at + n] = latent, mask
        for field in scenes.Scenes.__dataclass_fields__:
            getattr(self.scenes, field)[at : at + n] = getattr(batch, field)

    def take(self, n: int) -> tuple[Tensor, Tensor, scenes.Scenes]:
        index = torch.randint(len(self.latent), (n,), generator=self.draws, device=self.latent.device)
        return self.latent[index].float(), self.mask[index].float(), self.scenes[index]


def weighed_loss(out: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of out and target [B, 4, h, w] with objects, mask [B, 2, h, w], and their rims weighed."""
    weight = 1 + (ON_OBJECT - 1) * F.max_pool2d((mask.amax(1, keepdim=True) > 0.05).float(), 3, 1, 1)
    return ((out.float() - target).square() * (weight / weight.mean())).mean()


@dataclass(frozen=True)
class Corrupted:
    """What the UNet sees and what it shall say: input [B, 4, h, w], timestep [B], target [B, 4, h, w], and where the
    words' attention is taught [B] bool (below, the object's place is still open)."""

    x: Tensor
    timestep: Tensor
    target: Tensor
    attend: Tensor


def v_prediction(x0: Tensor, draws: torch.Generator) -> Corrupted:
    """VP latents a x0 + s a n at a trained timestep, target v = a n - s a x0; every other timestep lies where outlines
    are decided."""
    n = len(x0)
    t = torch.randint(1000, (n,), generator=draws, device=x0.device)
    t[::2] = torch.randint(*OUTLINES, (len(t[::2]),), generator=draws, device=x0.device)
    s = nets.sigmas().to(x0.device)[t][:, None, None, None]
    a = (1 + s * s).rsqrt()
    noise = torch.randn(x0.shape, generator=draws, device=x0.device)
    return Corrupted(a * x0 + s * a * noise, t, a * noise - s * a * x0, t < 750)


def rectified_flow(x0: Tensor, draws: torch.Generator) -> Corrupted:
    """(1 - s) x0 + s n at timestep 1000 s, target n - x0 (Liu et al. 2209.03003); s uniform in (0, 1], every other one
    where outlines are decided."""
    n = len(x0)
    s = 1 - torch.rand(n, generator=draws, device=x0.device)
    low, high = FLOW_OUTLINES
    s[::2] = low + (high - low) * torch.rand(len(s[::2]), generator=draws, device=x0.device)
    noise = torch.randn(x0.shape, generator=draws, device=x0.device)
    at = s[:, None, None, None]
    return Corrupted((1 - at) * x0 + at * noise, 1000 * s, noise - x0, s < 0.85)
