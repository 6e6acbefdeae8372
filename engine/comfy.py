"""One set of names for two engines: the pip package `comfyui` (2024) and an upstream checkout."""

from __future__ import annotations

import copy
import functools
import importlib
import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from ..samplers.core import FLOW, VE, NoiseProcess, Sigma, VarianceExploding
from ..samplers.finite import all_finite

# Where a module lives: the pip engine's place first (an installed pack is imported before its top-level aliases exist).
_PLACES = {
    "folder_paths": ("comfy.cmd.folder_paths", "folder_paths"),
    "latent_preview": ("comfy.cmd.latent_preview", "latent_preview"),
    "nodes": ("comfy.nodes.base_nodes", "nodes"),
    "server": ("comfy.cmd.server", "server"),
}


@functools.cache
def get(name: str):
    """The engine's module of that name: one of `_PLACES`, else comfy.<name>. Raises ModuleNotFoundError outside
    ComfyUI."""
    places = _PLACES.get(name, (f"comfy.{name}",))
    for place in places[:-1]:
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not place.startswith(error.name or ""):
                raise  # the place exists, something it needs does not
    return importlib.import_module(places[-1])


def Interrupted() -> type[BaseException]:
    """The class that the engine raises when the user cancels."""
    try:
        return importlib.import_module("comfy.interruption").InterruptProcessingException
    except ModuleNotFoundError:
        return get("model_management").InterruptProcessingException


def allows_other_origins() -> bool:
    """Whether the server was told to answer pages of other sites (--enable-cors-header)."""
    return bool(getattr(get("cli_args").args, "enable_cors_header", None))


def check_interrupt() -> None:
    """Raise the engine's own exception if the user asked to stop."""
    get("model_management").throw_exception_if_processing_interrupted()


def network_of(model) -> torch.nn.Module:
    """The network inside a MODEL's `.model`, as it was loaded: without what torch.compile wraps around it, which puts a
    word into every parameter's name."""
    return getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)


def compute_dtype(model) -> torch.dtype:
    """What a MODEL's `.model` computes in, whatever its weights are stored in."""
    return model.manual_cast_dtype or model.get_dtype()


def each_module(*modules: torch.nn.Module) -> list[torch.nn.Module]:
    """These modules and all inside them, each once, in the order of torch's own `modules()`, which takes longer on a
    large network."""
    found, waiting = {}, [*reversed(modules)]
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            waiting.extend(reversed(module._modules.values()))
    return [*found.values()]


def with_patch(options: dict, name: str, patch) -> dict:
    """model_options with one more transformer patch ("output_block_patch", ...), behind those that are there; what is
    given is not changed."""
    transformer = dict(options.get("transformer_options", {}))
    patches = transformer.get("patches", {})
    transformer["patches"] = {**patches, name: [*patches.get(name, []), patch]}
    return {**options, "transformer_options": transformer}


def load_models(models, memory: float = 0) -> None:
    """Bring MODEL patchers (or a VAE's patcher) onto their devices, their weight patches applied.

    In inference mode, as everything else in ComfyUI loads: weights moved outside of it can't be used inside again."""
    with torch.inference_mode():
        get("model_management").load_models_gpu(list(models), memory)


def with_room_for(model, rows: Callable[[int], int]):
    """A clone of the MODEL in whose runs the engine makes room for calls of rows(B) rows, B being those of the run's
    latent; by itself it counts on 2 B. Where the engine can't be told (before 2025) the MODEL comes back."""
    if not hasattr(model, "add_wrapper_with_key"):
        return model

    def prepare(executor, patcher, noise_shape, *more, **named):
        batch = max(noise_shape[0], math.ceil(rows(noise_shape[0]) / 2))
        return executor(patcher, [batch, *noise_shape[1:]], *more, **named)

    clone = model.clone()
    clone.add_wrapper_with_key("prepare_sampling", "nulltext", prepare)
    return clone


