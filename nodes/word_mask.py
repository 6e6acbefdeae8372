"""Word Mask: where the words of a prompt look in a given picture, as a mask, without sampling it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine import comfy
from ..engine.attention import as_read, attach, prompts_of
from ..engine.joint_attention import JOINT_FAMILIES
from ..engine.rows import Capture
from ..engine.run import sample_with
from ..samplers.attention.alignment import columns_of
from ..samplers.attention.heat import colours, heat, overlay, soft_mask
from ..samplers.attention.maps import LayerChoice, MapRecorder
from ..samplers.core import gaussian
from .base import IMAGE, LATENT, MODEL, SEED, VAE, Box, Float, Int, Output, Socket, Text, advanced, optional
from .early import early
from .masked import check_given, encoded
from .prompt import worded
from .report import temporary, text_result
from .words import items

FROM, TO = 0.7, 0.3  # the looks are spread over these fractions of the diffusion's time


def look(
    model, conditioning: list, words: Sequence[Sequence[int]], samples: Tensor, *, looks: int, seed: int
) -> list[Tensor]:
    """Per picture of LATENT samples [B, C, h, w]: maps [words, h', w'], where the words look, mean over `looks`
    noisings. words: the columns of each in the conditioning's one prompt."""
    record = MapRecorder([[list(columns) for columns in words]], LayerChoice())
    seen = attach(model, [Capture(record, conditioning)])
    time = comfy.time_to_sigma(model)
    levels = [time(FROM - (FROM - TO) * i / max(looks - 1, 1)) for i in range(looks)]

    def body(run):
        noise = gaussian(run.latent, seed)
        for sigma in run.sigmas[:-1]:
            run.tick()
            run.predictions(run.process.noised(run.latent, sigma, noise()), sigma, ["positive"])

    conds = {"positive": conditioning}
    sample_with(seen, conds, samples, torch.tensor([*levels, 0.0]), body, total=looks, seed=seed)
    if not record.maps.images():
        height, width = comfy.picture_size(model, samples)
        raise ValueError(
            f"The model's attention has no grid for a picture of {width} x {height} pixels: take one that is less "
            "narrow, or larger."
        )
    return [record.maps.maps(image) for image in record.maps.images()]


def chosen_words(words: str) -> list[str]:
    """The words of the text. ValueError for none."""
    chosen = items(words)
    if not chosen:
        raise ValueError("No word is chosen: click one under the node, or write it into words.")
    return chosen


class WordMask(Box):
    ID, TITLE, CATEGORY = "NullText_WordMask", "Word Mask", "NullText"
    SEARCH_ALIASES = ["mask from word", "click a word", "segment by text", "text mask", "attention mask", "clipseg"]
    DESCRIPTION = (
        "Makes a mask of what a word of the prompt speaks of in your picture, by the model's own attention: click the "
        "word. Wire the mask to RePaint, DiffEdit, or any inpainting."
    )
    INPUTS = (
        MODEL(f"The diffusion model: SD 1, SD 2, SDXL; {JOINT_FAMILIES} where ComfyUI opens their attention."),
        Socket("clip", "CLIP", "The text encoder, from the checkpoint loader."),
        VAE,
        Text("prompt", "", "What the picture shows, in one sentence.", multiline=True),
        Text(
            "words",
            "",
            "The words whose place is wanted, with commas; several in a row count as one. Click them under the node.",
        ),
        Float("threshold", 0.4, "Lower takes in more: the mask is where the heat, from 0 to 1, is above this."),
        *optional(
            IMAGE("The picture. Wire this or latent."),
            LATENT("The picture encoded already, in place of image."),
            *advanced(
                Int("looks", 5, "How often the picture is noised and looked at. One network call each.", 1, 64),
                Float("blur", 0.0, "How soft the mask's edge is, in pixels.", 0.0, 256.0, 0.5),
                SEED,
            ),
        ),
    )
    OUTPUTS = (
        Output("MASK", "1 where the words look, a mask for each picture.", "mask"),
        Output("IMAGE", "The heat map over the picture.", "heat_map"),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, words=None):
        return early(cls, chosen_words, words=words)

    def run(self, model, clip, vae, prompt, words, threshold, image=None, latent=None, looks=5, blur=0.0, seed=0):
        check_given(self.TITLE, image, latent)
        chosen = chosen_words(words)
        conditioning = as_read(model, worded(clip, prompt))
        record = prompts_of(conditioning, self.TITLE)[0]
        columns = [t for word in chosen for t in columns_of(record, word)]
        samples = comfy.check_latent(model, encoded(vae, image, latent, "Word Mask looks at a picture"))
        pictures = comfy.decode(vae, samples)
        size = tuple(pictures.shape[1:3])
        found = [heat(m, size)[0] for m in look(model, conditioning, [columns], samples, looks=looks, seed=seed)]
        mask = torch.stack([soft_mask(h, threshold, blur) for h in found])
        over = torch.stack([overlay(picture, h) for picture, h in zip(pictures, found)])
        maps = {
            "words": [", ".join(chosen)],
            "opacity": 0.6,
            "base": temporary(pictures),
            "heat": temporary(torch.stack([colours(h) for h in found])),
        }
        text = f"{', '.join(chosen)}: {float(mask.mean()):.0%} of the picture, {looks} network calls"
        return text_result(text, mask, over, nulltext_heat=[maps])


NODES = (WordMask,)
