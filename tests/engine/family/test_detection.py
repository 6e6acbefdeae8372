"""Every model is detected as itself; the family and its folder are registered once."""

import pytest
import torch
from nulltext.demo import weights


def unet_like(**config):
    """State dict of shapes (no memory) of an SD-like UNet."""
    from comfy import ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    base = {"image_size": 32, "in_channels": 4, "out_channels": 4, "num_res_blocks": [2, 2, 2, 2]}
    base |= {"channel_mult": [1, 2, 4, 4], "model_channels": 320, "num_heads": 8, "num_head_channels": -1}
    base |= {"use_spatial_transformer": True, "legacy": False, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0]}
    base |= {"transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "context_dim": 768}
    net = UNetModel(**{**base, "dtype": torch.float32, **config}, device="meta", operations=ops.disable_weight_init)
    return {"model.diffusion_model." + key: value for key, value in net.state_dict().items()}


SDXL = {"context_dim": 2048, "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential"}
SDXL |= {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10]}
SDXL |= {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}
DEMO = {"model_channels": 64, "context_dim": 128, "channel_mult": [1, 2, 2], "num_res_blocks": [1, 1, 1]}
DEMO |= {"num_heads": 4, "transformer_depth": [1, 1, 0], "transformer_depth_output": [1, 1, 1, 1, 0, 0]}
INPAINTING = {"context_dim": 768, "in_channels": 9}


@pytest.mark.parametrize(
    "name, config",
    [
        *(("SD15", {}), ("SD15", INPAINTING), ("SDXL", SDXL), ("Demo", DEMO)),
        ("NoneType", {**DEMO, "model_channels": 96}),
    ],
)
def test_every_model_is_detected_as_itself(core, name, config):
    from comfy import model_detection

    found = model_detection.model_config_from_unet(unet_like(**config), "model.diffusion_model.")
    assert type(found).__name__ == name


def test_family_is_registered_once_and_last(core):
    import nulltext.engine.demo_family as family
    from comfy import supported_models

    assert family.register() is False
    ours = [model for model in supported_models.models if getattr(model, "nulltext_family", None) == family.NAME]
    assert ours == [family.family(), family.bottleneck_family()] == supported_models.models[-2:]
    for made in ours:
        config = {**made.unet_config, "in_channels": 4, "out_channels": 4}
        assert [model for model in supported_models.models if model.matches(config)] == [made]


def test_models_folder_is_searched(core, engine):
    import nulltext.engine.demo_family as family

    searched = engine.get("folder_paths").get_folder_paths
    assert searched("checkpoints").count(str(family.CHECKPOINTS)) == 1
    assert searched("unet").count(str(family.NETWORKS)) == 1
    assert weights.CHECKPOINT.parent == family.CHECKPOINTS
