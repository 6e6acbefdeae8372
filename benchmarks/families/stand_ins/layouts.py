"""The families: the engine's class for each, and a narrow configuration of its network."""

import importlib

import torch

TEXT = 128  #: width of the text embedding and of the pooled vector
TOKENS = 77

_UNET = {"image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4, "out_channels": 4}
_UNET |= {"model_channels": 32, "context_dim": TEXT, "adm_in_channels": None}
_UNET |= {"use_temporal_attention": False, "use_temporal_resblock": False}
_FOUR = {"channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2}
_FOUR |= {"transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}
_XL = {"channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 10, 10]}
_XL |= {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}
_XL |= {"num_classes": "sequential", "adm_in_channels": TEXT + 6 * 256, "use_linear_in_transformer": True}
_STREAMS = {"vec_in_dim": TEXT, "context_in_dim": TEXT, "hidden_size": 128, "mlp_ratio": 2.0, "num_heads": 4}
_STREAMS |= {"depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "qkv_bias": True, "guidance_embed": True}

#: name -> (class in comfy.supported_models, configuration of the network, attributes of the class beside it)
FAMILIES = {
    "SD1.5": ("SD15", _UNET | _FOUR | {"use_linear_in_transformer": False}, {}),
    "SD2.1-v": ("SD20", _UNET | _FOUR | {"use_linear_in_transformer": True}, {"num_head_channels": 16}),
    "SDXL": ("SDXL", _UNET | _XL, {"num_head_channels": 16}),
    "SDXL-inpaint": ("SDXL", _UNET | _XL | {"in_channels": 9}, {"num_head_channels": 16}),
    "SD3": (
        "SD3",
        {"in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "qk_norm": "rms"}
        | {"adm_in_channels": TEXT, "num_patches": 576, "pos_embed_max_size": 24, "pos_embed_scaling_factor": None}
        | {
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": TEXT, "out_features": 128},
            }
        },
        {},
    ),
    "Flux": (
        "Flux",
        _STREAMS | {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "theta": 10000},
        {},
    ),
    "FLUX.2": (
        "Flux2",
        _STREAMS
        | {"image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "theta": 2000}
        | {"vec_in_dim": None, "axes_dim": [8] * 4, "qkv_bias": False, "ops_bias": False, "txt_ids_dims": [3]}
        | {"global_modulation": True, "mlp_silu_act": True, "default_ref_method": "index", "ref_index_scale": 10.0},
        {},
    ),
    "Chroma": (
        "Chroma",
        {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "patch_size": 2, "theta": 10000}
        | {key: value for key, value in _STREAMS.items() if key not in ("vec_in_dim", "guidance_embed")}
        | {"in_dim": 64, "out_dim": 128, "hidden_dim": 128, "n_layers": 2},
        {},
    ),
    "AuraFlow": (
        "AuraFlow",
        {"dim": 64, "n_layers": 4, "n_double_layers": 2, "n_heads": 4, "global_conddim": 64, "cond_seq_dim": TEXT}
        | {"max_seq": 1024},
        {},
    ),
    "Lumina 2": (
        "Lumina2",
        {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": TEXT, "n_layers": 2}
        | {"n_heads": 3, "n_kv_heads": 1, "qk_norm": True, "axes_dims": [8, 12, 12], "axes_lens": [300, 512, 512]},
        {},
    ),
    "Z-Image": (
        "ZImage",
        {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": TEXT, "n_layers": 2}
        | {"n_heads": 8, "n_kv_heads": 8, "qk_norm": True, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512]}
        | {"rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0}
        | {"pad_tokens_multiple": 32},
        {},
    ),
    "Qwen-Image": (
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "attention_head_dim": 32}
        | {"num_attention_heads": 2, "joint_attention_dim": TEXT, "axes_dims_rope": (8, 12, 12)},
        {},
    ),
    "Wan 2.1": (
        "WAN21_T2V",
        {"image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 256, "num_heads": 2, "num_layers": 2}
        | {"text_dim": TEXT, "in_dim": 16, "out_dim": 16, "freq_dim": 256, "patch_size": (1, 2, 2)},
        {},
    ),
    "PixArt": (
        "PixArtSigma",
        {"image_model": "pixart_sigma", "hidden_size": 64, "num_heads": 4, "depth": 2, "caption_channels": TEXT}
        | {"in_channels": 4, "patch_size": 2, "micro_condition": False, "model_max_length": TOKENS}
        | {"input_size": 64, "pe_interpolation": 1},
        {},
    ),
    "HunyuanDiT": (
        "HunyuanDiT",
        {"image_model": "hydit", "hidden_size": 128, "num_heads": 4, "depth": 4}
        | {"text_states_dim": TEXT, "text_states_dim_t5": TEXT, "text_len": TOKENS, "text_len_t5": 40},
        {},
    ),
    "HunyuanVideo": (
        "HunyuanVideo",
        _STREAMS
        | {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2]}
        | {"theta": 256, "byt5": False, "meanflow": False},
        {},
    ),
    "HiDream": (
        "HiDream",
        {"image_model": "hidream", "attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (16, 8, 8)}
        | {"caption_channels": [TEXT, TEXT], "text_emb_dim": TEXT, "num_layers": 2, "num_single_layers": 2}
        | {"llama_layers": [0, 1, 2, 3], "in_channels": 16, "out_channels": 16, "patch_size": 2}
        | {"max_resolution": [64, 64], "num_routed_experts": 4, "num_activated_experts": 2},
        {},
    ),
}
#: what newer engines ask for beside it: the class of the configuration's names, and the values of an ordinary file
NEWER = {
    "Flux": ("comfy.ldm.flux.model", "FluxParams", {"txt_ids_dims": []}),
    "Chroma": ("comfy.ldm.chroma.model", "ChromaParams", {"txt_ids_dims": [], "vec_in_dim": None}),
    "HunyuanVideo": (
        "comfy.ldm.hunyuan_video.model",
        "HunyuanVideoParams",
        {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False},
    ),
}


def known() -> list[str]:
    """The families that the engine at hand has a class for."""
    import comfy.supported_models as models

    return [name for name, (kind, _, _) in FAMILIES.items() if hasattr(models, kind)]


def newer(name: str) -> dict:
    """What of `NEWER` the engine at hand asks for."""
    if name not in NEWER:
        return {}
    module, params, values = NEWER[name]
    asked = getattr(importlib.import_module(module), params).__dataclass_fields__
    return {key: value for key, value in values.items() if key in asked}


def made_config(name: str, dtype: torch.dtype, throughout: bool = False):
    """The engine's configuration of the family, narrow. throughout: it computes in `dtype` too."""
    import comfy.supported_models as models

    kind, config, attributes = FAMILIES[name]
    made = getattr(models, kind)({**config, **newer(name), "dtype": dtype})
    made.unet_config |= attributes
    made.manual_cast_dtype = None if throughout or dtype == torch.float32 else torch.float32
    return made


def check_recognised(family: str, state: dict) -> None:
    """RuntimeError unless the engine tells the family by the file's keys, as it does for a real checkpoint."""
    import comfy.model_detection

    found = comfy.model_detection.detect_unet_config(state, "")
    if found is None or found.get("image_model") != FAMILIES[family][1].get("image_model"):
        raise RuntimeError(f"The engine takes the keys of {family} for another family's: {found}")
