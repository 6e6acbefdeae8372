"""DiffusionCLIP on the demo model: backgrounds tuned from plain to striped, and photos to drawings, by the image-text
tower. Part of `make bench NAME=latent_directions`.

Two probes judge held-out scenes, beside SDEdit and FlowEdit on the same ones. "both": the two LoRAs' predictions mixed.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from ...demo import captions, probe, scenes
from ..harness import Bench
from ..lab import InEngine

JUDGES = ("conv", "query")


class Edit(NamedTuple):
    source: str
    target: str
    attribute: str
    before: int
    after: int


STRIPES = Edit("plain background", "striped background", "texture", *map(scenes.TEXTURES.index, ("plain", "striped")))
DRAWING = Edit("a photo", "a drawing", "style", *map(scenes.STYLES.index, ("photo", "drawing")))
#: set for this small model and its tower; the node's defaults are the authors'
TUNING = {"t0": 0.5, "inversion_steps": 20, "train_steps": 6, "lr": 3e-3, "lr_growth": 1.0, "clip_weight": 3.0}


def plain_scenes(n: int, split: str, seed: int) -> scenes.Scenes:
    """Photos of one object on a plain background."""
    found = scenes.sample(n, torch.Generator().manual_seed(seed), split, two=0.0)
    for edit in (STRIPES, DRAWING):
        found = found.changed(edit.attribute, edit.before)
    return found


def empty(clip) -> list:
    from ...engine.comfy import encode

    return encode(clip, "")


def prompts(clip, some: scenes.Scenes) -> list:
    """CONDITIONING of the scenes' full captions, one for each row of a batch."""
    from ...engine.comfy import encode

    made = [encode(clip, text)[0] for text in captions.captions(some)]
    return [
        [
            torch.cat([cond for cond, _ in made]),
            {"pooled_output": torch.cat([more["pooled_output"] for _, more in made])},
        ]
    ]


