"""Guidance in the engine's run: GUIDER objects, alike on both engines, and CFG changed on a MODEL."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..samplers.core import apply_cfg
from ..samplers.inversion.record import Inversion
from ..samplers.inversion.replay import null_embedding_at
from .comfy import get
from .gate import check_run
from .interrupts import heard
from .rows import NULLS
from .sampler import begin_with, is_euler, is_own, sampler_name


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
            nulls = tuple(i for i, c in enumerate(conds) if c == "negative")
            transformer = {**model_options.get("transformer_options", {}), NULLS: nulls}
            options = {**model_options, "transformer_options": transformer}
            return samplers.calc_cond_batch(self.inner_model, lists, x, timestep, options)

        def guided(self, x: Tensor, timestep: Tensor, positive, negative, cfg: float, options: dict, seed) -> Tensor:
            """The engine's own guided D of two of the run's condition lists; at cfg 1 the negative is not asked."""
            given = {"model_options": options, "seed": seed}
            return samplers.sampling_function(self.inner_model, x, timestep, negative, positive, cfg, **given)

        def before_cfg(self, cond: Tensor, uncond: Tensor | None, x: Tensor, timestep: Tensor, options: dict):
            """(cond, uncond) after the model's pre-cfg patches (APG), which the engine applies ahead of `combine`."""
            conds = [self.conds.get("positive"), None if uncond is None else self.conds.get("negative")]
            told = {"conds": conds, "cond_scale": self.cfg, "timestep": timestep, "sigma": timestep, "input": x}
            told |= {"model": self.inner_model, "model_options": options}
            out = [cond, torch.zeros_like(cond) if uncond is None else uncond]
            for patch in options.get("sampler_pre_cfg_function", []):
                out = patch({**told, "conds_out": out})
            return out[0], None if uncond is None else out[1]

        def combine(self, cond: Tensor, uncond: Tensor | None, x: Tensor, timestep: Tensor, options: dict) -> Tensor:
            """CFG of two predictions by the engine's own function, with the model's cfg and post-cfg patches."""
            lists = {"cond": self.conds.get("positive"), "uncond": self.conds.get("negative")}
            uncond = cond if uncond is None else uncond
            return samplers.cfg_function(
                self.inner_model, cond, uncond, self.cfg, x, timestep, model_options=options, **lists
            )

        def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
            check_run(latent_image, sigmas, noise)
            try:
                with heard(self.model_patcher.model.diffusion_model):
                    return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
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


def set_cfg_scale(model, scale: Callable[[float], float]):
    """A clone of the MODEL whose CFG scale is scale(sigma), whatever the sampler's is."""
    return _patch_cfg(model, lambda args, sigma: {"cond_scale": scale(sigma)})


def patch_cond(model, change: Callable[[Tensor, Tensor, float], Tensor]):
    """A clone of the MODEL whose conditional branch becomes change(cond, uncond, sigma) before CFG.

    Both are x - D, sigma times the noise prediction (VE), [B, C, ...]."""

    def changed(args: dict, sigma: float) -> dict:
        cond = change(args["cond"], args["uncond"], sigma)
        return {"cond": cond, "cond_denoised": args["input"] - cond}

    return _patch_cfg(model, changed)


def _patch_cfg(model, change: Callable[[dict, float], dict]):
    """A cfg function that is already on the model is kept and gets what was changed; else it is ordinary CFG.

    Where no negative is asked the engine calls it all the same, with zeros for the negative's D: nothing is changed."""
    before = model.model_options.get("sampler_cfg_function")

    def cfg_function(args: dict):
        if not args["uncond_denoised"].any():
            return args["cond"] if before is None else before(args)
        args = {**args, **change(args, float(args["sigma"].flatten()[0]))}
        if before is not None:
            return before(args)
        return apply_cfg(args["cond"], args["uncond"], args["cond_scale"])  # of x - D, as the engine wants it

    clone = model.clone()
    clone.set_model_sampler_cfg_function(cfg_function, disable_cfg1_optimization=True)
    return clone


