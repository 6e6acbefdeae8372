"""The schema of a box: inputs in one line each, outputs, and the class that makes ComfyUI's V1 dictionaries of them.

    class SDEdit(Box):
        ID, TITLE, CATEGORY = "NullText_SDEdit", "SDEdit", "NullText/from picture"
        SEARCH_ALIASES = ["sdedit", "img2img"]
        DESCRIPTION = "Adds noise to a picture and denoises it again."
        INPUTS = (MODEL, Float("t0", 0.5, "How much noise: 0 none, 1 all."), MASK.optional())
        OUTPUTS = (Output("LATENT", "The result."),)

        def run(self, model, t0, mask=None): ...

The order of INPUTS is the order of the widgets, which saved workflows rely on; optional inputs come after required
ones. Schema and execution stay apart (`INPUTS`, `run`), so that ComfyUI's V3 form can be made of the same tuple.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..engine import gate, matching
from ..engine.comfy import schedulers

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
LONGEST_TEXT = 100_000


@dataclass(frozen=True)
class Input:
    """One input: name, type (a type's name, or a list of words, or a function that makes that list when the page
    asks), V1 options with the tooltip, and whether it may stay unwired."""

    name: str
    kind: str | Sequence[str] | Callable[[], list[str]]
    options: dict[str, Any] = field(default_factory=dict)
    wanted: bool = True
    none_too: bool = False  #: whether a loader's output that holds nothing (a checkpoint without CLIP) is taken

    def optional(self) -> Input:
        return replace(self, wanted=False)

    def __call__(self, tooltip: str | None = None, *, name: str | None = None, **options) -> Input:
        """The same input with another tooltip, name or option: LATENT("The picture."), CFG(default=5.0)."""
        other = {"tooltip": tooltip} if tooltip else {}
        return replace(self, name=name or self.name, options=self.options | options | other)

    @property
    def tooltip(self) -> str:
        return self.options["tooltip"]

    def v1(self) -> tuple:
        kind = self.kind
        if not isinstance(kind, str):
            kind = list(kind() if callable(kind) else kind)
            return kind, ({"default": kind[0]} if kind else {}) | self.options
        return kind, dict(self.options)

    def checked(self, value):
        """The value that a run is given here, fit for use. ValueError in one sentence that names the input."""
        if value is None and (not self.wanted or self.none_too):
            return self.v1()[1].get("default")  # of a script that sends null for a widget; a wire has none
        if not isinstance(self.kind, str):
            return self._word(value)
        check = {"FLOAT": self._number, "INT": self._number, "STRING": self._text, "BOOLEAN": self._switch}
        return check[self.kind](value) if self.kind in check else gate.checked(self.kind, self.name, value)

    def _number(self, value):
        """A finite number within the widget's range; NaN passes ComfyUI's own comparison with min and max."""
        low, high = self.options.get("min", -math.inf), self.options.get("max", math.inf)
        whole = self.kind == "INT"
        if isinstance(value, np.integer | np.floating):  # of another pack's node of arithmetic
            value = value.item()
        known = isinstance(value, int) or isinstance(value, float) and math.isfinite(value)
        if not known or not low <= value <= high or whole and value != int(value):
            told = f"{'whole ' * whole}number from {low:g} to {high:g}"
            raise ValueError(f"{self.name} must be a {told}; got {gate.short(repr(value), 60)}.")
        return int(value) if whole else float(value)

    def _text(self, value):
        if not isinstance(value, str):
            raise ValueError(f"{self.name} must be a text; got {gate.short(repr(value), 60)}.")
        if len(value) > LONGEST_TEXT:
            raise ValueError(f"{self.name} has {len(value)} characters: {LONGEST_TEXT} are the most.")
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{self.name} holds characters that are no text (NUL or half of a pair): remove them.")
        return value

    def _switch(self, value):
        if not isinstance(value, int | np.integer | np.bool_):
            raise ValueError(f"{self.name} must be true or false; got {gate.short(repr(value), 60)}.")
        return bool(value)

    def _word(self, value):
        """One of the words; of a list that is made anew (files) any text, for a file may be newer than the list."""
        listed = None if callable(self.kind) else list(self.kind)
        if not isinstance(value, str) or listed is not None and value not in listed:
            told = f"one of {', '.join(listed)}" if listed else "a text"
            raise ValueError(f"{self.name} must be {told}; got {gate.short(repr(value), 60)}.")
        return value if listed is not None else self._text(value)


def optional(*inputs: Input) -> tuple[Input, ...]:
    """The inputs as ones that may stay unwired."""
    return tuple(each.optional() for each in inputs)


def advanced(*inputs: Input) -> tuple[Input, ...]:
    """The inputs as ones that newer front ends fold away until they are asked for."""
    return tuple(each(advanced=True) for each in inputs)


def Socket(name: str, kind: str, tooltip: str) -> Input:
    """A wire: MODEL, LATENT, INVERSION, ..."""
    return Input(name, kind, {"tooltip": tooltip})


def Float(
    name: str, default: float, tooltip: str, low: float = 0.0, high: float = 1.0, step: float = 0.01, **options
) -> Input:
    """A number; the range is 0 to 1 unless it is given."""
    ends = {"default": default, "min": low, "max": high, "step": step}
    return Input(name, "FLOAT", {**ends, **options, "tooltip": tooltip})


def Int(name: str, default: int, tooltip: str, low: int = 1, high: int = 1000) -> Input:
    """An integer."""
    return Input(name, "INT", {"default": default, "min": low, "max": high, "tooltip": tooltip})


def Boolean(name: str, default: bool, tooltip: str) -> Input:
    """A switch."""
    return Input(name, "BOOLEAN", {"default": default, "tooltip": tooltip})


def Text(name: str, default: str, tooltip: str, **options) -> Input:
    """A line of text; `multiline=True` for several."""
    return Input(name, "STRING", {"default": default, "tooltip": tooltip, **options})


def Choice(
    name: str, words: Sequence[str] | Callable[[], list[str]], tooltip: str, default: str | None = None
) -> Input:
    """One of several words, the first unless `default` names another."""
    return Input(name, words, {"tooltip": tooltip} | ({"default": default} if default else {}))


@dataclass(frozen=True)
class Output:
    """One output: its type, what it is, and its name on the box (None: the type)."""

    kind: str
    tooltip: str
    name: str | None = None


def _passed(cls: type, run: Callable) -> Callable:
    """`run` behind the gate: every value is checked by its input before it, every result after it, and what is refused
    is refused in one short sentence."""
    names = list(inspect.signature(run).parameters)[1:]

    @functools.wraps(run)
    def passed(self, *args, **kwargs):
        given = dict(zip(names, args)) | kwargs
        inputs = {each.name: each for each in cls.INPUTS}
        try:
            values = {name: inputs[name].checked(v) if name in inputs else v for name, v in given.items()}
            matching.together({n: (inputs[n].kind, v) for n, v in values.items() if n in inputs and v is not None})
            try:
                result = run(self, **values)
            except TypeError:
                missing = [each.name for each in cls.INPUTS if each.wanted and each.name not in given]
                if not missing:
                    raise
                raise ValueError(f"The input {missing[0]} is missing: wire it, or set its widget.") from None
            _outputs(cls, result)
            return result
        except ValueError as error:
            said = gate.short(str(error))
            if said == str(error):
                raise
            raise ValueError(said) from None
        except OSError as error:
            raise ValueError(
                f"A file can't be read or written ({error.strerror or type(error).__name__}): correct its name, free "
                "some room on the disk, or ask who may write there."
            ) from error

    return passed


def _outputs(cls: type, result) -> None:
    """ValueError where a tensor that a box gives back holds NaN."""
    values = result.get("result", ()) if isinstance(result, dict) else result
    for output, value in zip(cls.OUTPUTS, values) if isinstance(values, tuple | list) else ():
        gate.finite(output.kind, value, cls.TITLE)


class Box:
    """A node. Subclasses set ID, TITLE, CATEGORY, SEARCH_ALIASES, DESCRIPTION, INPUTS, OUTPUTS and write `run`.

    The search words are added to DESCRIPTION, because old front ends look for words there alone."""

    FUNCTION = "run"
    HIDDEN: dict[str, str] = {}  # what ComfyUI itself tells `run`: {"unique_id": "UNIQUE_ID"}
    INPUTS: tuple[Input, ...] = ()
    OUTPUTS: tuple[Output, ...] = ()

    def __init_subclass__(cls) -> None:
        names = [each.name for each in cls.INPUTS]
        if len(set(names)) != len(names):
            raise TypeError(f"{cls.__name__} has two inputs of one name: {names}.")
        if "DESCRIPTION" in cls.__dict__:
            cls.DESCRIPTION = f"{cls.DESCRIPTION} Search: {', '.join(cls.SEARCH_ALIASES)}."
        cls.RETURN_TYPES = tuple(out.kind for out in cls.OUTPUTS)
        cls.RETURN_NAMES = tuple(out.name or out.kind for out in cls.OUTPUTS)
        cls.OUTPUT_TOOLTIPS = tuple(out.tooltip for out in cls.OUTPUTS)
        for name in {"run", cls.FUNCTION}:  # what the engine calls, and what it calls in turn
            if name in cls.__dict__ or name != "run" and cls.INPUTS:
                setattr(cls, name, _passed(cls, inspect.unwrap(getattr(cls, name))))

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        required = {i.name: i.v1() for i in cls.INPUTS if i.wanted}
        optional = {i.name: i.v1() for i in cls.INPUTS if not i.wanted}
        more = {"optional": optional, "hidden": dict(cls.HIDDEN)}
        return {"required": required} | {name: group for name, group in more.items() if group}


# inputs that several boxes share, so that a word means the same in every one

MODEL = Socket("model", "MODEL", "The diffusion model. It is cloned, never changed.")
POSITIVE = Socket("positive", "CONDITIONING", "What the result shall show.")
NEGATIVE = Socket("negative", "CONDITIONING", "The negative prompt: what the picture shall not show. May be empty.")
LATENT = Socket("latent", "LATENT", "The latent.")
VAE = Socket("vae", "VAE", "The VAE that belongs to the model.")
IMAGE = Socket("image", "IMAGE", "The picture.")
INVERSION = Socket(
    "inversion", "INVERSION", "From Null-Text Inverter, Null-Text Optimise, Invert Image or Load Inversion."
)
SIGMAS = Socket("sigmas", "SIGMAS", "Instead of steps and scheduler: a schedule that falls to 0.")
SCHEDULER = Choice("scheduler", schedulers(), "How the steps are spaced.")
MASK = Socket(
    "mask",
    "MASK",
    "1 (white) means: change here. Any size; a latent cell takes the largest value of its pixels. For a video: one for "
    "all of it, or one for each frame.",
)
SEED = Input(
    "seed",
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": LARGEST_SEED,
        "control_after_generate": True,
        "tooltip": "Seed of every random draw of this node. The same seed gives the same result.",
    },
)
#: of a training: the page's button that draws a new seed for every run would train anew each time. The pages put that
#: button behind every widget that is called "seed", whatever the schema says (2024), or unless it says no (today)
TRAINING_SEED = SEED(name="training_seed", control_after_generate=False)
CFG = Float("cfg", 7.5, "Classifier-free guidance scale. 1 uses the positive prompt alone.", 0.0, 100.0, 0.1)
STEPS = Int("steps", 50, "Reverse steps: one network call each.")
TARGET_CFG = Float(
    "target_cfg",
    0.0,
    "Guidance scale of the edit; 0: the inversion's own. Edit-friendly DDPM's authors invert at 3.5 and edit at 15. "
    "Null embeddings fit the cfg they were optimised for, and another is refused.",
    0.0,
    100.0,
    0.1,
)


def span(what: str, start: float = 0.0, end: float = 1.0, at_start: str = "", at_end: str = "") -> tuple[Input, Input]:
    """start_percent and end_percent: when `what` acts. at_start, at_end: further sentences of their tooltips."""
    first = f"Where {what} begins, as ComfyUI counts: 0 is noise, 1 the finished picture. {at_start}"
    last = f"Where {what} ends (1: at the finished picture). {at_end}"
    return Float("start_percent", start, first.strip()), Float("end_percent", end, last.strip())
