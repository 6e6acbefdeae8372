"""Changes what the guided denoiser returns (the post-cfg list, which stacks)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def patch_denoised(model, change: Callable[[Tensor, float], Tensor]):
    """A clone of MODEL whose guided prediction D [B, C, ...] at sigma becomes change(D, sigma)."""
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: change(args["denoised"], float(args["sigma"].max())))
    return patched
