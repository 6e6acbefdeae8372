"""Imagic and UniTune: one picture each, and an edit that the probes can read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo import captions, scenes
from ...engine import comfy
from ...engine.comfy import time_to_sigma
from ...engine.sampler import core_sampler
from ...engine.tuning_set import TuningSet
from ...nodes.imagic import ImagicOptimise
from ...nodes.imagic_guider import ImagicGuider
from ...nodes.train_lora import TrainLora
from ...samplers.measure.metrics import masked_mse, psnr, to_psnr
from ...samplers.picture.sdedit import sdedit_sigmas
from ..lab import decode, encode, loaded
from .judged import IMAGIC, UNITUNE, defaults, one_object, right, through_autoencoder

ETAS = (0.0, 0.5, 0.7, 0.85, 1.0)
STRENGTHS = (1.0, 0.5, 0.25)
REST = ("colour", "shape", "background", "texture")


def guided(guider, sigmas: Tensor, latent: Tensor, seed: int, noise: bool = True) -> Tensor:
    """LATENT samples of a GUIDER by euler."""
    drawn = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    return guider.sample(drawn, latent, core_sampler("euler"), sigmas, disable_pbar=True, seed=seed)


@torch.inference_mode()
def measure_imagic(i: int, quick: bool) -> dict[str, dict[str, float]]:
    """Picture i: strength -> "eta e" -> figures. The edit moves the object to another place."""
    model, clip, vae = loaded()
    before = one_object(i + 1, 51)[i]
    after = before.changed("place", (before.place[:, 0] + 1) % 4)
    picture = scenes.draw(before)[0]
    latent = encode(vae, picture)
    texts = [comfy.encode(clip, text) for text in (captions.captions(after)[0], "")]
    own = IMAGIC | ({"embedding_steps": 2, "model_steps": 2} if quick else {})
    given = defaults(ImagicOptimise, training_seed=1, file_name=f"bench/imagic_{i}", **own)
    made = ImagicOptimise().run(model=model, target=texts[0], negative=texts[1], latent={"samples": latent}, **given)
    optimised, lora, *_ = made["result"]
    sigmas, out = comfy.sigmas_of(model, "normal", 4 if quick else 20), {}
    for strength in STRENGTHS:
        more = ", ".join(map(str, ETAS[1:]))
        wired = {"optimised": optimised, "lora": lora}
        shown = ImagicGuider().run(model, *texts, ETAS[0], more, 3.0, strength, 1.0, 0.0, **wired)
        box = shown["result"][0]
        images = decode(vae, guided(box, sigmas, torch.zeros(1, 4, 16, 16), 5))
        for eta, image in zip(ETAS, images):
            read = right(image[None], after, ("place", *REST))
            figures = {"place": read["place"], "kept": sum(read[n] for n in REST) / len(REST)}
            figures["psnr"] = float(psnr(image[None], picture)[0])
            out[f"{strength:g} {eta:g}"] = figures
    return out


@torch.inference_mode()
def measure_unitune(i: int, quick: bool) -> dict[str, float]:
    """Picture i, another colour of the object; PSNR outside the object against what the autoencoder leaves of it."""
    model, clip, vae = loaded()
    before = one_object(i + 1, 61)[i]
    colours = [c for c in range(len(scenes.COLOURS)) if c not in (int(before.colour[0, 0]), int(before.background[0]))]
    after = before.changed("colour", colours[i % len(colours)])
    picture, masks = scenes.draw(before)
    latent = encode(vae, picture)
    taught = TuningSet((latent[0].float().cpu(),), ("sks",), (None,), ("picture 1",))
    given = defaults(TrainLora, training_seed=1, **(UNITUNE | ({"steps": 2} if quick else {})))
    lora = TrainLora().run(model=model, clip=clip, pictures=taught, **(given | {"file_name": f"bench/unitune_{i}"}))[
        "result"
    ][2]
    told, empty = (comfy.encode(clip, text) for text in (f"sks {captions.captions(after)[0]}", ""))
    box = ImagicGuider().run(model, told, empty, 1.0, "", 8.0, 1.0, 1.0, 0.4, lora=lora)["result"][0]
    sigmas = sdedit_sigmas(time_to_sigma(model), 0.8, 4 if quick else 30).float()
    image = decode(vae, guided(box, sigmas, latent, 5))
    region = (F.max_pool2d(masks[:, :1], 17, 1, 8) >= 0.02).float()  # a latent cell of room, and the shadow
    background_psnr = to_psnr(masked_mse(image, through_autoencoder(picture), region).clamp(min=1e-8))
    read = right(image, after, ("place", *REST))
    return read | {"background_psnr": float(background_psnr), "psnr": float(psnr(image, picture)[0])}