def tuned(bench: Bench, edit: Edit):
    """(LORA_MODEL, minutes) trained on training scenes."""
    from ...nodes.diffusion_clip import WHOLE, DiffusionCLIPTune
    from ...nodes.loaders import LoadImageText

    lab = InEngine(1)
    n, passes = (2, 1) if bench.quick else (32, 4)
    image = scenes.draw(plain_scenes(n, "train", 51))[0]
    begun = time.perf_counter()
    tower = LoadImageText().run("nulltext_image_text.safetensors")["result"][0]
    made = DiffusionCLIPTune().run(
        lab.model,
        empty(lab.clip),
        {"samples": lab.encode(image)},
        lab.vae,
        tower,
        edit.source,
        edit.target,
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


def judged(judge, images: Tensor, truth: scenes.Scenes) -> list[float]:
    """Shares read as striped, as drawings, as both; mean share of the object's colour, shape and place kept."""
    reading = probe.read(judge, images)
    done = [getattr(reading, edit.attribute) == edit.after for edit in (STRIPES, DRAWING)]
    kept = [reading.at_place(name) == getattr(truth, name)[:, 0] for name in ("colour", "shape")]
    kept.append(reading.place == truth.place[:, 0])
    shares = [float(d.float().mean()) for d in (*done, done[0] & done[1])]
    return [*shares, sum(float(k.float().mean()) for k in kept) / len(kept)]


class Ways(InEngine):
    """Every way to edit the held-out scenes, as LATENT samples."""

    def __init__(self, truth: scenes.Scenes, steps: int):
        super().__init__(steps)
        self.truth, self.nothing = truth, empty(self.clip)
        self.latent = {"samples": self.encode(scenes.draw(truth)[0])}

    def ends(self, edit: Edit) -> list[list]:
        """The captions before and after an edit: SDEdit and FlowEdit are told all that is there."""
        after = self.truth.changed(edit.attribute, edit.after)
        return [prompts(self.clip, some) for some in (self.truth, after)]

    def tuned(self, lora, degree: float) -> Tensor:
        from ...nodes.diffusion_clip import DiffusionCLIPEdit

        made = DiffusionCLIPEdit().run(
            self.model, self.nothing, self.latent, lora, degree, TUNING["t0"], self.steps, self.steps, 0, 6, 1
        )
        return made["result"][0]["samples"]

    def mixed(self, loras) -> Tensor:
        from ...engine.noise import source_latent
        from ...engine.sampler import own_sampler
        from ...nodes.diffusion_clip import MixModels, schedule
        from ...nodes.tuning_chain import inverted
        from ...samplers.ode import sample_euler

        sigmas = schedule(self.model, TUNING["t0"], self.steps)
        inversion, _ = inverted(self.model, self.nothing, self.latent, sigmas)
        guider = MixModels().run(
            self.model, self.nothing, self.nothing, 1.0, loras[0], 1.0, 0.0, 1.0, lora_model_2=loras[1]
        )["result"][0]
        start = source_latent(inversion)
        sampler = own_sampler(sample_euler, start=inversion.x_T)
        return guider.sample(torch.zeros_like(start), start, sampler, sigmas, disable_pbar=True, seed=1)

    def sdedit(self, edit: Edit, t0: float) -> Tensor:
        from ...nodes.sdedit import STOCHASTIC, SDEdit

        made = SDEdit().run(
            self.model, self.ends(edit)[1], self.nothing, self.latent, 3, 5.0, t0, self.steps, STOCHASTIC, ""
        )
        return made["result"][0]["samples"]

    def flow_edit(self, edit: Edit, strength: float) -> Tensor:
        from ...nodes.direct_edit import DirectEdit

        ends = self.ends(edit)
        made = DirectEdit().run(
            self.model, *ends, self.latent, "FlowEdit", self.steps, "normal", strength, 1.5, 5.0, 1, 0, 3, self.nothing
        )
        return made["result"][0]["samples"]


def measure(bench: Bench) -> tuple[dict[str, float], list[list]]:
    """The figures, and lines for the table."""
    n, steps = (4, 6) if bench.quick else (64, 20)

    @torch.inference_mode()
    def compute():
        loras, minutes = zip(*(tuned(bench, edit) for edit in (STRIPES, DRAWING)))
        truth = plain_scenes(n, "held_out", 52)
        ways = Ways(truth, steps)
        rows, judges = {}, {name: probe.load(name) for name in JUDGES}

        def read(name, samples):
            images = ways.decode(samples)
            rows[name] = {judge: judged(net, images, truth) for judge, net in judges.items()}

        for edit, lora in zip((STRIPES, DRAWING), loras):
            for degree in (0.5, 1.0):
                read(f"DiffusionCLIP {edit.attribute}, degree {degree:g}", ways.tuned(lora, degree))
            for t0 in (0.4, 0.6):
                read(f"SDEdit {edit.attribute}, t0 {t0:g}", ways.sdedit(edit, t0))
            for strength in (0.6, 0.8):
                read(f"FlowEdit {edit.attribute}, strength {strength:g}", ways.flow_edit(edit, strength))
        read("DiffusionCLIP, degree 0", ways.tuned(loras[0], 0.0))
        read("DiffusionCLIP, both mixed", ways.mixed(loras))
        return {"minutes": sum(minutes) / len(minutes), "rows": rows}

    found = bench.once(f"dclip {n} {steps}", compute)
    lines = [
        [name, judge, seen[1 if "style" in name else 2 if "both" in name else 0], seen[3]]
        for name, judges in found["rows"].items()
        for judge, seen in judges.items()
    ]
    stripes, both = (found["rows"][f"DiffusionCLIP{way}"]["query"] for way in (" texture, degree 1", ", both mixed"))
    figures = {"dclip_target": stripes[0], "dclip_object_kept": stripes[3], "dclip_both": both[2]}
    return figures | {"dclip_minutes": found["minutes"]}, lines
