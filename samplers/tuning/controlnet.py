"""ControlNet (Zhang, Rao, Agrawala 2302.05543): a trained copy of a UNet's encoder steers the locked UNet by a hint.

    c_i = Z_i(F_i(x + H(hint); theta)),     skip_i += strength * c_i,   middle += strength * c_mid

F is a copy of the encoder and the middle block (theta begins at the network's own weights), H the hint's encoder, added
after the first convolution, Z_i one 1 x 1 convolution for each skip. Z and H's last layer begin at 0: the first step
leaves the locked network as it is, and gradients arrive in the order Z, then F and H's last layer, then the rest of H.

Everything here is a dict of weights under the names of the published code (`PARTS`), so one owner serves any network
with those names. Two forms: "full" holds every weight; "small" (Control-LoRA, Stability 2023) holds Z and H whole and
the copy as low-rank changes of the network's weights, W + up down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .objective import Examples, Levels, Net, Objective, Step, batch_losses, draw

#: parts that the network has not: prefixes of their names
ZERO, HINT = ("zero_convs.", "middle_block_out."), ("input_hint_block.",)
PARTS = ("zero convolutions", "copy", "hint's last layer", "hint")
#: the entry that tells loaders a file holds the small form
MARKER = "lora_controlnet"
#: a hint is this many times as high and wide as the latent
HINT_SCALE = 8


def part(name: str, last: str = "input_hint_block.14") -> str:
    """Which of `PARTS` a weight belongs to. last: the hint encoder's last layer."""
    if name.startswith(ZERO):
        return PARTS[0]
    if name.startswith(HINT):
        return PARTS[2] if name.startswith(last + ".") else PARTS[3]
    return PARTS[1]


def last_hint_layer(names: Iterable[str]) -> str:
    """The name of the hint encoder's last layer. ValueError where there is none."""
    numbers = [int(n.split(".")[1]) for n in names if n.startswith(HINT)]
    if not numbers:
        raise ValueError("These weights have no hint encoder: they are no ControlNet's.")
    return f"{HINT[0]}{max(numbers)}"


def initial(
    shapes: Mapping[str, torch.Size],
    network: Mapping[str, Tensor],
    seed: int = 0,
    zero_conv: bool = True,
    rank: int | None = None,
) -> dict[str, Tensor]:
    """A ControlNet's weights at the start, fp32 on the CPU: the network's own where it has that name, 0 for the zero
    convolutions and the hint's last layer, uniform within 1/sqrt(fan in) for the rest of the hint encoder.

    shapes: of every weight of the ControlNet. zero_conv False: the zero convolutions and the hint's last layer begin
    like the rest of the hint encoder (the paper's ablation draws Gaussians instead). rank: None for the full form; in
    the small one every matrix of the copy is up = 0 [out, r] and down [r, in, ...] with r the rank, or the weight's own
    where that is lower, and nothing of the network is copied. ValueError for a weight that neither the network nor the
    hint has, and for a rank below 1."""
    if rank is not None and rank < 1:
        raise ValueError(f"The rank must be at least 1; got {rank}.")
    generator, low = (torch.Generator("cpu").manual_seed(seed) for _ in range(2))
    out, last = {}, last_hint_layer(shapes)
    for name, shape in shapes.items():
        kind = part(name, last)
        if kind == PARTS[1]:
            if name not in network or network[name].shape != shape:
                raise ValueError(f"The network has no weight {name} of shape {list(shape)} to copy.")
            if rank is None:
                out[name] = network[name].detach().float().cpu().clone()
            elif len(shape) > 1:
                layer, r = name.removesuffix(".weight"), min(rank, shape[0], math.prod(shape[1:]))
                out[f"{layer}.down"] = torch.randn((r, *shape[1:]), generator=low) / r
                out[f"{layer}.up"] = torch.zeros(shape[0], r)
            continue
        weight = shapes.get(name.rsplit(".", 1)[0] + ".weight", shape)
        bound = math.prod(weight[1:]) ** -0.5
        drawn = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        out[name] = torch.zeros(shape) if zero_conv and kind in (PARTS[0], PARTS[2]) else drawn
    return out


def is_small(form: Mapping[str, Tensor]) -> bool:
    return MARKER in form or any(name.endswith(".up") for name in form)


def merged(form: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every weight of either form, differentiable in the form's tensors: W + up down in the small one."""
    out = {}
    for name, value in form.items():
        if name.endswith(".up"):
            layer = name.removesuffix(".up")
            base = network[f"{layer}.weight"]
            change = (value.flatten(1) @ form[f"{layer}.down"].flatten(1)).reshape(base.shape)
            out[f"{layer}.weight"] = base.to(change) + change
        elif name != MARKER and not name.endswith(".down"):
            out[name] = value
    return out


def file_of(form: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The tensors of a file that loaders know, with the marker in the small form."""
    out = {name: value.detach().to("cpu", dtype).contiguous().clone() for name, value in form.items()}
    if is_small(form):
        out[MARKER] = torch.tensor([])
    return out


# -- the step of a training


@dataclass(frozen=True)
class Hinted:
    """What a controlled row is told: its caption (never looked into) and its hint [3, H, W] in 0..1."""

    caption: Any
    hint: Tensor


def control_step(
    net: Net,
    examples: Examples,
    objective: Objective,
    levels: Levels,
    size: int = 4,
    dropout: float = 0.5,
    device: torch.device | str = "cpu",
) -> Step:
    """`objective.denoising_step` for examples whose conditions are `Hinted`: a dropped caption (the paper drops half
    of them) leaves the hint, so that the hint alone must say what stands where."""

    def step(generator):
        batch = draw(examples, size, levels, generator)
        dropped = torch.rand(size, generator=generator) < dropout
        told = [replace(c, caption=examples.empty) if gone else c for c, gone in zip(batch.conditions, dropped)]
        return {"loss": batch_losses(net, objective, replace(batch, conditions=told).to(device)).mean()}

    return step


# -- without a prompt


#: how guess mode weighs a control's outputs: the paper's (section 3.3), and the authors' code's (0.825 a layer)
GUESS_WEIGHTS = ("by resolution (the paper's)", "0.825 a layer (the code's)", "all alike")


def guess_weights(sizes: Sequence[int], way: str) -> list[float]:
    """One factor for each output of a control net, whose widths these are, from the first convolution to the middle.

    Guess mode: the hint is in the conditional prediction alone, so that guidance magnifies it where the prompt says
    nothing. By resolution: w_i = h_1/h_i (the paper's 64/h_i at a latent of 64), so that coarse layers say more than
    fine ones. The code's: 0.825^(n - i), 1 in the middle block. ValueError for an unknown way."""
    if way not in GUESS_WEIGHTS:
        raise ValueError(f"There is no way {way!r} to weight the layers: choose one of {', '.join(GUESS_WEIGHTS)}.")
    n = len(sizes)
    return {
        GUESS_WEIGHTS[0]: [sizes[0] / size for size in sizes],
        GUESS_WEIGHTS[1]: [0.825 ** (n - 1 - i) for i in range(n)],
        GUESS_WEIGHTS[2]: [1.0] * n,
    }[way]
