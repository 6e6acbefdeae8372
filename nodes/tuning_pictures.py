"""Tuning Pictures and Prior Pictures: what a training learns, and what it must not forget."""

from __future__ import annotations

import torch

from ..engine import comfy, files, tuning_set
from ..engine.fingerprint import fingerprint
from ..engine.sampler import core_sampler, sample_latent
from ..engine.tuning_set import TuningSet
from . import words
from .base import CFG, MODEL, STEPS, TRAINING_SEED, Box, Int, Output, Socket, Text
from .report import text_result
from .tuning_inputs import CATEGORY, CLIP


class TuningPictures(Box):
    ID, TITLE, CATEGORY = "NullText_TuningPictures", "Tuning Pictures", CATEGORY
    SEARCH_ALIASES = ["training images", "dataset", "captions", "dreambooth", "lora training"]
    DESCRIPTION = "Gathers pictures with captions for a training, from a folder of the input tree or from an IMAGE."
    INPUTS = (
        Socket("vae", "VAE", "Encodes the pictures: the VAE of the model that will be trained."),
        Text(
            "folder",
            "",
            "A folder inside ComfyUI's input folder; a .txt of a picture's name beside it is its caption. Empty: the "
            "wired images.",
        ),
        Text(
            "captions",
            "a photo of sks dog",
            "One line for all pictures, or one line for each. A .txt beside a picture goes first.",
            multiline=True,
        ),
        Int(
            "size",
            512,
            "Side in pixels of a square picture; others get the same area in their own proportions. "
            "Take the size that the model was trained at.",
            64,
            2048,
        ),
        Socket("images", "IMAGE", "The pictures, where no folder is named.").optional(),
        Socket("mask", "MASK", "White where the loss counts; one for all pictures or one for each.").optional(),
    )
    OUTPUTS = (Output("TUNING_SET", "The pictures, encoded, with their captions.", "pictures"),)

    @classmethod
    def IS_CHANGED(cls, folder=None, **_):
        return "" if not folder else tuning_set.changed(folder)

    def run(self, vae, folder, captions, size, images=None, mask=None):
        if not folder.strip() and images is None:
            raise ValueError("There are no pictures: name a folder inside ComfyUI's input folder, or wire images.")
        found = tuning_set.folder_pictures(folder, size) if folder.strip() else tuning_set.batch_pictures(images, size)
        made = tuning_set.build(vae, found, words.lines(captions), mask)
        sizes = ", ".join(f"{n} of {w} x {h}" for (h, w), n in made.sizes().items())
        said = [f"{len(made)} pictures; on the latent's grid: {sizes}."]
        said += [f"{name}: {caption}" for name, caption in list(zip(made.names, made.captions))[:20]]
        if clear := ", ".join([one.name for one in found if one.see_through][:20]):
            hidden = f"the colours hidden in the transparent parts of {clear} are learnt"
            said.append(f"Notice: {hidden}: give them a background, or a mask.")
        return text_result("\n".join(said), made)


class PriorPictures(Box):
    ID, TITLE, CATEGORY = "NullText_PriorPictures", "Prior Pictures", CATEGORY
    SEARCH_ALIASES = ["class images", "regularization images", "prior preservation", "dreambooth"]
    DESCRIPTION = (
        "Draws pictures of a class with the untuned model, for DreamBooth's prior preservation: trained beside the "
        "subject, they keep the model from forgetting the class."
    )
    INPUTS = (
        MODEL(tooltip="The untuned model: the very one that will be trained."),
        CLIP,
        Text(
            "class_prompt",
            "a photo of a dog",
            "The class without the rare word. Several lines are used in turn, for more variety.",
            multiline=True,
        ),
        Text("negative_prompt", "", "The negative or empty prompt."),
        Int(
            "count", 200, "How many pictures. diffusers' guide: 200; the paper: as many as steps times batch.", 1, 5000
        ),
        Int("width", 512, "Width in pixels.", 64, 2048),
        Int("height", 512, "Height in pixels.", 64, 2048),
        TRAINING_SEED,
        STEPS,
        CFG,
        Int("batch", 4, "Pictures drawn at a time.", 1, 64),
    )
    OUTPUTS = (
        Output("TUNING_SET", "The pictures with their prompts as captions.", "prior"),
        Output("LATENT", "The same pictures, to decode and look at."),
    )

    def run(self, model, clip, class_prompt, negative_prompt, count, width, height, training_seed, steps, cfg, batch):
        prompts = words.lines(class_prompt)
        if not prompts:
            raise ValueError("The class prompt is empty: say what kind of thing the subject is, 'a photo of a dog'.")
        captions = [prompts[i % len(prompts)] for i in range(count)]
        conds = {text: comfy.encode(clip, text) for text in dict.fromkeys([*prompts, negative_prompt])}
        own_guidance = cfg != 1 and comfy.embeds_guidance(model)
        cfg = 1.0 if own_guidance else cfg
        size = tuple(comfy.fitted(model, comfy.empty_latent(1, height, width))["samples"].shape[1:])
        told = (conds, captions, negative_prompt, size, training_seed, steps, cfg)
        key = files.cache_key(model, fingerprint(model), "prior", *told)
        latents = tuning_set.find_prior(key)
        found = latents is not None
        if not found:
            latents = self._draw(model, conds, captions, negative_prompt, size, training_seed, steps, cfg, batch)
            tuning_set.keep_prior(key, latents)
        names = tuple(f"prior picture {i + 1}" for i in range(count))
        made = TuningSet(tuple(latents), tuple(captions), (None,) * count, names)
        how = "Found in the cache" if found else f"Drew {steps} steps each"
        text = f"{count} prior pictures of {len(prompts)} prompt(s). {how}."
        if own_guidance:
            text += " Notice: this model has its guidance inside, so they are drawn at cfg 1."
        return text_result(text, made, {"samples": latents.clone()})

    @staticmethod
    def _draw(model, conds, captions, negative, size, seed, steps, cfg, batch):
        """Latents [N, C, h, w] by Euler steps; the noise of a picture depends on the seed and its number alone."""
        sigmas, sampler = comfy.sigmas_of(model, "normal", steps), core_sampler("euler")
        out = [None] * len(captions)
        for text in dict.fromkeys(captions):
            rows = [i for i, caption in enumerate(captions) if caption == text]
            for part in (rows[i : i + batch] for i in range(0, len(rows), batch)):
                latent = {"samples": torch.zeros(len(part), *size), "batch_index": part}
                made = sample_latent(model, conds[text], conds[negative], cfg, sampler, sigmas, latent, seed)["samples"]
                for i, z in zip(part, made.float().cpu()):
                    out[i] = z
        return torch.stack(out)


NODES = (TuningPictures, PriorPictures)