def encode(clip, text: str) -> list:
    """CONDITIONING of a text, as ComfyUI's own text node makes it."""
    tokens = clip.tokenize(text)
    if hasattr(clip, "encode_from_tokens_scheduled"):  # tells what the family needs beside (Lumina 2: attention_mask)
        return clip.encode_from_tokens_scheduled(tokens)
    cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]


def embeds_guidance(model) -> bool:
    """Whether the MODEL's network takes its guidance as a number beside each prompt (Flux dev, HunyuanVideo): it was
    distilled to need no cfg."""
    return bool(model.model.model_config.unet_config.get("guidance_embed"))


def with_flux_guidance(conditioning: list, guidance: float) -> list:
    """CONDITIONING with that number, as FluxGuidance sets it."""
    return [[cond, {**extra, "guidance": guidance}] for cond, extra in conditioning]


class Progress:
    """A bar in units of network calls, the preview, and the place where an interrupt is noticed."""

    def __init__(self, total: int, model=None):
        self.total, self.value = max(int(total), 1), 0
        self._bar = get("utils").ProgressBar(self.total)
        self._previewer = None
        if model is not None:
            self._previewer = get("latent_preview").get_previewer(model.load_device, model.model.latent_format)

    def show(self, image: Tensor) -> None:
        """A picture [1, H, W, 3] in 0..1 as the preview, where the bar stands."""
        pixels = (image[0, ..., :3].detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        picture = Image.fromarray(pixels.numpy())
        self._bar.update_absolute(min(self.value, self.total), self.total, ("JPEG", picture, max(picture.size)))

    def tick(self, n: int = 1, x0: Tensor | None = None) -> None:
        """n more units done; x0 [B, C, ...] in model space is shown if previews are on. Raises on interrupt."""
        check_interrupt()
        self.value += n
        preview = None
        if x0 is not None and self._previewer is not None:
            with torch.no_grad():  # a previewer may be a network (TAESD), and its weights are inference tensors
                preview = self._previewer.decode_latent_to_preview_image("JPEG", x0.detach())
        self._bar.update_absolute(min(self.value, self.total), self.total, preview)


def process_of(model) -> NoiseProcess:
    """The noise family of a MODEL, with its scale of the network's input. ValueError for a sampling that is neither
    x0 + s n nor (1 - s) x0 + s n."""
    sampling, kinds = model.get_model_object("model_sampling"), get("model_sampling")
    if isinstance(sampling, kinds.CONST):
        return FLOW
    if isinstance(sampling, getattr(kinds, "COSMOS_RFLOW", ())):
        return VarianceExploding(power=1.0)
    if isinstance(sampling, kinds.EPS) and not isinstance(sampling, getattr(kinds, "IMG_TO_IMG", ())):
        data = float(sampling.sigma_data)
        return VE if data == 1 else VarianceExploding(data=data)
    raise ValueError(
        f"This model samples with {type(sampling).__bases__[-1].__name__}, a noise process that inversion and "
        "editing don't know; use an eps, v-prediction, EDM or flow model."
    )


def timestep(sigma: Sigma, x: Tensor) -> Tensor:
    """sigma as the engine's networks take it: [B] fp32 on x's device, one value for each row of x."""
    sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
    return sigma.expand(x.shape[0]).clone() if sigma.ndim == 0 else sigma


def sigma_range(model) -> tuple[float, float]:
    """(smallest, largest) sigma that the MODEL was trained at."""
    sampling = model.get_model_object("model_sampling")
    return float(sampling.sigma_min), float(sampling.sigma_max)


def schedulers() -> list[str]:
    """Names of the schedulers that both engines have."""
    return ["normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform"]


def sigmas_of(model, scheduler: str, steps: int) -> Tensor:
    """SIGMAS [steps + 1] on the CPU, fp32, falling to 0."""
    return get("samplers").calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).float().cpu()


