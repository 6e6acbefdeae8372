"""Classifiers from and to files, and the folder of pictures that a latent classifier is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..samplers.networks.image_classifier import ImageClassifier, build
from ..samplers.networks.latent_classifier import FORMAT, LatentClassifier
from ..samplers.record_file import write
from .comfy import as_image, latent_in
from .files import of_file, read_picture
from .samples import SUFFIXES, folder_path
from .tuning_set import encoded


def class_folder(folder: str) -> tuple[list[str], list[Path], list[int]]:
    """Labels (names of the sub-folders of input/<folder>, sorted), pictures, and each picture's class.

    ValueError unless there are at least two classes with two pictures each."""
    root = folder_path(folder)
    if not root.is_dir():
        raise ValueError(
            f"There is no folder {folder!r} in ComfyUI's input folder: put one sub-folder of pictures per class there."
        )
    labels, pictures, targets = [], [], []
    for place in sorted(p for p in root.iterdir() if p.is_dir()):
        found = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
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
    """Latents [N, C, h, w] in model space, fp32 on the CPU, the same every time; one tick per picture."""
    out = []
    for i, path in enumerate(pictures):
        upright = read_picture(path, f"{path.parent.name}/{path.name}")
        square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(square, np.float32) / 255)[None]
        out.append(as_image(latent_in(model, encoded(vae, pixels, i))))
        if not bool(torch.isfinite(out[-1]).all()):
            raise ValueError(
                f"The picture {path.parent.name}/{path.name} becomes NaN or infinite in the VAE: use the one that "
                "belongs to the model, in fp32 or bf16."
            )
        progress.tick(1)
    return torch.cat(out)


def write_latent_classifier(path: Path, model: LatentClassifier) -> None:
    """Save a classifier with its metadata, and check that the file gives the same back. OSError, ValueError
    otherwise."""
    state = {k: v.detach().float().contiguous().cpu() for k, v in model.state_dict().items()}
    write(path, state, model.metadata())
    again = load_latent_classifier(path)
    if again.labels != model.labels or any(not torch.equal(v, state[k]) for k, v in again.state_dict().items()):
        raise ValueError(f"The file {path} was written but doesn't give the classifier back: check the disk.")


def load_latent_classifier(path: Path) -> LatentClassifier:
    """A classifier of noisy latents. ValueError if the file holds another thing."""

    def build_latent(state, metadata):
        if metadata.get("format") != FORMAT:
            raise ValueError(
                "This file is not a latent classifier: train one with Train Latent Classifier, or use "
                "Load Image Classifier for a classifier of pictures."
            )
        return LatentClassifier.build(state, metadata)

    return of_file(path, build_latent, "latent classifier")


def load_image_classifier(path: Path, architecture: str = "auto") -> ImageClassifier:
    """A classifier of pictures (`build` of samplers/networks/image_classifier.py says which)."""
    return of_file(path, lambda state, metadata: build(path, state, metadata, architecture), "image classifier")
