"""What tells one model from another, so that an inversion is refused where it doesn't belong.

Weights are sampled, not read whole, as they were before any patch: 4 values of every matrix ("matrices"), for a merge
or a fine-tuning may change one kind of them alone. (Older files know "weights" only, 16 values of 64 parameters at even
distances, which in a network of equal blocks are mostly norms and biases.) Patches (LoRA) are told by their own
content and strength. Attention and cfg patches don't count: editing with them is what inversions are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

_PARAMETERS, _VALUES, _OF_MATRIX = 64, 16, 4
_FLOAT32_WHOLE = 2**24  # from here on float32 skips whole numbers
# In the order in which a difference is named: the first one explains the others.
_NAMES = {
    "structure": "another architecture (parameter names or shapes)",
    "prediction": "another prediction type",
    "sigmas": "another noise schedule (sigma table)",
    "weights": "other weights (another checkpoint)",
    "matrices": "other weights (another checkpoint, or something merged into it)",
    "patches": "other weight patches (LoRA or its strength)",
}

ASPECTS = tuple(name for name in _NAMES if name != "matrices")  #: what a whole fingerprint tells, an older one too


def _places(size: int) -> Tensor:
    """Where a tensor of so many numbers is read: up to `_VALUES` indices from 0 to size - 1, evenly spaced, int64.

    Up to 2^24 numbers they are those that float32 tells, which older files were fingerprinted with."""
    count = min(_VALUES, size)
    if size <= _FLOAT32_WHOLE:
        return torch.linspace(0, max(size - 1, 0), count).long()
    return torch.arange(count) * (size - 1) // (count - 1)


def _sample(t: Tensor) -> bytes:
    flat = t.detach().reshape(-1)
    index = _places(flat.numel())
    values = flat[index.to(flat.device)].to("cpu", torch.float32)
    return repr((tuple(t.shape), values.tolist())).encode()


def _of_matrices(tensors: list[Tensor]) -> str:
    """One string for these: values of each from its first to about its last, fetched from each device in one go."""
    taken, on = [], {}
    for i, t in enumerate(tensors):
        flat = t.detach().reshape(-1)
        taken.append(flat[:: max((flat.numel() - 1) // (_OF_MATRIX - 1), 1)][:_OF_MATRIX].float())
        on.setdefault(flat.device, []).append(i)
    for own in on.values():
        together = torch.cat([taken[i] for i in own]).cpu()
        for i, values in zip(own, together.split([len(taken[i]) for i in own])):
            taken[i] = values
    return _hash(repr(torch.cat(taken).tolist() if taken else []).encode())


def feed(digest, value, of_tensor: Callable[[Tensor], bytes]) -> bool:
    """Hash a nested value (lists, dicts, tensors by `of_tensor`, adapter objects by their weights); False if it holds
    an object, whose content can't be told whole."""
    if isinstance(value, Tensor):
        digest.update(of_tensor(value))
    elif isinstance(value, dict):
        return feed(digest, [(k, value[k]) for k in sorted(value, key=str)], of_tensor)
    elif isinstance(value, list | tuple):
        digest.update(b"(")
        known = [feed(digest, v, of_tensor) for v in value]
        digest.update(b")")
        return all(known)
    elif isinstance(value, str | int | float | bool | None):
        digest.update(repr(value).encode() + b",")
    else:
        digest.update(type(value).__name__.encode())
        if hasattr(value, "weights"):
            feed(digest, value.weights, of_tensor)
        return False
    return True


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def _plain(name: str) -> str:
    """A parameter's name without what torch.compile puts into it while the compiled network stands in the model."""
    return name.replace("_orig_mod.", "")


def fingerprint(model) -> dict[str, str]:
    """Short strings by aspect (the keys of `_NAMES`). Costs milliseconds; loads nothing, changes nothing."""
    parameters = {_plain(name): value for name, value in model.model.named_parameters()}
    names = sorted(parameters)
    before_patches = {_plain(k): getattr(v, "weight", v) for k, v in model.backup.items()}
    step = max(len(names) // _PARAMETERS, 1)
    sampling = model.get_model_object("model_sampling")
    table = getattr(sampling, "sigmas", None)
    if table is None:
        table = torch.tensor([float(sampling.sigma_min), float(sampling.sigma_max)])
    return {
        "structure": _hash(repr([(n, tuple(parameters[n].shape)) for n in names]).encode()),
        "prediction": "+".join(base.__name__ for base in type(sampling).__bases__),
        "sigmas": _hash(repr([f"{s:.4g}" for s in table.tolist()]).encode()),
        "weights": _hash(*(_sample(before_patches.get(n, parameters[n])) for n in names[::step])),
        "matrices": _of_matrices([before_patches.get(n, parameters[n]) for n in names if parameters[n].ndim > 1]),
        "precision": str(next(iter(parameters.values())).dtype).removeprefix("torch.") if parameters else "none",
        "patches": patches(model),
    }


def patches(patcher) -> str:
    """The content and strength of the weight patches of a MODEL or a CLIP's patcher as one string; "none" without."""
    digest = hashlib.sha256()
    for key in sorted(map(str, patcher.patches)):
        digest.update(key.encode())
        feed(digest, patcher.patches[key], _sample)
    return digest.hexdigest()[:32] if patcher.patches else "none"


def networks(*modules: torch.nn.Module) -> str:
    """One string for these networks: their classes and up to 16 values of each of their tensors."""
    parts = [repr(type(module).__qualname__).encode() for module in modules]
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            parts += [name.encode(), _sample(value)]
    return _hash(*parts)


def difference(
    saved: dict[str, str], now: dict[str, str], what: str = "inversion", again: str = "invert with this"
) -> str | None:
    """None if both tell the same model, else one sentence that names what differs. what: was made with the saved one;
    again: what to do where that one is gone."""
    for key, name in _NAMES.items():
        if key in saved.keys() | set(ASPECTS) and saved.get(key) != now.get(key):
            if key in ("weights", "matrices") and saved.get("precision") != now.get("precision"):
                key, name = "precision", "weights in another precision"  # equal values in a wider type: no difference
            told = f" ({saved.get(key)} then, {now.get(key)} now)" if key in ("prediction", "precision") else ""
            return f"This {what} was made with a model that has {name}{told}: use that one, or {again}."
    return None
