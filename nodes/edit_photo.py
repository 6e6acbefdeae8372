"""Edit Photo: a picture, what it shows, what it shall show; it finds the words that differ and where they look."""

from __future__ import annotations

import time

import torch

from ..engine import comfy, record
from ..engine.attention import unet_places
from ..engine.pair_guider import run_guider
from ..engine.words import words_of
from ..samplers.attention.alignment import differing_words
from ..samplers.attention.plan import DIFFERING
from ..samplers.inversion.replay import first_step
from ..samplers.picture.diffedit import smoothed
from . import direct_edit
from .base import (
    CFG,
    IMAGE,
    LATENT,
    MODEL,
    SEED,
    STEPS,
    VAE,
    Boolean,
    Box,
    Choice,
    Float,
    Output,
    Socket,
    Text,
    advanced,
    optional,
)
from .diffedit import difference, to_mask
from .inversion import invert
from .masked import check_picture
from .null_text import optimise
from .prompt import worded
from .prompt_to_prompt import mask_of, prepare
from .report import compared, text_result

DRAFT, THOROUGH, NULL_TEXT = "draft", "thorough", "thorough, null-text"
MAPS, AT = 5, 0.5  # noisings of the draft's mask, and how far each goes as a fraction of the diffusion's time


def changes(source: list, target: list) -> str:
    """ "red -> green": the words in which two CONDITIONINGs of the Prompt node differ; "" where they don't."""
    pairs = differing_words(words_of(source)[0], words_of(target)[0])
    before, after = (" ".join(word["text"] for word in words) for words in pairs)
    return f"{before or '(nothing)'} -> {after or '(nothing)'}" if before or after else ""


def draft(model, conds: dict, latent: dict, sigmas, strength: float, seed: int, blend: bool):
    """(samples, mask or None, what was done): Direct Edit inside the region where the two prompts disagree."""
    mask, made = None, 0
    if blend:
        sigma = comfy.time_to_sigma(model)(AT)
        samples = comfy.check_latent(model, latent)
        found = difference(model, conds["source"], conds["target"], samples, maps=MAPS, sigma=sigma, seed=seed)
        mask, made = to_mask(smoothed(found, 1), grow=1), MAPS
    result, why = direct_edit.edit(
        model, conds, latent, sigmas, "FlowEdit", mask=mask, strength=strength, seed=seed, **DIRECT
    )
    return result.samples, mask, why or f"Direct Edit, {result.calls + made} network calls"


#: Direct Edit's settings in the draft
DIRECT = {"source_cfg": 1.5, "target_cfg": 5.5, "average": 1, "plain_steps": 0}
#: Prompt-to-Prompt's settings, as its node opens
ATTENTION = {"cross_steps": 0.8, "self_steps": 0.4, "blend_threshold": 0.3, "blend_start": 0.2}


def thorough(model, conds: dict, latent: dict, sigmas, cfg: float, seed: int, blend: bool, null_text: bool):
    """(samples, mask or None, what was done): the picture inverted, then edited by Prompt-to-Prompt beside its path."""
    shown = {"positive": conds["source"]}
    inversion, found = invert(model, shown, latent, sigmas, "ddim")
    calls = 0 if found else inversion.metadata.get("calls", 0)
    if null_text:
        inversion, _ = optimise(model, inversion, None, conds["negative"], cfg)
    options = {**ATTENTION, "edit": "auto", "blend_words": DIFFERING if blend else ""}
    guider, blended, notes, _ = prepare(
        EditPhoto.TITLE, model, conds["target"], conds["negative"], cfg, inversion=inversion, **options
    )
    result = run_guider(guider, None, inversion.sigmas, seed)
    how = "null-text inversion" if null_text else "inversion"
    text = f"{how} and Prompt-to-Prompt ({notes[0]}), {calls} network calls there, {result.rows} rows for the edit"
    return result.edits, mask_of(blended, result) if blend else None, text


