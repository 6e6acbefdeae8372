"""Tiny stand-ins of the model families, as nodes of the server that `make families` starts.

A module of its own in that server's custom_nodes/, so it imports nothing of the pack. Each network is the engine's own
class for the family, so that its checkpoint has the family's real keys; widths and depths are small, weights random.
The file is written into the temporary tree's models/diffusion_models and loaded from there. Every text is 128 wide, so
that the demo checkpoint's text encoder serves all of them.
"""

import importlib
import os

import torch
from safetensors.torch import load_file, save_file

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
LAST = ("out.2", "final_layer.linear", "final_linear", "proj_out", "head.head")
#: int8: quantised layers that unpack their weights in every call, as GGUF files are run. All but those "throughout"
#: compute in fp32, as the engine does on a CPU; throughout: in the weights' own precision, as it does on a GPU;
#: streamed: as newer engines' dynamic VRAM has them
WEIGHTS = ["float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "float16 throughout", "bfloat16 throughout"]
WEIGHTS += ["streamed"]


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


def draw(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights that keep activations near one, in place: the engine leaves them as the memory was."""
    generator = torch.Generator().manual_seed(0)
    for key, value in module.state_dict().items():
        if not value.is_floating_point() or key in ("vae_scale", "vae_shift"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1 and not key.endswith("gamma"):
            value.copy_(noise * value[0].numel() ** -0.5)
        else:
            value.copy_(noise * 0.02 + (1.0 if key.endswith(("weight", "scale", "gamma")) else 0.0))
    return module


def quieten(state: dict) -> None:
    """A quiet network, whose steps an inversion can follow; in place."""
    for key in LAST:
        if f"{key}.weight" in state:
            state[f"{key}.weight"] *= 0.2


def write(name: str, path: str) -> None:
    """A checkpoint of the family with random weights that keep activations near one."""
    state = draw(made_config(name, torch.float32).get_model({}, "", device="cpu").diffusion_model).state_dict()
    if name == "SD2.1-v":  # what the engine tells v-prediction by
        key = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
        state[key] = torch.randn(state[key].shape, generator=torch.Generator().manual_seed(1)) * 0.2
    quieten(state)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def _models() -> str:
    import folder_paths

    root = getattr(folder_paths, "models_dir", None) or os.path.join(os.getcwd(), "models")
    return os.path.join(root, "diffusion_models")


class Model:
    """MODEL of a family: its file, written where it is not there yet, in weights of a chosen precision."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": (known(),), "weights": (WEIGHTS,)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", "families"
    folder = None  #: where the files lie; None: the server's models/diffusion_models

    def load(self, family, weights):
        import comfy.model_management as management
        import comfy.model_patcher

        precision, _, throughout = weights.partition(" ")
        dtype = torch.float32 if weights in ("int8", "streamed") else getattr(torch, precision)
        model = self.model(family, dtype, bool(throughout))
        if weights == "int8":
            quantise(model.diffusion_model)
        devices = management.get_torch_device(), management.unet_offload_device()
        if weights == "streamed":
            return (streamed(model, devices, lambda: self.model(family, dtype, False)),)
        return (comfy.model_patcher.ModelPatcher(model, *devices),)

    def model(self, family: str, dtype: torch.dtype, throughout: bool):
        """The engine's model with the weights of the family's file."""
        path = os.path.join(self.folder or _models(), f"{family}.safetensors")
        if not os.path.exists(path):
            write(family, path)
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in load_file(path).items()}
        check_recognised(family, state)
        model = made_config(family, dtype, throughout).get_model(state, "", device="cpu")
        model.load_model_weights(state, "")
        return model


def streamed(model, devices, again):
    """A patcher that says it streams its weights, as newer engines' own does, which needs a graphics card: they are
    marked, and only the patcher of `clone(disable_dynamic=True)`, on the model of `again`, has others."""
    from comfy.model_patcher import ModelPatcher

    class Streamed(ModelPatcher):
        def is_dynamic(self):
            return True

        def clone(self, disable_dynamic=False, **more):
            if hasattr(ModelPatcher, "is_dynamic"):
                return super().clone(disable_dynamic, **more)
            other = super().clone()  # an engine that streams nothing
            other.__class__ = ModelPatcher if disable_dynamic else Streamed
            if disable_dynamic:
                fresh = ModelPatcher(again(), *devices)
                other.model, other.backup, other.object_patches_backup = fresh.model, {}, {}
            return other

        def loaded_ram_size(self):
            return 0

        def set_in_use_by_current_prompt(self, in_use):
            pass

    for module in model.modules():
        if module._parameters:
            module._v = (0, 0, 0)
    model.dynamic_pins = {devices[0]: {"active": False}}
    made = Streamed(model, *devices)
    made.cached_patcher_init = (lambda disable_dynamic=False: ModelPatcher(again(), *devices), ())
    return made


class Int8Linear(torch.nn.Module):
    """A linear layer of whole numbers and one scale."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach().abs().max() / 127
        self.weight = torch.nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def quantise(network) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, Int8Linear(child))


class Patched:
    """The MODEL with a weight patch on one layer of its network, as a LoRA loader leaves it."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "seed": ("INT", {"default": 0, "min": 0, "max": 64})}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "families"

    def patch(self, model, seed):
        layers = {name: value for name, value in model.model.named_parameters() if value.ndim == 2 and "blocks" in name}
        name, value = sorted(layers.items())[0]
        change = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)) * value.shape[1] ** -0.5
        other = model.clone()
        other.add_patches({name: (0.1 * change,)})
        return (other,)


