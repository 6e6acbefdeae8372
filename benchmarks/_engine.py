"""The embedded ComfyUI in this process, without a server: the demo checkpoint as MODEL, CLIP and VAE."""

from __future__ import annotations

import functools
import sys
import tempfile

import torch

from ..demo.weights import CHECKPOINT


@functools.cache
def load():
    """(MODEL, CLIP, VAE) of the demo checkpoint, as CheckpointLoaderSimple makes them. FileNotFoundError without it."""
    if not CHECKPOINT.exists():
        raise FileNotFoundError(f"{CHECKPOINT.name} is not there: make train writes it.")
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        from comfy.cli_args import args
    finally:
        sys.argv = arguments
    args.cpu = True
    args.cwd = tempfile.mkdtemp(prefix="nulltext-bench-")  # the engine makes folders where it stands
    import comfy.sd
    import comfy.utils

    from ..engine import demo_family

    demo_family.register()
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), output_vae=True, output_clip=True)
    return model, clip, vae


def prompt(clip, text: str) -> list:
    """CONDITIONING with words, as the Prompt node makes it."""
    from ..nodes.prompt import Prompt

    return Prompt().run(clip, text)["result"][0]


def encode(vae, image: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in 0..1 -> LATENT samples."""
    return vae.encode(image.movedim(1, -1))


def decode(vae, samples: torch.Tensor) -> torch.Tensor:
    """LATENT samples -> [B, 3, H, W] in 0..1."""
    return vae.decode(samples).movedim(-1, 1).clamp(0, 1).clone()
