"""Semantic diffusion guidance: text, image content, structure and style in one node."""

from __future__ import annotations

import torch

from ..engine import guide, towers
from ..engine.comfy import process_of
from ..engine.sampling import is_empty, to_model_space
from ..samplers.guidance.semantic import Semantics
from . import fields as base
from .clip_guidance import CATEGORY, IMAGE_TEXT, check_words, noisy_tower, text_lines
from .guidance_inputs import BOUND, DECODER, END, EVERY, LATENT, MODES, NETWORK, START, VARIANCE, attached, modes, term


def _weight(default: float, what: str):
    return base.number(default, -100000.0, 100000.0, 1.0, what + " 0 switches it off.")


class SemanticGuidance:
    ID = "NullText_SemanticGuidance"
    TITLE = "Semantic Guidance (text, content, structure, style)"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["SDG", "more control for free", "style guidance", "image guidance", "gram", "reference"]
    DESCRIPTION = base.describe(
        "Semantic diffusion guidance (arXiv 2112.05744): pulls the picture towards a text, the content of a "
        "reference picture, its structure (feature maps) or its style (Gram matrices). On noisy latents by a "
        "noise-aware tower where the image-text model has one for this model, else on the decoded estimate. Patches "
        "a MODEL for any sampler.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The guided clone; the model itself where every weight is 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "image_text": IMAGE_TEXT,
                "gradient_mode": modes(LATENT, DECODER, NETWORK),
                "text": ("STRING", {"default": "", "tooltip": "What the picture shall be; needs the text weight."}),
                "text_weight": _weight(0.0, "Weight of the text; the paper runs with about 160."),
                "content_weight": _weight(
                    100.0, "Weight of the reference's content: what is on it, wherever it stands."
                ),
                "structure_weight": _weight(0.0, "Weight of the reference's structure: what is where."),
                "style_weight": _weight(
                    0.0, "Weight of the reference's style: textures and colours, wherever they are."
                ),
                "scale": base.number(1.0, -1000.0, 1000.0, 0.1, "Multiplies all weights. 0: the untouched model."),
                "start_percent": START,
                "end_percent": END,
                "bound": BOUND,
                "every": EVERY,
                "layers": (
                    "STRING",
                    {
                        "default": "0,1",
                        "tooltip": "Which feature maps structure and style read, finest first: 0,1 are the fine ones.",
                    },
                ),
                "seed": base.SEED,
            },
            "optional": {
                "reference": ("IMAGE", {"tooltip": "The reference picture; the first of a batch is used."}),
                "vae": ("VAE", {"tooltip": "The VAE that belongs to the model."}),
                "variance": VARIANCE,
            },
        }

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
        scale,
        start_percent,
        end_percent,
        bound,
        every,
        layers,
        seed,
        reference=None,
        vae=None,
        variance=1.0,
    ):
        mode, texts = MODES[gradient_mode], text_lines(text)[0]
        wanted = ", ".join(texts)
        if text_weight and not texts:
            raise ValueError("The text weight needs a text: write one, or set the weight to 0.")
        notices = check_words(image_text, [wanted]) if texts and text_weight else []
        with torch.inference_mode(False), torch.no_grad():
            row = image_text.embed_text([wanted])[0].float().clone() if texts and text_weight else None
        goal = Semantics(row, text_weight, content_weight, structure_weight, style_weight, _layers(layers))
        if not (text_weight or goal.needs_reference):
            scale = 0.0
        if scale and goal.needs_reference and reference is None:
            raise ValueError(
                "Content, structure and style need a reference picture: connect one, or set those weights to 0."
            )
        if isinstance(image_text, towers.ClipPair) and (structure_weight or style_weight):
            raise ValueError(
                "Structure and style read the feature maps of a convolutional tower, which this CLIP pair "
                "hasn't: use a file in Image-Text Model, or the content weight."
            )
        window = guide.window(model, start_percent, end_percent)
        if mode == "latent":
            likelihood, modules, patchers = self._noisy(model, image_text, goal, reference, vae, seed)
        else:
            likelihood, modules, patchers = self._decoded(model, image_text, goal, reference, vae)
        parts = {"text": text_weight, "content": content_weight, "structure": structure_weight, "style": style_weight}
        said = " ".join(f"{name} {value:g}" for name, value in parts.items() if value)
        made = term(
            likelihood,
            f"semantic: {said}"[:40],
            mode,
            scale,
            window,
            bound,
            every,
            variance,
            modules=modules,
            patchers=patchers,
        )
        return attached(model, made, [f"Semantic guidance ({said}) at scale {scale:g}.", *notices])

    def _noisy(self, model, image_text, goal, reference, vae, seed):
        process = process_of(model)
        image_text = noisy_tower(model, image_text)
        start = None
        if goal.needs_reference and reference is not None:
            if vae is None:
                raise ValueError("The reference picture must be encoded: wire the VAE that belongs to the model.")
            latent = {"samples": vae.encode(reference[:1, ..., :3])}
            start = None if is_empty(latent) else to_model_space(model, latent)
        return (
            goal.of_noisy(image_text.embed_noisy, image_text.noisy_features, start, process, seed % 2**63),
            towers.modules_of(image_text),
            (),
        )

    def _decoded(self, model, image_text, goal, reference, vae):
        if vae is None:
            raise ValueError("The estimate must be decoded: wire the VAE that belongs to the model.")
        with torch.inference_mode(False):
            picture = None if reference is None else reference[:1, ..., :3].movedim(-1, 1).float().clone()
        features = getattr(image_text, "image_features", lambda image: [])
        return (
            goal.of_estimate(guide.decoder(model, vae), image_text.embed_image, features, picture),
            (*towers.modules_of(image_text), vae.first_stage_model),
            (vae.patcher, *towers.patchers_of(image_text)),
        )


def _layers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.replace(" ", "").split(",") if part}))
    except ValueError:
        found = ()
    if not found or found[0] < 0:
        raise ValueError(f"Layers are numbers with commas between them, like 0,1; got {text!r}.")
    return found


NODES = (SemanticGuidance,)
