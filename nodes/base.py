"""The schema of a box: inputs in one line each, outputs, and the class that makes ComfyUI's V1 dictionaries of them.

    class SDEdit(Box):
        ID, TITLE, CATEGORY = "NullText_SDEdit", "SDEdit", "NullText/from picture"
        SEARCH_ALIASES = ["sdedit", "img2img"]
        DESCRIPTION = "Noises a picture to level t0 and denoises it again."
        INPUTS = (MODEL, Float("t0", 0.5, "Noise level as a share of the diffusion's time."), MASK.optional())
        OUTPUTS = (Output("LATENT", "The result."),)

        def run(self, model, t0, mask=None): ...

The order of INPUTS is the order of the widgets, which saved workflows rely on; optional inputs come after required
ones. Schema and execution stay apart (`INPUTS`, `run`), so that ComfyUI's V3 form can be made of the same tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Input:
    """One input: name, type (a type's name, or a list of words, or a function that makes that list when the page
    asks), V1 options with the tooltip, and whether it may stay unwired."""

    name: str
    kind: str | Sequence[str] | Callable[[], list[str]]
    options: dict[str, Any] = field(default_factory=dict)
    wanted: bool = True

    def optional(self) -> Input:
        return replace(self, wanted=False)

    def __call__(self, name: str | None = None, **options) -> Input:
        """The same input under another name or with other options: CFG(default=5.0), LATENT("source")."""
        return replace(self, name=name or self.name, options=self.options | options)

    @property
    def tooltip(self) -> str:
        return self.options["tooltip"]

    def v1(self) -> tuple:
        kind = self.kind
        if not isinstance(kind, str):
            kind = list(kind() if callable(kind) else kind)
            return kind, ({"default": kind[0]} if kind else {}) | self.options
        return kind, dict(self.options)


def Socket(name: str, kind: str, tooltip: str) -> Input:
    """A wire: MODEL, LATENT, INVERSION, ..."""
    return Input(name, kind, {"tooltip": tooltip})


def Float(name: str, default: float, tooltip: str, low: float = 0.0, high: float = 1.0, step: float = 0.01) -> Input:
    """A number; from 0 to 1 unless said otherwise."""
    return Input(name, "FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip})


def Int(name: str, default: int, tooltip: str, low: int = 1, high: int = 1000) -> Input:
    """A whole number."""
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


class Box:
    """A node. Subclasses set ID, TITLE, CATEGORY, SEARCH_ALIASES, DESCRIPTION, INPUTS, OUTPUTS and write `run`.

    The search words are added to DESCRIPTION, because old front ends look for words there alone."""

    FUNCTION = "run"
    INPUTS: tuple[Input, ...] = ()
    OUTPUTS: tuple[Output, ...] = ()

    def __init_subclass__(cls) -> None:
        if "DESCRIPTION" in cls.__dict__:
            cls.DESCRIPTION = f"{cls.DESCRIPTION} Search: {', '.join(cls.SEARCH_ALIASES)}."
        cls.RETURN_TYPES = tuple(out.kind for out in cls.OUTPUTS)
        cls.RETURN_NAMES = tuple(out.name or out.kind for out in cls.OUTPUTS)
        cls.OUTPUT_TOOLTIPS = tuple(out.tooltip for out in cls.OUTPUTS)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:
        required = {i.name: i.v1() for i in cls.INPUTS if i.wanted}
        optional = {i.name: i.v1() for i in cls.INPUTS if not i.wanted}
        return {"required": required} | ({"optional": optional} if optional else {})


# inputs that several boxes share, so that a word means the same in every one

MODEL = Socket("model", "MODEL", "The diffusion model. It is cloned, never changed.")
POSITIVE = Socket("positive", "CONDITIONING", "What the result shall show.")
NEGATIVE = Socket(
    "negative", "CONDITIONING", "The negative or empty prompt: the null branch of classifier-free guidance."
)
LATENT = Socket("latent", "LATENT", "The latent.")
MASK = Socket(
    "mask", "MASK", "1 (white) means: change here. Any size; a latent cell takes the largest value of its pixels."
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
CFG = Float("cfg", 7.5, "Classifier-free guidance scale. 1 asks for the positive prompt alone.", 0.0, 100.0, 0.1)
STEPS = Int("steps", 50, "Reverse steps: one network call each.")
TARGET_CFG = Float(
    "cfg",
    0.0,
    "Guidance scale of the edit; 0: the inversion's own. Edit-friendly DDPM's authors invert at 3.5 and "
    "edit at 15. Null embeddings fit the cfg they were optimised for, and another is refused.",
    0.0,
    100.0,
    0.1,
)
