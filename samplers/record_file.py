"""A record as one safetensors file: written whole or not at all, read without unpickling."""

from __future__ import annotations

import os

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and strings; the file appears whole or not at all."""
    part = f"{os.fspath(path)}.part"
    try:
        save_file(tensors, part, metadata)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def read(path: str | os.PathLike, what: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Tensors and metadata of a file of `what` ("inversion"). FileNotFoundError for no file, ValueError for one that
    is cut short or of another format."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no {what} file named {name}.")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    except (SafetensorError, OSError):
        raise ValueError(
            f"{name} is cut short or not a safetensors file: copy it again or make the {what} again."
        ) from None
