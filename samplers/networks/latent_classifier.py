"""A noise-aware, time-conditioned classifier of latents, and its training (Dhariwal & Nichol 2105.05233, section 4).

The network is the encoder half of a UNet with attention pooling (encoder.py). It sees x_s at unit scale and the noise
over the signal as its level, alike for both families of noise, and is trained by cross-entropy on latents noised to
levels drawn from the model's own table of sigmas. As a guidance it needs neither the network's nor the decoder's
gradient: mode `latent`.

Departures: latents, not pixels; AdamW with a one-cycle rate over a few hundred or thousand steps, a size for folders of
tens to thousands of pictures; mirrored copies on request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..core import PROCESSES, VE, NoiseProcess, Sigma
from ..guidance.losses import class_log_prob
from ..guidance.terms import LogLikelihood
from ..record_file import Fields, Unsound, check_state, parsed
from .encoder import Encoder, noisy_input

FORMAT = "nulltext-latent-classifier-1"


class LatentClassifier(nn.Module):
    """x_s [B, C, H, W] in model space, sigma -> logits [B, K]. labels: K names; fingerprint: of the model whose
    latents it was trained on (any string)."""

    def __init__(self, labels: list[str], encoder: dict, process: NoiseProcess = VE, fingerprint: str = ""):
        super().__init__()
        self.labels, self.process, self.fingerprint = list(labels), process, fingerprint
        self.net = Encoder(**encoder)

    @classmethod
    def new(
        cls,
        labels: list[str],
        channels: int,
        size: int,
        *,
        width: int = 48,
        process: NoiseProcess = VE,
        fingerprint: str = "",
    ) -> LatentClassifier:
        """A classifier for latents [C, size, size], one level per halving down to about 4, three levels at most."""
        levels = max(1, min(3, int(math.log2(max(size, 4) / 4)) + 1))
        widths = [width * n for n in (1, 2, 3)[:levels]]
        config = {
            "in_channels": channels,
            "out": len(labels),
            "widths": widths,
            "blocks": 2,
            "attention": list(range(1, levels)),
            "size": size,
            "noise_aware": True,
        }
        return cls(labels, config, process, fingerprint)

    def forward(self, x: Tensor, sigma: Sigma, process: NoiseProcess | None = None) -> Tensor:
        """process: the family that x_s belongs to; None: the one of the training."""
        return self.net(*noisy_input(x, sigma, process or self.process))

    def index(self, label: str) -> int:
        """The index of a class by name. ValueError, naming the classes there are."""
        return class_index(self.labels, label)

    def log_likelihood(self, label: str, process: NoiseProcess | None = None) -> LogLikelihood:
        """log p(label | x_s) for a Guidance of mode `latent`, x_s of this family (None: the training's)."""
        index = self.index(label)
        return lambda x, sigma, _denoised: class_log_prob(self(x.float(), sigma, process), index)

    def metadata(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "labels": json.dumps(self.labels),
            "encoder": json.dumps(self.net.config),
            "process": self.process.name,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def build(cls, state: dict[str, Tensor], metadata: dict[str, str]) -> LatentClassifier:
        """The classifier of a file's tensors and metadata, frozen. ValueError if the file is of another kind."""
        if (metadata or {}).get("format") != FORMAT:
            raise ValueError("This file is not a latent classifier (its metadata lacks the format).")
        known = ("labels", "encoder", "process", "fingerprint")
        fields = Fields({k: parsed(v, k) if k in ("labels", "encoder") else v for k, v in metadata.items()})
        labels, encoder = fields.texts(known[0], 100_000, least=1), Encoder.checked(fields.part(known[1]))
        if not encoder["noise_aware"] or encoder["out"] != len(labels):
            raise Unsound(f"the field encoder.out says {encoder['out']} classes and labels names {len(labels)}")
        process, fingerprint = PROCESSES[fields.word(known[2], PROCESSES)], fields.text(known[3])
        check_state(lambda: cls(labels, encoder, process, fingerprint), state)
        model = cls(labels, encoder, process, fingerprint)
        model.load_state_dict({k: v.float() for k, v in state.items()})
        return model.eval().requires_grad_(False)


def of_decoded(classify: Callable[[Tensor], Tensor], index: int, decode: Callable[[Tensor], Tensor]) -> LogLikelihood:
    """log p(class | picture) of the decoded estimate, by a classifier of clean pictures -> logits [B, K]."""
    return lambda _x, _sigma, denoised: class_log_prob(classify(decode(denoised)), index)


def class_index(labels: list[str], label: str) -> int:
    """The place of `label` among labels: exact, or the only one that matches without regard to case."""
    if label in labels:
        return labels.index(label)
    near = [i for i, name in enumerate(labels) if name.strip().lower() == label.strip().lower()]
    if len(near) == 1:
        return near[0]
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    raise ValueError(f"The classifier has no class {label!r}; its classes are: {shown}.")


def train_latent_classifier(
    model: LatentClassifier,
    latents: Tensor,
    targets: Tensor,
    sigmas: Tensor,
    *,
    steps: int = 1000,
    batch: int = 64,
    lr: float = 1e-3,
    mirror: bool = False,
    seed: int = 0,
    callback: Callable[[int, float, float], None] | None = None,
) -> Tensor:
    """Train in place; returns the loss of every step [steps].

    latents [N, C, H, W] clean, in model space; targets [N] class indices; sigmas: the levels to draw from, uniformly (a
    model's whole table is the paper's uniform t). callback(i, loss, accuracy) is called after each step and may raise
    to stop; random numbers come from a generator of their own. Classes are drawn equally often, however many pictures
    each has, so that log p(y | x_s) is that of a uniform prior."""
    if len(latents) != len(targets) or len(latents) == 0:
        raise ValueError(
            f"Training needs one class for each latent; got {len(latents)} latents and {len(targets)} classes."
        )
    device = latents.device
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(targets.cpu(), minlength=len(model.labels)).float()
    chance = 1 / counts[targets.cpu()]
    levels = sigmas[sigmas > 0].float().cpu()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    warm = max(1, steps // 20)
    losses = []
    model.train()
    for i in range(steps):
        index = torch.multinomial(chance, batch, replacement=True, generator=generator).to(device)
        sigma = levels[torch.randint(len(levels), (batch,), generator=generator)].to(device)
        x0, y = latents[index].float(), targets[index]
        if mirror and torch.rand((), generator=generator) < 0.5:
            x0 = x0.flip(-1)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        with torch.enable_grad():
            logits = model(model.process.noised(x0, sigma, noise), sigma)
            loss = F.cross_entropy(logits, y)
            decay = 0.5 + 0.5 * math.cos(math.pi * i / steps)
            optimiser.param_groups[0]["lr"] = lr * min(1.0, (i + 1) / warm) * decay
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        optimiser.step()
        losses.append(loss.detach())
        if callback:
            callback(i, float(loss.detach()), float((logits.argmax(1) == y).float().mean()))
    model.eval().requires_grad_(False)
    return torch.stack(losses).cpu()
