"""Prompt-to-Prompt's two branches (Hertz et al. 2208.01626) and Direct Inversion's source (Ju et al. 2310.01506).

A source and its edits are denoised side by side; the attention controllers (attention.py, maps.py) let the edits
look at the source. Two ways to have a source:

* from noise: source and edits start from the same x_T, 4 network rows a step (source and edit, each with and without
  its prompt);
* from an inverted image: the source branch is overwritten at every step by the stored trajectory,

      x_src(s_i) <- z*_i,

  which is Direct Inversion with its offset o_i = z*_{i+1} - step(z*_i) written out. The source's own prediction is
  then not needed, only its conditional attention: N calls for the inversion and N x 3 rows for the edit (edit with
  and without prompt, source with prompt). Between two stored levels the trajectory is taken as straight in sigma, as
  an Euler step draws it.

The edits walk as the inversion's pivot comes back (replay.py): Euler steps, an exact pair's two-step rule, or
edit-friendly DDPM's posterior steps (Huberman-Spiegelglas et al. 2304.06140) with the residuals that were recorded. Its
authors replay those in the source's row too, at the source's cfg, which gives the stored levels again: the source need
not be walked there either.

Rows: x is [sources (B), edit 0 (B), edit 1 (B), ...] from noise, without the sources from a trajectory.

Departure: a sampler that isn't ours can't be told to change x after a step; for it, local blend acts on the denoised
prediction (D_tgt <- D_src + mask (D_tgt - D_src)), which holds the background to the source as the steps shrink the
rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import Sigma, expand, step_of
from .indices import at
from .layers import Controller, Moment


class StoredSource:
    """A trajectory [N+1, B, C, ...] at descending `sigmas` [N+1]."""

    def __init__(self, trajectory: Tensor, sigmas: Tensor):
        if len(trajectory) != len(sigmas):
            raise ValueError(f"The trajectory has {len(trajectory)} levels, its schedule {len(sigmas)}.")
        self.trajectory, self.sigmas = trajectory, sigmas

    def _piece(self, sigma: Sigma) -> tuple[int, float]:
        place = step_of(sigma, self.sigmas)
        i = min(int(place), len(self.sigmas) - 2)
        return i, place - i

    def at(self, sigma: Sigma) -> Tensor:
        """x_src [B, C, ...]; a stored level comes back to the bit."""
        i, part = self._piece(sigma)
        if part in (0.0, 1.0):
            return self.trajectory[i + int(part)]
        return torch.lerp(self.trajectory[i], self.trajectory[i + 1], part)

    def denoised(self, sigma: Sigma) -> Tensor:
        """The D with which an Euler step from sigma follows the trajectory."""
        i, _ = self._piece(sigma)
        s, s_next = (float(v) for v in self.sigmas[i : i + 2])
        d = (self.trajectory[i] - self.trajectory[i + 1]) / (s - s_next)
        return self.at(sigma) - expand(torch.as_tensor(sigma).max(), d) * d


class Branches:
    """Which row is what, and what happens between the branches."""

    def __init__(
        self,
        edits: int,
        batch: int,
        controllers: Sequence[Controller],
        sigmas: Tensor,
        stored: StoredSource | None = None,
    ):
        if stored is not None and stored.trajectory.shape[1] not in (1, batch):
            raise ValueError(
                f"The inversion holds {stored.trajectory.shape[1]} images, the latent {batch}: they must be as many."
            )
        self.edits, self.batch, self.controllers = edits, batch, list(controllers)
        self.sigmas, self.stored = sigmas, stored
        #: per target row: its edit and its image
        self.prompt = tuple(e for e in range(edits) for _ in range(batch))
        self.image = tuple(range(batch)) * edits

    def doubled(self, x: Tensor) -> Tensor:
        """[B, ...] (or what does not depend on the image, [1, ...]) for every row of x."""
        x = x.expand(self.batch, *x.shape[1:])
        return torch.cat([x] * (self.edits + (self.stored is None)))

    def split(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """x at sigma -> the sources [B, C, ...], the edits [edits * B, C, ...]."""
        if self.stored is None:
            return x[: self.batch], x[self.batch :]
        return self.stored.at(sigma).to(x).expand(self.batch, *x.shape[1:]), x

    def join(self, source: Tensor, target: Tensor) -> Tensor:
        return torch.cat([source, target]) if self.stored is None else target

    def moment(self, sigma: Sigma) -> Moment:
        sigma = float(torch.as_tensor(sigma).max())
        return Moment(sigma, step_of(sigma, self.sigmas), len(self.sigmas) - 1)

    def between(self, target: Tensor, source: Tensor, moment: Moment) -> Tensor:
        """All controllers' `between_steps` on the edits' rows."""
        source = source[at(self.image, source.device)]
        for controller in self.controllers:
            target = controller.between_steps(target, source, moment, self.prompt, self.image)
        return target

    def after_step(self, x: Tensor, sigma: Sigma, sigma_next: Sigma) -> Tensor:
        """x at sigma_next, after the step that left sigma."""
        source, target = self.split(x, sigma_next)
        return self.join(source, self.between(target, source, self.moment(sigma)))
