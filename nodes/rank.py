"""CLIP Rank: order a batch by its similarity to texts or pictures."""

from __future__ import annotations

import torch

from ..engine.comfy import empty_latent
from ..engine.gradients import grad_mode
from ..engine.image_text import modules_of, ready
from ..samplers.guidance.clip import rank
from .base import IMAGE, LATENT, MASK, Box, Int, Output, Text, optional
from .clip_guidance import check_words, embed_targets, plain_mask
from .guidance import CATEGORY, IMAGE_TEXT
from .report import text_result
from .words import targets


class CLIPRank(Box):
    ID, TITLE, CATEGORY = "NullText_CLIPRank", "CLIP Rank", CATEGORY
    SEARCH_ALIASES = ["clip score", "rank", "best of", "select images", "similarity"]
    DESCRIPTION = (
        "Orders a batch of pictures by their cosine similarity to a text or a picture and returns the best ones with "
        "a table. Blended Diffusion makes 64 and keeps the best."
    )
    INPUTS = (
        IMAGE("The batch.", name="images"),
        IMAGE_TEXT,
        Text("text", "a red circle", "What to look for. One per line, 'text : weight' for a weight.", multiline=True),
        Int("keep", 1, "How many of the best to return.", 1, 4096),
        *optional(
            IMAGE("Pictures to look for, beside the text or instead of it.", name="target_image"),
            MASK("1 (white) means: judge here."),
            LATENT("The batch as latents, put into the same order."),
        ),
    )
    OUTPUTS = (
        Output("IMAGE", "The best pictures, best first.", "images"),
        Output("STRING", "Place, number in the batch, similarity.", "table"),
        Output("LATENT", "Their latents, where a latent was wired; else an empty one.", "latent"),
    )

    def run(self, images, image_text, text, keep, target_image=None, mask=None, latent=None):
        texts, weights = targets(text)
        notices = check_words(image_text, texts)
        if latent is not None and len(latent["samples"]) != len(images):
            raise ValueError(
                f"The latent holds {len(latent['samples'])} items, the batch {len(images)} pictures: "
                "wire the latent that the pictures were decoded from."
            )
        wanted, weights = embed_targets(image_text, texts, weights, target_image)
        mask = plain_mask(mask)
        device = ready(image_text)
        with grad_mode(*modules_of(image_text)), torch.no_grad():
            pictures = images[..., :3].movedim(-1, 1).float().clone().to(device)
            order, score = rank(image_text.embed_image, pictures, wanted, weights, mask)
        order, score = order.cpu(), score.cpu()
        best = order[:keep]
        rows = [f"{place + 1:3d}. picture {int(i) + 1:3d}  {float(score[i]):+.4f}" for place, i in enumerate(order)]
        table = "\n".join(rows)
        chosen = (
            {**latent, "samples": latent["samples"][best]}
            if latent is not None
            else empty_latent(len(best), *images.shape[1:3])
        )
        if chosen.get("batch_index") is not None:
            chosen["batch_index"] = [latent["batch_index"][int(i)] for i in best]
        if chosen.get("noise_mask") is not None and len(chosen["noise_mask"]) == len(images):
            chosen["noise_mask"] = chosen["noise_mask"][best]
        lines = [
            f"The best {len(best)} of {len(images)} by {', '.join(texts) or 'the target picture'}:",
            table,
            *notices,
        ]
        if keep > len(images):
            lines.append(f"Notice: only {len(images)} pictures were given.")
        return text_result("\n".join(lines), images[best], table, chosen)


NODES = (CLIPRank,)