def window(model, start_percent: float, end_percent: float) -> tuple[float, float]:
    """(start, end) in sigma of a span of the model's schedule, 0 = pure noise, 1 = done, for a `SigmaWindow`: ComfyUI's
    percent_to_sigma, whatever lies above at 0 (inf) and below at 1 (0)."""
    if not 0 <= start_percent <= end_percent <= 1:
        raise ValueError(
            f"The span from start {start_percent} to end {end_percent} is empty: start must be at or "
            "before end, both within 0 and 1."
        )
    sampling = model.get_model_object("model_sampling")
    start = math.inf if start_percent == 0 else float(sampling.percent_to_sigma(start_percent))
    return start, 0.0 if end_percent == 1 else float(sampling.percent_to_sigma(end_percent))


def time_to_sigma(model) -> Callable[[float], float]:
    """time in [0, 1] of the diffusion (0 clean, 1 noise) -> sigma of the MODEL, within what it was trained at."""
    sampling, (low, high) = model.get_model_object("model_sampling"), sigma_range(model)

    def sigma(time: float) -> float:
        if time <= 0:
            return 0.0
        return min(high, max(low, float(sampling.percent_to_sigma(1.0 - min(time, 1.0))))) if time < 1 else high

    return sigma


def sigma_to_time(model) -> Callable[[float], float]:
    """sigma -> time in [0, 1], the inverse of `time_to_sigma` by bisection."""
    forward = time_to_sigma(model)

    def time(sigma: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if forward(middle) < sigma else (low, middle)
        return high

    return time


def training_levels(model) -> Tensor:
    """The noise levels to train at: the model's own table, or 1000 spaced in log sigma where it has none."""
    table = getattr(model.get_model_object("model_sampling"), "sigmas", None)
    if table is not None and len(table) > 1:
        return table.detach().float().cpu().clone()
    low, high = sigma_range(model)
    return torch.logspace(math.log10(max(low, 1e-3)), math.log10(high), 1000)


def is_empty(latent: dict) -> bool:
    """Whether a LATENT is all zero: ComfyUI's empty latent, no picture."""
    return not bool(torch.count_nonzero(latent["samples"]))


def ordinary(form):
    """A latent format; outside of inference mode with ordinary tensors, which a gradient may pass: some hold means and
    deviations (Wan, Qwen-Image) that were made while the model was loaded."""
    if torch.is_inference_mode_enabled():
        return form
    form = copy.copy(form)
    for name, value in list(vars(form).items()):
        if isinstance(value, Tensor) and value.is_inference():
            setattr(form, name, value.clone())
    return form


def latent_in(model, samples: Tensor) -> Tensor:
    """LATENT samples -> model space. Like the engine, an all-zero (empty) latent is left alone."""
    if is_empty({"samples": samples}):
        return samples
    return ordinary(model.get_model_object("latent_format")).process_in(samples)


def latent_out(model, x: Tensor) -> Tensor:
    """Model space -> LATENT samples."""
    return ordinary(model.get_model_object("latent_format")).process_out(x)


#: what an empty LATENT says of its cells: the latent format's name of the same, and the axes that it is about
_SCALES = {
    "downscale_ratio_spacial": ("spacial_downscale_ratio", (-2, -1)),
    "downscale_ratio_temporal": ("temporal_downscale_ratio", (-3,)),
}


def _in_cells(empty: Tensor, latent: dict, fmt) -> Tensor:
    """An empty latent's samples for the same pixels and frames in the format's own cells."""
    shape = list(empty.shape)
    for key, (own, axes) in _SCALES.items():
        said = latent.get(key)
        for axis in axes if said and empty.ndim >= 2 - min(axes) else ():
            shape[axis] = max(1, round(shape[axis] * said / getattr(fmt, own, said)))
    return empty if shape == list(empty.shape) else empty.new_zeros(shape)


def picture_size(model, samples: Tensor) -> tuple[int, int]:
    """(height, width) in pixels of LATENT samples [B, C, ..., h, w]; 8 pixels a cell where the engine says nothing."""
    cell = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
    return tuple(int(cell * side) for side in samples.shape[-2:])


def empty_latent(count: int, height: int, width: int) -> dict:
    """An empty LATENT for so many pixels, as ComfyUI's own box makes it: `fitted` brings it into a model's shape."""
    size = tuple(max(1, side // 8) for side in (height, width))
    return {"samples": torch.zeros(count, 4, *size), "downscale_ratio_spacial": 8}


def fitted(model, latent: dict) -> dict:
    """The LATENT in the MODEL's own shape, values, dtype and device as they are: an empty latent gets its channels and,
    where it says for which pixels and frames it is (newer engines), the cells for them; a picture gets one frame where
    the model's latents have frames, as ComfyUI's samplers bring them there.

    What a node gives back has this shape too, which the model's VAE decodes. ValueError for what does not fit."""
    samples, fmt = latent["samples"], model.get_model_object("latent_format")
    ndim, empty = 2 + getattr(fmt, "latent_dimensions", samples.ndim - 2), is_empty(latent)
    if empty and samples.ndim >= 2 and samples.shape[1] != fmt.latent_channels:
        samples = samples[:, :1].expand(-1, fmt.latent_channels, *samples.shape[2:]).contiguous()
    if samples.ndim == 4 and ndim == 5:
        samples = samples.unsqueeze(2)  # one frame of a video latent
    if empty:
        samples = _in_cells(samples, latent, fmt)
    if samples.ndim != ndim or samples.shape[1] != fmt.latent_channels:
        raise ValueError(
            f"The latent has shape {list(samples.shape)}, but this model works on {fmt.latent_channels} channels in "
            f"{ndim} dimensions: encode the image with the VAE that belongs to the model."
        )
    if samples is latent["samples"]:
        return latent
    return {k: v for k, v in latent.items() if k not in _SCALES} | {"samples": samples}


def as_image(x: Tensor) -> Tensor:
    """[B, C, h, w] of latents or pictures [B, C, ...]: those of a model with frames hold one, if it draws an image
    (Qwen-Image). ValueError for several frames."""
    if x.ndim == 5 and x.shape[2] == 1:
        return x[:, :, 0]
    if x.ndim != 4:
        frames = f"{x.shape[2]} frames" if x.ndim == 5 else f"shape {list(x.shape)}"
        raise ValueError(f"This works on images, and the latent has {frames}: give it a latent of one frame.")
    return x


def check_latent(model, latent: dict) -> Tensor:
    """The samples [B, C, ...] of a LATENT, fp32 on the CPU, fit for the MODEL. ValueError in one sentence otherwise."""
    samples = fitted(model, latent)["samples"].detach().float().cpu()
    if not all_finite(samples):
        raise ValueError(
            "The latent holds NaN or infinite values: check the VAE (in fp16 it can overflow) and the image."
        )
    return samples


def to_model_space(model, latent: dict) -> Tensor:
    """A reference LATENT in model space, fp32, as an ordinary tensor on the CPU."""
    return latent_in(model, check_latent(model, latent)).clone()


def decode_fits(vae, samples: Tensor) -> bool:
    """Whether a decode now leaves every loaded model where it is; on the CPU it does."""
    management = get("model_management")
    if torch.device(vae.device).type == "cpu":
        return True
    needed = vae.memory_used_decode(samples.shape, vae.vae_dtype) + management.module_size(vae.first_stage_model)
    return management.get_free_memory(vae.device) > 1.2 * needed


def decode(vae, samples: Tensor) -> Tensor:
    """LATENT samples -> IMAGE [B, H, W, 3] in 0..1 on the CPU; the frames of a video latent become the batch."""
    images = vae.decode(samples).float().cpu().clamp(0, 1)
    return images.reshape(-1, *images.shape[-3:])
