"""LoRA on ComfyUI's networks: added to the layers' outputs while it trains, saved under the names that loaders know.

Hooks leave every weight alone, so they work the same on cast, low-memory and fp8 weights and on both engines. What
comes out is a `LoraModel`, core's LORA_MODEL: a flat dict that core's LoraLoader, SaveLoRA and other tools take.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..samplers.record_file import Fields, Unsound, check_tensors, parsed, whole_file
from ..samplers.tuning import lora
from ..samplers.tuning.lora import LayerChange, LowRank
from ..samplers.tuning.whole import changeable
from .comfy import get, network_of
from .files import of_file
from .fingerprint import difference, fingerprint, patches
from .gradients import check_differentiable, check_not_quantised, normal
from .lora_names import split, standard, standard_name, written_names

#: choices of the network's layers, each with those before it. The single blocks of Flux and HunyuanVideo have attention
#: and feed-forward fused: linear1 holds q, k and v, linear2 what comes after both. "transformers" is kohya's choice:
#: the projections around a UNet's transformers, or every Linear of the blocks where the network is no UNet. "all linear
#: and conv" is every layer inside the blocks; the first and last layers and the time's are left out.
TARGETS = ("attention", "attention+ff", "transformers", "all linear and conv")
#: choices of a CLIP text encoder's layers: q, k, v, out; with its two feed-forward layers
TEXT_TARGETS = ("attention", "attention+ff")

_ATTENTION = re.compile(r"(^|\.)\w*(attn|attention)\w*\.|(^|\.)single_blocks\.\d+\.linear1\.$")
_FEED_FORWARD = re.compile(r"(^|\.)(\w+_)?(ff|ffn|mlp|feed_forward)(_\w+)?\.|(^|\.)single_blocks\.\d+\.linear2\.$")
_PROJECTION = re.compile(r"\.proj_(in|out)$")
_UNET = re.compile(r"(^|\.)(input_blocks|middle_block|output_blocks)\.")
_BLOCK = re.compile(r"(^|\.)\w*(block|blocks|layers)\.")
_TEXT = re.compile(r"^(clip_[a-z])\.transformer\.(text_model\.encoder\.layers\.\d+\.(self_attn|mlp)\.\w+)$")
BASE = "nulltext_base"  # the metadata entry that holds the base model's fingerprint
TEXT_PATCHES = "nulltext_text_patches"  # the one that tells what lay on the text encoder


class LoraModel(dict):
    """Tensors by their standard names, and `metadata`, strings that go into the file beside them."""

    def __init__(self, tensors: Mapping[str, Tensor] = {}, metadata: Mapping[str, str] = {}):  # noqa: B006 (not kept)
        super().__init__(tensors)
        self.metadata = dict(metadata)


# -- which layers


def _refuse_unknown(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"There is no choice of layers {name!r}: choose one of {', '.join(known)}.")


def _chosen(path: str, layer: nn.Module, targets: str) -> bool:
    if not _BLOCK.search(path) or path == "input_blocks.0.0":
        return False
    if targets == "all linear and conv" or targets == "transformers" and _PROJECTION.search(path):
        return True
    plain = isinstance(layer, nn.Linear)
    if targets == "transformers" and plain and not _UNET.search(path):
        return True
    if plain and _ATTENTION.search(path + "."):
        return True
    return plain and targets != "attention" and bool(_FEED_FORWARD.search(path + "."))


def layers(model, targets: str = "attention") -> dict[str, nn.Module]:
    """The MODEL's layers of a choice of `TARGETS` by their standard names, in the network's order.

    ValueError for an unknown choice, a network that has none of them, and quantised weights."""
    _refuse_unknown(targets, TARGETS)
    network = network_of(model.model)
    found = {
        standard_name(path): layer
        for path, layer in network.named_modules()
        if lora.adaptable(layer) and _chosen(path, layer, targets)
    }
    if not found:
        check_differentiable(network)  # layers of another class than Linear hold quantised weights
        raise ValueError(f"This model has no layers of the choice {targets!r}: choose 'all linear and conv'.")
    check_differentiable(*found.values())
    return found


def attention_outputs(model) -> set[str]:
    """The standard names of each attention's last layer (to_out); of all its layers in a network that has none of that
    name."""
    names = set(layers(model, "attention"))
    return {name for name in names if "_to_out" in name} or names


def whole_layers(model) -> dict[str, nn.Module]:
    """Every layer of the MODEL's network whose weights can be changed, by its standard name, in the network's order.

    ValueError for quantised weights."""
    found = {standard_name(path): layer for path, layer in network_of(model.model).named_modules() if changeable(layer)}
    check_not_quantised(*found.values())
    return found


def text_layers(clip, targets: str = "attention") -> dict[str, nn.Module]:
    """The layers of a CLIP's text encoders by their standard names: lora_te_ for a CLIP that stands alone, lora_te1_
    (CLIP-L) and lora_te2_ (CLIP-G) where another encoder stands beside it (SDXL, SD3, Flux).

    ValueError for an unknown choice, for text encoders that are no CLIP, and quantised weights."""
    _refuse_unknown(targets, TEXT_TARGETS)
    encoders = clip.cond_stage_model
    names = [name for name in ("clip_l", "clip_g", "clip_h") if getattr(encoders, name, None) is not None]
    beside = names[:1] == ["clip_l"] and len(list(encoders.named_children())) > 1
    prefixes = dict(zip(names, ("lora_te1_", "lora_te2_") if beside else ("lora_te_",)))
    found = {}
    for path, layer in encoders.named_modules():
        match = _TEXT.match(path)
        if match and lora.adaptable(layer) and (match[3] == "self_attn" or targets != "attention"):
            if match[1] in prefixes:
                found[prefixes[match[1]] + match[2].replace(".", "_")] = layer
    if not found:
        raise ValueError("This text encoder is no CLIP, and only CLIP's can be trained: train the network alone.")
    check_differentiable(*found.values())
    return found


# -- while it trains


@contextlib.contextmanager
def attached(
    where: Mapping[str, nn.Module], factors: Mapping[str, LayerChange], strength: float | Callable[[], float] = 1.0
) -> Iterator[None]:
    """Add strength * delta to the outputs of the layers for the duration; no hook stays, on errors and interrupts too.

    strength may be asked anew at each call; at 0 the layer's own output is passed on, to the bit. Gradients reach the
    factors inside `grad_mode`. ValueError, before anything is attached, for factors of layers that are not there."""
    missing = sorted(set(factors) - set(where))
    if missing:
        raise ValueError(f"This model has no layer {missing[0]} ({len(missing)} such): take the model that was tuned.")
    with contextlib.ExitStack() as undo:
        for name, factor in factors.items():
            undo.callback(where[name].register_forward_hook(_hook(factor, strength)).remove)
        yield


def _hook(factor: LayerChange, strength):
    def add(_layer, inputs, output):
        by = strength() if callable(strength) else strength
        if by == 0:
            return None
        x = inputs[0]
        return output + by * factor.delta(x if torch.is_inference_mode_enabled() else normal(x))

    return add


# -- what comes out


def to_lora_model(changes: Mapping[str, LayerChange], metadata: Mapping[str, str] = {}, model=None) -> LoraModel:  # noqa: B006
    """The changes as core's LORA_MODEL, fp32 copies on the CPU: <layer>.lora_up.weight, .lora_down.weight and .alpha of
    factors, .diff and .diff_b of whole weights.

    model: the MODEL whose layers they are, so that these have the names that other tools read too."""
    names = {} if model is None else written_names(model)
    with torch.inference_mode(False), torch.no_grad():
        tensors = {
            f"{names.get(name, name)}.{part}": value.detach().float().cpu().contiguous().clone()
            for name, change in changes.items()
            for part, value in change.stored().items()
        }
    return LoraModel(tensors, metadata)


def wrong_shape(name: str) -> ValueError:
    """The error for a part of a LORA_MODEL that does not fit its layer."""
    return ValueError(f"The LoRA's {name} has another shape than the model's layer: take the model it belongs to.")


def from_lora_model(model: Mapping[str, Tensor], where: Mapping[str, nn.Module]) -> dict[str, LowRank]:
    """Trainable factors for those layers, from a LORA_MODEL with the standard names; layers it lacks are left out.

    ValueError if it holds none of them, or factors of another shape than the layer's."""
    out = {}
    for name, layer in where.items():
        up, down = (model.get(f"{name}.{part}.weight") for part in ("lora_up", "lora_down"))
        if up is None or down is None:
            continue
        (n_out, *inside), rank = layer.weight.shape, down.shape[0]
        if up.flatten(1).shape != (n_out, rank) or down.flatten(1).shape != (rank, math.prod(inside)):
            raise wrong_shape(name)
        with torch.inference_mode(False):
            up, down = (t.detach().to("cpu", torch.float32, copy=True) for t in (up, down))
            up = up.reshape(n_out, rank, *(1 for _ in inside[1:])).requires_grad_()
            down = down.reshape(rank, *inside).requires_grad_()
        alpha = model.get(f"{name}.alpha")
        out[name] = LowRank(down, up, float(rank if alpha is None else alpha), **lora.geometry(layer))
    if not out:
        raise ValueError("The LoRA holds no layer of this model: take one that was trained on a model of its kind.")
    return out


