"""CLIP guidance: the image-text models and the node that guides with them."""

from __future__ import annotations

import torch

from ..engine import guide, towers
from ..engine.comfy import process_of
from ..samplers.guidance.clip import LOSSES, ImageLoss
from ..samplers.guidance.cutouts import Cutouts
from ..samplers.guidance.losses import caption_log_probs
from ..samplers.networks.image_text import FORMAT
from . import fields as base
from .guidance_inputs import (
    BOUND,
    DECODER,
    END,
    EVERY,
    LATENT,
    MODES,
    NETWORK,
    SCALE_TIP,
    START,
    VARIANCE,
    attached,
    modes,
    term,
)
from .report import text_result

KIND = "image_text"
CATEGORY = "NullText/guidance"
IMAGE_TEXT = (
    "IMAGE_TEXT",
    {
        "tooltip": "A model that puts pictures and texts into one space: from Load Image-Text "
        "Model, or CLIP Pair for a real CLIP."
    },
)


class LoadImageText:
    ID = "NullText_LoadImageText"
    TITLE = "Image-Text Model (CLIP)"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["load clip", "clip vision", "tiny clip", "image text model", "clip pair"]
    DESCRIPTION = base.describe(
        "The model that CLIP Guidance, Semantic Guidance and CLIP Rank judge with. From a file of this pack (the "
        "one of the demo scenes comes with it), or a real CLIP: ComfyUI's CLIP vision model joined with the text "
        "encoder of the same CLIP.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE_TEXT",)
    OUTPUT_TOOLTIPS = ("The image tower, the text tower and, where it was trained, the noise-aware image tower.",)

    @classmethod
    def INPUT_TYPES(cls):
        found = towers.files(KIND, lambda meta: meta.get("format") == FORMAT)
        return {
            "required": {
                "file": base.choice(
                    found or [f"(no file in models/{KIND})"],
                    "A model of this pack's own format; not read where a CLIP is wired.",
                )
            },
            "optional": {
                "clip_vision": (
                    "CLIP_VISION",
                    {"tooltip": "From Load CLIP Vision: ViT-L/14 or ViT-bigG, for example."},
                ),
                "clip": (
                    "CLIP",
                    {
                        "tooltip": "The text encoder of the same CLIP, from Load CLIP, with its "
                        "text_projection; the one inside an SD 1 checkpoint has none."
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file):
        return True

    @classmethod
    def IS_CHANGED(cls, file, **_):
        return towers.changed(KIND, file)

    def run(self, file, clip_vision=None, clip=None):
        if (clip_vision is None) != (clip is None):
            raise ValueError("A CLIP is two halves: wire both clip_vision and clip, or neither to use the file.")
        if clip is not None:
            made = towers.ClipPair(clip_vision, clip)
            return text_result(f"CLIP vision and text encoder, {made.width} numbers, {made.image_size} px.", made)
        made = towers.load_image_text(towers.find_file(KIND, file))
        noisy = "with" if made.noisy is not None else "without"
        return text_result(
            f"{len(made.words)} words, pictures of {made.image_size} px, {noisy} a noise-aware tower.", made
        )


def text_lines(text: str) -> tuple[list[str], list[float]]:
    """One target per line, "text" or "text : weight"; empty lines don't count."""
    texts, weights = [], []
    for line in text.splitlines():
        head, mark, tail = line.rpartition(":")
        try:
            weight = float(tail) if mark else None
        except ValueError:
            weight = None
        said = (head if weight is not None else line).strip()
        if said:
            texts.append(said)
            weights.append(1.0 if weight is None else weight)
    return texts, weights


def check_words(image_text, texts: list[str]) -> list[str]:
    """Notices about words that a small model was never shown. ValueError where it knows none of a text's words."""
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
            pictures = image[..., :3].movedim(-1, 1).float().clone().to(getattr(image_text, "device", "cpu"))
            rows.append(image_text.embed_image(pictures).float().clone().to(rows[0] if rows else "cpu"))
            out += [image_weight / len(pictures)] * len(pictures)
    if not rows:
        raise ValueError("There is no target: write a text, or connect an image with a weight other than 0.")
    return torch.cat(rows), tuple(out)


class CLIPGuidance:
    ID = "NullText_CLIPGuidance"
    TITLE = "CLIP Guidance"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = [
        "clip guided diffusion",
        "contrastive",
        "spherical loss",
        "blended diffusion",
        "cutouts",
        "text guidance",
    ]
    DESCRIPTION = base.describe(
        "Pulls every sampling step towards texts or pictures by the gradient of an image-text model on the decoded "
        "estimate. Losses: contrastive (the target against distractors), spherical, cosine. With a mask it judges that "
        "part only: the guided half of Blended Diffusion (arXiv 2111.14818). Patches a MODEL for any sampler.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The guided clone; the model itself at scale 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "vae": (
                    "VAE",
                    {"tooltip": "The VAE that belongs to the model: the estimate is decoded at every step."},
                ),
                "image_text": IMAGE_TEXT,
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "a red circle",
                        "tooltip": "What the picture shall be. One target per line, 'text : weight' for a "
                        "weight; a negative weight pushes away. May be empty with a target "
                        "image.",
                    },
                ),
                "loss": base.choice(
                    list(LOSSES),
                    "Contrastive: probability of the target among the distractors; "
                    "it lets go once the target is sure. Spherical: half the "
                    "squared angle. Cosine: 1 - cos.",
                ),
                "distractors": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "a blue square\na green star\na yellow ring",
                        "tooltip": "Only for the contrastive loss: what the picture shall not "
                        "be, one per line, one at least.",
                    },
                ),
                "scale": base.number(
                    5.0,
                    -100000.0,
                    100000.0,
                    0.1,
                    SCALE_TIP + "Contrastive likes 1 to 20, spherical and cosine 10 to 1000.",
                ),
                "start_percent": START,
                "end_percent": END,
                "gradient_mode": modes(DECODER, NETWORK, LATENT),
                "cutouts": base.whole(
                    4,
                    1,
                    64,
                    "Random crops per step; the first is always the whole picture. More are steadier and dearer.",
                ),
                "cut_power": base.number(1.0, 0.1, 10.0, 0.1, "Above 1: more small crops."),
                "smallest_cut": base.number(
                    0.7,
                    0.05,
                    1.0,
                    0.05,
                    "Least side of a crop, as a share of the picture's. Places ('on the left') need large ones.",
                ),
                "augment": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "Turn, shift and roughen the crops a little, so "
                        "that the gradient doesn't paint for one view.",
                    },
                ),
                "bound": BOUND,
                "every": EVERY,
                "seed": base.SEED,
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "Target pictures, beside the text or instead of it."}),
                "image_weight": base.number(1.0, -100.0, 100.0, 0.1, "Weight of the target pictures together."),
                "mask": (
                    "MASK",
                    {
                        "tooltip": "1 (white) means: judge here. Combine it with a noise mask or Blended "
                        "Diffusion, which keep the rest."
                    },
                ),
                "temperature": base.number(
                    100.0, 1.0, 1000.0, 1.0, "Only for the contrastive loss: CLIP's own is 100."
                ),
                "smoothness": base.number(0.0, 0.0, 10000.0, 1.0, "Weight of the total variation, against speckle."),
                "range_weight": base.number(0.0, 0.0, 10000.0, 1.0, "Weight of staying within black and white."),
                "variance": VARIANCE,
            },
        }

    def run(
        self,
        model,
        vae,
        image_text,
        text,
        loss,
        distractors,
        scale,
        start_percent,
        end_percent,
        gradient_mode,
        cutouts,
        cut_power,
        smallest_cut,
        augment,
        bound,
        every,
        seed,
        image=None,
        image_weight=1.0,
        mask=None,
        temperature=100.0,
        smoothness=0.0,
        range_weight=0.0,
        variance=1.0,
    ):
        texts, weights = text_lines(text)
        others = text_lines(distractors)[0] if loss == "contrastive" else []
        others = [o for o in others if o not in texts]
        if loss == "contrastive" and not others:
            raise ValueError(
                "The contrastive loss needs at least one distractor that isn't the target: with one "
                "caption alone its gradient is 0. Write some, or choose spherical."
            )
        notices = check_words(image_text, texts + others)
        decode, window = guide.decoder(model, vae), guide.window(model, start_percent, end_percent)
        targets, weights = embed_targets(image_text, texts, weights, image, image_weight)
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
            targets,
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
                    "A mask, smoothness and range_weight judge the decoded picture: set gradient_mode to "
                    "through decoder only, or leave them off."
                )
            likelihood = judge.noisy_log_likelihood(noisy_tower(model, image_text).embed_noisy)
        else:
            likelihood = judge.log_likelihood(decode)
        names = texts + ["target image"] * (len(targets) - len(texts)) + others

        def probabilities(_x, _sigma, denoised):
            captions = targets if against is None else torch.cat([targets, against])
            return names, caption_log_probs(
                image_text.embed_image(decode(denoised)).float().cpu(), captions.cpu(), temperature
            ).exp()

        said = ", ".join(texts) or "the target image"
        made = term(
            likelihood,
            f"{loss}: {said}"[:40],
            MODES[gradient_mode],
            scale,
            window,
            bound,
            every,
            variance,
            modules=(*towers.modules_of(image_text), vae.first_stage_model),
            patchers=(vae.patcher, *towers.patchers_of(image_text)),
            probabilities=probabilities if len(names) > 1 else None,
        )
        return attached(model, made, [f"Towards {said} ({loss}, {cutouts} cutouts) at scale {scale:g}.", *notices])


def noisy_tower(model, image_text):
    """The image-text model, if it has a noise-aware tower for this model's latents. ValueError otherwise."""
    tower = getattr(image_text, "noisy", None)
    channels = model.get_model_object("latent_format").latent_channels
    if tower is None or tower.config["in_channels"] != channels or process_of(model).name != "ve":
        raise ValueError(
            "This image-text model has no noise-aware tower for this model's latents: set gradient_mode "
            "to through decoder only."
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


NODES = (LoadImageText, CLIPGuidance)
