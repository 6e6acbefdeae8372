"""Imagic (Kawar et al. 2210.09276): one picture, one text that says what it shall become.

    1. e_opt  = argmin over e     of E w(s) |D(x_s, s, e) - x0|^2, from e = e_target     (few steps)
    2. theta' = argmin over theta of the same, at e = e_opt
    3. sample with theta' at e(eta) = eta e_target + (1 - eta) e_opt

eta 0 gives the picture back, about .6 to .8 edits it. Departures: part 2 trains low-rank factors, not the network, so
they have a strength, and may be left out above or below a sigma: what helps where part 2 holds the picture so tight
that no eta moves it, which is the technique's known failure. The rate of part 1 may be said relative to the
embedding's rms. Where a network reads a pooled vector, too (SDXL, Flux), part 1 leaves it the target's. The gradient's
norm is held at 1, which the notebook does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .loop import Loop, Settings
from .textual_inversion import rms


def check_same_shape(target: Tensor, optimised: Tensor) -> None:
    """ValueError unless both embeddings [1, T, D] have one shape."""
    if target.shape != optimised.shape:
        raise ValueError(
            f"The target text's embedding has shape {list(target.shape)} and the optimised one {list(optimised.shape)}:"
            " take the target text that the picture was optimised for."
        )


def interpolate(target: Tensor, optimised: Tensor, eta: float) -> Tensor:
    """e(eta) [1, T, D]; optimised to the bit at eta 0, target to the bit at 1; beyond 1 is allowed."""
    check_same_shape(target, optimised)
    if eta == 0:
        return optimised
    if eta == 1:
        return target
    return eta * target + (1 - eta) * optimised


def embedding_loop(target: Tensor, settings: Settings, relative_lr: float | None = None, seed: int = 0) -> Loop:
    """Part 1: a loop over one parameter, "embedding", that begins at the target's own bits.

    relative_lr: rate in units of the target's rms, in place of the settings' absolute one."""
    if relative_lr is not None:
        settings = replace(settings, lr=relative_lr * rms(target))
    kind = torch.promote_types(target.dtype, torch.float32)
    with torch.inference_mode(False):
        return Loop({"embedding": target.detach().to(kind).clone()}, settings, seed)


@dataclass(frozen=True)
class Preset:
    """A published way. Part 1: embedding_steps at embedding_lr (relative to the embedding's rms, about 1 for CLIP-L's
    output, so that the published absolute rates stand). Part 2: model_steps at model_lr, here of low-rank factors."""

    embedding_steps: int
    embedding_lr: float
    model_steps: int
    model_lr: float
    eta: float
    cfg: float
    batch: int = 1
    rank: int = 8
    optimiser: str = "Adam"


#: model_lr is 1e-4 in all: the published 5e-7 to 2e-6 are rates of whole weights, which move low-rank factors nowhere.
#: "paper": its Stable Diffusion steps; "notebook": J. Pinkney's; "diffusers": the community pipeline.
PRESETS = {
    "paper": Preset(1000, 2e-3, 1500, 1e-4, eta=0.7, cfg=7.5),
    "notebook": Preset(500, 1e-3, 1000, 1e-4, eta=0.9, cfg=3.0),
    "diffusers": Preset(500, 1e-3, 1000, 1e-4, eta=1.2, cfg=7.5),
}
