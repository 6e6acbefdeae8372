"""One cell a node that takes a MODEL: the graphs that run it on a family, and the law that its results must keep.

A cell is a generator: it yields graphs, is given what each left behind, and returns what held, in a few words. A law
that does not hold is a `LawBroken`.
"""

from __future__ import annotations

import importlib

from ..graphs import CELLS

__all__ = ["CELLS"]

#: in the order of README's table
for _part in ("inversion", "picture", "guidance", "cartoon", "attention", "h_space", "training"):
    importlib.import_module(f"{__name__}.{_part}")
