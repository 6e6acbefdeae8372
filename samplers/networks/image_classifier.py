"""Classifiers of clean pictures in architectures that torchvision or transformers can build, from their tensors."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


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


def build(
    path: Path, state: dict[str, Tensor], metadata: dict[str, str], architecture: str = "auto"
) -> ImageClassifier:
    """The classifier of a checkpoint's tensors and metadata, of an architecture that transformers (config.json beside
    the file) or torchvision can build; frozen.

    The architecture of a torchvision file: as given, else its metadata's "architecture", else the one its name begins
    with. Labels: the config's id2label, the metadata's "labels" (a JSON list), a .txt file of the same name with one
    label per line, else torchvision's own list of 1000 where the number fits. ValueError where they can't be told."""
    config = path.with_name("config.json")
    if architecture in ("auto", "transformers") and config.is_file():
        made = ImageClassifier(*_transformers(config, state))
    else:
        made = ImageClassifier(*_torchvision(path, state, metadata, architecture))
    return made.float().eval().requires_grad_(False)


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
