"""DreamBooth (Ruiz et al. 2208.12242): a subject from a few pictures, without forgetting its class.

    L = E w(s) e(x0 of the subject, "a [V] class")  +  lambda E w(s') e(x0 of the class, "a class")

The second term, prior preservation, is over pictures that the untuned model itself made of the class. Both halves are
drawn in the same step, the subject's first, with the same weighting and the same levels.

With lambda = 0, or no pictures of the class, this is UniTune's training (Valevski et al. 2210.09477: one picture, a
rare word alone for caption) and draws the very same numbers.

Departures. Paper: the whole network is trained; here low-rank factors are. diffusers: leaves the prior half without the
min-SNR weight that the subject half gets; here both have it. kohya: multiplies each sample of the class by lambda and
averages over all samples of the batch, so that its loss is half of this one for halves of equal size. Caption dropout
(a share of captions left out) is in none of the three by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .objective import Examples, Levels, Net, Objective, Step, batch_losses, denoising_step, draw


def dreambooth_step(
    net: Net,
    subject: Examples,
    prior: Examples | None,
    objective: Objective,
    levels: Levels,
    size: int = 1,
    prior_weight: float = 1.0,
    dropout: float = 0.0,
    device: torch.device | str = "cpu",
) -> Step:
    """`size` rows of the subject and as many of the class a step; losses "loss", "subject" and "prior".

    prior_weight: lambda >= 0. One call of the net where both halves have one picture size, two where not. dropout in
    0..1: the share of captions left out, in both halves. ValueError for a lambda below 0."""
    if prior_weight < 0:
        raise ValueError(f"The weight of the class pictures can't be below 0; got {prior_weight:g}.")
    if prior is None or prior_weight == 0:
        return denoising_step(net, subject, objective, levels, size, dropout, device)

    def step(generator):
        halves = [draw(examples, size, levels, generator, dropout).to(device) for examples in (subject, prior)]
        if halves[0].x0.shape == halves[1].x0.shape:
            ours, theirs = batch_losses(net, objective, halves[0].joined(halves[1])).split(size)
        else:
            ours, theirs = (batch_losses(net, objective, half) for half in halves)
        ours, theirs = ours.mean(), theirs.mean()
        return {"loss": ours + prior_weight * theirs, "subject": ours, "prior": theirs}

    return step


@dataclass(frozen=True)
class Preset:
    """A published way to train, as data. lr: of the network's factors; text_lr: of the text encoder's, 0: not trained.

    prior_pictures: how many pictures of the class; 0: none. init: a name of `lora.INITS`. alpha None: the rank.
    targets, text_targets: names of the choices of layers. rest: factor on lr for all layers but the last one of each
    attention (to_out)."""

    steps: int
    lr: float
    text_lr: float = 0.0
    batch: int = 1
    accumulate: int = 1
    prior_weight: float = 1.0
    prior_pictures: int = 200
    rank: int = 4
    alpha: float | None = None
    init: str = "diffusers"
    targets: str = "attention"
    text_targets: str = "attention"
    weight: str = "eps"
    optimiser: str = "AdamW"
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 0
    schedule: str = "constant"
    dropout: float = 0.0
    rest: float = 1.0


#: "paper": its steps and prior on factors of everything; its rate, 5e-6 on Stable Diffusion, is one of whole weights
#: and the factors take the 1e-4 that diffusers advises. "diffusers": train_dreambooth_lora.py with its README's rate.
#: "kohya": the defaults of sd-scripts' networks.lora at its documentation's rate; its text part has the encoder's
#: feed-forward layers, too. "UniTune": the paper's steps, rate and batch.
#: "UniTune code": the unofficial implementation's (xuduo35), whose full rate is that of each attention's to_out alone
#: (its README says: of the cross-attention), its text encoder frozen.
PRESETS = {
    "paper": Preset(
        steps=1000, lr=1e-4, text_lr=1e-4, prior_pictures=1000, rank=8, targets="all linear and conv", clip=0.0
    ),
    "diffusers": Preset(steps=500, lr=1e-4),
    "kohya": Preset(
        steps=1600, lr=1e-4, text_lr=1e-4, alpha=1.0, init="kohya", targets="transformers", text_targets="attention+ff"
    ),
    "UniTune": Preset(
        steps=128, lr=1e-4, batch=4, prior_weight=0.0, prior_pictures=0, rank=8, targets="all linear and conv"
    ),
    "UniTune code": Preset(
        steps=100,
        lr=9e-5,
        accumulate=4,
        prior_weight=0.0,
        prior_pictures=0,
        rank=8,
        targets="all linear and conv",
        rest=1e-3,
    ),
}
