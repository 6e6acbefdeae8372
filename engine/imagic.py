"""Imagic's third part in ComfyUI: sampling between two texts, with tuned factors of any strength in a window of
sigma."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..samplers.tuning.imagic import interpolate
from ..samplers.window import ALWAYS, SigmaWindow
from .guider import guider_class
from .mixing import changes_to, laid_on
from .shared_noise import with_shared_noise


def plain(conditioning: list, name: str) -> tuple[Tensor, dict]:
    """(embedding [1, T, D], the rest) of a CONDITIONING. ValueError unless it is one plain prompt of one row."""
    if len(conditioning) != 1 or conditioning[0][0].shape[0] != 1:
        raise ValueError(f"The {name} prompt must be one plain prompt: not combined with another, not regional.")
    return conditioning[0]


def between(target: list, optimised: list | None, etas: Sequence[float]) -> list:
    """A CONDITIONING with a row for each eta: the optimised text at 0, the target at 1. Pooled vectors likewise."""
    embedding, extra = plain(target, "target")
    if optimised is None:
        return [[embedding.expand(len(etas), -1, -1), dict(extra)]]
    other, other_extra = plain(optimised, "optimised")
    with torch.no_grad():
        rows = torch.cat([interpolate(embedding, other.to(embedding), eta) for eta in etas])
        pooled, other_pooled = (e.get("pooled_output") for e in (extra, other_extra))
        if pooled is not None and other_pooled is not None:
            parts = [interpolate(pooled, other_pooled.to(pooled), eta) for eta in etas]
            extra = {**extra, "pooled_output": torch.cat(parts)}
    return [[rows, dict(extra)]]


@functools.cache
def _class() -> type:
    class ImagicGuider(guider_class()):
        def prepare(self, changes, strength: float, window: SigmaWindow, rows: int, cfg: float):
            self.changes, self.strength, self.window, self.rows = changes, strength, window, rows
            self.now = float("inf")
            self.set_cfg(cfg)

        def _strength(self) -> float:
            return self.strength if self.now in self.window else 0.0

        def sample(self, noise, latent_image, sampler, *args, **kwargs):
            if self.rows > 1:
                if len(noise) != 1:
                    raise ValueError(f"A strip over {self.rows} values of eta needs one latent; got {len(noise)}.")
                noise = noise.repeat(self.rows, *[1] * (noise.ndim - 1))
                latent_image = latent_image.repeat(self.rows, *[1] * (latent_image.ndim - 1))
                sampler = with_shared_noise(sampler, 1, lambda x: x.repeat(self.rows, *[1] * (x.ndim - 1)))
            with laid_on(self.model_patcher, self.changes, self._strength):
                return super().sample(noise, latent_image, sampler, *args, **kwargs)

        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the engine's signature)
            self.now = float(timestep.max())
            return self.guided(
                x, timestep, self.conds["positive"], self.conds["negative"], self.cfg, model_options, seed
            )

    return ImagicGuider


def imagic_guider(
    model,
    lora: Mapping[str, Tensor] | None,
    target: list,
    optimised: list | None,
    negative: list,
    cfg: float,
    etas: Sequence[float],
    strength: float = 1.0,
    window: SigmaWindow = ALWAYS,
):
    """GUIDER that samples at e(eta) with the LoRA at `strength` wherever sigma lies in `window`.

    Several etas: one latent becomes as many rows with the same noise, a text for each. lora None: the model as it is.
    Its `notices` are sentences on what is not as it was in the LoRA's training.
    ValueError for prompts that aren't single, a LoRA of another model, no eta."""
    if not etas:
        raise ValueError("There is no eta: write at least one number, 0.7 for one.")
    changes, notices = ([], []) if lora is None else changes_to(model, lora)
    guider = _class()(model)
    guider.notices = notices
    guider.prepare(changes, strength, window, len(etas), cfg)
    guider.inner_set_conds({"positive": between(target, optimised, etas), "negative": negative})
    return guider
