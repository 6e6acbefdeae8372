"""CLIP guidance: towards texts and pictures by the gradient of an image-text model."""

from __future__ import annotations

import torch

from ..engine import terms
from ..engine.comfy import process_of
from ..engine.image_text import modules_of, patchers_of, ready
from ..engine.streamed import settled
from ..samplers.guidance.clip import LOSSES, ImageLoss, inside
from ..samplers.guidance.cutouts import Cutouts
from ..samplers.guidance.losses import caption_log_probs
from .base import IMAGE, MASK, MODEL, SEED, VAE, Boolean, Box, Choice, Float, Int, Output, Text, advanced, optional
from .guidance import (
    BOUND,
    CATEGORY,
    DECODER,
    EVERY,
    IMAGE_TEXT,
    LATENT,
    MODES,
    NETWORK,
    SPAN,
    VARIANCE,
    attached,
    gradient_mode,
    scale,
    strength,
    term,
)
from .words import targets


def check_words(image_text, texts: list[str]) -> list[str]:
    """Notices about words that a small model does not know. ValueError where it knows none of a text's words."""
    unknown = {}
    for text in texts:
        missing = image_text.unknown(text)
        if missing and len(missing) >= len(text.replace(",", " ").split()):
            raise ValueError(
                f"This image-text model knows no word of {text!r}: use words of its training, like 'a red "
                "circle', or wire a real CLIP into Image-Text Model."
            )
        unknown.update(dict.fromkeys(missing))
    return [f"Notice: unknown to this image-text model: {', '.join(unknown)}."] if unknown else []


def embed_targets(image_text, texts: list[str], weights: list[float], image=None, image_weight: float = 1.0):
    """Embeddings [K, D] of texts and of the pictures of an IMAGE, with their weights."""
    rows, out = [], list(weights)
    with torch.inference_mode(False), torch.no_grad():
        if texts:
            rows.append(image_text.embed_text(texts).float().clone())
        if image is not None and image_weight:
            pictures = image[..., :3].movedim(-1, 1).float().clone().to(ready(image_text))
            rows.append(image_text.embed_image(pictures).float().clone().to(rows[0] if rows else "cpu"))
            out += [image_weight / len(pictures)] * len(pictures)
    if not rows:
        raise ValueError("There is no target: write a text, or connect an image with a weight other than 0.")
    return torch.cat(rows), tuple(out)


