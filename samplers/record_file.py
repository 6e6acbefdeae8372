"""Files of ours: written whole or not at all, read without unpickling, and compared before anything is built of them.

A file is untrusted. Its header is parsed by `parsed` and read field by field (`Fields`), each of a type and within a
range; a network of it is first made without memory (`check_state`) and compared with the tensors that are there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .finite import all_finite

MOST_TENSORS = 20_000
LONGEST_FIELD = 8 * 2**20  #: characters of one header field
STRAY_SECONDS = 3600  #: how old an unfinished file must be to be nobody's


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A file of its own to write, which takes the name `path` at the end; on an error nothing is left. Of several
    writers of one name the last one wins, whole. Old unfinished files of writers that were killed are swept. OSError
    where it can't be written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        for stray in path.parent.glob(".nulltext-*.part"):
            if time.time() - stray.stat().st_mtime > STRAY_SECONDS:
                stray.unlink(missing_ok=True)
    part = path.parent / f".nulltext-{uuid.uuid4().hex}.part"
    try:
        yield part
        os.replace(part, path)
    except SafetensorError as error:  # how the library tells of a full disk
        raise OSError(0, "writing failed") from error
    finally:
        part.unlink(missing_ok=True)


def write(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
    """Write tensors and strings; the file appears whole or not at all. OSError where it can't be written."""
    with whole_file(path) as part:
        save_file(dict(tensors), part, dict(metadata) if metadata else None)


def read(path: str | os.PathLike, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and strings of a file of `what` ("inversion"). FileNotFoundError for no file, ValueError for one that is
    cut short, of another format or of absurd size, OSError for one that can't be read now (locked, no memory)."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no {what} file named {name}.")
    try:
        with torch.inference_mode(False), safe_open(os.fspath(path), framework="pt") as file:
            keys, strings = list(file.keys()), file.metadata() or {}
            if len(keys) > MOST_TENSORS or sum(map(len, strings.values())) > LONGEST_FIELD:
                raise ValueError(f"{name} has a header of absurd size: it is no {what}; choose another file.")
            # copies: on Windows no file can be replaced while a tensor is a part of it
            return {key: file.get_tensor(key).clone() for key in keys}, strings
    except SafetensorError:
        raise ValueError(
            f"{name} is cut short or not a safetensors file: copy it again or make the {what} again."
        ) from None
    except (MemoryError, RuntimeError) as error:  # how safetensors and torch tell that the file can't be mapped
        raise OSError(errno.ENOMEM, "not enough memory") from error


class Unsound(ValueError):
    """What is wrong with a file, as half of a sentence that its reader ends with the file's name."""


def _no_number(text: str):
    raise ValueError(text)


def parsed(text, name: str):
    """The JSON of a header's field. ValueError for anything else, for NaN, and for what is nested too deep."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (TypeError, ValueError, RecursionError):
        raise Unsound(f"the field {name} can't be read") from None


class Fields:
    """The fields of a header, each of a type and within a range. Every method raises ValueError that names the
    field."""

    def __init__(self, values, name: str = "", known: tuple[str, ...] = ()):
        self.name = name
        if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
            raise Unsound(f"the field {name or 'header'} must be a table")
        foreign = sorted(set(values) - set(known)) if known else []
        if foreign:
            raise Unsound(f"the field {self._called(foreign[0])} is not known")
        self.values = values

    def _called(self, name: str) -> str:
        return repr(f"{self.name}.{name}" if self.name else name)[1:-1][:60]

    def _get(self, name: str, told: str, fits: Callable, default=None):
        value = self.values.get(name, default)
        if not fits(value):
            raise Unsound(f"the field {self._called(name)} must be {told}, and is {_brief(value)}")
        return value

    def whole(self, name: str, low: int, high: int, default=None) -> int:
        return self._get(name, f"a whole number from {low} to {high}", lambda v: _whole(v, low, high), default)

    def number(self, name: str, low: float = -math.inf, high: float = math.inf, default=None) -> float:
        return self._get(name, f"a finite number from {low:g} to {high:g}", lambda v: _number(v, low, high), default)

    def text(self, name: str, default=None, longest: int = LONGEST_FIELD) -> str:
        return self._get(name, "a text", lambda v: isinstance(v, str) and len(v) <= longest, default)

    def word(self, name: str, allowed, default=None) -> str:
        told = f"one of {', '.join(allowed)}"
        return self._get(name, told, lambda v: isinstance(v, str) and v in allowed, default)

    def switch(self, name: str, default=None) -> bool:
        return self._get(name, "true or false", lambda v: isinstance(v, bool), default)

    def texts(self, name: str, most: int, least: int = 0, default=None) -> list[str]:
        fits = lambda v: _listed(v, least, most) and all(isinstance(e, str) for e in v)
        return self._get(name, f"a list of {least} to {most} texts", fits, default)

    def wholes(self, name: str, most: int, low: int, high: int, least: int = 0, default=None) -> list[int]:
        fits = lambda v: _listed(v, least, most) and all(_whole(e, low, high) for e in v)
        return self._get(name, f"a list of {least} to {most} whole numbers from {low} to {high}", fits, default)

    def numbers(self, name: str, count: int | None = None, default=None) -> list[float]:
        fits = lambda v: _listed(v, 1, 4096) and len(v) == (count or len(v)) and all(_number(e) for e in v)
        return self._get(name, f"a list of {count or 'finite'} numbers", fits, default)

    def table(self, name: str, fits: Callable, told: str, default=None) -> dict:
        """A table whose keys are texts and whose values all fit."""
        whole = lambda v: isinstance(v, dict) and all(isinstance(k, str) and fits(e) for k, e in v.items())
        return self._get(name, f"a table of {told}", whole, default)

    def part(self, name: str, known: tuple[str, ...] = ()) -> Fields:
        return Fields(self.values.get(name), self._called(name), known)


def _whole(value, low, high) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value, low=-math.inf, high=math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return False
    return isinstance(value, int) or math.isfinite(value)


def plain(value) -> bool:
    """A text, a switch or a finite number: what a header's table of extras may hold."""
    return isinstance(value, str | bool) or _number(value, -1e300, 1e300)


def _listed(value, least, most) -> bool:
    return isinstance(value, list) and least <= len(value) <= most


def _brief(value) -> str:
    if isinstance(value, dict | list):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    told = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "an immense number"
    return "missing" if value is None else told[:40]


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """ValueError for a tensor that is no floating point number or not finite."""
    for name, value in tensors.items():
        if value.dtype == torch.bool or value.is_complex():
            raise Unsound(f"its tensor {name[:80]} holds no numbers")
        if not all_finite(value):
            raise Unsound(f"its tensor {name[:80]} holds NaN or infinite values")


def check_state(make: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> None:
    """ValueError unless `state` has exactly the tensors of the network that `make` builds; no memory is taken for it.

    make: called with no memory behind its tensors (torch's meta device)."""
    with torch.device("meta"), torch.inference_mode(False):
        wanted = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    for name in [*wanted, *state]:
        there = tuple(state[name].shape) if name in state else None
        if wanted.get(name) != there:
            told = "is missing" if there is None else f"has shape {list(there)}"
            should = "should not be there" if name not in wanted else f"should have {list(wanted[name])}"
            raise Unsound(f"its tensor {name[:80]} {told} and {should}, by the file's own header")
    check_tensors(state)
