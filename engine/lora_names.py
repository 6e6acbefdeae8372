"""What LoRA files call the layers that they change: the names that core's loader knows, and the pack's own.

The standard name of a network's layer is lora_unet_ and its path with _ for every dot. Files of other tools call the
same layer by diffusers' path, by core's own, and their parts by other words; `standard` brings them all to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from .comfy import get

_NETWORK = "diffusion_model."
_PART = re.compile(
    r"\.(?=lora[._]|hada_|lokr_|oft_|[ab][12]\.weight$|(diff(_b)?|[wb]_norm|set_weight|reshape_weight|alpha|dora_scale)$)"
    r"|_(?=lora\.(up|down)\.)"
)
_FACTOR = re.compile(r"lora(?:_|\.|_linear_layer\.)(up|down)\.weight|lora_([AB])(?:\.default)?(?:\.weight)?")
_FACTORS = {"up": "lora_up.weight", "B": "lora_up.weight", "down": "lora_down.weight", "A": "lora_down.weight"}
_OF_TEXT = ("lora_te", "lora_prior_te", "text_encoder", "bundle_emb.")


def standard_name(path: str) -> str:
    """The standard name of the network's layer at that path."""
    return f"lora_unet_{path.replace('.', '_')}"


def split(key: str) -> tuple[str, str]:
    """(layer, part) of a tensor's name in a file; part "" for one that no LoRA file has. Both factors' parts are told
    by the names lora_up.weight and lora_down.weight, whatever the file calls them."""
    found = _PART.search(key)
    if found is None:
        return key, ""
    layer, part = key[: found.start()], key[found.end() :]
    factor = _FACTOR.fullmatch(part)
    return layer, _FACTORS[factor[1] or factor[2]] if factor else part


def layers_of(keys: Iterable[str]) -> list[str]:
    """The layers that a file's tensors belong to, under the file's own names, sorted."""
    return sorted({split(key)[0] for key in keys})


def of_text(key: str) -> bool:
    """Whether a tensor of that name belongs to a text encoder."""
    return key.startswith(_OF_TEXT)


def _plain(name: str) -> str:
    """A name without what torch.compile puts into it."""
    return re.sub(r"_orig_mod[._]", "", name)


def known_names(model) -> dict[str, str]:
    """The standard name by every other name that core has for a layer of the MODEL's network. Names for a part of a
    layer (q of a fused qkv) are left out."""
    found = {}
    for name, weight in get("lora").model_lora_keys_unet(model.model, {}).items():
        if isinstance(weight, str) and weight.endswith(".weight"):
            path = _plain(weight).removeprefix(_NETWORK).removesuffix(".weight")
            found[_plain(name)] = found[_NETWORK + path] = standard_name(path)
    return found


def written_names(model) -> dict[str, str]:
    """By the standard name, the one that kohya's files and diffusers have for a layer of the MODEL's network, where it
    is another: for the UNets of Stable Diffusion 1 and 2. (SDXL's have the standard names there too.)"""
    config = model.model.model_config.unet_config
    if config.get("adm_in_channels") is not None:
        return {}
    return {
        standard_name(path.removesuffix(".weight")): standard_name(name.removesuffix(".weight"))
        for name, path in get("utils").unet_to_diffusers(config).items()
        if name.endswith(".weight")
    }


def standard(model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a LORA_MODEL in their order, those of the MODEL's layers under <standard name>.<part>. A name that
    is not known, or that another tensor of the file has already, stays as it is."""
    names, out = known_names(model), {}
    for key, value in tensors.items():
        layer, part = split(key)
        name = f"{names[layer]}.{part}" if layer in names else key
        out[key if name in out or name in tensors else name] = value
    return out


def _in_patch(value) -> Iterator[int]:
    """The ids of the tensors of a weight patch, or of many: tuples, lists and core's adapters."""
    if isinstance(value, Tensor):
        yield id(value)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _in_patch(each)
    elif hasattr(value, "weights"):
        yield from _in_patch(value.weights)


def left_out(tensors: Mapping[str, Tensor], *patchers) -> list[str]:
    """The layers of a LORA_MODEL of which core's loader put a tensor into none of these patchers, sorted."""
    taken = {found for patcher in patchers for patch in patcher.patches.values() for found in _in_patch(patch)}
    numbers = ("alpha", "dora_scale", "reshape_weight")  # they go with what else the layer has, by value
    return layers_of(key for key, value in tensors.items() if id(value) not in taken and split(key)[1] not in numbers)
