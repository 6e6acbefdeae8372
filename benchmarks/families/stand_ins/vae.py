"""A tiny VAE."""

import torch

from .weights import draw


def _taesd(channels: int):
    import comfy.taesd.taesd

    try:
        return comfy.taesd.taesd.TAESD(latent_channels=channels)
    except TypeError:
        return comfy.taesd.taesd.TAESD()


def _wide(ins: int, outs: int):
    made = torch.nn.Conv2d(ins, outs, 3, padding=1)
    return draw(made)


class Vae:
    """A tiny VAE of random weights for the MODEL: TAESD's layout, or Wan's for latents with frames."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("VAE",), "make", "families"

    def make(self, model):
        import comfy.sd

        form = model.get_model_object("latent_format")
        channels = form.latent_channels
        vae = comfy.sd.VAE(sd=draw(_taesd(channels)).state_dict())
        made = vae.first_stage_model
        if made.taesd_encoder[-1].out_channels != channels:  # an older engine's is of four channels
            made.taesd_encoder[-1], made.taesd_decoder[1] = _wide(64, channels), _wide(channels, 64)
            vae.latent_channels = channels
        if getattr(form, "spacial_downscale_ratio", 8) == 16:
            made.taesd_encoder.append(torch.nn.AvgPool2d(2))
            made.taesd_decoder.append(torch.nn.Upsample(scale_factor=2))
            vae.downscale_ratio = vae.upscale_ratio = 16
        if getattr(form, "latent_dimensions", 2) == 3:
            import math

            import comfy.ldm.wan.vae

            narrow = {"dim": 16, "z_dim": channels, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": []}
            made = comfy.ldm.wan.vae.WanVAE(**narrow, temperal_downsample=[False, True, True], dropout=0.0)
            vae.latent_dim, vae.first_stage_model = 3, draw(made).eval()
            vae.upscale_ratio = (lambda a: max(0, a * 4 - 3), 8, 8)
            vae.upscale_index_formula = vae.downscale_index_formula = (4, 8, 8)
            vae.downscale_ratio = (lambda a: max(0, math.floor((a + 3) / 4)), 8, 8)
            vae.memory_used_encode = vae.memory_used_decode = lambda shape, dtype: 1e6
            vae.patcher = type(vae.patcher)(made, vae.patcher.load_device, vae.patcher.offload_device)
            made.to(vae.vae_dtype)
        return (vae,)
