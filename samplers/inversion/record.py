"""An INVERSION: what one inversion of a batch of images leaves behind, as one frozen record that travels and is saved.

Everything is in model space, in fp32 (the pair in float64), on the CPU, and holds no inference tensors, so that it may
be used with gradients and from any later run. Index 0 is the noise end everywhere: trajectory[i] lies at sigmas[i], and
null_embeddings[i] and residuals[i] belong to the step sigmas[i] -> sigmas[i + 1].

On disk: one safetensors file, tensors by field name, everything else as JSON text in the header's metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core import PROCESSES, NoiseProcess, check_descending
from ..finite import all_finite
from ..record_file import Fields, parsed, plain, read, write
from .table import PIVOTS, PivotKind

VERSION = 1
FORMAT = "nulltext-inversion"
CORRECTIONS = ("none", "null_text", "global_null", "negative_prompt", "overwrite")
_TENSORS = ("sigmas", "trajectory", "pair", "residuals", "null_embeddings", "reconstruction", "pooled", "conditioning")


@dataclass(frozen=True)
class Inversion:
    """sigmas [N+1] fall strictly; trajectory [N+1, B, C, ...], the source latent at its end.

    ValueError in one sentence for tensors that don't belong together or hold NaN."""

    sigmas: Tensor
    trajectory: Tensor
    process: str = "ve"  #: name of a NoiseProcess: "ve" or "flow"
    pivot: str = "ddim"  #: one of PIVOTS
    correction: str = "none"  #: one of CORRECTIONS
    cfg: float = 1.0  #: the guidance scale the pivot or its correction was made for
    pair: Tensor | None = None  #: [2, B, C, ...] float64, x at sigmas[0] and sigmas[1]: the exact pair
    residuals: Tensor | None = None  #: [N, B, C, ...] edit-friendly: what each step adds to its mean
    null_embeddings: Tensor | None = None  #: [N, B, T, D]
    reconstruction: Tensor | None = None  #: [B, C, ...] where the null-text optimisation came out at sigmas[-1]
    pooled: Tensor | None = None  #: [B, P] pooled output of the source prompt
    conditioning: Tensor | None = None  #: [B or 1, T, D] embedding of the source prompt
    text: str = ""  #: the source prompt as typed
    words: list[dict] | None = None  #: its words, as the Prompt node notes them
    fingerprint: dict[str, str] = field(default_factory=dict)  #: which model it belongs to
    metadata: dict[str, Any] = field(default_factory=dict)  #: anything else that JSON can hold
    version: int = VERSION

    def __post_init__(self):
        for name in _TENSORS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _plain(value, name))
        _check_version(self.version)
        _one_of("process", self.process, PROCESSES)
        _one_of("pivot", self.pivot, PIVOTS)
        _one_of("correction", self.correction, CORRECTIONS)
        check_descending(self.sigmas)
        if self.process == "flow" and float(self.sigmas[0]) > 1:
            raise ValueError(f"A flow schedule lies between 1 and 0; this one starts at {float(self.sigmas[0]):.4g}.")
        if self.trajectory.ndim < 3:
            raise ValueError(
                f"A trajectory has shape [steps + 1, batch, channels, ...]; got {_shape(self.trajectory)}."
            )
        self._need("trajectory", (self.steps + 1, *self.trajectory.shape[1:]))
        if 0 in self.trajectory.shape:
            raise ValueError(f"The trajectory is empty: its shape is {_shape(self.trajectory)}.")
        for name, rank in (("conditioning", 3), ("pooled", 2)):
            value = getattr(self, name)
            if value is not None and (value.ndim != rank or 0 in value.shape or len(value) not in (1, self.shape[0])):
                raise ValueError(f"The inversion's {name} has the shape {_shape(value)}, which no prompt has.")
        self._need("pair", (2, *self.shape))
        self._need("residuals", (self.steps, *self.shape))
        self._need("reconstruction", self.shape)
        if self.null_embeddings is not None:
            self._need("null_embeddings", (self.steps, self.shape[0], *self.null_embeddings.shape[2:]))
            if self.null_embeddings.ndim != 4:
                raise ValueError(
                    f"Null embeddings have shape [steps, batch, tokens, width]; got {_shape(self.null_embeddings)}."
                )
        if self.kind.needs and getattr(self, self.kind.needs) is None:
            raise ValueError(f"An inversion by {self.kind.title} needs its {self.kind.needs}: make it again.")
        if self.correction in ("null_text", "global_null", "negative_prompt") and self.null_embeddings is None:
            raise ValueError(f"The correction {self.correction} needs null embeddings: make the inversion again.")

    def _need(self, name, shape):
        value = getattr(self, name)
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"{name} should have shape {list(shape)} to go with {self.steps} steps and latents of "
                f"{list(self.shape)}; got {_shape(value)}."
            )

    @property
    def kind(self) -> PivotKind:
        """What its pivot can do."""
        return PIVOTS[self.pivot]

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, C, ...] of the latents."""
        return tuple(self.trajectory.shape[1:])

    @property
    def x_T(self) -> Tensor:  # noqa: N802 (the paper's name)
        """[B, C, ...] at sigmas[0]."""
        return self.trajectory[0]

    @property
    def source(self) -> Tensor:
        """[B, C, ...] the latent that was inverted, at sigmas[-1]."""
        return self.trajectory[-1]

    def replace(self, **changes) -> Inversion:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def check_latent(self, shape) -> None:
        """ValueError unless a latent [B, C, ...] in model space has this inversion's shape."""
        if tuple(shape) != self.shape:
            raise ValueError(
                f"This inversion holds latents of shape {list(self.shape)}, and the latent given has "
                f"{list(shape)}: use the latent it was made from, or invert again."
            )

    def check_process(self, process: NoiseProcess) -> None:
        """ValueError unless the model's noise process is this inversion's."""
        if process.name != self.process:
            raise ValueError(
                f"This inversion was made with a {self.process} model, and the model given is a "
                f"{process.name} model: use the one it was made with, or invert again."
            )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """(tensors, metadata) as safetensors holds them; copies, for the format refuses tensors that share memory."""
        tensors = {name: getattr(self, name).clone() for name in _TENSORS if getattr(self, name) is not None}
        rest = [f.name for f in dataclasses.fields(self) if f.name not in _TENSORS]
        return tensors, {"format": FORMAT, **{name: json.dumps(getattr(self, name)) for name in rest}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> Inversion:
        """The reverse of `to_tensors`. ValueError in one sentence for a file of another kind, version or content."""
        metadata = dict(metadata or {})
        if metadata.pop("format", None) != FORMAT:
            raise ValueError(
                "This safetensors file is not an inversion of this pack: choose one that was saved as an inversion."
            )
        try:
            values = {name: parsed(text, name) for name, text in metadata.items()}
        except ValueError as error:
            raise ValueError(f"The inversion's header is damaged ({error}): make the inversion again.") from None
        _check_version(values.get("version"))  # before anything else: another version may know other fields
        known = {f.name for f in dataclasses.fields(cls)}
        missing = [name for name in ("sigmas", "trajectory") if name not in tensors]
        foreign = sorted((set(values) | set(tensors)) - known)
        if missing or foreign or set(values) & set(_TENSORS):
            raise ValueError(
                "The inversion's content is not what its version says "
                f"({'missing ' + ', '.join(missing) if missing else 'unknown ' + ', '.join(foreign)}): "
                "make the inversion again."
            )
        try:
            _check_fields(Fields(values))
            return cls(**tensors, **values)
        except (TypeError, RuntimeError):
            raise ValueError("The inversion's tensors are not what its version says: make it again.") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file; it appears whole or not at all."""
        write(path, *self.to_tensors())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Inversion:
        """Read what `save` wrote; never unpickles. ValueError for anything else, FileNotFoundError for no file."""
        return cls.from_tensors(*read(path, "inversion"))


def _check_fields(fields: Fields) -> None:
    """ValueError that names the field where a header's is of another type or range than an inversion's."""
    try:
        fields.word("process", PROCESSES, default="ve"), fields.word("pivot", PIVOTS, default="ddim")
        fields.word("correction", CORRECTIONS, default="none")
        fields.number("cfg", 0, 1000, default=1.0)
        fields.text("text", default="")
        fields.table("fingerprint", lambda v: isinstance(v, str), "texts", default={})
        for record in fields.values.get("words") or []:
            words = Fields(record, "words")
            words.text("text"), words.whole("chunks", 1, 10_000, default=1)
            words.wholes("ids", 10**6, -1, 10**7, default=[])
            for word in words.values.get("words", ()):
                one = Fields(word, "words.words")
                one.text("text"), one.wholes("tokens", 10**4, 0, 10**6)
        notes = Fields(fields.values.get("metadata", {}), "metadata")
        notes.texts("needs", 100, default=[])
        for name in ("extras", "null_extras"):
            notes.table(name, lambda v: v is None or plain(v), "texts and finite numbers", default={})
        for name in ("latent_gain", "latent_offset"):
            notes.numbers(name, default=[1.0])
        notes.number("full_gain", 1e-6, default=1.0)
    except TypeError:
        raise ValueError("The inversion's words are damaged: make the inversion again.") from None
    except ValueError as error:
        raise ValueError(f"The inversion's header is damaged ({error}): make the inversion again.") from None


def _plain(value: Tensor, name: str) -> Tensor:
    """fp32 (the pair: float64), CPU, contiguous, detached, no inference tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} must be a tensor of floating point numbers.")
    dtype = torch.float64 if name == "pair" else torch.float32
    with torch.inference_mode(False):
        value = value.detach()
        if value.is_inference() or value.dtype != dtype or value.device.type != "cpu":
            value = value.clone().to("cpu").to(dtype)
        value = value.contiguous()
    if not all_finite(value):
        raise ValueError(f"{name} holds NaN or infinite values: the model or its input latent is broken.")
    return value


def _check_version(version):
    if version != VERSION:
        raise ValueError(
            f"This inversion has format version {str(version)[:20]}, and this pack reads version {VERSION}: "
            "make the inversion again."
        )


def _shape(value: Tensor) -> list[int]:
    return list(value.shape)


def _one_of(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"The {name} of an inversion is one of {', '.join(allowed)}; got {value!r}.")
