"""Image-text models and image classifiers from files and from ComfyUI's own encoders, in the forms that guidance asks
for.

An IMAGE_TEXT has: embed_image([B, 3, H, W] in 0..1) -> [B, D], differentiable; embed_text([str]) -> [N, D]; image_size;
unknown(text) -> words it was never shown; and what `modules_of` and `patchers_of` return for it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..samplers.networks.image_text import ImageText
from ..samplers.networks.latent_classifier import LatentClassifier
from .comfy import encode, folder, full_path, get, load_models

MODELS = Path(__file__).resolve().parents[1] / "models"


def places(kind: str) -> list[Path]:
    """Where files of a kind ("classifiers", "image_text") lie: ComfyUI's models and output folders, this pack's
    models."""
    return [Path(get("folder_paths").models_dir) / kind, folder("output") / kind, MODELS]


def files(kind: str, accepts) -> list[str]:
    """Names of the safetensors files of a kind whose metadata `accepts(metadata or {})`, sorted."""
    found = set()
    for place in places(kind):
        for path in sorted(place.rglob("*.safetensors")) if place.is_dir() else ():
            try:
                with safe_open(path, "pt") as f:
                    metadata = f.metadata() or {}
                    # in the pack's own folder lie a checkpoint and probes, too
                    ours = place != MODELS or "labels" in metadata or metadata.get("format", "").startswith("nulltext")
                    if ours and accepts(metadata):
                        found.add(path.relative_to(place).as_posix())
            except (SafetensorError, OSError):
                continue
    return sorted(found)


def find_file(kind: str, name: str) -> Path:
    """The path of a file of that kind by its name. ValueError if there is none."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"The file name {name!r} must lie inside ComfyUI's folders, without '..' or a drive.")
    for place in places(kind):
        if (place / name).is_file():
            return place / name
    raise ValueError(f"There is no file {name!r} in ComfyUI's models/{kind} or output/{kind} folder.")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. ValueError if it can't be read whole."""
    try:
        with torch.inference_mode(False), safe_open(path, "pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"The file {path.name} can't be read ({error}): it may be truncated; get it again.") from None


def changed(kind: str, name: str) -> str:
    """What ComfyUI compares to see whether a file is another one than before."""
    try:
        return str(find_file(kind, name).stat().st_mtime_ns)
    except ValueError:
        return ""


def new_file(kind: str, name: str) -> Path:
    """A path in ComfyUI's output/<kind> folder that doesn't exist yet; `..` is refused."""
    stem = name.strip().removesuffix(".safetensors")
    path = full_path("output", f"{kind}/{stem}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 2
    while path.exists():
        path = path.with_name(f"{Path(stem).name}_{number}.safetensors")
        number += 1
    return path


def write(path: Path, model: LatentClassifier) -> None:
    """Save a classifier with its metadata, and check that the file gives the same back. OSError, ValueError
    otherwise."""
    state = {k: v.detach().float().contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(state, path, model.metadata())
    again = load_latent_classifier(path)
    if again.labels != model.labels or any(not torch.equal(v, state[k]) for k, v in again.state_dict().items()):
        raise ValueError(f"The file {path} was written but doesn't give the classifier back: check the disk.")


def load_latent_classifier(path: Path) -> LatentClassifier:
    state, metadata = read(path)
    with torch.inference_mode(False):
        return LatentClassifier.build(state, metadata)


def load_image_text(path: Path) -> ImageText:
    """An image-text model of this pack's own format."""
    state, metadata = read(path)
    with torch.inference_mode(False):
        return ImageText.build(state, metadata)


class ClipPair:
    """ComfyUI's CLIP_VISION and the text encoder of a CLIP that shares its space."""

    noisy = None

    def __init__(self, vision, clip):
        self.vision, self.clip = vision, clip
        self.image_size = getattr(vision, "image_size", 224)
        self._mean = getattr(vision, "image_mean", [0.48145466, 0.4578275, 0.40821073])
        self._std = getattr(vision, "image_std", [0.26862954, 0.26130258, 0.27577711])
        projection = getattr(vision.model, "visual_projection", None)
        weight = getattr(projection, "weight", None)
        if weight is None:
            raise ValueError(
                "This CLIP vision model has no projection into the space it shares with texts: load a "
                "CLIP vision model (ViT-L or ViT-bigG), not an image encoder of another kind."
            )
        text = _text_projection(clip)
        if text is None:
            raise ValueError(
                "This text encoder has no projection into the space it shares with pictures (the text "
                "encoder of a Stable Diffusion checkpoint lacks it): load the full CLIP text model "
                "that belongs to the CLIP vision model, with its text_projection."
            )
        if text.shape[0] != weight.shape[0]:
            raise ValueError(
                f"The CLIP vision model speaks {weight.shape[0]} numbers, the text encoder "
                f"{text.shape[0]}: they are not of one CLIP model; load the pair that belongs together."
            )

        self.width = weight.shape[0]

    @property
    def device(self):
        return self.vision.load_device

    def embed_text(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            return torch.cat([encode(self.clip, text)[0][1]["pooled_output"].float() for text in texts]).clone()

    def embed_image(self, image: Tensor) -> Tensor:
        load_if_away(self.vision.patcher, image.device)
        size = self.image_size
        x = (
            F.interpolate(image, (size, size), mode="bicubic", antialias=True, align_corners=False)
            if image.shape[-2:] != (size, size)
            else image
        )
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (self._mean, self._std))
        out = self.vision.model(pixel_values=((x - mean) / std).float(), intermediate_output=-2)
        return out[2].float()

    def unknown(self, _text: str) -> list[str]:
        return []


def _text_projection(clip) -> Tensor | None:
    """The text projection's weight, None where there is none (the engine then puts an identity there)."""
    stage = clip.cond_stage_model
    model = getattr(stage, getattr(stage, "clip", getattr(stage, "clip_name", "clip_l")), stage)
    weight = getattr(getattr(getattr(model, "transformer", None), "text_projection", None), "weight", None)
    if weight is None or weight.ndim != 2:
        return None
    identity = weight.shape[0] == weight.shape[1] and torch.equal(weight.float().cpu(), torch.eye(weight.shape[0]))
    return None if identity else weight


def load_if_away(patcher, device) -> None:
    if any(p.device != torch.device(device) for p in patcher.model.parameters()):
        load_models([patcher])


def modules_of(tower) -> tuple[nn.Module, ...]:
    """The modules that embedding a picture runs."""
    return (tower.vision.model,) if isinstance(tower, ClipPair) else (tower,)


def patchers_of(tower) -> tuple:
    return (tower.vision.patcher,) if isinstance(tower, ClipPair) else ()


# ------------------------------------------------------------------------------------------- image classifiers


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


_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@functools.cache
def _architectures() -> tuple[str, ...]:
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def load_image_classifier(path: Path, architecture: str = "auto") -> ImageClassifier:
    """A checkpoint of an architecture that transformers (config.json beside the file) or torchvision can build.

    The architecture of a torchvision file: as given, else its metadata's "architecture", else the one its name begins
    with. Labels: the config's id2label, the metadata's "labels" (a JSON list), a .txt file of the same name with one
    label per line, else torchvision's own list of 1000 where the number fits. ValueError where they can't be told."""
    state, metadata = read(path)
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
