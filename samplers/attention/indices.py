"""Rows and columns as indices on the device that uses them.

Making a tensor from a Python list waits for the GPU, and the layers of one network call ask for the same few lists
hundreds of times: each is sent once and kept. Numbers alone are kept, a few kilobytes in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def constant(values: Sequence[int] | Sequence[bool], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """The values as a tensor that nobody writes to; asked for again, it is the same one."""
    return _sent(tuple(values), device, dtype)


@lru_cache(maxsize=1024)
def _sent(values: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # the next to ask may be outside of it
        return torch.tensor(values, device=device, dtype=dtype)


def at(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """Rows as an index; neighbours as a slice, which copies nothing."""
    if all(b == a + 1 for a, b in zip(rows, rows[1:])):
        return slice(rows[0], rows[-1] + 1)
    return constant(rows, device)
