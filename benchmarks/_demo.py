"""The demo model with what measurements from a picture need. Latents are in model space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..demo import captions, nets, scenes
from ..demo.model import denoiser, empty_rows, load
from ..demo.weights import CHECKPOINT
from .harness import OUTPUT, Bench


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


def kept_pictures(
    bench: Bench, key: str, n: int, make: Callable[[list[int]], dict[str, Tensor]], batch: int
) -> dict[str, Tensor]:
    """make(indices) -> {name: images [B, 3, 128, 128] in 0..1} for all n items, each batch kept as a file.

    Making pictures is what costs; what reads them (a probe) may come or change later."""
    folder = OUTPUT / f"{bench.path.stem}.pictures"
    if key not in bench.kept:
        for old in folder.glob(f"{key} *"):
            old.unlink()

    def compute(items):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key} {items[0]:04d}.safetensors"
        made = {name: (image.clamp(0, 1) * 255).round().byte().contiguous() for name, image in make(items).items()}
        save_file(made, path)
        return [path.name] * len(items)

    files = dict.fromkeys(bench.each(key, range(n), compute, batch))
    parts = [load_file(folder / name) for name in files]
    return {name: torch.cat([part[name] for part in parts]).float() / 255 for name in parts[0]}
