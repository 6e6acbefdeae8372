"""The demo model's file: one safetensors checkpoint in the layout of Stable Diffusion 1, fp16, with metadata.

    model.diffusion_model.*                          the UNet
    first_stage_model.taesd_encoder.* | taesd_decoder.* | vae_scale | vae_shift
    cond_stage_model.transformer.text_model.*        the text encoder, and embeddings.token_ids [rows]: the BPE token of
                                                     each row, -1 for none; row 0 is the unknown word
    v_pred                                           empty; there when the UNet predicts v, absent for eps
    latent_rgb_factors                               [4, 3], latent -> rgb in -1..1, for previews; optional

Also random stand-ins for tests: `random_checkpoint` of the same family, and `random_flow_checkpoint`, a tiny model of
the SD3 family.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MODELS = Path(__file__).resolve().parent.parent / "models"
CHECKPOINT = MODELS / "checkpoints" / "nulltext_demo.safetensors"
#: the UNets beside it, for core's Load Diffusion Model; words and pictures are the checkpoint's
NETWORKS = MODELS / "diffusion_models"
FLOW, BOTTLENECK = NETWORKS / "nulltext_flow.safetensors", NETWORKS / "nulltext_bottleneck.safetensors"
PREFIX = {
    "unet": "model.diffusion_model.",
    "text": "cond_stage_model.transformer.text_model.",
    "autoencoder": "first_stage_model.",
}
TOKEN_IDS = PREFIX["text"] + "embeddings.token_ids"
SCALE = 0.18215  # LATENT = model space / SCALE, as for Stable Diffusion 1

State = dict[str, Tensor]


def write_checkpoint(
    path: str | Path,
    unet: State,
    text: State,
    autoencoder: State,
    token_ids: Sequence[int],
    *,
    prediction: str,
    latent_rgb: Tensor | None = None,
    metadata: dict | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the three nets' state dicts and the vocabulary into one file that ComfyUI loads.

    prediction "v" or "eps"; latent_rgb [4, 3] from fit_rgb_factors; metadata values become JSON. ValueError if the
    vocabulary and the text encoder's table differ in length, or for another prediction."""
    rows = text["embeddings.token_embedding.weight"].shape[0]
    if len(token_ids) != rows:
        raise ValueError(f"The vocabulary names {len(token_ids)} rows, the text encoder's table has {rows}.")
    if prediction not in ("v", "eps"):
        raise ValueError(f"A UNet of this family predicts 'v' or 'eps', not {prediction!r}.")
    state = {}
    for part, values in (("unet", unet), ("text", text), ("autoencoder", autoencoder)):
        state |= _kept(values, dtype, PREFIX[part])
    state[TOKEN_IDS] = torch.as_tensor(token_ids, dtype=torch.int32)
    state[PREFIX["autoencoder"] + "vae_scale"] = torch.tensor(SCALE)  # fp32: the loaders multiply by it
    state[PREFIX["autoencoder"] + "vae_shift"] = torch.tensor(0.0)
    return _save(state, path, prediction, latent_rgb, metadata)


def _kept(values: State, dtype: torch.dtype, prefix: str = "") -> State:
    return {prefix + key: value.detach().to("cpu", dtype).contiguous() for key, value in values.items()}


def _save(
    state: State, path: str | Path, prediction: str | None, latent_rgb: Tensor | None, metadata: dict | None
) -> Path:
    if prediction == "v":
        state["v_pred"] = torch.tensor([])
    if latent_rgb is not None:
        state["latent_rgb_factors"] = latent_rgb.detach().float().cpu().contiguous()
    notes = {"format": "pt", **(metadata or {})}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, {k: v if isinstance(v, str) else json.dumps(v) for k, v in notes.items()})
    return path


