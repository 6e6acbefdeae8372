"""h-Space Map: pictures over the strength of a direction, and what an image-text model reads in them."""

from __future__ import annotations

import torch

from ..engine import comfy
from ..engine.gradients import grad_mode
from ..engine.image_text import modules_of, ready
from ..engine.noise import source_latent
from ..engine.sampler import sample_latent
from ..samplers.guidance.losses import caption_log_probs
from ..samplers.measure.charts import captioned_grid
from . import words
from .asyrp import idle, sampler_of
from .base import CFG, LATENT, MODEL, NEGATIVE, POSITIVE, SEED, Box, Float, Int, Output, Socket, Text
from .clip_guidance import check_words
from .guidance import IMAGE_TEXT
from .h_space import CATEGORY, DIRECTION, SCHEDULER
from .report import temporary, text_result


def strengths_of(text: str) -> list[float]:
    """The strengths of the columns. ValueError for none."""
    found = words.numbers(text, "strengths")
    if not found:
        raise ValueError("There is no strength: write numbers with commas between.")
    return found


def attributes_of(text: str) -> list[list[str]]:
    """One attribute a line, its values with | between. ValueError for a line with one value."""
    found = [words.choices(line) for line in words.lines(text)]
    if not found or any(len(values) < 2 for values in found):
        raise ValueError(
            "Write one attribute a line, at least two values with | between: a red circle | a blue circle."
        )
    return found


class HSpaceMap(Box):
    ID, TITLE, CATEGORY = "NullText_HSpaceMap", "h-Space Map", CATEGORY
    SEARCH_ALIASES = ["asyrp", "h-space", "direction strip", "attribute table", "strength plot"]
    DESCRIPTION = (
        "Shows how far a direction moves each attribute: a strip of pictures over the strength, and for each attribute "
        "what an image-text model reads. Cost: `steps` calls for each strength."
    )
    INPUTS = (
        MODEL,
        POSITIVE,
        NEGATIVE,
        Socket("vae", "VAE", "Decodes the pictures."),
        DIRECTION,
        IMAGE_TEXT,
        LATENT(tooltip="An empty latent of the size and batch to sample; not read where an inversion is wired."),
        SEED,
        CFG(default=1.0),
        Int("steps", 40, "Steps of each sampling run.", 2),
        SCHEDULER,
        Float("t_edit", 0.5, "The direction acts from pure noise (time 1) down to this time. 0: to the end."),
        Text("strengths", "-1, 0, 1, 2", "Strengths with commas between, one column each."),
        Text(
            "attributes",
            "a red circle | a blue circle",
            "One attribute a line, its values with | between.",
            multiline=True,
        ),
        Socket("inversion", "INVERSION", "Edit this picture instead of random ones; its steps are taken.").optional(),
    )
    OUTPUTS = (
        Output("IMAGE", "The strip: a row for each sample, a column for each strength.", "strip"),
        Output("STRING", "For each attribute and value the mean probability at each strength.", "table"),
        Output("IMAGE", "The pictures alone, sample by sample.", "images"),
    )

    def run(
        self,
        model,
        positive,
        negative,
        vae,
        direction,
        image_text,
        latent,
        seed,
        cfg,
        steps,
        scheduler,
        t_edit,
        strengths,
        attributes,
        inversion=None,
    ):
        values, asked = strengths_of(strengths), attributes_of(attributes)
        notices = check_words(image_text, [text for texts in asked for text in texts])
        sigmas = comfy.sigmas_of(model, scheduler, steps) if inversion is None else inversion.sigmas
        latent = latent if inversion is None else {"samples": source_latent(inversion)}
        made = []
        for strength in values:
            sampler = sampler_of(model, [(direction, strength)], t_edit=t_edit, inversion=inversion)
            out = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed)
            made.append(comfy.decode(vae, out["samples"]))
        read, device = [], ready(image_text)
        with grad_mode(*modules_of(image_text)), torch.no_grad():
            seen = [image_text.embed_image(p[..., :3].movedim(-1, 1).clone().to(device)).float() for p in made]
            for texts in asked:
                captions = image_text.embed_text(texts).to(seen[0])
                shares = [caption_log_probs(u, captions).exp().mean(0).tolist() for u in seen]
                read += [{"text": text, "shares": [share[k] for share in shares]} for k, text in enumerate(texts)]
        cells = [(made[k][row], f"{v:g}") for row in range(len(made[0])) for k, v in enumerate(values)]
        pictures = torch.stack([cell for cell, _ in cells])
        strip = captioned_grid(pictures, [text for _, text in cells], len(values))
        table = "\n".join(
            [f"{'strength':>24} " + " ".join(f"{v:>6g}" for v in values)]
            + [f"{line['text'][:24]:>24} " + " ".join(f"{share:6.2f}" for share in line["shares"]) for line in read]
        )
        panel = {"strengths": values, "images": temporary(pictures), "read": read}
        nothing = idle(model, [(direction, value) for value in values], sigmas, t_edit).strip()
        text = "\n".join(filter(None, [table, *notices, nothing]))
        return text_result(text, strip, table, pictures, nulltext_strengths=[panel])


NODES = (HSpaceMap,)
