"""What the benches need of the demo model: its networks as denoisers, its judge, and the embedded ComfyUI with its
checkpoint. Latents are in model space, images [B, 3, 128, 128] in 0..1."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from ..batch.engines import gpu
from ..demo import captions, nets, probe, scenes
from ..demo.model import denoiser, empty_rows, flow_denoiser, load, schedule
from ..demo.weights import CHECKPOINT
from ..samplers.core import Denoise


class Demo:
    """Networks, noise table, and with `steps` the sigmas of a run; captions and embeddings as denoisers. flow: with the
    flow twin as the network, at levels from 1 to 0."""

    def __init__(self, steps: int | None = None, flow: bool = False):
        self.net, self.autoencoder = load(flow=flow)
        self.flow = flow
        self.table = nets.sigmas()
        self.sigmas = None if steps is None else schedule(steps, self.table)

    @cached_property
    def judge(self) -> torch.nn.Module:
        """The probe that reads attributes off pictures."""
        return probe.load("conv")

    def at(self, time: float) -> float:
        """sigma at a share of the time."""
        return 0.0 if time <= 0 else float(self.table[round(min(time, 1.0) * 999)])

    def context(self, truth: scenes.Scenes) -> Tensor:
        """[B, 77, 128] embeddings of the full captions."""
        return self.net.text(captions.token_rows(*captions.phrases(truth))[0])

    def empty(self, n: int) -> Tensor:
        """[n, 77, 128] embeddings of the empty caption."""
        return self.net.text(empty_rows(n))

    def denoise(self, x: Tensor, sigma, embedding: Tensor) -> Tensor:
        """D [B, 4, 16, 16] with an embedding [B, 77, 128] in the text's place."""
        made = flow_denoiser(self.net.unet, embedding) if self.flow else denoiser(self.net.unet, embedding, self.table)
        return made(x, sigma)

    def pair(self, truth: scenes.Scenes) -> tuple[Denoise, Denoise]:
        """(conditional, unconditional) denoisers of the scenes' full captions."""
        return tuple(partial(self.denoise, embedding=e) for e in (self.context(truth), self.empty(len(truth))))

    def encode(self, image: Tensor) -> Tensor:
        return self.autoencoder.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        return self.autoencoder.decode(latent).clamp(0, 1)


def some(n: int, seed: int, keep=None, split: str = "held_out", times: int = 40, **attributes) -> scenes.Scenes:
    """n one-object scenes of a split; with `keep` those that it accepts, of `times` as many drawn, the named attributes
    set."""
    draws = torch.Generator().manual_seed(seed)
    if keep is None:
        return scenes.sample(n, draws, split, two=0.0)
    found = scenes.sample(times * n, draws, split, two=0.0)
    found = found[keep(found)][:n]
    for name, value in attributes.items():
        found = found.changed(name, value)
    return found


def of_split(n: int, split: str, draw, **attributes) -> scenes.Scenes:
    """n scenes that belong to the split as they are judged, with these attributes set: a change can move a scene from
    one split to the other. draw(count) gives scenes of the split before."""
    found = draw(16 * n)
    for name, value in attributes.items():
        found = found.changed(name, value)
    return found[scenes.held_out(found) == (split == "held_out")][:n]


def engine_folders(args) -> None:
    """With these arguments the engine makes its folders in one that goes when the process ends."""
    args.cwd = args.base_directory = tempfile.mkdtemp(prefix="nulltext-engine-")
    atexit.register(shutil.rmtree, args.cwd, ignore_errors=True)


@functools.cache
def loaded(checkpoint: Path = CHECKPOINT):
    """(MODEL, CLIP, VAE) as CheckpointLoaderSimple makes them; the demo's on the processor."""
    if not CHECKPOINT.exists():
        raise FileNotFoundError(f"{CHECKPOINT.name} is not there: make train writes it.")
    if importlib.util.find_spec("comfy") is None and os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, os.environ["COMFYUI_PATH"])  # under that engine's own interpreter
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        from comfy.cli_args import args
    finally:
        sys.argv = arguments
    args.cpu = checkpoint == CHECKPOINT or not gpu()
    engine_folders(args)
    import comfy.sd
    import comfy.utils

    from ..engine import demo_family

    demo_family.register()
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)[:3]


def encode(vae, image: Tensor) -> Tensor:
    """[B, 3, H, W] in 0..1 -> LATENT samples."""
    return vae.encode(image.movedim(1, -1))


def decode(vae, samples: Tensor) -> Tensor:
    """LATENT samples -> [B, 3, H, W] in 0..1."""
    return vae.decode(samples).movedim(-1, 1).clamp(0, 1).clone()


class InEngine:
    """A checkpoint in the embedded ComfyUI, in this process: MODEL, CLIP and VAE, without a server."""

    def __init__(self, steps: int, checkpoint: Path = CHECKPOINT):
        from ..engine.comfy import sigmas_of

        self.model, self.clip, self.vae = loaded(checkpoint)
        self.steps, self.sigmas = steps, sigmas_of(self.model, "normal", steps)
        self.nothing = self.prompt("")

    def prompt(self, text: str) -> list:
        """CONDITIONING with words, as the Prompt node makes it."""
        from ..nodes.prompt import Prompt

        return Prompt().run(self.clip, text)["result"][0]

    def encode(self, image: Tensor) -> Tensor:
        return encode(self.vae, image)

    def decode(self, samples: Tensor) -> Tensor:
        return decode(self.vae, samples)

    def invert(self, text: str, image: Tensor):
        """The INVERSION of a picture with its prompt: DDIM at cfg 1."""
        from ..nodes.inversion import invert

        latent = {"samples": self.encode(image)}
        return invert(self.model, {"positive": self.prompt(text)}, latent, self.sigmas, "ddim", cache=False)[0]

    def edited(self, text: str, inversion, cfg: float, **options) -> tuple[Tensor, float]:
        """(picture, network rows) of prompt-to-prompt from an inversion."""
        from ..engine.pair_guider import run_guider

        result = run_guider(self.guider(text, inversion, cfg, **options), None, inversion.sigmas, 0)
        return self.decode(result.edits), result.rows

    def guider(self, text: str, inversion, cfg: float, **options):
        from ..nodes.prompt_to_prompt import prepare

        return prepare("bench", self.model, self.prompt(text), self.nothing, cfg, inversion=inversion, **options)[0]