class Control:
    """CONDITIONING under a ControlNet that adds the same residual to every picture: to a UNet's middle, or to the
    pictures' tokens behind a transformer's first block (of networks that know control; others leave it out)."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "conditioning": ("CONDITIONING",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "control", "families"

    def control(self, model, conditioning):
        import comfy.controlnet

        network, generator = model.model.diffusion_model, torch.Generator().manual_seed(11)
        if hasattr(network, "middle_block"):
            place, shape = "middle", (1, network.middle_block[-1].out_channels, 1, 1)
        else:
            layers = dict(network.named_modules())
            last = next(name for name in LAST if name in layers)
            place = "input" if last == "proj_out" else "output"  # where Qwen-Image looks, and where the others do
            shape = (1, 1, layers[last].in_features)
        residual = torch.randn(shape, generator=generator)

        class Same(comfy.controlnet.ControlBase):
            def get_control(self, x_noisy, *_):
                return {"input": [], "middle": [], "output": [], place: [residual.to(x_noisy, copy=True)]}

        more = {"control": Same(), "control_apply_to_uncond": False}
        return ([[embedding, {**told, **more}] for embedding, told in conditioning],)


def _smooth(shape, seed: int) -> torch.Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    flat = torch.nn.functional.avg_pool2d(noise.flatten(0, -4), 5, 1, 2)
    return flat.reshape(shape) * 4


class Latent:
    """LATENT of a smooth picture for a MODEL; frames 0: without the axis of frames, as image nodes make it."""

    @classmethod
    def INPUT_TYPES(cls):
        whole = ("INT", {"default": 0, "min": 0, "max": 64})
        return {"required": {"model": ("MODEL",), "seed": whole, "size": whole, "batch": whole, "frames": whole}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "make", "families"

    def make(self, model, seed, size, batch, frames):
        form = model.get_model_object("latent_format")
        time = [frames or 1] if getattr(form, "latent_dimensions", 2) == 3 else []
        samples = form.process_out(_smooth((batch, form.latent_channels, *time, size, size), seed))
        return ({"samples": samples[:, :, 0] if time and not frames else samples},)


class _Told:
    """A text encoder that tells more of a text than embedding and pooled vector, as the family's own does."""

    def __init__(self, inner, more):
        self.inner, self.more = inner, more

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode_token_weights(self, tokens):
        return (*self.inner.encode_token_weights(tokens)[:2], dict(self.more))


def told(family: str) -> dict:
    """What the family's text encoder tells beside embedding and pooled vector."""
    mask = torch.ones(1, TOKENS, dtype=torch.int64)  # no padding: the engine's own networks can't batch padded texts
    generator = torch.Generator().manual_seed(7)
    if family == "Lumina 2":
        return {"attention_mask": mask}
    if family == "HunyuanDiT":
        wide = torch.randn(1, 40, TEXT, generator=generator)
        return {
            "attention_mask": mask,
            "conditioning_mt5xl": wide,
            "attention_mask_mt5xl": torch.ones(1, 40, dtype=torch.int64),
        }
    if family == "HiDream":
        return {"conditioning_llama3": torch.randn(1, 4, TOKENS, TEXT, generator=generator)}
    return {}


class Clip:
    """A CLIP that tells what the family's own text encoder tells."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "family": (known(),)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "wrap", "families"

    def wrap(self, clip, family):
        more = told(family)
        if not more:
            return (clip,)
        other = clip.clone()
        other.cond_stage_model = _Told(other.cond_stage_model, more)
        return (other,)


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


NODE_CLASS_MAPPINGS = {f"Families_{kind.__name__}": kind for kind in (Model, Patched, Control, Latent, Clip, Vae)}
