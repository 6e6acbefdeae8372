"""The grammar of the nodes' text widgets: how what a user writes becomes lists, numbers and pairs.

    lines   one entry per line                     "a red circle\\na blue square"
    items   entries with commas between them       "red, small car"     (semicolons and new lines count as commas)
    pairs   "word: value" entries                  "red: 2, small car: 0.5"

Every function raises ValueError in one sentence that quotes what cannot be read and shows how it should be written.
"""

from __future__ import annotations

import math
import re

LARGEST_FACTOR = 1000  #: beyond it a factor overflows inside a network
MOST_RUNS = 100  #: settings of one strip or grid, each a run of its own


def _few(entries: list[str], what: str) -> list[str]:
    if len(entries) > MOST_RUNS:
        raise ValueError(f"There are {len(entries)} {what}, each a run of its own: write {MOST_RUNS} at the most.")
    return entries


def lines(text: str) -> list[str]:
    """The lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def choices(line: str) -> list[str]:
    """The entries between upright bars that are not empty."""
    return [item.strip() for item in line.split("|") if item.strip()]


def items(text: str) -> list[str]:
    """The entries between commas that are not empty."""
    return [item.strip() for item in re.split("[,;\\n]", text) if item.strip()]


def pairs(text: str) -> dict[str, str]:
    """ "red: 2, small car: -1.5" -> {"red": "2", "small car": "-1.5"}."""
    out = {}
    for item in items(text):
        word, _, value = (part.strip() for part in item.rpartition(":"))
        if not word or not value:
            raise ValueError(f'"{item}" should read "word: value", entries separated by commas or new lines.')
        out[word] = value
    return out


def number(text: str, low: float = -math.inf, high: float = math.inf) -> float | None:
    """The number, or None for what is no finite number within the range."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and low <= value <= high else None


def numbers(text: str, what: str) -> list[float]:
    """ "0, -1.5" -> [0.0, -1.5]; `what` names them in the error."""
    values = [number(item) for item in _few(items(text), what)]
    if None in values:
        raise ValueError(f"{text!r} is no list of numbers for {what}: write them with commas between, as in 0, 0.5, 1.")
    return values


def fractions(text: str, what: str) -> list[float]:
    """ "0.6, 0.8" -> [0.6, 0.8]: numbers from 0 to 1; `what` names them in the error."""
    values = [number(item, 0, 1) for item in _few(items(text), what)]
    if None in values:
        raise ValueError(f"The {what} are numbers from 0 to 1 with commas between them, like 0.6, 0.8; got {text!r}.")
    return values


def factors(text: str) -> dict[str, float]:
    """ "red: 2, car: -1" -> {"red": 2.0, "car": -1.0}: numbers from -1000 to 1000."""
    out = {word: number(value, -LARGEST_FACTOR, LARGEST_FACTOR) for word, value in pairs(text).items()}
    for word, value in pairs(text).items():
        if out[word] is None:
            raise ValueError(
                f'The factor "{value}" for "{word}" is not a number from -{LARGEST_FACTOR} to {LARGEST_FACTOR}.'
            )
    return out


def windows(text: str) -> dict[str, tuple[float, float]]:
    """ "cat: 0.4, red: 0.2-0.8" -> {"cat": (0.0, 0.4), "red": (0.2, 0.8)}: fractions of the steps, start <= end."""
    out = {}
    for word, value in pairs(text).items():
        start, dash, end = value.partition("-")
        first, last = (number(start, 0, 1), number(end, 0, 1)) if dash else (0.0, number(start, 0, 1))
        if first is None or last is None or first > last:
            raise ValueError(f'The window "{value}" of "{word}" should be an end, or "start-end", within 0 and 1.')
        out[word] = first, last
    return out


def targets(text: str) -> tuple[list[str], list[float]]:
    """One target per line, "text" or "text : weight" (1 where none is written): (texts, weights)."""
    texts, weights = [], []
    for line in lines(text):
        head, colon, tail = line.rpartition(":")
        weight = number(tail) if colon else None
        found = line if weight is None else head.strip()
        if found:
            texts.append(found)
            weights.append(1.0 if weight is None else weight)
    return texts, weights


def settings(text: str) -> list[tuple[float, float]]:
    """ILVR's strip: "2@0.8, 4@0.5" -> [(factor 2.0, stop 0.8), (4.0, 0.5)]."""
    out = []
    for item in _few(items(text), "settings of a strip"):
        factor, _, stop = item.partition("@")
        pair = number(factor, 1), number(stop, 0, 1)
        if None in pair:
            raise ValueError(
                f"{item!r} is no setting of a strip: write factor@stop, like 4@0.8, with a factor of 1 or more and a "
                "stop from 0 to 1."
            )
        out.append(pair)
    return out


def feature_maps(text: str) -> tuple[int, ...]:
    """ "1, 0" -> (0, 1): numbers of feature maps, counted from 0, at least one."""
    found = items(text)
    if not found or not all(item.isdecimal() for item in found):
        raise ValueError(f"Layers are numbers with commas between them, like 0,1; got {text!r}.")
    return tuple(sorted({int(item) for item in found}))


#: how the text widgets of Prompt-to-Prompt are read
_EDIT = {"word_windows": windows, "weights": factors, "blend_words": items, "keep_words": items, "blend_layers": items}


def edit_plan(widgets: dict) -> dict:
    """Prompt-to-Prompt's widgets with their texts read, as `samplers.attention.plan.plan` takes them."""
    return {name: _EDIT.get(name, lambda value: value)(value) for name, value in widgets.items()}
