"""A training step that goes along a sampling walk: one optimiser step at each of its levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")
Losses = dict[str, Tensor]


class Walks(Generic[State]):
    """A training step for `Loop` that goes along a sampling walk: one optimiser step at each of `steps` levels.

    begin(generator) -> the state at the first level; advance(state, i) -> (losses, the next state, detached). Between
    two walks (`between`) the step carries nothing but the generator: there a run may be saved and taken up again."""

    def __init__(
        self,
        steps: int,
        begin: Callable[[torch.Generator], State],
        advance: Callable[[State, int], tuple[Losses, State]],
    ):
        self.steps, self._begin, self._advance = steps, begin, advance
        self._at, self._state = 0, None

    @property
    def between(self) -> bool:
        return self._at == 0

    def __call__(self, generator: torch.Generator) -> Losses:
        state = self._begin(generator) if self.between else self._state
        losses, after = self._advance(state, self._at)
        self._state, self._at = after, (self._at + 1) % self.steps
        return losses
