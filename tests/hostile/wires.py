"""A custom node pack for the attacked server: nodes that spoil what passes over a wire, and one that looks for NaN.

It is copied into custom_nodes/ as one file, so it imports nothing of the pack."""

import ctypes
import gc
import random

import torch

KINDS = ("LATENT", "IMAGE", "MASK", "SIGMAS", "CONDITIONING", "MODEL", "VAE", "CLIP", "INVERSION")
PROBED = ("LATENT", "IMAGE", "MASK", "SIGMAS")


def _first(value, t):
    out = t.clone()
    out.reshape(-1)[:3] = value
    return out


#: what is done to a tensor, by name
TENSORS = {
    "nan": lambda t: _first(float("nan"), t.float()),
    "all nan": lambda t: torch.full_like(t.float(), float("nan")),
    "inf": lambda t: _first(float("inf"), t.float()),
    "huge": lambda t: t.float() * 1e30,
    "negative": lambda t: -t.float() - 5,
    "empty": lambda t: t[:0],
    "no width": lambda t: t[..., :0],
    "one more axis": lambda t: t[None],
    "one axis less": lambda t: t[0],
    "two": lambda t: torch.cat([t, t.roll(1, -1)]),
    "three": lambda t: torch.cat([t, t, t]),
    "last axis twice": lambda t: torch.cat([t, t], -1),
    "last axis one": lambda t: t[..., :1],
    "second axis twice": lambda t: torch.cat([t, t], 1) if t.ndim > 1 else t,
    "second axis one": lambda t: t[:, :1] if t.ndim > 1 else t[:1],
    "smaller": lambda t: t[..., : max(1, t.shape[-1] // 2)] if t.ndim < 4 else t[:, : max(1, t.shape[1] // 2)],
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "whole": lambda t: t.long(),
    "truth": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "turned": lambda t: t.flip(0),
    "zero": lambda t: torch.zeros_like(t),
    "not in a row": lambda t: t.transpose(-1, -2) if t.ndim > 1 else t,
}
OTHERS = ("none", "text", "list", "number", "tensor", "table")
PROMPTS = (
    "no entry",
    "no pooled",
    "pooled nan",
    "pooled wide",
    "twice",
    "late",
    "area",
    "strength nan",
    "long",
    "mask nan",
)
LATENTS = ("no samples", "noise mask nan", "three noise masks", "noise mask huge", "noise mask small", "channels 16")


def ways(kind):
    """Names of what can be done to a value of that kind."""
    more = {"LATENT": LATENTS, "CONDITIONING": PROMPTS}.get(kind, ())
    return (*(TENSORS if kind in (*PROBED, "CONDITIONING") else ()), *more, *OTHERS)


def _latent(value, way):
    samples = value["samples"]
    if way == "no samples":
        return {}
    if way == "channels 16":
        return {**value, "samples": samples.repeat(1, 4, *(1,) * (samples.ndim - 2))}
    mask = torch.rand(3 if "three" in way else 1, 1, 8, 8)
    mask = {"noise mask nan": mask * float("nan"), "noise mask huge": mask * 1e9}.get(way, mask)
    return {**value, "noise_mask": mask}


def _prompt(value, way):
    if way == "no entry":
        return []
    if way == "twice":
        return [*value, *value]
    (tensor, extra), *rest = value
    pooled = extra.get("pooled_output")
    pooled = torch.zeros(1, 8) if pooled is None else pooled
    new = {
        "no pooled": {k: v for k, v in extra.items() if k != "pooled_output"},
        "pooled nan": {**extra, "pooled_output": pooled * float("nan")},
        "pooled wide": {**extra, "pooled_output": torch.cat([pooled, pooled], -1)},
        "late": {**extra, "start_percent": 0.5, "end_percent": 1.0},
        "area": {**extra, "area": (8, 8, 0, 0), "strength": 1.0, "set_area_to_bounds": False},
        "strength nan": {**extra, "strength": float("nan")},
        "mask nan": {**extra, "mask": torch.full((1, 64, 64), float("nan")), "mask_strength": 1.0},
    }.get(way, extra)
    return [[torch.cat([tensor, tensor], 1) if way == "long" else tensor, new], *rest]


def spoiled(kind, value, way):
    if way in OTHERS:
        odd = {"none": None, "text": "x", "list": [], "number": 7, "tensor": torch.zeros(1, 3), "table": {}}
        return odd[way]
    if kind == "LATENT":
        if way in LATENTS:
            return _latent(value, way)
        return {**value, "samples": TENSORS[way](value["samples"])}
    if kind == "CONDITIONING":
        return _prompt(value, way) if way in PROMPTS else [[TENSORS[way](t), extra] for t, extra in value]
    return TENSORS[way](value)


def _spoiler(kind):
    class Spoiler:
        RETURN_TYPES, FUNCTION, CATEGORY = (kind,), "give", "hostile"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"like": (kind,), "way": ("STRING", {"default": "nan"})}}

        def give(self, like, way):
            return (spoiled(kind, like, way),)

    return Spoiler


def _probe(kind):
    class Probe:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "look", "hostile", True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"value": (kind,)}}

        def look(self, value):
            tensor = value["samples"] if isinstance(value, dict) else value
            return {"ui": {"nonfinite": [not bool(torch.isfinite(tensor.float()).all())]}}

    return Probe


class _Arenas(ctypes.Structure):
    """glibc's mallinfo2, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "chunks", "small", "maps", "mapped", "_", "kept_small", "used", "free", "top")
    ]


def _malloc():
    """{"used_mb", "kept_mb"}: what is given out, what malloc keeps unused; {} where libc can't tell."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return {}
    ask.restype = _Arenas
    told = ask()
    return {"used_mb": round((told.used + told.mapped) / 2**20, 1), "kept_mb": round(told.free / 2**20, 1)}


class Census:
    """What lives in this process."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "count", "hostile", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):
        return random.random()

    def count(self):
        gc.collect()
        everything = gc.get_objects()
        tensors = [each for each in everything if issubclass(type(each), torch.Tensor)]
        parts = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors if t.layout == torch.strided)}
        told = {"objects": len(everything), "tensors": len(tensors), "tensor_mb": round(sum(parts.values()) / 2**20, 2)}
        told["networks"] = sum(type(each).__name__ == "UNetModel" for each in everything)
        return {"ui": {"census": [told | _malloc()]}}


NODE_CLASS_MAPPINGS = {"HostileCensus": Census}
NODE_CLASS_MAPPINGS |= {f"Hostile{kind}": _spoiler(kind) for kind in KINDS}
NODE_CLASS_MAPPINGS |= {f"HostileProbe{kind}": _probe(kind) for kind in PROBED}
