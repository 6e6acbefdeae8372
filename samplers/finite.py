"""What numbers a tensor holds, read in one pass and without a copy: the tensors of a run may fill a memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def extent(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest of the numbers of a tensor that is not empty; NaN for both where one is NaN."""
    values = values.detach()
    if values.is_floating_point() and values.element_size() == 1:  # torch has no order of float8
        values = values.float()
    return tuple(torch.stack(torch.aminmax(values)).tolist())


def all_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite; empty tensors and those of whole numbers hold none."""
    return not values.is_floating_point() or not values.numel() or all(map(math.isfinite, extent(values)))
