"""What a loop of network calls should cost: calls counted by their batch, single calls timed in the same run.

A call's time depends on its rows, and null-text's batches shrink as images finish; so single calls are timed at one row
and at the whole batch, and read off the line between the two."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...samplers.inversion.corrections import Net


class Meter:
    """A network that notes the rows of every call and of every backward through it, and the wall time of a block."""

    def __init__(self, net: Net):
        self.net, self.forwards, self.backwards, self.seconds = net, [], [], 0.0

    def __call__(self, x: Tensor, sigma, embedding: Tensor) -> Tensor:
        self.forwards.append(len(x))
        if embedding.requires_grad:
            embedding.register_hook(lambda gradient: self.backwards.append(len(gradient)))
        return self.net(x, sigma, embedding)

    @property
    def rows(self) -> int:
        """Of all forwards."""
        return sum(self.forwards)

    def forget(self) -> None:
        """Count anew."""
        self.forwards, self.backwards, self.seconds = [], [], 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class Costs:
    """Median wall times of one forward and of one backward to the embedding, by rows."""

    def __init__(self, repeats: int = 3):
        self.repeats = repeats
        self.forward: dict[int, list[float]] = {}
        self.backward: dict[int, list[float]] = {}

    def measure(self, net: Net, x: Tensor, embedding: Tensor, sigmas: Tensor) -> None:
        """Time calls at one row and at all of x's, at a middle sigma; may be called again to follow a machine's drift.

        The forward is timed without gradients. What recording them adds counts as the loop's own time."""
        sigma = sigmas[len(sigmas) // 2]
        for rows in {1, len(x)}:
            part = x[:rows] + sigma * torch.ones_like(x[:rows])
            for repeat in range(self.repeats + 1):
                leaf = embedding[:rows].detach().clone()
                times = [time.perf_counter()]
                net(part, sigma, leaf)
                times.append(time.perf_counter())
                leaf.requires_grad_()
                loss = net(part, sigma, leaf).square().sum()
                times.append(time.perf_counter())
                torch.autograd.grad(loss, leaf)
                times.append(time.perf_counter())
                if repeat:  # the first warms up
                    self.forward.setdefault(rows, []).append(times[1] - times[0])
                    self.backward.setdefault(rows, []).append(times[3] - times[2])

    def of(self, kind: str, rows: int) -> float:
        """Seconds of one "forward" or "backward" call at `rows`, on the line through the sizes that were timed."""
        medians = {k: statistics.median(v) for k, v in getattr(self, kind).items()}
        low, high = min(medians), max(medians)
        share = (rows - low) / (high - low) if high > low else 0.0
        return medians[low] + share * (medians[high] - medians[low])

    def expected(self, meter: Meter) -> float:
        """Seconds that the calls a meter noted would take by themselves."""
        return sum(self.of("forward", rows) for rows in meter.forwards) + sum(
            self.of("backward", rows) for rows in meter.backwards
        )
