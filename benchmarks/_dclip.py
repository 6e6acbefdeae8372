"""DiffusionCLIP on the demo model: plain backgrounds tuned to striped ones by the image-text tower. Part of `make bench
NAME=latent_directions`.

Two probes judge held-out scenes, beside SDEdit and FlowEdit on the same ones.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..demo import probe, scenes
from . import _engine
from .harness import Bench

JUDGES = ("conv", "query")
SOURCE, TARGET = "plain background", "striped background"
STRIPED = scenes.TEXTURES.index("striped")
#: set for this small model and its tower; the node's defaults are the authors'
TUNING = {"t0": 0.5, "inversion_steps": 20, "train_steps": 6, "lr": 3e-3, "lr_growth": 1.0, "clip_weight": 3.0}


def plain_scenes(n: int, split: str, seed: int) -> scenes.Scenes:
    found = scenes.sample(n, torch.Generator().manual_seed(seed), split, two=0.0)
    return found.changed("texture", scenes.TEXTURES.index("plain"))


def tuned(bench: Bench):
    """(LORA_MODEL, minutes) trained on training scenes."""
    from ..nodes.clip_guidance import LoadImageText
    from ..nodes.diffusion_clip import WHOLE, DiffusionCLIPTune

    model, clip, vae = _engine.load()
    n, passes = (2, 1) if bench.quick else (32, 4)
    image = scenes.draw(plain_scenes(n, "train", 51))[0]
    begun = time.perf_counter()
    with torch.inference_mode():
        tower = LoadImageText().run("nulltext_image_text.safetensors")["result"][0]
        made = DiffusionCLIPTune().run(
            model,
            empty(clip),
            {"samples": _engine.encode(vae, image)},
            vae,
            tower,
            SOURCE,
            TARGET,
            **TUNING,
            passes=passes,
            l1_weight=1.0,
            identity_weight=0.0,
            form="log",
            gradient=WHOLE,
            layers="attention",
            rank=8,
            seed=1,
            templates="{}",
            file="",
        )["result"]
    return made[1], (time.perf_counter() - begun) / 60


def empty(clip) -> list:
    from ..engine.comfy import encode

    return encode(clip, "")


def judged(judge, images: Tensor, truth: scenes.Scenes) -> tuple[float, float]:
    """(share read as striped, mean share of the object's colour, shape and place kept)."""
    reading = probe.read(judge, images)
    kept = [reading.at_place(name) == getattr(truth, name)[:, 0] for name in ("colour", "shape")]
    kept.append(reading.place == truth.place[:, 0])
    return (float((reading.texture == STRIPED).float().mean()), sum(float(k.float().mean()) for k in kept) / len(kept))


def measure(bench: Bench) -> tuple[dict[str, float], list[list]]:
    """The figures, and lines for the table."""
    from ..nodes.diffusion_clip import DiffusionCLIPEdit
    from ..nodes.direct_edit import DirectEdit
    from ..nodes.sdedit import STOCHASTIC, SDEdit

    n = 4 if bench.quick else 64
    steps = 6 if bench.quick else 20

    def compute():
        found, minutes = tuned(bench)
        model, clip, vae = _engine.load()
        truth = plain_scenes(n, "held_out", 52)
        latent = {"samples": _engine.encode(vae, scenes.draw(truth)[0])}
        rows, judges = {}, {name: probe.load(name) for name in JUDGES}

        def read(name, samples):
            images = _engine.decode(vae, samples)
            rows[name] = {judge: judged(net, images, truth) for judge, net in judges.items()}

        with torch.inference_mode():
            for degree in (0.0, 0.5, 1.0):
                edited = DiffusionCLIPEdit().run(model, empty(clip), latent, found, degree, 0.5, steps, steps, 0, 6, 1)
                read(f"DiffusionCLIP, degree {degree:g}", edited["result"][0]["samples"])
            for t0 in (0.4, 0.6):
                out = SDEdit().run(
                    model, _engine.prompt(clip, TARGET), empty(clip), latent, 3, 5.0, t0, steps, STOCHASTIC, ""
                )
                read(f"SDEdit, t0 {t0:g}", out["result"][0]["samples"])
            ends = [_engine.prompt(clip, text) for text in (SOURCE, TARGET)]
            for strength in (0.6, 0.8):
                out = DirectEdit().run(
                    model, *ends, latent, "FlowEdit", steps, "normal", strength, 1.5, 5.0, 1, 0, 3, empty(clip)
                )
                read(f"FlowEdit, strength {strength:g}", out["result"][0]["samples"])
        return {"minutes": minutes, "rows": rows}

    found = bench.once(f"dclip {n} {steps}", compute)
    lines = [
        [name, judge, reached, kept] for name, seen in found["rows"].items() for judge, (reached, kept) in seen.items()
    ]
    reached, kept = found["rows"]["DiffusionCLIP, degree 1"]["query"]
    return {"dclip_target": reached, "dclip_object_kept": kept, "dclip_minutes": found["minutes"]}, lines
