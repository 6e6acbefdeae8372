"""Files: models of this pack's kinds, inversions and directions under the names that users give, and the cache of
inversions made.

The cache lies in ComfyUI's user folder under nulltext/inversions and is kept below `CACHE_BYTES`: the longest unused go
first.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..samplers.inversion.record import FORMAT, VERSION, Inversion
from ..samplers.record_file import Unsound, read
from .comfy import get
from .fingerprint import feed
from .folders import folder, full_path

MODELS = Path(__file__).resolve().parents[1] / "models"
CACHE_BYTES = 2 * 2**30
SUFFIX = ".safetensors"
LARGEST_PICTURE = 1 << 27  #: pixels that one picture may have: 128 million
_log = logging.getLogger("nulltext")


def _first(paths: Iterable[Path], otherwise: str) -> Path:
    """The first of these that is a file; ValueError with that sentence if none is."""
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(otherwise)


# ------------------------------------------------------------------------------------------------ models by kind


def places(kind: str) -> list[Path]:
    """Where files of a kind ("classifiers", "image_text") lie: ComfyUI's models and output folders, this pack's
    models."""
    return [Path(get("folder_paths").models_dir) / kind, folder("output") / kind, MODELS]


def listed(kind: str, accepts: Callable[[dict], bool]) -> list[str]:
    """Names of the safetensors files of a kind whose metadata `accepts(metadata or {})`, sorted."""
    found = set()
    for place in places(kind):
        for path in sorted(place.rglob("*" + SUFFIX)) if place.is_dir() else ():
            try:
                with safe_open(path, "pt") as f:
                    metadata = f.metadata() or {}
            except (SafetensorError, OSError):
                continue
            # in the pack's own folder lie a checkpoint and probes, too
            ours = place != MODELS or "labels" in metadata or metadata.get("format", "").startswith("nulltext")
            if ours and accepts(metadata):
                found.add(path.relative_to(place).as_posix())
    return sorted(found)


def find_file(kind: str, name: str) -> Path:
    """The path of a file of that kind by its name. ValueError if there is none."""
    if Path(name).is_absolute() or ".." in Path(name.replace("\\", "/")).parts or "\0" in name:
        raise ValueError(f"The file name {name!r} must lie inside ComfyUI's folders, without '..' or a drive.")
    missing = f"There is no file {name!r} in ComfyUI's models/{kind} or output/{kind} folder."
    return _first((place / name.replace("\\", "/") for place in places(kind)), missing)


def new_file(kind: str, name: str) -> Path:
    """A path in ComfyUI's output/<kind> folder that doesn't exist yet; `..` is refused."""
    stem = name.strip().removesuffix(SUFFIX)
    path = full_path("output", f"{kind}/{stem}{SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 2
    while path.exists():
        path = path.with_name(f"{Path(stem).name}_{number}{SUFFIX}")
        number += 1
    return path


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. ValueError if it can't be read whole."""
    try:
        return read(path, "model")
    except (ValueError, OSError) as error:
        raise ValueError(f"The file {path.name} can't be read: {_told(error)}") from None


def _told(error: Exception) -> str:
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else str(error)


def of_file(path: Path, build: Callable[[dict[str, Tensor], dict[str, str]], Any], what: str = "model"):
    """What `build(tensors, metadata)` makes of a file. Everything that is wrong with the file, a field of its header or
    a tensor, becomes one ValueError that names it; `build` compares before it makes anything."""
    tensors, strings = read_tensors(path)
    try:
        with torch.inference_mode(False):
            return build(tensors, strings)
    except Unsound as error:
        raise ValueError(f"The file {path.name} is no sound {what}: {error}. Get it again, or make it anew.") from None
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        _log.warning("%s: %s", path.name, error)
        raise ValueError(
            f"The file {path.name} is no sound {what}: it doesn't hold what its header says. Get it again, or make it "
            "anew."
        ) from None


