"""DiffusionCLIP (Kim et al. 2110.02711): a net is tuned by a text direction through its own sampling chain.

    x_s0 = deterministic inversion of x0 up to s0 by the frozen net
    x^   = Euler(theta', x_s0) in few steps               min over theta' of L(x^, x0) of `directional.py`

    whole chain      the gradient passes all steps of the sampler; on a Gaussian it is the product of the steps' factors
    memory-saving    one optimiser step at each sampling step, on D(x_s) with x_s detached (the authors' second variant)

Degree and several attributes are mixed as predictions, not as weights (`mixing.py`). From one unseen domain to another:
the picture is noised to s0 and brought back by the original net, several times, and then edited.

Departures: pictures are drawn with replacement, so that a run's state is its random numbers alone. The inversion asks
for the prediction at the level it leaves; the authors, here and in Asyrp, at the lower one (the pivot "DDIM at the
lower level"), which comes back less exactly with an exact denoiser. The chain's levels are evenly spaced from s0 to 0
without 0 (the authors' last step begins at time 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import VE, Denoise, NoiseProcess, NoiseSource, euler_step
from ..ode import sample_euler
from .directional import EditLoss
from .loop import Settings
from .objective import Step
from .walks import Walks


@dataclass(frozen=True)
class Preset:
    """The numbers of one published run. t0: share of the diffusion's time. inversion, train, sample: steps of each.

    clip, l1, identity: weights of the losses; growth: the rate is multiplied by it after every pass."""

    t0: float
    inversion: int
    train: int
    sample: int
    clip: float
    l1: float
    identity: float
    lr: float
    growth: float
    pictures: int = 50
    passes: int = 5
    form: str = "log"

    def settings(self, pictures: int | None = None, passes: int | None = None, **changes) -> Settings:
        """The loop's numbers for so many pictures, one a step."""
        n = pictures or self.pictures
        given = {
            "steps": n * (passes or self.passes),
            "lr": self.lr,
            "optimiser": "Adam",
            "weight_decay": 0.0,
            "clip": 0.0,
            "schedule": "geometric",
            "factor": self.growth,
            "every": n,
        }
        return Settings(**(given | changes))


#: the released code's defaults, and its README's example
PRESETS = {
    "code": Preset(0.4, 40, 6, 40, 3.0, 0.0, 0.0, 2e-6, 1.3, passes=1),
    "README": Preset(0.5, 40, 6, 40, 3.0, 1.0, 0.0, 8e-6, 1.3),
}


@dataclass(frozen=True)
class Pictures:
    """What is tuned on. starts: x at s0 [1, C, ...] each, from the frozen net; sources: pictures [1, 3, H, W] in 0..1;
    conditions: what the net shall be given with each."""

    starts: Sequence[Tensor]
    sources: Sequence[Tensor]
    conditions: Sequence[Any]

    def __post_init__(self):
        if not self.starts or not len(self.starts) == len(self.sources) == len(self.conditions):
            raise ValueError(
                f"There are {len(self.starts)} starts, {len(self.sources)} pictures and {len(self.conditions)} "
                "conditions: each picture needs one of each."
            )

    def __len__(self) -> int:
        return len(self.starts)

    def draw(self, generator: torch.Generator) -> int:
        return int(torch.randint(len(self), (1,), generator=generator))


def chain_step(
    net: Callable[[Any], Denoise],
    pictures: Pictures,
    sigmas: Tensor,
    decode: Callable[[Tensor], Tensor],
    loss: EditLoss,
    on_call: Callable[[], None] | None = None,
) -> Step:
    """The training step through the whole chain: one picture, sampled from its start in all steps, one loss.

    net(condition) -> the tuned denoiser; decode: model space -> pictures. on_call() before each network call."""

    def step(generator):
        i = pictures.draw(generator)
        denoise = _counted(net(pictures.conditions[i]), on_call)
        edited = decode(sample_euler(denoise, pictures.starts[i], sigmas))
        return loss(edited, pictures.sources[i])

    return step


def _counted(denoise: Denoise, on_call: Callable[[], None] | None) -> Denoise:
    if on_call is None:
        return denoise

    def ask(x, sigma):
        on_call()
        return denoise(x, sigma)

    return ask


def saving_step(
    net: Callable[[Any], Denoise],
    pictures: Pictures,
    sigmas: Tensor,
    decode: Callable[[Tensor], Tensor],
    loss: EditLoss,
    on_call: Callable[[], None] | None = None,
) -> Walks:
    """The memory-saving form of `chain_step`: the loss of every D(x_s), x_s a constant."""

    def advance(state, i):
        x, picture = state
        denoised = _counted(net(pictures.conditions[picture]), on_call)(x, sigmas[i])
        losses = loss(decode(denoised), pictures.sources[picture])
        return losses, (euler_step(x, denoised.detach(), sigmas[i], sigmas[i + 1]), picture)

    def begin(generator):
        i = pictures.draw(generator)
        return pictures.starts[i], i

    return Walks(len(sigmas) - 1, begin, advance)


def into_seen_domain(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseSource,
    process: NoiseProcess = VE,
    repeats: int = 8,
    on_pass: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """A picture [B, C, ...] that the net was not trained on, brought among those it was: noised to sigmas[0] and walked
    down by the original net, `repeats` times (the authors advise more than 8, in 6 steps each)."""
    for i in range(repeats):
        x0 = sample_euler(denoise, process.noised(x0, sigmas[0], noise()), sigmas)
        if on_pass is not None:
            on_pass(i, x0)
    return x0
