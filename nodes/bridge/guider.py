"""GUIDER objects: the base class that every technique's guider derives from, alike on both engines."""

from __future__ import annotations

import functools

from torch import Tensor

from .engine import get


@functools.cache
def guider_class() -> type:
    """A CFGGuider to derive from. Made on first use, since ComfyUI is imported lazily.

    Override `predict_noise(x, timestep, model_options={}, seed=None) -> D`; x [B, C, ...] in model space, timestep:
    sigma [B]. Any condition lists may be set by name with `inner_set_conds({"positive": ..., "negative": ..., "source":
    ...})`; inside a run they are `self.conds[name]`, ready for the network. `wrap(sampler)` and `sample` may be
    overridden too."""
    samplers = get("samplers")

    class Guider(samplers.CFGGuider):
        def predict(self, x: Tensor, timestep: Tensor, conds: list, model_options: dict) -> list[Tensor]:
            """One prediction D per condition list (a name or a list of the run), batched by the engine as it likes; no
            CFG."""
            lists = [self.conds[c] if isinstance(c, str) else c for c in conds]
            return samplers.calc_cond_batch(self.inner_model, lists, x, timestep, model_options)

        def combine(
            self, cond: Tensor, uncond: Tensor | None, cfg: float, x: Tensor, timestep: Tensor, model_options: dict
        ) -> Tensor:
            """CFG of two predictions by the engine's own function, with the model's cfg and post-cfg patches."""
            return samplers.cfg_function(
                self.inner_model,
                cond,
                cond if uncond is None else uncond,
                cfg,
                x,
                timestep,
                model_options=model_options,
                cond=self.conds.get("positive"),
                uncond=self.conds.get("negative"),
            )

        def sample(self, *args, **kwargs):
            try:
                return super().sample(*args, **kwargs)
            except BaseException:
                # neither engine cleans control nets up after an error
                models, conds = getattr(self, "loaded_models", None), getattr(self, "conds", None)
                if models is not None and conds is not None:
                    get("sampler_helpers").cleanup_models(conds, models)
                raise
            finally:
                for name in ("inner_model", "conds", "loaded_models"):
                    self.__dict__.pop(name, None)

    return Guider


def replace_embedding(conds: list[dict], embedding: Tensor) -> list[dict]:
    """Processed conditions with their text embedding [B or 1, T, D] replaced; everything else is kept.

    ValueError if several conditions stand there: one embedding can't stand for them all."""
    import copy

    if len(conds) != 1:
        raise ValueError(
            "Where a null embedding replaces the negative prompt, that must be one plain prompt: not combined, not "
            "regional."
        )
    out = dict(conds[0])
    text = copy.copy(out["model_conds"]["c_crossattn"])
    text.cond = embedding
    out["model_conds"] = {**out["model_conds"], "c_crossattn": text}
    out["cross_attn"] = embedding
    return [out]
