"""Models, what stands beside them, latents and text encoders."""

import os

import torch
from safetensors.torch import load_file

from .layouts import TEXT, TOKENS, check_recognised, known, made_config
from .streaming import streamed
from .weights import LAST, quantise, write

#: int8: quantised layers that unpack their weights in every call, as GGUF files are run. All but those "throughout"
#: compute in fp32, as the engine does on a CPU; throughout: in the weights' own precision, as it does on a GPU;
#: streamed: as newer engines' dynamic VRAM has them
WEIGHTS = ["float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "float16 throughout", "bfloat16 throughout"]
WEIGHTS += ["streamed"]


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
