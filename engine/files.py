"""Inversions on disk: the files a user names, and the cache of those already made.

The cache lies in ComfyUI's user folder under nulltext/inversions and is kept below `CACHE_BYTES`: the longest unused go
first.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..samplers.inversion.record import FORMAT, VERSION, Inversion
from .comfy import cache_folder, folder, full_path

CACHE_BYTES = 2 * 2**30
SUFFIX = ".safetensors"
_log = logging.getLogger("nulltext")


def named(kind: str, name: str) -> Path:
    """The path of an inversion file in ComfyUI's output or input folder; `..` is refused."""
    return full_path(kind, name if name.strip().lower().endswith(SUFFIX) or not name.strip() else name.strip() + SUFFIX)


def find_file(name: str) -> Path:
    """An existing inversion file by name, in the output folder first, then in the input folder. ValueError if none."""
    places = [named(kind, name) for kind in ("output", "input")]
    for path in places:
        if path.is_file():
            return path
    raise ValueError(
        f"There is no inversion file {places[0].name} in ComfyUI's output or input folder under that name: "
        "save one with Save Inversion first, or correct the name."
    )


def relative(kind: str, path: Path) -> str:
    """A path as it is named inside that folder."""
    return path.relative_to(folder(kind)).as_posix()


def read(path: Path) -> Inversion:
    """The inversion in a file. ValueError in one sentence for a foreign, truncated or missing one."""
    try:
        return Inversion.load(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None


def metadata(path: Path) -> dict[str, str]:
    """The strings of a safetensors file; none where it can't be read."""
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _feed(digest, value) -> bool:
    """Hash a value whole; False if it holds something whose content can't be told."""
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), str(value.dtype))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return True
    if isinstance(value, dict):
        return all(_feed(digest, k) and _feed(digest, value[k]) for k in sorted(value, key=str))
    if isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        return all(_feed(digest, v) for v in value)
    if isinstance(value, str | int | float | bool | None):
        digest.update(repr(value).encode())
        return True
    return False


def cache_key(model, *inputs) -> str | None:
    """A name for what is made from these inputs. None where their content can't be told: control nets, a model whose
    attention, guidance or network calls somebody patched."""
    options = {k: v for k, v in model.model_options.items() if v}
    transformer = {k: v for k, v in options.pop("transformer_options", {}).items() if v}
    objects = ("wrappers", "callbacks", "injections", "hook_patches", "additional_models")
    foreign = set(getattr(model, "object_patches", {})) - {"model_sampling"}  # that one the fingerprint tells
    if options or transformer or foreign or any(_filled(getattr(model, name, None)) for name in objects):
        return None
    digest = hashlib.sha256(f"{FORMAT} {VERSION}".encode())
    known = _feed(digest, inputs)
    return digest.hexdigest()[:40] if known else None


def _filled(value) -> bool:
    """Whether a (nested) table holds anything."""
    return any(_filled(v) for v in value.values()) if isinstance(value, dict) else bool(value)


def find(key: str | None) -> Inversion | None:
    """An inversion made before for the same inputs, or None; a damaged file is dropped."""
    if key is None:
        return None
    path = cache_folder() / f"{key}{SUFFIX}"
    if not path.is_file():
        return None
    try:
        found = Inversion.load(path)
    except ValueError as error:
        _log.warning("a damaged file in the cache of inversions is dropped: %s", error)
        path.unlink(missing_ok=True)
        return None
    os.utime(path)
    return found


def keep(key: str | None, inversion: Inversion, limit: int = CACHE_BYTES) -> None:
    """Put an inversion into the cache and drop the longest unused beyond `limit` bytes. A full disk is no error."""
    if key is None:
        return
    try:
        inversion.save(cache_folder() / f"{key}{SUFFIX}")
        files = sorted(cache_folder().glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > limit:
                path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("the inversion could not be kept in the cache: %s", error)
