"""The demo model with what measurements from a picture need. Latents are in model space."""

from __future__ import annotations

import torch
from torch import Tensor

from ..demo import captions, nets, scenes
from ..demo.checkpoint import CHECKPOINT
from ..demo.model import denoiser, empty_rows, load


class Demo:
    """Networks, noise table, captions as denoisers."""

    def __init__(self, checkpoint=CHECKPOINT):
        self.net, self.autoencoder = load(checkpoint)
        self.sigmas = nets.sigmas()

    def at(self, time: float) -> float:
        """sigma at a share of the time."""
        return 0.0 if time <= 0 else float(self.sigmas[round(min(time, 1.0) * 999)])

    def pair(self, truth: scenes.Scenes):
        """(conditional, unconditional) denoisers of the scenes' full captions."""
        rows, _ = captions.token_rows(*captions.phrases(truth))
        texts = (rows, empty_rows(len(truth)))
        return [denoiser(self.net.unet, self.net.text(r), self.sigmas) for r in texts]

    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x).clamp(0, 1)


def some(n: int, seed: int, keep, **attributes) -> scenes.Scenes:
    """n held-out one-object scenes that `keep` accepts, the named attributes set."""
    found = scenes.sample(40 * n, torch.Generator().manual_seed(seed), "held_out", two=0.0)
    found = found[keep(found)][:n]
    for name, value in attributes.items():
        found = found.changed(name, value)
    return found