class CLIPGuidance(Box):
    ID, TITLE, CATEGORY = "NullText_CLIPGuidance", "CLIP Guidance", CATEGORY
    SEARCH_ALIASES = [
        "clip guided diffusion",
        "contrastive",
        "spherical loss",
        "blended diffusion",
        "cutouts",
        "text guidance",
    ]
    DESCRIPTION = (
        "Pulls every sampling step towards texts or pictures by the gradient of an image-text model on the decoded "
        "estimate. Losses: contrastive (the target against distractors), spherical, cosine. With a mask it judges "
        "that part only: the guided half of Blended Diffusion (arXiv 2111.14818). Patches a MODEL for any sampler."
    )
    INPUTS = (
        MODEL,
        VAE(
            "The VAE that belongs to the model: it decodes the estimate at every step; on the latent only for Guidance "
            "Trace."
        ),
        IMAGE_TEXT,
        Text(
            "text",
            "a red circle",
            "What the picture shall be. One target per line, 'text : weight' for a weight; a negative weight pushes "
            "away. May be empty with a target image.",
            multiline=True,
        ),
        Choice(
            "loss",
            list(LOSSES),
            "Contrastive: probability of the target among the distractors; it stops pulling once the target is sure. "
            "Spherical: half the squared angle. Cosine: 1 - cos.",
        ),
        Text(
            "distractors",
            "a blue square\na green star\na yellow ring",
            "Only for the contrastive loss: what the picture shall not be, one per line, one at least.",
            multiline=True,
        ),
        scale(5.0, 100000.0, "Contrastive likes 1 to 20, spherical and cosine 10 to 1000."),
        *advanced(
            *SPAN,
            gradient_mode(DECODER, NETWORK, LATENT),
            Int(
                "cutouts",
                4,
                "Random crops per step; the first is always the whole picture. More are steadier and cost more. On the "
                "latent none are taken.",
                1,
                64,
            ),
            Float("cut_power", 1.0, "Above 1: more small crops.", 0.1, 10.0, 0.1),
            Float(
                "smallest_cut",
                0.7,
                "Least side of a crop, as a fraction of the picture's. Places ('on the left') need large ones.",
                0.05,
                1.0,
                0.05,
            ),
            Boolean(
                "augment",
                True,
                "Turn and shift the crops and add a little noise, so that the gradient does not fit one view only.",
            ),
            BOUND,
            EVERY,
        ),
        SEED,
        *optional(
            IMAGE("Target pictures, beside the text or instead of it."),
            *advanced(Float("image_weight", 1.0, "Weight of the target pictures together.", -100.0, 100.0, 0.1)),
            MASK(
                "1 (white) means: judge here. Combine it with a noise mask or Blended Diffusion, which keep the rest."
            ),
            *advanced(
                Float(
                    "temperature",
                    100.0,
                    "Of the contrastive loss and the trace's probabilities; CLIP's own is 100. Higher: it pulls harder "
                    "and stops sooner once the target leads.",
                    1.0,
                    1000.0,
                    1.0,
                ),
                Float("smoothness", 0.0, "Weight of the total variation, against speckle.", 0.0, 10000.0, 1.0),
                Float("range_weight", 0.0, "Weight of staying within black and white.", 0.0, 10000.0, 1.0),
                VARIANCE,
            ),
        ),
    )
    OUTPUTS = (Output("MODEL", "The guided clone; the model itself at scale 0."),)

    def run(
        self,
        model,
        vae,
        image_text,
        text,
        loss,
        distractors,
        gradient_mode,
        cutouts,
        cut_power,
        smallest_cut,
        augment,
        seed,
        image=None,
        image_weight=1.0,
        mask=None,
        temperature=100.0,
        smoothness=0.0,
        range_weight=0.0,
        **acts,
    ):
        texts, weights = targets(text)
        others = [o for o in targets(distractors)[0] if o not in texts] if loss == "contrastive" else []
        if loss == "contrastive" and not others:
            raise ValueError(
                "The contrastive loss needs at least one distractor that isn't the target: with one caption alone its "
                "gradient is 0. Write some, or choose spherical."
            )
        notices, acts = check_words(image_text, texts + others), strength(model, **acts)
        vae = settled(vae)
        decode = terms.decoder(model, vae)
        wanted, weights = embed_targets(image_text, texts, weights, image, image_weight)
        against = embed_targets(image_text, others, [1.0] * len(others))[0] if others else None
        cuts = Cutouts(
            cutouts,
            image_text.image_size,
            cut_power,
            smallest_cut,
            **({"degrees": 8.0, "translate": 0.05, "noise": 0.02} if augment else {}),
        )
        judge = ImageLoss(
            image_text.embed_image,
            wanted,
            weights,
            loss,
            against,
            temperature,
            cuts,
            plain_mask(mask),
            smoothness,
            range_weight,
            seed % 2**63,
        )
        if gradient_mode == LATENT:
            if mask is not None or smoothness or range_weight:
                raise ValueError(
                    "A mask, smoothness and range_weight judge the decoded picture: set gradient_mode to through "
                    "decoder only, or leave them off."
                )
            encoder, process = noisy_encoder(model, image_text), process_of(model)
            likelihood = judge.noisy_log_likelihood(lambda x, sigma: encoder.embed_noisy(x, sigma, process))
        else:
            likelihood = judge.log_likelihood(decode)
        names = texts + ["target image"] * (len(wanted) - len(texts)) + others

        def probabilities(_x, _sigma, denoised):
            captions = wanted if against is None else torch.cat([wanted, against])
            picture = decode(denoised) if judge.mask is None else inside(judge.mask, decode(denoised))
            seen = image_text.embed_image(picture).float().cpu()
            return names, caption_log_probs(seen, captions.cpu(), temperature).exp()

        towards = ", ".join(texts) or "the target image"
        made = term(
            likelihood,
            f"{loss}: {towards}"[:40],
            MODES[gradient_mode],
            acts,
            modules=(*modules_of(image_text), vae.first_stage_model),
            patchers=(vae.patcher, *patchers_of(image_text)),
            probabilities=probabilities if len(names) > 1 else None,
        )
        seen = "on the noisy latent" if gradient_mode == LATENT else f"{cutouts} cutouts"
        lines = [f"Towards {towards} ({loss}, {seen}) at scale {acts['scale']:g}.", *notices]
        return attached(model, made, lines)


def noisy_encoder(model, image_text):
    """The image-text model, if it has an encoder for this model's noisy latents. ValueError otherwise."""
    encoder = getattr(image_text, "noisy", None)
    channels = model.get_model_object("latent_format").latent_channels
    if encoder is None or encoder.config["in_channels"] != channels:
        raise ValueError(
            "This image-text model has no encoder for this model's noisy latents: set gradient_mode to through "
            "decoder only."
        )
    return image_text


def plain_mask(mask):
    """A MASK as an ordinary tensor; an empty one is refused."""
    if mask is None:
        return None
    if not bool(mask.any()):
        raise ValueError(
            "The mask is empty: there is nothing to judge. Paint the part that shall change, or unplug the mask."
        )
    with torch.inference_mode(False):
        return mask.float().clone()


NODES = (CLIPGuidance,)
