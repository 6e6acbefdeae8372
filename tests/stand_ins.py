"""Files of random weights of the demo's family, what core's loaders make of them, and a tiny SDXL."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from types import SimpleNamespace

import torch
from nulltext.benchmarks.families.stand_ins import streamed
from nulltext.demo import captions, nets
from nulltext.demo import weights as demo_weights
from nulltext.demo.autoencoder import AutoEncoder
from nulltext.demo.text_encoder import TextEncoder
from safetensors.torch import save_file

#: of a family's UNet: one level, for what traces or trains every block
LEAST = {"channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]}
LEAST |= {"transformer_depth_middle": 1}


def random_state(module: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights of a scale that keeps activations near one; no branch left at zero, norms near the identity."""
    state = {}
    for key, value in module.state_dict().items():
        if value.ndim > 1:
            fan = value[0].numel() if "embedding" not in key else 10
            state[key] = torch.randn(value.shape, generator=generator) * fan**-0.5
        else:
            state[key] = torch.randn(value.shape, generator=generator) * 0.05 + (value == 1).all()
    return state


def random_checkpoint(path: Path, seed: int = 0, prediction: str = "v") -> Path:
    """A checkpoint of the demo family with random weights (17 MB in fp16) and the real vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    parts = (random_state(made(), generator) for made in (nets.UNet, TextEncoder, AutoEncoder))
    return demo_weights.write_checkpoint(path, *parts, captions.VOCABULARY, prediction=prediction)


def random_flow_checkpoint(path: Path, seed: int = 0) -> Path:
    """A flow model with random weights that both engines load as SD3 (0.7 MB, one joint block of width 64).

    sigma_max is exactly 1, latents have 16 channels (up to 256 x 256 pixels). The file holds the network only: take
    CLIP from a demo checkpoint, whose context and pooled vectors are as wide; there is no VAE."""
    unet, context = demo_weights.PREFIX["unet"], nets.CONTEXT
    width, channels, patch, side, frequencies = 64, 16, 2, 16, 256
    shapes = {
        "x_embedder.proj": (width, channels, patch, patch),
        "t_embedder.mlp.0": (width, frequencies),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, context),
        "y_embedder.mlp.2": (width, width),
        "context_embedder": (width, context),
        "final_layer.linear": (patch * patch * channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    block = "joint_blocks.0."  # the last block's context side ends in its attention
    shapes |= {
        block + "context_block.attn.qkv": (3 * width, width),
        block + "context_block.adaLN_modulation.1": (2 * width, width),
        block + "x_block.attn.qkv": (3 * width, width),
        block + "x_block.attn.proj": (width, width),
        block + "x_block.mlp.fc1": (4 * width, width),
        block + "x_block.mlp.fc2": (width, 4 * width),
        block + "x_block.adaLN_modulation.1": (6 * width, width),
    }
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        fan = torch.Size(shape[1:]).numel()
        state[f"{unet}{name}.weight"] = torch.randn(shape, generator=generator) * fan**-0.5
        state[f"{unet}{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.05
    state[unet + "pos_embed"] = torch.randn(1, side * side, width, generator=generator) * 0.1
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, {"format": "pt"})
    return path


def demo_checkpoint(folder: Path, seed: int) -> Path:
    """A checkpoint of the demo's family, of random weights, that the engine's loaders know from here on."""
    import nulltext.engine.demo_family as family

    family.register()
    path = folder / "demo.safetensors"
    random_checkpoint(path, seed=seed)
    return path


def demo_parts(engine, folder: Path, seed: int) -> SimpleNamespace:
    """MODEL, CLIP and VAE of such a checkpoint, as core loads them."""
    path = demo_checkpoint(folder, seed)
    with torch.inference_mode():
        model, clip, vae = engine.get("sd").load_checkpoint_guess_config(str(path))[:3]
    return SimpleNamespace(model=model, clip=clip, vae=vae)


def streaming(given, stage: str):
    """A VAE, CLIP or CLIP_VISION like the given one whose patcher says that its weights are streamed. stage: its
    attribute that is the network."""
    other, patcher = copy.copy(given), given.patcher
    with torch.inference_mode():
        again = lambda: copy.deepcopy(getattr(given, stage))
        setattr(other, stage, again())
        other.patcher = streamed(getattr(other, stage), (patcher.load_device, patcher.offload_device), again)
    return other


def flow_transformer(engine, folder: Path):
    """A flow MODEL of SD3's class, of random weights, as core loads it."""
    path = folder / "flow.safetensors"
    random_flow_checkpoint(path)
    with torch.inference_mode():
        return engine.get("sd").load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]


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


