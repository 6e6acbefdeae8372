"""Semantic diffusion guidance: text, image content, structure and style in one node."""

from __future__ import annotations

import torch

from ..engine import terms
from ..engine.comfy import as_image, is_empty, process_of, to_model_space
from ..engine.image_text import ClipPair, modules_of, patchers_of
from ..engine.samples import at_most
from ..engine.streamed import settled
from ..samplers.guidance.semantic import Semantics
from .base import IMAGE, MODEL, SEED, VAE, Box, Float, Output, Text, optional
from .clip_guidance import check_words, noisy_encoder
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
    strength,
    term,
)
from .report import model_unchanged
from .words import feature_maps, lines


def _weight(name: str, default: float, tooltip: str):
    return Float(name, default, f"{tooltip} 0 switches it off.", -100000.0, 100000.0, 1.0)


class SemanticGuidance(Box):
    ID, TITLE, CATEGORY = ("NullText_SemanticGuidance", "Semantic Guidance (text, content, structure, style)", CATEGORY)
    SEARCH_ALIASES = ["SDG", "more control for free", "style guidance", "image guidance", "gram", "reference"]
    DESCRIPTION = (
        "Semantic diffusion guidance (arXiv 2112.05744): pulls the picture towards a text, the content of a reference "
        "picture, its structure (feature maps) or its style (Gram matrices). On noisy latents it needs an image-text "
        "model with an encoder for them; with any other set gradient_mode to through decoder only. Patches a MODEL "
        "for any sampler."
    )
    INPUTS = (
        MODEL,
        IMAGE_TEXT,
        gradient_mode(LATENT, DECODER, NETWORK),
        Text("text", "", "What the picture shall be; needs the text weight."),
        _weight("text_weight", 0.0, "Weight of the text; the paper runs with about 160."),
        _weight("content_weight", 100.0, "Weight of the reference's content: what it shows, wherever that stands."),
        _weight("structure_weight", 0.0, "Weight of the reference's structure: what is where."),
        _weight("style_weight", 0.0, "Weight of the reference's style: textures and colours, wherever they are."),
        Float("scale", 1.0, "Multiplies all weights. 0: the untouched model.", -1000.0, 1000.0, 0.1),
        *SPAN,
        BOUND,
        EVERY,
        Text("layers", "0,1", "Which feature maps structure and style read, finest first: 0,1 are the fine ones."),
        SEED,
        *optional(IMAGE("The reference picture; the first of a batch is used.", name="reference"), VAE, VARIANCE),
    )
    OUTPUTS = (Output("MODEL", "The guided clone; the model itself where every weight is 0."),)

    def run(
        self,
        model,
        image_text,
        gradient_mode,
        text,
        text_weight,
        content_weight,
        structure_weight,
        style_weight,
        layers,
        seed,
        reference=None,
        vae=None,
        **acts,
    ):
        reference = None if reference is None else at_most(reference[:1])
        mode, wanted, acts = MODES[gradient_mode], ", ".join(lines(text)), strength(model, **acts)
        if not acts["scale"]:
            return model_unchanged("the scale is 0", model)
        if text_weight and not wanted:
            raise ValueError("The text weight needs a text: write one, or set the weight to 0.")
        notices = check_words(image_text, [wanted]) if text_weight else []
        with torch.inference_mode(False), torch.no_grad():
            row = image_text.embed_text([wanted])[0].float().clone() if text_weight else None
        weights = {"text": text_weight, "content": content_weight, "structure": structure_weight, "style": style_weight}
        goal = Semantics(row, *weights.values(), feature_maps(layers))
        if not (text_weight or goal.needs_reference):
            return model_unchanged("every weight is 0", model)
        if goal.needs_reference and reference is None:
            raise ValueError(
                "Content, structure and style need a reference picture: connect one, or set those weights to 0."
            )
        if isinstance(image_text, ClipPair) and (structure_weight or style_weight):
            raise ValueError(
                "Structure and style read the feature maps of a convolutional encoder, which this CLIP pair hasn't: "
                "use a file in Image-Text Model, or the content weight."
            )
        if structure_weight or style_weight:
            tower = noisy_encoder(model, image_text).noisy if mode == "latent" else image_text.image
            if max(goal.layers) >= len(tower.stages):
                raise ValueError(
                    f"The layers name feature map {max(goal.layers)}, and this image-text model has those from 0 to "
                    f"{len(tower.stages) - 1}: write 0,1 for the fine ones."
                )
        if mode == "latent":
            likelihood, modules, patchers = self._noisy(model, image_text, goal, reference, vae, seed)
        else:
            likelihood, modules, patchers = self._decoded(model, image_text, goal, reference, vae)
        parts = " ".join(f"{name} {value:g}" for name, value in weights.items() if value)
        made = term(likelihood, f"semantic: {parts}"[:40], mode, acts, modules=modules, patchers=patchers)
        return attached(model, made, [f"Semantic guidance ({parts}) at scale {acts['scale']:g}.", *notices])

    def _noisy(self, model, image_text, goal, reference, vae, seed):
        process = process_of(model)
        image_text = noisy_encoder(model, image_text)
        start = None
        if goal.needs_reference and reference is not None:
            if vae is None:
                raise ValueError("The reference picture must be encoded: wire the VAE that belongs to the model.")
            latent = {"samples": vae.encode(reference[:1, ..., :3])}
            start = None if is_empty(latent) else as_image(to_model_space(model, latent))
        return (
            goal.of_noisy(
                lambda x, sigma: image_text.embed_noisy(x, sigma, process),
                lambda x, sigma: image_text.noisy_features(x, sigma, process),
                start,
                process,
                seed % 2**63,
            ),
            modules_of(image_text),
            (),
        )

    def _decoded(self, model, image_text, goal, reference, vae):
        if vae is None:
            raise ValueError("The estimate must be decoded: wire the VAE that belongs to the model.")
        with torch.inference_mode(False):
            picture = None if reference is None else reference[:1, ..., :3].movedim(-1, 1).float().clone()
        vae = settled(vae)
        features = getattr(image_text, "image_features", lambda image: [])
        return (
            goal.of_estimate(terms.decoder(model, vae), image_text.embed_image, features, picture),
            (*modules_of(image_text), vae.first_stage_model),
            (vae.patcher, *patchers_of(image_text)),
        )


NODES = (SemanticGuidance,)