class EditPhoto(Box):
    ID, TITLE, CATEGORY = "NullText_EditPhoto", "Edit Photo", "NullText"
    SEARCH_ALIASES = ["edit image", "change a word", "prompt2prompt", "real image editing", "instruct", "image editor"]
    DESCRIPTION = (
        "Edits a picture with words: say what it shows, then the same sentence with one thing changed. The rest of the "
        "picture is kept: the node finds the words that differ and changes only the places they speak of."
    )
    OUTPUT_NODE = True
    INPUTS = (
        MODEL("The diffusion model, from the checkpoint loader."),
        Socket("clip", "CLIP", "The text encoder, from the checkpoint loader."),
        VAE,
        Text("source_prompt", "", "What the picture shows, in one sentence.", multiline=True),
        Text("edited_prompt", "", "The same sentence with a word or two changed: what it shall show.", multiline=True),
        Float("strength", 0.8, "How much may change: 0 returns the picture, 1 changes most."),
        Choice(
            "method",
            [DRAFT, THOROUGH, NULL_TEXT],
            "draft: Direct Edit, done in seconds, for any model. thorough: the picture is inverted and "
            "Prompt-to-Prompt keeps its layout (SD 1, SD 2, SDXL). With null-text: the inversion is optimised first, "
            "which takes minutes once for each picture and follows it best.",
        ),
        *optional(
            IMAGE("The picture. Wire this or latent."),
            LATENT("The picture encoded already, in place of image."),
            *advanced(
                STEPS("Steps of the full schedule. 50 follows a photo more closely than 25.", default=25),
                CFG("Guidance of the thorough edit: how strongly the edited prompt acts."),
                Boolean("blend", True, "Change only the places that the differing words speak of. Off: everywhere."),
                SEED("Seed of the draft's noise: another seed is another attempt."),
            ),
        ),
    )
    OUTPUTS = (
        Output("IMAGE", "The edited picture.", "edit"),
        Output("LATENT", "The edited picture as a latent, for further nodes.", "latent"),
        Output("MASK", "Where the picture was allowed to change.", "mask"),
        Output("STRING", "What was changed how, and what it cost.", "report"),
    )

    def run(
        self,
        model,
        clip,
        vae,
        source_prompt,
        edited_prompt,
        strength,
        method,
        image=None,
        latent=None,
        steps=25,
        cfg=7.5,
        blend=True,
        seed=0,
    ):
        if image is None and latent is None:
            raise ValueError("Edit Photo has no picture: wire image, from Load Picture for one, or latent.")
        for text, need in ((source_prompt, "what the picture shows"), (edited_prompt, "what it shall show instead")):
            if not text.strip():
                raise ValueError(f"A prompt is empty: write {need}, in one sentence.")
        if method != DRAFT:
            try:
                unet_places(model)
            except ValueError:
                raise ValueError(
                    "This model has no cross-attention of its own (SD3 and Flux, for example), which the thorough "
                    "methods edit: choose the draft."
                ) from None
        began = time.perf_counter()
        if latent is None:
            latent = {"samples": vae.encode(image[..., :3])}
        check_picture(latent, "Edit Photo needs a picture")
        source, target, nothing = (worded(clip, text) for text in (source_prompt, edited_prompt, ""))
        conds = {"source": source, "target": target, "negative": nothing}
        sigmas = comfy.sigmas_of(model, "normal", steps)
        first, changed, mask = first_step(strength, steps), changes(source, target), None
        if not changed or first == steps:
            why = f"strength {strength:g} samples no step" if changed else "both prompts say the same"
            samples, text = latent["samples"], f"Notice: {why}, so the picture comes back as it is: change a word"
        elif method == DRAFT:
            samples, mask, text = draft(model, conds, latent, sigmas, strength, seed, blend)
        else:
            record.check_sigmas(sigmas[first:])
            samples, mask, text = thorough(
                model, conds, latent, sigmas[first:], cfg, seed, blend, null_text=method == NULL_TEXT
            )
        if changed:
            text = f"{changed}: {text}"
        edit = comfy.decode(vae, samples)
        line, pictures = compared(comfy.decode(vae, latent["samples"]), edit, mask)
        text += f"; {time.perf_counter() - began:.1f} s\n{line}"
        if mask is None:
            mask = torch.ones(edit.shape[:-1])
        return text_result(text, edit, {"samples": samples}, mask, text, **pictures)


NODES = (EditPhoto,)
