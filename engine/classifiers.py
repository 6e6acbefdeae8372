"""Classifiers of pictures and of latents, from and to files, and the pictures that the latter are trained on."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..samplers.networks.latent_classifier import FORMAT, LatentClassifier
from .comfy import full_path, latent_in
from .files import read_tensors

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def class_folder(folder: str) -> tuple[list[str], list[Path], list[int]]:
    """Labels (names of the sub-folders of input/<folder>, sorted), pictures, and each picture's class.

    ValueError unless there are at least two classes with two pictures each."""
    root = full_path("input", folder)
    if not root.is_dir():
        raise ValueError(
            f"There is no folder {folder!r} in ComfyUI's input folder: put one sub-folder of pictures per class there."
        )
    labels, pictures, targets = [], [], []
    for place in sorted(p for p in root.iterdir() if p.is_dir()):
        found = sorted(p for p in place.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not found:
            continue
        if len(found) < 2:
            raise ValueError(f"The class {place.name!r} has one picture only: give each class at least two.")
        pictures += found
        targets += [len(labels)] * len(found)
        labels.append(place.name)
    if len(labels) < 2:
        raise ValueError(
            f"The folder {folder!r} holds {len(labels)} sub-folder(s) with pictures: a classifier needs "
            "at least two classes, one sub-folder each."
        )
    return labels, pictures, targets


def encode_pictures(model, vae, pictures: list[Path], size: int, progress) -> Tensor:
    """Latents [N, C, h, w] in model space, fp32 on the CPU; one tick per picture."""
    out = []
    for path in pictures:
        try:
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
                square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(
                f"The picture {path.parent.name}/{path.name} can't be read ({error}): replace or remove it."
            ) from None
        pixels = torch.from_numpy(np.asarray(square, np.float32) / 255)[None]
        out.append(latent_in(model, vae.encode(pixels)).float().cpu())
        progress.tick(1)
    return torch.cat(out)


def write_latent_classifier(path: Path, model: LatentClassifier) -> None:
    """Save a classifier with its metadata, and check that the file gives the same back. OSError, ValueError
    otherwise."""
    state = {k: v.detach().float().contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(state, path, model.metadata())
    again = load_latent_classifier(path)
    if again.labels != model.labels or any(not torch.equal(v, state[k]) for k, v in again.state_dict().items()):
        raise ValueError(f"The file {path} was written but doesn't give the classifier back: check the disk.")


def load_latent_classifier(path: Path) -> LatentClassifier:
    """A classifier of noisy latents. ValueError if the file holds another thing."""
    state, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            "This file is not a latent classifier: train one with Train Latent Classifier, or use "
            "Load Image Classifier for a classifier of pictures."
        )
    with torch.inference_mode(False):
        return LatentClassifier.build(state, metadata)


class ImageClassifier(nn.Module):
    """A classifier of clean pictures: [B, 3, H, W] in 0..1 -> logits [B, K]."""

    def __init__(self, net: nn.Module, labels: list[str], size: int, mean: list[float], std: list[float]):
        super().__init__()
        self.net, self.labels, self.size = net, labels, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        out = self.net((image - self.mean) / self.std)
        return (out if isinstance(out, Tensor) else out.logits).float()


@functools.cache
def _architectures() -> tuple[str, ...]:
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def load_image_classifier(path: Path, architecture: str = "auto") -> ImageClassifier:
    """A checkpoint of an architecture that transformers (config.json beside the file) or torchvision can build.

    The architecture of a torchvision file: as given, else its metadata's "architecture", else the one its name begins
    with. Labels: the config's id2label, the metadata's "labels" (a JSON list), a .txt file of the same name with one
    label per line, else torchvision's own list of 1000 where the number fits. ValueError where they can't be told."""
    state, metadata = read_tensors(path)
    config = path.with_name("config.json")
    with torch.inference_mode(False):
        if architecture in ("auto", "transformers") and config.is_file():
            net, labels, size, mean, std = _transformers(config, state)
        else:
            net, labels, size, mean, std = _torchvision(path, state, metadata, architecture)
        return ImageClassifier(net, labels, size, mean, std).float().eval().requires_grad_(False)


def _transformers(config: Path, state: dict[str, Tensor]):
    import transformers

    settings = transformers.AutoConfig.from_pretrained(config.parent, local_files_only=True)
    try:
        net = transformers.AutoModelForImageClassification.from_config(settings)
        net.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The file doesn't hold the image classifier that its config.json describes: "
            f"{str(error).splitlines()[0][:160]}"
        ) from None
    labels = [settings.id2label[i] for i in sorted(settings.id2label)]
    prepare = config.with_name("preprocessor_config.json")
    said = json.loads(prepare.read_text(encoding="utf-8")) if prepare.is_file() else {}
    size = said.get("crop_size") or said.get("size") or getattr(settings, "image_size", 224)
    size = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    return net, labels, int(size), said.get("image_mean", _MEAN), said.get("image_std", _STD)


def _torchvision(path: Path, state: dict[str, Tensor], metadata: dict[str, str], architecture: str):
    import torchvision.models

    known = _architectures()
    name = metadata.get("architecture", "") if architecture == "auto" else architecture
    if architecture == "auto" and name not in known:
        stem = path.stem.lower().replace("-", "_")
        fits = [k for k in known if stem == k or stem.startswith(k + "_")]
        name = max(fits, key=len) if fits else name
    if name not in known:
        raise ValueError(
            f"The architecture of {path.name} can't be told: put a transformers config.json beside it, "
            "or write torchvision's name of it (resnet50, for one) into architecture."
        )
    outputs = [v.shape[0] for k, v in state.items() if k.endswith(".bias") and v.ndim == 1]
    classes = outputs[-1] if outputs else 1000
    for guess in dict.fromkeys([classes, *reversed(outputs)]):
        net = torchvision.models.get_model(name, weights=None, num_classes=guess)
        if all(k in state and state[k].shape == v.shape for k, v in net.state_dict().items() if "num_batches" not in k):
            break
    else:
        raise ValueError(
            f"The file {path.name} doesn't hold a torchvision {name}: name the architecture it was saved from."
        )
    net.load_state_dict(state, strict=False)
    labels = _labels(path, metadata, name, guess)
    return (
        net,
        labels,
        int(metadata.get("size", 224)),
        json.loads(metadata.get("mean", json.dumps(_MEAN))),
        json.loads(metadata.get("std", json.dumps(_STD))),
    )


def _labels(path: Path, metadata: dict[str, str], name: str, count: int) -> list[str]:
    import torchvision.models

    listed = path.with_suffix(".txt")
    if "labels" in metadata:
        labels = json.loads(metadata["labels"])
    elif listed.is_file():
        labels = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        weights = torchvision.models.get_model_weights(name)
        labels = list(next(iter(weights)).meta.get("categories", [])) if len(weights) else []
    if len(labels) != count:
        raise ValueError(
            f"The classifier has {count} classes but {len(labels)} labels: put {path.stem}.txt with one "
            "label per line beside it."
        )
    return labels
