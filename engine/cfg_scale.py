"""What enters the engine's CFG: its scale, its conditional branch. A cfg function that is already on the model is kept
and gets what was changed; else the result is uncond + scale (cond - uncond)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def set_cfg_scale(model, scale: Callable[[float], float]):
    """A clone of the MODEL whose CFG scale is scale(sigma), whatever the sampler's is."""
    return _patched(model, lambda args, sigma: {"cond_scale": scale(sigma)})


def patch_cond(model, change: Callable[[Tensor, Tensor, float], Tensor]):
    """A clone of the MODEL whose conditional branch becomes change(cond, uncond, sigma) before CFG.

    Both are x - D, sigma times the noise prediction (VE), [B, C, ...]."""

    def changed(args: dict, sigma: float) -> dict:
        cond = change(args["cond"], args["uncond"], sigma)
        return {"cond": cond, "cond_denoised": args["input"] - cond}

    return _patched(model, changed)


def _patched(model, change: Callable[[dict, float], dict]):
    before = model.model_options.get("sampler_cfg_function")

    def cfg_function(args: dict):
        args = {**args, **change(args, float(args["sigma"].flatten()[0]))}
        if before is not None:
            return before(args)
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])  # x - D, as the engine wants it

    clone = model.clone()
    clone.set_model_sampler_cfg_function(cfg_function, disable_cfg1_optimization=True)
    return clone
