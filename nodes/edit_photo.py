"""Edit Photo: a picture, what it shows, what it shall show; it finds the words that differ and where they look."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..engine import comfy
from ..engine.attention import attention_places, unet_places
from ..engine.joint_attention import JOINT_FAMILIES
from ..engine.pair_guider import run_guider
from ..engine.words import words_of
from ..samplers.attention.alignment import differing_words, spoken_of
from ..samplers.attention.heat import heat
from ..samplers.inversion.replay import first_step
from ..samplers.masks import to_grid, to_pixels
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
from .early import early
from .inversion import invert
from .masked import check_given, encoded, mask_unread
from .null_text import optimise
from .prompt import worded
from .prompt_to_prompt import prepare
from .report import compared, text_result
from .word_mask import look

DRAFT, THOROUGH, NULL_TEXT = "draft", "thorough", "thorough, null-text"
#: Direct Edit's settings for transformers, and for UNets. Ours, as the help page says: for one box and any model
FLOW_EDIT = {"source_cfg": 3.5, "target_cfg": 7.5, "average": 1, "plain_steps": 0}
INF_EDIT = {"source_cfg": 1.0, "target_cfg": 3.0, "average": 1, "plain_steps": 0}
#: FlowEdit's for Flux: what a model with a guidance of its own is told beside the prompts, at cfg 1
OWN_GUIDANCE = {"source": 1.5, "target": 5.5}
#: Prompt-to-Prompt's, ours too: freer than its node opens, as the mask keeps the rest
ATTENTION = {"edit": "auto", "cross_steps": 0.4, "self_steps": 0.2}
FOUND = "found in the cache"
LOOKS, GROW = 4, 2  # of the mask: noisings, and latent cells by which it grows


def spoken(source: list, target: list) -> tuple[list[dict], list[dict]]:
    """The words in which two CONDITIONINGs of the Prompt node differ, of each."""
    return differing_words(words_of(source)[0], words_of(target)[0])


def changes(source: list, target: list) -> str:
    """ "red -> green": the words that differ; "" where none do."""
    before, after = (" ".join(word["text"] for word in words) for words in spoken(source, target))
    return f"{before or '(nothing)'} -> {after or '(nothing)'}" if before or after else ""


def has_attention(model) -> bool:
    """Whether Prompt-to-Prompt reaches the model's attention: a UNet's, or a transformer's that the engine opens."""
    try:
        return bool(attention_places(model))
    except ValueError:
        return False


def where_they_look(
    model, source: list, target: list, samples: Tensor, seed: int, threshold: float
) -> tuple[Tensor, int]:
    """(MASK [B, H, W] of what the differing words speak of, network calls): by a UNet's attention, else where the two
    prompts predict different noise."""
    size = comfy.picture_size(model, samples)
    if not unet_places(model):
        sigma = comfy.time_to_sigma(model)(0.5)
        found = difference(model, source, target, samples, maps=LOOKS, sigma=sigma, seed=seed)
        return to_mask(smoothed(found, 1), size, grow=GROW), LOOKS
    heats, calls = [], 0
    for conditioning, words in zip((source, target), spoken(source, target)):
        columns = [t for word in spoken_of(words_of(conditioning)[0], words) for t in word["tokens"]]
        if columns:
            maps = look(model, conditioning, [columns], samples, looks=LOOKS, seed=seed)
            heats.append(torch.stack([heat(m, size)[0] > threshold for m in maps]).float())
            calls += LOOKS
    both = torch.stack(heats).amax(0)
    return to_pixels(to_grid(both, samples.shape[-2:], GROW)[:, 0], size), calls


def draft(model, conds: dict, latent: dict, sigmas, strength: float, seed: int, mask: Tensor | None):
    """(samples, what was done): Direct Edit inside the mask."""
    method, options = ("InfEdit", INF_EDIT) if unet_places(model) else ("FlowEdit", FLOW_EDIT)
    if comfy.embeds_guidance(model):
        options = {**options, "source_cfg": 1.0, "target_cfg": 1.0}
    result, why = direct_edit.edit(
        model, conds, latent, sigmas, method, mask=mask, strength=strength, seed=seed, **options
    )
    return result.samples, why or f"Direct Edit ({method}), {result.calls} network calls"


def thorough(
    model, conds: dict, latent: dict, sigmas, strength: float, cfg: float, mask: Tensor | None, null_text: bool
):
    """(samples, what was done): the picture inverted, then edited by Prompt-to-Prompt beside its path, inside the
    mask."""
    inversion, found = invert(model, {"positive": conds["source"]}, latent, sigmas, "ddim", depth=strength)
    done = "inversion " + (FOUND if found else f"in {inversion.metadata['calls']} network calls")
    if null_text:
        inversion, made = optimise(model, inversion, None, conds["negative"], cfg)
        backwards = inversion.metadata["null_backwards"]
        spent = f"in {made.calls} network calls and {backwards} backward passes" if made else FOUND
        done += f", null-text {spent}"
    guider, _, notes, _ = prepare(
        EditPhoto.TITLE, model, conds["target"], conds["negative"], cfg, inversion=inversion, mask=mask, **ATTENTION
    )
    result = run_guider(guider, None, inversion.sigmas, 0)
    return result.edits, f"{done}, Prompt-to-Prompt ({notes[0]}) in {result.rows} network rows"


