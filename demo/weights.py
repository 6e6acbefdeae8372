"""The demo model's file: one safetensors checkpoint in the layout of Stable Diffusion 1, fp16, with metadata.

    model.diffusion_model.*                          the UNet
    first_stage_model.taesd_encoder.* | taesd_decoder.* | vae_scale | vae_shift
    cond_stage_model.transformer.text_model.*        the text encoder, and embeddings.token_ids [rows]: the BPE token of
                                                     each row, -1 for none; row 0 is the unknown word
    v_pred                                           empty; there when the UNet predicts v, absent for eps
    latent_rgb_factors                               [4, 3], latent -> rgb in -1..1, for previews; optional

The UNets beside it (`write_network`) have files of their own, whose keys are those of nets.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

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
) -> Path:
    """Write one UNet (keys as in nets.py, no prefix) for core's Load Diffusion Model. prediction "v", or None: eps, and
    what a sampling node after the loader says (the flow twin)."""
    return _save(_kept(unet, torch.float16), path, prediction, latent_rgb, metadata)


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


def committed_network(path: Path) -> tuple[dict[str, Tensor], int]:
    """The UNet of a committed file of its own, and the samples it had seen."""
    with safe_open(path, "pt") as f:
        samples = int(f.metadata()["samples_seen"])
    return read_network(path), samples


def fit_rgb_factors(latents: Tensor, images: Tensor) -> Tensor:
    """[4, 3]: the least-squares map from latents [B, 4, h, w] (model space) to images [B, 3, 8h, 8w] in 0..1, shrunk
    and taken as -1..1. Without a constant term, because the pip engine's previewer has none."""
    pixels = F.avg_pool2d(images.float(), 8) * 2 - 1
    flat = [t.movedim(1, -1).reshape(-1, t.shape[1]).double() for t in (latents, pixels)]
    return torch.linalg.lstsq(*flat).solution.float()
