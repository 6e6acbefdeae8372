"""ComfyUI's own folders: where a name lies inside one of them, and what its model files are called.

No name leads out of its folder: `..`, drives, absolute paths and links that leave it are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .comfy import get

WINDOWS = os.name == "nt"
_STRANGE_ON_WINDOWS = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)', re.IGNORECASE)


def folder(kind: str) -> Path:
    """ComfyUI's own folder: "output", "input", "temp" or "user"."""
    paths = get("folder_paths")
    getter = getattr(paths, f"get_{kind}_directory", None)
    return Path(getter() if getter else getattr(paths, f"{kind}_directory")).resolve()


def _resolved(root: Path, name: Path) -> Path:
    """The path of that name in the folder, its links followed. ValueError for links in a circle, and for a name that no
    disk takes, or Windows where it runs."""
    for part in name.parts if WINDOWS and not name.anchor else ():
        if part != ".." and (strange := _STRANGE_ON_WINDOWS.search(part)):
            raise ValueError(f"Windows takes no file called {part[:60]!r}, for {strange[0]!r}: choose another name.")
    path = root / name
    try:
        path = path.resolve()
        path.exists()  # too long, or a file where a folder should be
        return path
    except (OSError, RuntimeError, ValueError):
        raise ValueError(
            f"The file name {path.name[:60]!r} can't be used here: it is too long, or a link in its folders leads "
            "nowhere. Choose another."
        ) from None


def full_path(kind: str, name: str) -> Path:
    """The path of `name` inside that folder. ValueError if it would lie outside it."""
    root = folder(kind)
    relative = Path(name.strip().replace("\\", "/"))
    path = _resolved(root, relative)
    if (
        not name.strip()
        or "\0" in name
        or relative.is_absolute()
        or ".." in relative.parts
        or not path.is_relative_to(root)
        or path == root
    ):
        raise ValueError(
            f"The file name {name!r} must name a file inside ComfyUI's {kind} folder, without '..' or a drive."
        )
    return path


def model_file(kind: str, name: str) -> Path:
    """Where a file of that name goes in ComfyUI's own folder of models of that kind ("loras", "embeddings").

    ValueError for a name that leaves the folder or names none, and for an embedding's that no prompt can say."""
    root = Path(get("folder_paths").get_folder_paths(kind)[0]).resolve()
    relative = Path(name.strip().replace("\\", "/").removesuffix(".safetensors") + ".safetensors")
    path = _resolved(root, relative)
    if relative.name == ".safetensors" or relative.is_absolute() or ".." in relative.parts or ":" in name:
        raise ValueError(f"The file name {name!r} must name a file inside models/{kind}, without '..' or a drive.")
    if not path.is_relative_to(root):
        raise ValueError(f"The file name {name!r} leaves the folder models/{kind}: choose another.")
    if kind == "embeddings" and (spoken := re.sub(r"[\s,(){}<>\[\]]+", "_", name.strip())) != name.strip():
        raise ValueError(
            f"A prompt can't say the embedding's file name {name!r}, which it reads up to a space, comma or "
            f"bracket: take {spoken!r}, say."
        )
    return path


def model_name(kind: str, path: Path) -> str:
    """How ComfyUI calls a file of its folder of models of that kind, without the ending."""
    root = Path(get("folder_paths").get_folder_paths(kind)[0]).resolve()
    return path.relative_to(root).with_suffix("").as_posix()


def namesakes(path: Path) -> dict[str, Path]:
    """Other embeddings that ComfyUI may read for the one at that path, or that one for them, by the shorter of the two
    names: it looks a name up in every sub-folder, in no certain order."""
    own, found = model_name("embeddings", path), {}
    for root in get("folder_paths").get_folder_paths("embeddings"):
        for folder, _, names in os.walk(root, followlinks=True):
            for other in (Path(folder, name) for name in names if name.endswith((".safetensors", ".pt", ".bin"))):
                name = other.relative_to(root).with_suffix("").as_posix()
                shorter, longer = sorted((own, name), key=len)
                if f"/{longer}".endswith(f"/{shorter}") and other.resolve() != path:
                    found[shorter] = other
    return found


def found_model(kind: str, name: str) -> Path:
    """The path of a safetensors file of that kind by its listed name, with or without the ending. ValueError if there
    is none."""
    full = name.strip().replace("\\", "/").removesuffix(".safetensors") + ".safetensors"
    strange = ".." in Path(full).parts or "\0" in full or len(full) > 1000
    path = None if strange else get("folder_paths").get_full_path(kind, full)
    if path is None or not Path(path).is_file():
        raise ValueError(
            f"There is no file {full[:200]!r} in models/{kind}: correct the name, or save one there first."
        )
    return Path(path)