@contextlib.contextmanager
def opened_picture(path: Path, called: str | None = None) -> Iterator[Image.Image]:
    """A picture file. ValueError, in the body too, for one that is cut short, absurdly large or no picture."""
    called = called or path.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST_PICTURE is the limit
            with Image.open(path) as opened:
                if opened.width * opened.height > LARGEST_PICTURE or min(opened.size) < 2:
                    told = f"has {opened.width} x {opened.height} pixels"
                    raise ValueError(f"The picture {called} {told}: bring it to a useful size first.")
                yield opened
    except Image.DecompressionBombError:
        raise ValueError(f"The picture {called} has too many pixels: make it smaller.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError, struct.error, OverflowError) as error:
        told = "it may not be opened" if isinstance(error, PermissionError) else "it is cut short or no picture"
        raise ValueError(f"The picture {called} can't be read ({told}): replace or remove it.") from None


def upright(picture: Image.Image) -> Image.Image:
    """The picture as it is meant to be seen: turned as its camera noted, 16 bits brought to 8."""
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I"):  # PIL's own way to RGB cuts these off at 255
        values = np.asarray(turned).astype(np.float32)
        turned = Image.fromarray((values / max(float(values.max()), 65535) * 255).clip(0, 255).astype(np.uint8))
    return turned.convert("RGB") if turned.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F") else turned


def read_picture(path: Path, called: str | None = None) -> Image.Image:
    """A picture file upright and in RGB. ValueError as `opened_picture` says."""
    with opened_picture(path, called) as picture:
        return upright(picture).convert("RGB")


# --------------------------------------------------------------------------------------------------- inversions


def named(kind: str, name: str) -> Path:
    """The path of a file of ours in ComfyUI's output or input folder; `..` is refused."""
    return full_path(kind, name if name.strip().lower().endswith(SUFFIX) or not name.strip() else name.strip() + SUFFIX)


def find_named(name: str, what: str = "inversion", saved_by: str = "Save Inversion") -> Path:
    """An existing record file by name, in the output folder first, then in the input folder. ValueError if none."""
    paths = [named(kind, name) for kind in ("output", "input")]
    return _first(
        paths,
        f"There is no {what} file {paths[0].name} in ComfyUI's output or input folder under that name: "
        f"save one with {saved_by} first, or correct the name.",
    )


def new_record(name: str, overwrite: bool) -> Path:
    """Where a file of that name goes in the output folder, its folders made; a number is added to the name where it is
    taken and may not be overwritten."""
    path = named("output", name)
    number, stem = 1, path.stem
    while path.exists() and not overwrite:
        path = path.with_name(f"{stem}_{number:03}{SUFFIX}")
        number += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save_record(record, name: str, overwrite: bool, described: str) -> tuple[str, str]:
    """Write a record (an inversion, a direction) by its `save(path)` where `new_record` says: (the file's name inside
    the output folder, a report of what was saved). described: the record in words."""
    path, wished = new_record(name, overwrite), named("output", name)
    record.save(path)
    saved, asked = (each.relative_to(folder("output")) for each in (path, wished))
    report = f"Saved {saved.as_posix()} ({path.stat().st_size / 2**20:.1f} MB): {described}"
    if saved != asked:
        old, new = (each.with_suffix("").as_posix() for each in (asked, saved))
        report += f"\nNotice: the name {old} was taken: load this one as {new}."
    return saved.as_posix(), report


def state_of(find: Callable[[], Path], *beside: Callable[[Path], Path]) -> str:
    """What ComfyUI compares to see whether a file, or one of those `beside` it, is another one than before."""
    try:
        path = find()
        states = [path.stat(), *(each.stat() for each in (name(path) for name in beside) if each.is_file())]
    except (ValueError, OSError) as error:
        return str(error)
    return " ".join(f"{state.st_mtime_ns} {state.st_size}" for state in states)


def metadata(path: Path) -> dict[str, str]:
    """The strings of a safetensors file; none where it can't be read."""
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _whole(t: Tensor) -> bytes:
    data = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return repr((tuple(t.shape), str(t.dtype))).encode() + data


def cache_key(model, *inputs) -> str | None:
    """A name for what is made from these inputs. None where their content can't be told: control nets, a model whose
    attention, guidance, network calls or reading of weights somebody patched."""
    options = {k: v for k, v in model.model_options.items() if v}
    transformer = {k: v for k, v in options.pop("transformer_options", {}).items() if v}
    objects = ("wrappers", "callbacks", "injections", "hook_patches", "weight_wrapper_patches", "additional_models")
    foreign = set(getattr(model, "object_patches", {})) - {"model_sampling"}  # that one the fingerprint tells
    if options or transformer or foreign or any(_filled(getattr(model, name, None)) for name in objects):
        return None
    digest, sampling = hashlib.sha256(f"{FORMAT} {VERSION}".encode()), model.get_model_object("model_sampling")
    asked = [getattr(sampling, name, None) for name in ("multiplier", "sigma_data")]  # what else the network is told by
    return digest.hexdigest()[:40] if feed(digest, (asked, *inputs), _whole) else None


def _filled(value) -> bool:
    """Whether a (nested) table holds anything."""
    return any(_filled(v) for v in value.values()) if isinstance(value, dict) else bool(value)


def cache_folder(kind: str = "inversions") -> Path:
    """This pack's own folder of that kind inside ComfyUI's user folder; made if missing."""
    path = folder("user") / "nulltext" / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def find(key: str | None) -> Inversion | None:
    """An inversion made before for the same inputs, or None; a damaged file is dropped."""
    if key is None:
        return None
    path = cache_folder() / f"{key}{SUFFIX}"
    try:
        found = Inversion.load(path)
        os.utime(path)
    except OSError:  # never there, dropped by another server on the same folder, or locked
        return None
    except ValueError as error:
        _log.warning("a damaged file in the cache of inversions is dropped: %s", error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return found


def trim(place: Path, limit: int) -> None:
    """Keep a folder of safetensors files below `limit` bytes: the longest unused go first. Of files that are larger
    than that alone the newest stays and takes no room from the others. Another server may share the folder, so a file
    may be gone at any time."""
    found = []
    for path in place.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            told = path.stat()
            found.append((told.st_mtime_ns, told.st_size, path))
    found.sort(reverse=True)
    large = [path for _, size, path in found if size > limit]
    others = [(size, path) for _, size, path in found if size <= limit]
    totals = itertools.accumulate(size for size, _ in others)
    for path in large[1:] + [path for (_, path), total in zip(others, totals) if total > limit]:
        path.unlink(missing_ok=True)


def keep(key: str | None, inversion: Inversion, limit: int = CACHE_BYTES) -> None:
    """Put an inversion into the cache and drop the longest unused beyond `limit` bytes. A full disk is no error."""
    if key is None:
        return
    try:
        inversion.save(cache_folder() / f"{key}{SUFFIX}")
        trim(cache_folder(), limit)
    except OSError as error:
        _log.warning("the inversion could not be kept in the cache: %s", error)