def applied(model, clip, tensors: Mapping[str, Tensor], strength: float = 1.0, text_strength: float | None = None):
    """(MODEL, CLIP) with the LoRA as weight patches, by core's own loader; clip may be None.

    What is given is not changed; at strength 0 it is given back as it is."""
    text_strength = strength if text_strength is None else text_strength
    if strength == 0 and (clip is None or text_strength == 0):
        return model, clip
    patched, text = get("sd").load_lora_for_models(model, clip, dict(tensors), strength, text_strength)
    return (model if strength == 0 else patched), (clip if text_strength == 0 else text)


# -- files and what they belong to


def base_of(model) -> dict[str, str]:
    """The metadata entry that tells which MODEL a LoRA was trained on."""
    return {BASE: json.dumps(fingerprint(model))}


def text_base_of(clip) -> dict[str, str]:
    """The metadata entry that tells which LoRAs lay on the CLIP in training."""
    return {TEXT_PATCHES: patches(clip.patcher)}


def check_base(metadata: Mapping[str, str], model, clip=None) -> list[str]:
    """Sentences on what is not as it was in training, as these strings tell it, and may be so: the precision, the noise
    schedule, other LoRAs. Files without such strings, from other tools, pass.

    ValueError in one sentence for another architecture, prediction type or (in the same precision) checkpoint."""
    said = []
    if BASE in metadata:
        then, now = json.loads(metadata[BASE]), fingerprint(model)
        other = {aspect for aspect in now if then.get(aspect) != now[aspect]}
        strict = ["structure", "prediction"] + ["weights", "matrices"] * ("precision" not in other)
        again = "train anew on this, or switch off same_model in Load LoRA"
        compared = ({k: each[k] for k in strict if k in each} for each in (then, now))
        differs = difference(*compared, what="LoRA", again=again)
        if differs:
            raise ValueError(differs)
        told = {
            "precision": f"was trained on weights in {then.get('precision')}, and this model's are in "
            f"{now['precision']}: whether it is the same checkpoint can't be told",
            "sigmas": "was trained with another noise schedule than this model's",
            "patches": "was trained with other LoRAs on the model than are on it here",
        }
        said += [sentence for aspect, sentence in told.items() if aspect in other]
    if clip is not None and metadata.get(TEXT_PATCHES, now_on := patches(clip.patcher)) != now_on:
        said.append("was trained with other LoRAs on the text encoder than are on it here")
    return [f"Notice: the LoRA {sentence}." for sentence in said]


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] = {}) -> None:  # noqa: B006
    """One safetensors file that core's LoraLoader reads; a file of that name is replaced whole."""
    own = getattr(tensors, "metadata", {})
    with whole_file(path) as part:
        get("utils").save_torch_file(dict(tensors), str(part), metadata={**own, **metadata} or None)


