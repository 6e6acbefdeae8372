"""Inputs that several nodes share, with their tooltips, so that a word means the same in every box."""

from __future__ import annotations

MODEL = ("MODEL", {"tooltip": "The diffusion model. It is cloned, never changed."})
POSITIVE = ("CONDITIONING", {"tooltip": "What the result shall show."})
NEGATIVE = ("CONDITIONING", {"tooltip": "The negative or empty prompt: the null branch of classifier-free guidance."})
SEED = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 0xFFFFFFFFFFFFFFFF,
        "control_after_generate": True,
        "tooltip": "Seed of every random draw of this node. The same seed gives the same result.",
    },
)
MASK = (
    "MASK",
    {"tooltip": "1 (white) means: change here. Any size; a latent cell takes the largest value of its pixels."},
)


def latent(tooltip: str):
    """A LATENT input."""
    return ("LATENT", {"tooltip": tooltip})


def cfg(default: float, tooltip: str = "Classifier-free guidance scale. 1 asks for the positive prompt alone."):
    """The guidance scale."""
    return ("FLOAT", {"default": default, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": tooltip})


TARGET_CFG = (
    "FLOAT",
    {
        "default": 0.0,
        "min": 0.0,
        "max": 100.0,
        "step": 0.1,
        "tooltip": "Guidance scale of the edit; 0: the inversion's own. Edit-friendly DDPM's authors invert at 3.5 and "
        "edit at 15. Null embeddings fit the cfg they were optimised for, and another is refused.",
    },
)


def steps(default: int, tooltip: str = "Reverse steps: one network call each."):
    """A number of steps."""
    return ("INT", {"default": default, "min": 1, "max": 1000, "tooltip": tooltip})


def share(default: float, tooltip: str):
    """A number from 0 to 1."""
    return ("FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip})


def whole(default: int, low: int, high: int, tooltip: str):
    """A whole number."""
    return ("INT", {"default": default, "min": low, "max": high, "tooltip": tooltip})


def number(default: float, low: float, high: float, step: float, tooltip: str):
    """A number."""
    return ("FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip})


def choice(options: list[str], tooltip: str, default: str | None = None):
    """One of several words; the first is the default unless another is named."""
    return (options, {"default": default or options[0], "tooltip": tooltip})


def describe(text: str, aliases: list[str]) -> str:
    """A DESCRIPTION that holds the search words too, for front ends that ignore SEARCH_ALIASES."""
    return f"{text} Search: {', '.join(aliases)}."
