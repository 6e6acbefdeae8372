"""The models that guidance judges with, from files: classifiers, and models of pictures and texts."""

from __future__ import annotations

from ..engine import classifiers, files
from ..engine.image_text import COLOURS, ClipPair, load_image_text
from ..engine.streamed import settled
from ..samplers.networks import image_text, latent_classifier
from .base import Box, Choice, Input, Output, Socket, Text, optional
from .guidance import CATEGORY
from .report import text_result


def _file(kind: str, accepts, tooltip: str) -> Input:
    """The list of the files of a kind whose metadata are accepted, made anew whenever the page asks."""
    return Choice(
        "file", lambda: files.listed(kind, accepts) or [f"(no file in models/{kind} or output/{kind})"], tooltip
    )


class _Loader(Box):
    """A box with a file; KIND is its folder inside ComfyUI's models and output folders."""

    KIND = "classifiers"
    BESIDE = ()  #: path of the file -> path of another that is read with it

    @classmethod
    def VALIDATE_INPUTS(cls, file=None):
        return True  # a file may be newer than the list on the page; run says what is wrong with it

    @classmethod
    def IS_CHANGED(cls, file=None, **_):  # None: the file's name comes by a wire
        return "" if file is None else files.state_of(lambda: files.find_file(cls.KIND, file), *cls.BESIDE)


class LoadClassifier(_Loader):
    ID, TITLE, CATEGORY = "NullText_LoadClassifier", "Load Latent Classifier", CATEGORY
    SEARCH_ALIASES = ["load classifier", "noisy classifier"]
    DESCRIPTION = (
        "Loads a latent classifier that Train Latent Classifier saved (in models/classifiers or output/classifiers)."
    )
    INPUTS = (
        _file(
            "classifiers",
            lambda meta: meta.get("format") == latent_classifier.FORMAT,
            "A classifier of noisy latents, saved by Train Latent Classifier.",
        ),
    )
    OUTPUTS = (Output("CLASSIFIER", "The classifier, with its labels."),)

    def run(self, file):
        made = classifiers.load_latent_classifier(files.find_file(self.KIND, file))
        return text_result(f"{len(made.labels)} classes: {', '.join(made.labels[:40])}", made)


class LoadImageClassifier(_Loader):
    ID, TITLE, CATEGORY = "NullText_LoadImageClassifier", "Load Image Classifier", CATEGORY
    SEARCH_ALIASES = ["load classifier", "resnet", "imagenet", "torchvision", "image classification"]
    DESCRIPTION = (
        "Loads a classifier of pictures in safetensors (models/classifiers) of an architecture that torchvision or "
        "transformers can build; Classifier Guidance uses it on the decoded estimate."
    )
    INPUTS = (
        _file(
            "classifiers",
            lambda meta: not meta.get("format", "").startswith("nulltext"),
            "A safetensors file. Beside it may lie config.json (transformers) or a .txt of the same name with one "
            "label per line.",
        ),
        Text(
            "architecture",
            "auto",
            "auto: from config.json, the file's metadata or its name (resnet50-..., for example); else torchvision's "
            "name of the architecture.",
        ),
    )
    OUTPUTS = LoadClassifier.OUTPUTS
    BESIDE = (
        lambda path: path.with_suffix(".txt"),
        lambda path: path.with_name("config.json"),
        lambda path: path.with_name("preprocessor_config.json"),
    )

    def run(self, file, architecture):
        made = classifiers.load_image_classifier(files.find_file(self.KIND, file), architecture.strip() or "auto")
        labels = ", ".join(made.labels[:40])
        return text_result(f"{len(made.labels)} classes, pictures of {made.size} px: {labels}", made)


class LoadImageText(_Loader):
    ID, TITLE, CATEGORY = "NullText_LoadImageText", "Image-Text Model (CLIP)", CATEGORY
    SEARCH_ALIASES = ["load clip", "clip vision", "tiny clip", "image text model", "clip pair"]
    DESCRIPTION = (
        "The model that CLIP Guidance, Semantic Guidance and CLIP Rank judge with. From a file of this pack (the one "
        "of the demo scenes comes with it), or a real CLIP: ComfyUI's CLIP vision model joined with the text encoder "
        "of the same CLIP."
    )
    KIND = "image_text"
    INPUTS = (
        _file(
            "image_text",
            lambda meta: meta.get("format") == image_text.FORMAT,
            "A model of this pack's own format; not read where a CLIP is wired.",
        ),
        *optional(
            Socket("clip_vision", "CLIP_VISION", "From Load CLIP Vision: ViT-L/14 or ViT-bigG, for example."),
            Socket(
                "clip",
                "CLIP",
                "The text encoder of the same CLIP, from Load CLIP, with its text_projection; the one inside an SD 1 "
                "checkpoint has none.",
            ),
        ),
    )
    OUTPUTS = (
        Output(
            "IMAGE_TEXT", "Its image encoder, text encoder and, where trained, the image encoder for noisy latents."
        ),
    )

    def run(self, file, clip_vision=None, clip=None):
        if (clip_vision is None) != (clip is None):
            raise ValueError("A CLIP is two halves: wire both clip_vision and clip, or neither to use the file.")
        if clip is not None:
            made = ClipPair(settled(clip_vision), clip)
            told = f"CLIP vision and text encoder, {made.width} numbers, {made.image_size} px."
            named = made.colours_named()
            if named < len(COLOURS) - 2:
                told += (
                    f"\nNotice: of {len(COLOURS)} plain colours it names {named}. These two hardly belong together, or "
                    "the text encoder's file has no text_projection: what is guided by them goes nowhere."
                )
            return text_result(told, made)
        made = load_image_text(files.find_file(self.KIND, file))
        noisy = "with" if made.noisy is not None else "without"
        return text_result(
            f"{len(made.words)} words, pictures of {made.image_size} px, {noisy} an encoder for noisy latents.", made
        )


NODES = (LoadClassifier, LoadImageClassifier, LoadImageText)
