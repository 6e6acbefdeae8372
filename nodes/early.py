"""Mistakes that the widgets alone tell: said when a workflow is queued, before any node of it runs.

    @classmethod
    def VALIDATE_INPUTS(cls, more_levels=None):
        return early(cls, lambda more_levels: words.fractions(more_levels, "noise levels"), more_levels=more_levels)

The engine leaves its own checks out for the inputs that VALIDATE_INPUTS names, so `early` makes them too, but for lists
of files, which may be newer than the page's.
"""

from __future__ import annotations

from collections.abc import Callable

from .base import Input


def _outside(each: Input, value) -> str | None:
    """What the engine would say of a value that its widget does not offer."""
    kind, options = each.v1()[0], each.options
    if isinstance(kind, list) and not callable(each.kind) and value not in kind:
        return f"{each.name} is one of {', '.join(map(str, kind))}; got {value!r}."
    if kind in ("INT", "FLOAT") and not options["min"] <= float(value) <= options["max"]:
        return f"{each.name} is a number from {options['min']:g} to {options['max']:g}; got {value!r}."
    return None


def early(box, check: Callable[..., object], **values) -> bool | str:
    """What VALIDATE_INPUTS returns: True, or the sentence of the ValueError that check(**values) raises. A value of
    None comes through a wire and is known only later."""
    if any(value is None for value in values.values()):
        return True
    for each in box.INPUTS:
        if each.name in values and (said := _outside(each, values[each.name])):
            return said
    try:
        check(**values)
    except ValueError as error:
        return str(error)
    return True