def _sound(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoraModel:
    """ValueError for factors that can't be multiplied, and for a base that is no table of texts."""
    check_tensors(tensors)
    parts = {split(key): value for key, value in tensors.items()}
    for (layer, part), value in parts.items():
        name, down = f"{layer[:80]}.{part}", parts.get((layer, "lora_down.weight"))
        if part == "lora_up.weight" and (
            down is None
            or value.ndim < 2
            or down.ndim < 2
            or value.shape[1] != down.shape[0]
            or 0 in (*value.shape, *down.shape)
        ):
            raise Unsound(f"its tensor {name} has no down factor of its rank")
        if part == "lora_down.weight" and (layer, "lora_up.weight") not in parts:
            raise Unsound(f"its tensor {name} has no up factor")
        if part == "alpha" and value.numel() != 1:
            raise Unsound(f"its tensor {name} must be one number")
    if BASE in metadata:
        Fields({BASE: parsed(metadata[BASE], BASE)}).table(BASE, lambda v: isinstance(v, str), "texts")
    return LoraModel(tensors, metadata)


def check_fits(model, lora: Mapping[str, Tensor]) -> None:
    """ValueError for factors and changes of another shape than the MODEL's layer of that name; core would leave them
    out."""
    found, known = standard(model, lora), model.model.state_dict()
    shapes = {
        standard_name(name.removeprefix("diffusion_model.").removesuffix(".weight")): weight.shape
        for name, weight in known.items()
        if name.endswith(".weight")
    }
    for name, value in found.items():
        layer, part = split(name)
        shape = shapes.get(layer)
        if shape is None or f"{layer}.reshape_weight" in found:
            continue
        if part == "lora_up.weight":
            down = found.get(f"{layer}.lora_down.weight")
            inside = (math.prod(shape[1:]), *shape[1:2])
            fits = value.shape[0] == shape[0] and (down is None or down[0].numel() in inside)
        else:
            fits = value.shape == {"diff": shape, "diff_b": shape[:1]}.get(part, value.shape)
        if not fits:
            raise ValueError(
                f"The LoRA's {layer[:80]} is made for another model, for the layer has the shape {list(shape)} here: "
                "load the model it belongs to."
            )


def load(path: Path) -> LoraModel:
    """A LoRA file of any tool. ValueError in one sentence for a missing, foreign or damaged one."""
    found = of_file(path, _sound, "LoRA")
    if not any(split(key)[1] for key in found):
        raise ValueError(f"The file {path.name} holds no LoRA: choose a file of the loras folder.")
    return found