def write_network(
    path: str | Path,
    unet: State,
    *,
    prediction: str | None,
    latent_rgb: Tensor | None = None,
    metadata: dict | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write one UNet (keys as in nets.py, no prefix) for core's Load Diffusion Model. prediction "v", or None: eps, and
    what a sampling node after the loader says (the flow twin)."""
    return _save(_kept(unet, dtype), path, prediction, latent_rgb, metadata)


def read_part(path: str | Path, part: str) -> State:
    """The fp32 state dict of "unet", "text" or "autoencoder", with the keys of its net."""
    prefix = PREFIX[part]
    extra = {TOKEN_IDS, PREFIX["autoencoder"] + "vae_scale", PREFIX["autoencoder"] + "vae_shift"}
    return {
        key[len(prefix) :]: value.float()
        for key, value in load_file(path).items()
        if key.startswith(prefix) and key not in extra
    }


def read_network(path: str | Path) -> State:
    """The fp32 state dict of a UNet's own file, with the keys of nets.py."""
    return {key: value.float() for key, value in load_file(path).items() if key not in ("v_pred", "latent_rgb_factors")}


def committed_diffusion() -> tuple[dict[str, Tensor], int]:
    """Text encoder and UNet of the committed checkpoint, and the samples they had seen."""
    with safe_open(CHECKPOINT, "pt") as f:
        samples = json.loads((f.metadata() or {}).get("samples_seen", "0"))
    return {f"{name}.{k}": v for name in ("text", "unet") for k, v in read_part(CHECKPOINT, name).items()}, samples


def fit_rgb_factors(latents: Tensor, images: Tensor) -> Tensor:
    """[4, 3]: the least-squares map from latents [B, 4, h, w] (model space) to images [B, 3, 8h, 8w] in 0..1, shrunk
    and taken as -1..1. Without a constant term, because the pip engine's previewer has none."""
    pixels = F.avg_pool2d(images.float(), 8) * 2 - 1
    flat = [t.movedim(1, -1).reshape(-1, t.shape[1]).double() for t in (latents, pixels)]
    return torch.linalg.lstsq(*flat).solution.float()


# --------------------------------------------------------------------------------------------------- random stand-ins


def _filled(module: nn.Module, generator: torch.Generator) -> State:
    """Random weights of a scale that keeps activations near one; no branch left at zero, norms near the identity."""
    state = {}
    for key, value in module.state_dict().items():
        if value.ndim > 1:
            fan = value[0].numel() if "embedding" not in key else 10
            state[key] = torch.randn(value.shape, generator=generator) * fan**-0.5
        else:
            state[key] = torch.randn(value.shape, generator=generator) * 0.05 + (value == 1).all()
    return state


def random_checkpoint(
    path: str | Path, seed: int = 0, prediction: str = "v", dtype: torch.dtype = torch.float16
) -> Path:
    """A checkpoint of the demo family with random weights (17 MB in fp16) and the real vocabulary."""
    from . import captions, nets
    from .autoencoder import AutoEncoder
    from .text_encoder import TextEncoder

    generator = torch.Generator().manual_seed(seed)
    unet, text, autoencoder = (_filled(m(), generator) for m in (nets.UNet, TextEncoder, AutoEncoder))
    parts, options = (unet, text, autoencoder, captions.VOCABULARY), {"prediction": prediction, "dtype": dtype}
    return write_checkpoint(path, *parts, metadata={"random_seed": str(seed)}, **options)


def random_flow_checkpoint(path: str | Path, seed: int = 0, context: int = 128) -> Path:
    """A flow model with random weights that both engines load as SD3 (0.7 MB, one joint block of width 64).

    sigma_max is exactly 1, latents have 16 channels (up to 256 x 256 pixels). The file holds the network only: take
    CLIP from a demo checkpoint, whose context and pooled vectors have the width `context`; there is no VAE."""
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
        state[f"{PREFIX['unet']}{name}.weight"] = torch.randn(shape, generator=generator) * fan**-0.5
        state[f"{PREFIX['unet']}{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.05
    state[PREFIX["unet"] + "pos_embed"] = torch.randn(1, side * side, width, generator=generator) * 0.1
    return _save(state, path, None, None, {"random_seed": str(seed)})
