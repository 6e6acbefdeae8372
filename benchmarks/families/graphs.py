"""Graphs of a model family, what they leave behind, and the laws that results are held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from ...tools.graph import Graph, Node
from ...tools.workflows import DEMO_CHECKPOINT

FRAMES = ("Qwen-Image", "Wan 2.1", "HunyuanVideo")  #: whose latents have them, and so three sides
#: what may stand beside a run: two pictures, a weight patch, a ControlNet, a noise mask, a second prompt for a part
BESIDE = ("batch", "lora", "controlnet", "noise mask", "area", "mask", "span")
SOURCE, EDIT = "a red circle", "a blue circle"
CELL = {"FLUX.2": 16}  #: pixels of a latent cell, where they are not 8
EXACT, SAME = 60.0, 1e-4  # dB of a way back that is exact but for rounding; relative difference of two equal runs
#: relative difference that no rounding makes; of a quiet stand-in most of the start noise is left, up to sigma 157
FELT = 5e-6
EULER = {"sampler_name": "euler"}


class LawBroken(AssertionError):
    """What a node returned is not what its technique promises."""


class FamilyGraph(Graph):
    """A graph whose model, text encoder, VAE, picture and prompts are a family's."""

    def __init__(self, infos: dict, family: str, size: int, number: int, weights: str = "float32", beside: str = ""):
        """weights: their precision. beside: of `BESIDE`, one or several joined by " + ", or nothing."""
        self.number, self.beside = number, set(beside.split(" + "))
        super().__init__(infos, DEMO_CHECKPOINT)
        self.family, self.size = family, size
        self.wire(model=self.add("Families_Model", family=family, weights=weights))
        if "lora" in self.beside:
            self.wire(model=self.add("Families_Patched"))
        self.wire(clip=self.add("Families_Clip", clip=self.clip, family=family))
        self.model, self.clip = self.wires["model"], self.wires["clip"]
        self.vae = self.add("Families_Vae")
        self.source, self.edit, self.empty_prompt = (self.prompt(text, True) for text in (SOURCE, EDIT, ""))
        whole, half = (
            self.add("SolidMask", value=value, width=width, height=self.side)
            for value, width in ((0.0, self.side), (1.0, self.side // 2))
        )
        more = {"x": self.side // 2, "y": 0, "operation": "add"}
        self.half = self.add("MaskComposite", destination=whole, source=half, **more)
        self.original = self.latent(1)
        self.single, self.source = self.source, self.told(self.source)
        if "controlnet" in self.beside:  # on both prompts, as core's node applies it
            self.empty_prompt = self.add("Families_Control", conditioning=self.empty_prompt)
        self.wire(latent_image=self.original)
        self.wire(vae=self.vae, latent=self.original, reference=self.original, positive=self.source, mask=self.half)
        self.wire(negative=self.empty_prompt, source=self.source, target=self.edit, edited=self.edit)
        self.wire(image=self.picture("demo_scene_square.png"))

    @property
    def again(self) -> dict[str, Node]:
        """The prompts that must be wired again, where an inversion can't keep what the family's text encoder tells or
        what stands beside them."""
        large = self.family in ("HunyuanDiT", "HiDream") or self.beside & {"controlnet", "area", "mask", "span"}
        return {"positive": self.source, "negative": self.empty_prompt} if large else {}

    def key(self, kind: str) -> str:  # the 2024 engine keys its cache by id and inputs: no id comes twice
        return f"{self.number}-{len(self) + 1}-{kind}"

    @property
    def side(self) -> int:
        return self.size * CELL.get(self.family, 8)

    def told(self, prompt: Node) -> Node:
        """The source prompt, or what stands beside it: a ControlNet, a second prompt for a part of the picture or of
        the steps."""
        if "controlnet" in self.beside:
            prompt = self.add("Families_Control", conditioning=prompt)
        half = {"width": 0.5, "height": 1.0, "x": 0.5, "y": 0.0, "strength": 1.0}
        whole = {"temporal": 1.0, "z": 0.0}
        more = {
            "area": ("ConditioningSetAreaPercentageVideo", half | whole)
            if self.family in FRAMES
            else ("ConditioningSetAreaPercentage", half),
            "mask": ("ConditioningSetMask", {"mask": self.half, "strength": 1.0, "set_cond_area": "default"}),
            "span": ("ConditioningSetTimestepRange", {"start": 0.0, "end": 0.5}),
        }
        for name in sorted(self.beside & more.keys()):
            kind, values = more[name]
            part = self.add(kind, conditioning=self.edit, **values)
            prompt = self.add("ConditioningCombine", conditioning_1=prompt, conditioning_2=part)
        return prompt

    def latent(self, seed: int, frames: int = 1) -> Node:
        latent = self.maskless(seed, frames)
        return self.add("SetLatentNoiseMask", samples=latent, mask=self.half) if "noise mask" in self.beside else latent

    def maskless(self, seed: int, frames: int = 1) -> Node:
        made = {"seed": seed, "size": self.size, "batch": 1 + ("batch" in self.beside), "frames": frames}
        return self.add("Families_Latent", **made)

    def own(self, name: str, /, **inputs) -> Node:
        """A node of the pack, by its id without the prefix."""
        return self.add(f"NullText_{name}", **inputs)

    def towers(self) -> Node:
        return self.own("LoadImageText")

    def drawn(self, model=None, cfg: float = 5.0, steps: int = 3, **more) -> Node:
        """KSampler's result over the picture's shape, saved."""
        chosen = {"model": self.model if model is None else model, "cfg": cfg, "steps": steps, "seed": 3, **EULER}
        return self.kept(self.add("KSampler", **chosen, scheduler="normal", denoise=1.0, **more))

    def guided(self, guider, parts=None) -> Node:
        """SamplerCustomAdvanced's result, saved; parts: of an inversion."""
        if parts is not None:
            noise, sigmas, latent, sampler = (parts[i] for i in range(4))
        else:
            noise, latent = self.add("RandomNoise", noise_seed=3), self.original
            sigmas = self.add("BasicScheduler", scheduler="normal", steps=3, denoise=1.0)
            sampler = self.add("KSamplerSelect", **EULER)
        return self.kept(self.sample(noise, guider, sampler, sigmas, latent))

    def plain_guider(self, positive=None, cfg: float = 5.0) -> Node:
        return self.add("CFGGuider", positive=positive or self.source, cfg=cfg)

    def inversion(self, pivot: str = "edit-friendly DDPM", steps: int = 4, **more) -> Node:
        return self.own("InvertImage", pivot=pivot, steps=steps, use_cache=False, **more)

    def kept(self, latent) -> Node:
        return self.save(latent, f"families/{self.number}-{len(self)}")

    def shown(self, images) -> Node:
        return self.show(images)


class Left:
    """What a graph left behind: `latent(node)` of a SaveLatent, `pixels(node)` of a PreviewImage, `texts`."""

    def __init__(self, result, latent: Callable[[Node], Tensor]):
        self.result, self.latent, self.texts = result, latent, result.texts

    def pixels(self, node: Node) -> Tensor:
        pictures = self.result.pictures[node.key]
        flat = [torch.frombuffer(bytearray(p.convert("RGB").tobytes()), dtype=torch.uint8).float() for p in pictures]
        return torch.stack([f.view(p.height, p.width, 3) for f, p in zip(flat, pictures)])


Cell = Generator[FamilyGraph, Left, str]
CELLS: dict[str, Callable[[Callable[[], FamilyGraph]], Cell]] = {}


def cell(function):
    CELLS[f"NullText_{function.__name__}"] = function
    return function


def decibels(there: Tensor, back: Tensor) -> float:
    error = (there - back).square().mean()
    return math.inf if error == 0 else float(10 * torch.log10(there.var() / error))


def law(holds: bool, says: str) -> str:
    if not holds:
        raise LawBroken(says)
    return says


def round_trip(there: Tensor, back: Tensor, least: float = EXACT) -> str:
    law(there.shape == back.shape, f"shape {list(back.shape)} for a picture of {list(there.shape)}")
    found = decibels(there, back)
    return law(found >= least, f"comes back {'to the bit' if found == math.inf else f'at {found:.0f} dB'}")


def equal(a: Tensor, b: Tensor, says: str) -> str:
    law(a.shape == b.shape, f"shape {list(b.shape)}, not {list(a.shape)}")
    far = float((a - b).abs().max() / a.abs().max())
    return law(far <= SAME, says if far <= SAME else f"{says}: no, {far:.2g} away")


def learned(before: Tensor, after: Tensor, says: str, least: float = SAME) -> str:
    """What was trained, or found, gives another picture than its start, by more than rounding; a finite one."""
    law(before.shape == after.shape, f"shape {list(after.shape)}, not {list(before.shape)}")
    law(bool(after.isfinite().all()), f"{says}: no, it is not finite")
    far = float((before - after).abs().max() / before.abs().max())
    return law(far > least, says if far > least else f"{says}: no, it is as before")


def changes(a: Tensor, b: Tensor) -> str:
    return learned(a, b, "changes the picture", FELT)


def neutral(left: Left, says: str, plain: Node, none: Node, *others: Node) -> str:
    """Where a node is told to do nothing the result is the plain one; where it is told to do something, another."""
    for other in others:
        changes(left.latent(plain), left.latent(other))
    return equal(left.latent(plain), left.latent(none), says)


def draws(left: Left, shown: Node, says: str) -> str:
    """One picture is shown."""
    return law(len(left.result.pictures[shown.key]) == 1, says)


def held(source: Tensor, edited: Tensor, grown: int = 0) -> str:
    """The left half comes back to the bit, and the right half does not."""
    law(source.shape == edited.shape, f"shape {list(edited.shape)} for a picture of {list(source.shape)}")
    left = source.shape[-1] // 2 - grown
    law(not torch.equal(source, edited), "nothing was painted inside the mask")
    return law(torch.equal(source[..., :left], edited[..., :left]), "outside the mask as it was")


def kept_outside(source: Tensor, edited: Tensor) -> str:
    """The same but for rounding."""
    changes(source, edited)
    half = source.shape[-1] // 2
    return equal(source[..., :half], edited[..., :half], "outside the mask as it was")
