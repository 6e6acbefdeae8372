"""A run's own latents by noise level, for a technique that looks back at where the run came from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import NoiseProcess, Sigma, repeated


class History:
    """The latents of a run by sigma. A repeated sigma overwrites (Heun); where the run climbs back (RePaint), what it
    had reached below is forgotten, and what lies above stays. `restart` says that a new run begins. A loop may ask for
    its batch several times in one call, [b1 b2 b1 b2], in some steps: the latents are kept for as many rows."""

    def __init__(self):
        self.entries: list[tuple[float, Tensor]] = []  # sigma falling

    def record(self, sigma: Sigma, x: Tensor) -> None:
        """Keep x [B, C, ...] as the latent at sigma."""
        s = float(torch.as_tensor(sigma).max())
        if self.entries and x.shape != self.entries[-1][1].shape:
            self.entries = [(e, rows) for e, old in self.entries if (rows := _for_rows_of(x, old)) is not None]
        self.entries = [e for e in self.entries if e[0] > s * (1 + 1e-6)]
        self.entries.append((s, x.detach().clone()))

    def restart(self) -> None:
        """Forget everything: a new run begins."""
        self.entries.clear()

    def at(self, sigma: float, reference: Tensor | None, process: NoiseProcess) -> tuple[float, Tensor]:
        """(sigma reached, latent) at that level, interpolated linearly in sigma.

        Above the run's first level: from the reference [B, C, ...] and the first latent's noise; without one, the
        first."""
        first, x_first = self.entries[0]
        if sigma > first:
            if reference is None:
                return first, x_first
            a, a_old = (float(process.signal(torch.tensor(s, dtype=torch.float64))) for s in (first, sigma))
            return sigma, a_old * reference + sigma * (x_first - a * reference) / first
        for (high, x_high), (low, x_low) in zip(self.entries, self.entries[1:]):
            if low <= sigma:
                weight = (high - sigma) / (high - low)
                return sigma, x_high + weight * (x_low - x_high)
        return self.entries[-1]


def _for_rows_of(x: Tensor, batch: Tensor) -> Tensor | None:
    """The batch again and again for the rows of x, or its first; None for other pictures."""
    few, many = sorted((len(x), len(batch)))
    if x.shape[1:] != batch.shape[1:] or many % few:
        return None
    return batch[:few] if few == len(x) else repeated(batch, many // few).expand_as(x)
