"""Random weights of a network, its file, and quantised layers."""

import os

import torch
from safetensors.torch import save_file

from .layouts import made_config

LAST = ("out.2", "final_layer.linear", "final_linear", "proj_out", "head.head")


def draw(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights that keep activations near one, in place: the engine leaves them as the memory was."""
    generator = torch.Generator().manual_seed(0)
    for key, value in module.state_dict().items():
        if not value.is_floating_point() or key in ("vae_scale", "vae_shift"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1 and not key.endswith("gamma"):
            value.copy_(noise * value[0].numel() ** -0.5)
        else:
            value.copy_(noise * 0.02 + (1.0 if key.endswith(("weight", "scale", "gamma")) else 0.0))
    return module


def quieten(state: dict) -> None:
    """A quiet network, whose steps an inversion can follow; in place."""
    for key in LAST:
        if f"{key}.weight" in state:
            state[f"{key}.weight"] *= 0.2


def write(name: str, path: str) -> None:
    """A checkpoint of the family with random weights that keep activations near one."""
    state = draw(made_config(name, torch.float32).get_model({}, "", device="cpu").diffusion_model).state_dict()
    if name == "SD2.1-v":  # what the engine tells v-prediction by
        key = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
        state[key] = torch.randn(state[key].shape, generator=torch.Generator().manual_seed(1)) * 0.2
    quieten(state)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path)


class Int8Linear(torch.nn.Module):
    """A linear layer of whole numbers and one scale."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach().abs().max() / 127
        self.weight = torch.nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def quantise(network) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, Int8Linear(child))
