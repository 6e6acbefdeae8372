"""Files of random weights that core's loaders take for the demo family's: a ControlNet and a LoRA."""

from __future__ import annotations

import torch


def controlnet(unet: dict[str, torch.Tensor], zero: bool) -> dict[str, torch.Tensor]:
    """The encoder's weights, a hint stem, and convolutions at zero (or, zero=False, ones that let the hint through)."""
    generator = torch.Generator().manual_seed(9)
    parts = ("time_embed.", "input_blocks.", "middle_block.")
    state = {key: value.clone() for key, value in unet.items() if key.startswith(parts)}
    widths = [3, 16, 16, 32, 32, 96, 96, 256, 64]
    stem = [(f"input_hint_block.{2 * i}", n_out, n_in, 3) for i, (n_in, n_out) in enumerate(zip(widths, widths[1:]))]
    ends = [(f"zero_convs.{i}.0", n, n, 1) for i, n in enumerate((64, 64, 64, 128, 128, 128))]
    for key, n_out, n_in, k in (*stem, *ends, ("middle_block_out.0", 128, 128, 1)):
        weight = torch.randn(n_out, n_in, k, k, generator=generator) * (n_in * k * k) ** -0.5
        state[key + ".weight"] = torch.zeros_like(weight) if zero and k == 1 else weight
        state[key + ".bias"] = torch.zeros(n_out)
    return state


def lora(name: str, down: int, up: int, rank: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """One layer's LoRA; `name` as Kohya's files have it, e.g. lora_unet_middle_block_1_..., from `down` to `up`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_down.weight": torch.randn(rank, down, generator=generator),
        f"{name}.lora_up.weight": torch.randn(up, rank, generator=generator),
    }