def patch_denoised(model, change: Callable[[Tensor, float], Tensor]):
    """A clone of MODEL whose guided prediction D [B, C, ...] at sigma becomes change(D, sigma); such patches stack."""
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: change(args["denoised"], float(args["sigma"].max())))
    return patched


def filled_like(before: Tensor, embedding: Tensor) -> Tensor:
    """The text embedding [B, T, D] that takes the place of `before`, filled with zeros in front where the engine has
    filled that one so: FLUX.2's short texts."""
    missing = before.shape[1] - embedding.shape[-2]
    if missing <= 0 or bool(before[:, :missing].any()):
        return embedding
    return torch.nn.functional.pad(embedding, (0, 0, missing, 0))


def replace_embedding(conds: list[dict], embedding: Tensor) -> list[dict]:
    """Processed conditions with their text embedding [B or 1, T, D] replaced; everything else is kept.

    ValueError if several conditions stand there: one embedding can't stand for them all."""
    if len(conds) != 1:
        raise ValueError(
            "Where a null embedding replaces the negative prompt, that must be one plain prompt, and no prompt may "
            "have an area of its own, which ComfyUI gives the negative one too: use a mask."
        )
    out = dict(conds[0])
    text = copy.copy(out["model_conds"]["c_crossattn"])
    text.cond = embedding = filled_like(text.cond, embedding)
    out["model_conds"] = {**out["model_conds"], "c_crossattn": text}
    out["cross_attn"] = embedding
    return [out]


@functools.cache
def null_text_guider_class() -> type:
    """The guider behind `null_text_guider`."""

    class NullTextGuider(guider_class()):
        def __init__(self, model, inversion: Inversion, cfg: float):
            super().__init__(model)
            self.inversion = inversion
            self.set_cfg(cfg)

        def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
            check_way_back(self.inversion, sampler, sigmas)
            return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the engine's signature)
            embedding = null_embedding_at(self.inversion, timestep.max())
            negative = self.conds.get("negative")
            if embedding is not None and negative is not None:
                if len(x) % len(embedding):
                    raise ValueError(
                        f"The inversion holds {len(embedding)} images, and {len(x)} are sampled: use its own latent."
                    )
                negative = replace_embedding(negative, embedding.to(x))
            return self.guided(x, timestep, self.conds["positive"], negative, self.cfg, model_options, seed)

    return NullTextGuider


def null_text_guider(model, inversion: Inversion, positive: list, negative: list | None, cfg: float):
    """GUIDER at `cfg` (`cfg_of` of samplers/inversion/replay.py) whose null branch is the inversion's embedding of each
    step, the negative prompt where it has none. At cfg 1 the null branch is not asked."""
    guider = null_text_guider_class()(model, inversion, cfg)
    guider.inner_set_conds({"positive": positive, **({} if negative is None else {"negative": negative})})
    return guider


def refuse_if_exact(inversion: Inversion, sampler) -> None:
    """ValueError for pivots that come back by a sampler of their own, for `sampler` is another."""
    if inversion.kind.needs:
        raise ValueError(
            f"An inversion by {inversion.pivot.replace('_', ' ')} has its own way back, and the sampler "
            f"{sampler_name(sampler)} is another: wire the sampler of Inversion Parts."
        )


def first_level(inversion: Inversion, sigmas: Tensor) -> int:
    """The inversion's level that a run over `sigmas` starts at. ValueError if the schedule is another one."""
    first = inversion.steps + 1 - len(sigmas)
    if first < 0 or not begin_with(sigmas, inversion.sigmas[first:]):
        raise ValueError(
            f"The sigmas are not the inversion's ({inversion.steps} steps from {float(inversion.sigmas[0]):.4g}):"
            " wire the SIGMAS of Inversion Parts to the sampler."
        )
    return first


def check_way_back(inversion: Inversion, sampler, sigmas: Tensor) -> None:
    """ValueError unless this SAMPLER on these SIGMAS walks the inversion's own grid back."""
    if is_own(sampler):
        return
    refuse_if_exact(inversion, sampler)
    if not is_euler(sampler):
        raise ValueError(
            f"The sampler {sampler_name(sampler)} does not walk the steps of this inversion back: use euler, or the "
            "sampler of Inversion Parts."
        )
    first_level(inversion, sigmas)
