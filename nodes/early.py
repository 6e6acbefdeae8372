"""Mistakes that the widgets alone tell: said when a workflow is queued, before any node of it runs.

    @classmethod
    def VALIDATE_INPUTS(cls, more_levels=None):
        return early(cls, lambda more_levels: words.fractions(more_levels, "noise levels"), more_levels=more_levels)

The engine leaves its own checks out for the inputs that VALIDATE_INPUTS names, so `early` makes them too, but for lists
of files, which may be newer than the page's.
"""

from __future__ import annotations

from collections.abc import Callable

from ..engine.gate import short


def early(box, check: Callable[..., object], **values) -> bool | str:
    """What VALIDATE_INPUTS returns: True, or the sentence of the ValueError that check(**values) raises. A value of
    None comes through a wire and is known only later."""
    if any(value is None for value in values.values()):
        return True
    try:
        for each in box.INPUTS:
            if each.name in values:
                each.checked(values[each.name])
        check(**values)
    except ValueError as error:
        return short(str(error))
    return True
