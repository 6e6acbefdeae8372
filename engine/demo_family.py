"""The demo model's family, so that ComfyUI's own loader, LoRA and ControlNet nodes find what they expect.

Stable Diffusion 1's file layout at another size: UNet 64 channels, context 128; TAESD; CLIP text 2 x 128 over a
vocabulary in the file. Two more entries of the file travel with the weights: `v_pred` (an empty tensor, the engines'
own mark of v-prediction; without it the net predicts eps) and `latent_rgb_factors` [4, 3] for previews.
"""

from __future__ import annotations

import functools
from pathlib import Path

from . import comfy
from .demo_text import text_target

__all__ = ["NAME", "CHECKPOINTS", "family", "register"]

NAME = "nulltext_demo"
#: a folder of its own: ComfyUI lists whatever lies in a checkpoint folder, probes and classifiers too
MODELS = Path(__file__).resolve().parents[1] / "models"
CHECKPOINTS, NETWORKS, CONTROLS = MODELS / "checkpoints", MODELS / "diffusion_models", MODELS / "controlnet"
TOKEN_IDS = "cond_stage_model.transformer.text_model.embeddings.token_ids"


@functools.cache
def family():
    """The supported_models class, on the engine's own SD15 (its renaming of text keys and its saving)."""
    formats, kinds = comfy.get("latent_formats"), comfy.get("model_base").ModelType

    class DemoLatent(formats.LatentFormat):
        scale_factor = 0.18215

    class Demo(comfy.get("supported_models").SD15):
        nulltext_family = NAME
        unet_config = {
            "model_channels": 64,
            "context_dim": 128,
            "channel_mult": [1, 2, 2],
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
            "use_temporal_attention": False,
        }
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
        latent_format = DemoLatent
        # SD1's scaled-linear betas with a larger end (sigma_max 66, not 15): no colour is left to read in pure noise
        sampling_settings = {"linear_start": 0.00085, "linear_end": 0.02}

        def model_type(self, state_dict, prefix=""):
            return kinds.V_PREDICTION if "v_pred" in state_dict else kinds.EPS

        def get_model(self, state_dict, prefix="", device=None):
            if "latent_rgb_factors" in state_dict:
                self.latent_format.latent_rgb_factors = state_dict["latent_rgb_factors"].tolist()
            model = super().get_model(state_dict, prefix, device)
            if not prefix:  # a file of the UNet alone: the loader takes what stays in it for the UNet's own
                for key in ("latent_rgb_factors", "v_pred"):
                    state_dict.pop(key, None)
            return model

        def clip_target(self, state_dict):
            if TOKEN_IDS not in state_dict:
                raise ValueError(
                    "This checkpoint has the demo model's shape but no vocabulary (token_ids): "
                    "write it with demo/weights.py."
                )
            return text_target(state_dict[TOKEN_IDS])

    return Demo


@functools.cache
def bottleneck_family():
    """The second UNet's: narrower, four times the width at 4 x 4, attention there alone (demo/nets.py, BOTTLENECK)."""

    class DemoBottleneck(family()):
        unet_config = {**family().unet_config, "model_channels": 32, "channel_mult": [1, 2, 4]}

    return DemoBottleneck


def register() -> bool:
    """Add the family's models and the pack's folders of them to ComfyUI; True if this call did it, False if it was done
    before.

    They come last in the engine's list, where the first match wins: no other model is ever taken for one."""
    known = comfy.get("supported_models").models
    if any(getattr(model, "nulltext_family", None) == NAME for model in known):  # by this copy of the pack or another
        return False
    known += [family(), bottleneck_family()]
    for kind, folder in (("checkpoints", CHECKPOINTS), ("unet", NETWORKS), ("controlnet", CONTROLS)):
        comfy.get("folder_paths").add_model_folder_path(kind, str(folder))
    return True
