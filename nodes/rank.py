"""CLIP Rank: order a batch by its similarity to texts or pictures."""

from __future__ import annotations

import torch

from ..engine import towers
from ..engine.gradients import grad_mode
from ..samplers.guidance.clip import rank
from . import fields as base
from .clip_guidance import IMAGE_TEXT, check_words, embed_targets, plain_mask, text_lines
from .report import text_result


class CLIPRank:
    ID = "NullText_CLIPRank"
    TITLE = "CLIP Rank"
    CATEGORY = "NullText/guidance"
    SEARCH_ALIASES = ["clip score", "rank", "best of", "select images", "similarity"]
    DESCRIPTION = base.describe(
        "Orders a batch of pictures by their cosine similarity to a text or a picture and returns the best ones with a "
        "table. Blended Diffusion makes 64 and keeps the best.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "STRING", "LATENT")
    RETURN_NAMES = ("images", "table", "latent")
    OUTPUT_TOOLTIPS = (
        "The best pictures, best first.",
        "Place, number in the batch, similarity.",
        "Their latents, where a latent was wired; else an empty one.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The batch."}),
                "image_text": IMAGE_TEXT,
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "a red circle",
                        "tooltip": "What to look for. One per line, 'text : weight' for a weight.",
                    },
                ),
                "keep": base.whole(1, 1, 4096, "How many of the best to return."),
            },
            "optional": {
                "target_image": ("IMAGE", {"tooltip": "Pictures to look for, beside the text or instead of it."}),
                "mask": ("MASK", {"tooltip": "1 (white) means: judge here."}),
                "latent": base.latent("The batch as latents, put into the same order."),
            },
        }

    def run(self, images, image_text, text, keep, target_image=None, mask=None, latent=None):
        texts, weights = text_lines(text)
        notices = check_words(image_text, texts)
        if latent is not None and len(latent["samples"]) != len(images):
            raise ValueError(
                f"The latent holds {len(latent['samples'])} items, the batch {len(images)} pictures: "
                "wire the latent that the pictures were decoded from."
            )
        targets, weights = embed_targets(image_text, texts, weights, target_image)
        mask = plain_mask(mask)
        with grad_mode(*towers.modules_of(image_text)), torch.no_grad():
            pictures = images[..., :3].movedim(-1, 1).float().clone().to(getattr(image_text, "device", "cpu"))
            order, score = rank(image_text.embed_image, pictures, targets, weights, mask)
        order, score = order.cpu(), score.cpu()
        best = order[:keep]
        rows = [f"{place + 1:3d}. picture {int(i) + 1:3d}  {float(score[i]):+.4f}" for place, i in enumerate(order)]
        table = "\n".join(rows)
        chosen = (
            {**latent, "samples": latent["samples"][best]}
            if latent is not None
            else {"samples": torch.zeros(len(best), 4, max(1, images.shape[1] // 8), max(1, images.shape[2] // 8))}
        )
        if latent is not None and chosen.get("batch_index") is not None:
            chosen["batch_index"] = [latent["batch_index"][int(i)] for i in best]
        said = [
            f"The best {len(best)} of {len(images)} by {', '.join(texts) or 'the target picture'}:",
            table,
            *notices,
        ]
        if keep > len(images):
            said.append(f"Notice: only {len(images)} pictures were given.")
        return text_result("\n".join(said), images[best], table, chosen)


NODES = (CLIPRank,)