def check_prompts(source_prompt: str, edited_prompt: str) -> None:
    """ValueError where one of them is empty."""
    needs = {"source_prompt": "what the picture shows", "edited_prompt": "what it shall show instead"}
    for (name, need), text in zip(needs.items(), (source_prompt, edited_prompt)):
        if not text.strip():
            raise ValueError(f"The {name} is empty: write {need}, in one sentence.")


def check_method(model, method: str) -> None:
    """ValueError where the model can't be edited so."""
    if method != DRAFT and not has_attention(model):
        raise ValueError(
            "The thorough methods edit a model's attention to words, and this one's can't be reached (SD1, SD2 and "
            f"SDXL's can; that of {JOINT_FAMILIES} where ComfyUI is new enough): choose the draft."
        )
    if method == NULL_TEXT and comfy.embeds_guidance(model):
        raise ValueError(
            "This model has a guidance of its own, as Flux has, and is edited at cfg 1, where null-text has nothing to "
            f"optimise: choose {THOROUGH}."
        )


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
        Float("strength", 0.9, "How much may change: 0 returns the picture, 1 changes most."),
        Choice(
            "method",
            [DRAFT, THOROUGH, NULL_TEXT],
            "draft: Direct Edit, done in seconds, for any model. thorough: the picture is inverted and "
            "Prompt-to-Prompt keeps its layout (SD 1, SD 2, SDXL; where ComfyUI is new enough "
            f"{JOINT_FAMILIES}). With null-text: the inversion is optimised first, which takes minutes for each "
            "picture, strength and cfg (not for Flux); on the demo model thorough alone kept more.",
        ),
        *optional(
            IMAGE("The picture. Wire this or latent."),
            LATENT("The picture encoded already, in place of image."),
            *advanced(
                STEPS("Steps of the full schedule. 50 follows a photo more closely than 25.", default=25),
                CFG("Guidance of the thorough edit: how strongly the edited prompt acts. Not read for Flux."),
                Boolean("blend", True, "Change only the places that the differing words speak of. Off: everywhere."),
                Float(
                    "blend_threshold",
                    0.3,
                    "The place is where the heat of the differing words, from 0 to 1, is above this: lower reaches "
                    "further around it. Not used on transformers (SD3, Flux): there the place is found as DiffEdit "
                    "Mask does, at the paper's 0.5.",
                ),
                SEED(
                    "Seed of the draft's noise and, in every method, of the search for the place (blend): another seed "
                    "is another attempt."
                ),
            ),
        ),
    )
    OUTPUTS = (
        Output("IMAGE", "The edited picture.", "edit"),
        Output("LATENT", "The edited picture as a latent, for further nodes.", "latent"),
        Output("MASK", "Where the picture was allowed to change.", "mask"),
        Output("STRING", "What was changed how, and what it cost.", "report"),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, source_prompt=None, edited_prompt=None):
        return early(cls, check_prompts, source_prompt=source_prompt, edited_prompt=edited_prompt)

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
        blend_threshold=0.3,
        seed=0,
    ):
        check_given(self.TITLE, image, latent)
        check_prompts(source_prompt, edited_prompt)
        check_method(model, method)
        began = time.perf_counter()
        latent = encoded(vae, image, latent, "Edit Photo needs a picture")
        source, target, nothing = (worded(clip, text) for text in (source_prompt, edited_prompt, ""))
        conds = {"source": source, "target": target, "negative": nothing}
        sigmas = comfy.sigmas_of(model, "normal", steps)
        changed, mask, looked = changes(source, target), None, 0
        samples = comfy.check_latent(model, latent)
        work = bool(changed) and first_step(strength, steps) < steps
        if work and blend:
            mask, looked = where_they_look(model, source, target, samples, seed, blend_threshold)
        own_guidance = comfy.embeds_guidance(model)
        if own_guidance:  # only now: where the words look is asked of both prompts alike
            cfg = 1.0
            conds |= {name: comfy.with_flux_guidance(conds[name], value) for name, value in OWN_GUIDANCE.items()}
        if not work:
            why, do = "both prompts have the same words", "change a word"
            if changed:
                why, do = f"strength {strength:g} samples no step", "raise strength"
            text = f"Notice: {why}, so the picture comes back as it is: {do}"
        elif method == DRAFT:
            samples, text = draft(model, conds, latent, sigmas, strength, seed, mask)
        else:
            samples, text = thorough(model, conds, latent, sigmas, strength, cfg, mask, null_text=method == NULL_TEXT)
        if work and own_guidance:
            told = "{source:g} (source) and {target:g} (edit)".format(**OWN_GUIDANCE)
            text += f", at cfg 1 and the model's own guidance {told}"
        if looked:
            text += f", {looked} to find where the words look"
        if changed:
            text = f"{changed}: {text}"
        edit = comfy.decode(vae, samples)
        line, pictures = compared(comfy.decode(vae, latent["samples"]), edit, mask)
        text += f"; {time.perf_counter() - began:.1f} s\n{line}{mask_unread(latent)}"
        if mask is None:
            mask = torch.ones(edit.shape[:-1])
        return text_result(text, edit, {"samples": samples}, mask, text, **pictures)


NODES = (EditPhoto,)