def _filled(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        fan = max(p[0].numel(), 1) if p.ndim > 1 else 1
        value = torch.randn(p.shape, generator=generator) * (fan**-0.5 if p.ndim > 1 else 0.02)
        p.data.copy_(value + (1.0 if p.ndim == 1 and name.endswith("weight") else 0.0))


#: a UNet of SDXL's layout; the text is 32 wide from CLIP-L and 48 from CLIP-G, whose pooled vector stands before sizes
XL_WIDTHS = {"clip_l": 32, "clip_g": 48}
XL = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1]}
XL |= {"channel_mult": [1, 2], "num_heads": -1, "num_head_channels": 64, "use_spatial_transformer": True}
XL |= {"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1}
XL |= {"context_dim": 80, "adm_in_channels": 48 + 6 * 256, "num_classes": "sequential", "legacy": False}
XL |= {"use_linear_in_transformer": True, "use_temporal_attention": False}


def xl(engine, seed: int = 0):
    """(MODEL, CLIP) of SDXL's classes with tiny random networks: both text encoders, pooled vector and sizes."""
    base, patcher = engine.get("model_base"), engine.get("model_patcher")
    sd1, sdxl, cpu = engine.get("sd1_clip"), engine.get("sdxl_clip"), torch.device("cpu")

    class Encoders(sdxl.SDXLClipModel):
        def __init__(self, device="cpu", dtype=None, **_):
            torch.nn.Module.__init__(self)
            for name, width in XL_WIDTHS.items():
                config = {"hidden_act": "quick_gelu", "hidden_size": width, "intermediate_size": 2 * width}
                config |= {"num_attention_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 77}
                config |= {"vocab_size": 49408, "eos_token_id": 49407}
                tokens = {"start": 49406, "end": 49407, "pad": 0 if name == "clip_g" else 49407}
                more = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False, "special_tokens": tokens}
                made = sd1.SDClipModel(device=device, dtype=dtype, textmodel_json_config=config, **more)
                setattr(self, name, made)
            self.dtypes = {dtype}

    with torch.inference_mode():
        made = engine.get("supported_models").SDXL(dict(XL))
        made.unet_config = {**XL, "dtype": torch.float32}
        model = base.SDXL(made, base.ModelType.EPS, device="cpu")
        _filled(model, seed)
        target = SimpleNamespace(params={}, clip=Encoders, tokenizer=sdxl.SDXLTokenizer)
        clip = engine.get("sd").CLIP(target, embedding_directory=None)
        _filled(clip.cond_stage_model, seed + 1)
        clip.cond_stage_model.float()
        for name, width in XL_WIDTHS.items():
            getattr(clip.tokenizer, name).embedding_size = width
        return patcher.ModelPatcher(model, cpu, cpu), clip


@contextlib.contextmanager
def quantised(module):
    """One layer's weights as int8, as loaders of quantised files have them."""
    layer = next(m for m in module.modules() if isinstance(m, torch.nn.Linear))
    kept = layer.weight
    layer._parameters["weight"] = torch.nn.Parameter(kept.to(torch.int8), requires_grad=False)
    try:
        yield
    finally:
        layer._parameters["weight"] = kept
