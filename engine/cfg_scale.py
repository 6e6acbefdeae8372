"""The engine's CFG with a scale that depends on sigma."""

from __future__ import annotations

from collections.abc import Callable


def set_cfg_scale(model, scale: Callable[[float], float]):
    """A clone of the MODEL whose CFG scale is scale(sigma), whatever the sampler's is. A cfg function that is already
    there is kept and gets the scale; else it is uncond + scale (cond - uncond)."""
    before = model.model_options.get("sampler_cfg_function")

    def cfg_function(args: dict):
        k = scale(float(args["sigma"].flatten()[0]))
        if before is not None:
            return before({**args, "cond_scale": k})
        return args["uncond"] + k * (args["cond"] - args["uncond"])  # x - denoised, as the engine wants it

    clone = model.clone()
    clone.set_model_sampler_cfg_function(cfg_function, disable_cfg1_optimization=True)
    return clone
