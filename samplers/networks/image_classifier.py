"""Classifiers of clean pictures in architectures that torchvision or transformers can build, from their tensors."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..record_file import Fields, Unsound, check_state, check_tensors, parsed

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

    _check_sizes(_beside(config), "config.json")
    try:
        settings = transformers.AutoConfig.from_pretrained(
            config.parent, local_files_only=True, trust_remote_code=False
        )
        make = lambda: transformers.AutoModelForImageClassification.from_config(settings, trust_remote_code=False)
        check_state(make, state)
        net = make()
        net.load_state_dict(state)
        labels = [str(settings.id2label[i]) for i in sorted(settings.id2label)]
    except Unsound as error:
        raise ValueError(
            f"The file doesn't hold the image classifier that its config.json describes: {error}."
        ) from None
    except Exception as error:  # transformers raises whatever its configuration classes do
        logging.getLogger("nulltext").warning("config.json: %s", error)
        raise ValueError(
            "The config.json beside the file describes no image classifier that transformers can build: get it from "
            "where the file came from, or remove it and name a torchvision architecture."
        ) from None
    prepare = config.with_name("preprocessor_config.json")
    said = Fields(_beside(prepare) if prepare.is_file() else {}, "preprocessor_config.json")
    size = said.values.get("crop_size") or said.values.get("size") or getattr(settings, "image_size", 224)
    size = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    return net, labels, *_prepared(said, size, "image_mean", "image_std")


def _prepared(said: Fields, size, mean: str, std: str) -> tuple[int, list[float], list[float]]:
    """(size in pixels, mean, standard deviation) of a classifier's input."""
    side = Fields({"size": size}, said.name).whole("size", 1, 4096)
    deviations = said.numbers(std, 3, default=_STD)
    if min(deviations) <= 0:
        raise Unsound(f"the field {std} must be above 0")
    return side, said.numbers(mean, 3, default=_MEAN), deviations


def _beside(path: Path) -> dict:
    """The table in a small JSON file."""
    if path.stat().st_size > 2**22:
        raise Unsound(f"the file {path.name} beside it is too large")
    return Fields(parsed(path.read_text(encoding="utf-8", errors="replace"), path.name), path.name).values


def _check_sizes(values, name: str) -> None:
    """ValueError for a number in a configuration that would build a network of absurd size."""
    for key, value in values.items():
        if key in ("id2label", "label2id"):
            continue
        if isinstance(value, dict):
            _check_sizes(value, f"{name}.{key}")
        for each in value if isinstance(value, list) else [value]:
            count = any(word in key for word in ("layers", "depth", "blocks", "stages"))
            if isinstance(each, int) and not isinstance(each, bool) and abs(each) > (256 if count else 200_000):
                raise Unsound(f"the field {name}.{key} is too large for a classifier")


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
    check_tensors(state)
    outputs = [v.shape[0] for k, v in state.items() if k.endswith(".bias") and v.ndim == 1]
    classes = outputs[-1] if outputs else 1000
    for guess in dict.fromkeys([classes, *reversed(outputs)]):
        with torch.device("meta"):
            net = torchvision.models.get_model(name, weights=None, num_classes=guess)
        if all(k in state and state[k].shape == v.shape for k, v in net.state_dict().items() if "num_batches" not in k):
            break
    else:
        raise ValueError(
            f"The file {path.name} doesn't hold a torchvision {name}: name the architecture it was saved from."
        )
    net = torchvision.models.get_model(name, weights=None, num_classes=guess)
    net.load_state_dict(state, strict=False)
    labels = _labels(path, metadata, name, guess)
    told = {key: parsed(metadata[key], key) for key in ("size", "mean", "std") if key in metadata}
    return net, labels, *_prepared(Fields(told), told.get("size", 224), "mean", "std")


def _labels(path: Path, metadata: dict[str, str], name: str, count: int) -> list[str]:
    import torchvision.models

    listed = path.with_suffix(".txt")
    if "labels" in metadata:
        labels = Fields({"labels": parsed(metadata["labels"], "labels")}).texts("labels", 100_000, least=1)
    elif listed.is_file():
        text = listed.read_text(encoding="utf-8-sig", errors="replace")
        labels = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        weights = torchvision.models.get_model_weights(name)
        labels = list(next(iter(weights)).meta.get("categories", [])) if len(weights) else []
    if len(labels) != count:
        raise ValueError(
            f"The classifier has {count} classes but {len(labels)} labels: put {path.stem}.txt with one "
            "label per line beside it."
        )
    return labels
