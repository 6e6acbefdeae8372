"""Short ways to draw noise, to run a node of the pack as the engine does, and to sample with the engine's own run; a
tensor as on Apple's GPUs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CLIP = SimpleNamespace(tokenize=None, encode_from_tokens=None)  # for a node whose prompts are made without it
SCALE = 0.18215  # Stable Diffusion's LATENT times this is in model space


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Out(tuple):
    """A node's outputs; `text` is what it says."""

    text = ""

    @property
    def samples(self) -> Tensor:
        return self[0]["samples"]


class Pixels:
    """A VAE that takes each cell's mean as the latent, and back."""

    def encode(self, image):
        small = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def decode(self, samples):
        return torch.nn.functional.interpolate(samples[:, :3], scale_factor=8.0).movedim(1, -1).clamp(0, 1)


def defaults(name: str, *parts: str) -> dict:
    """The value of every widget of a node as it opens; `parts`: "required" and "optional" where none is named."""
    from nulltext.nodes import NODE_CLASS_MAPPINGS

    groups = NODE_CLASS_MAPPINGS[f"NullText_{name}"].INPUT_TYPES()
    specs = [item for part in parts or ("required", "optional") for item in groups.get(part, {}).items()]
    return {key: spec[1]["default"] for key, spec in specs if len(spec) > 1 and "default" in spec[1]}


def run(name: str, /, **inputs) -> Out:
    """The node, under inference mode; widgets that are not named stand at their defaults, and a tensor given for a
    LATENT is one."""
    from nulltext.nodes import NODE_CLASS_MAPPINGS

    node = NODE_CLASS_MAPPINGS[f"NullText_{name}"]
    kinds = {key: spec[0] for group in node.INPUT_TYPES().values() for key, spec in group.items()}
    for key, value in inputs.items():
        if kinds.get(key) == "LATENT" and isinstance(value, Tensor):
            inputs[key] = {"samples": value}
    with torch.inference_mode():
        made = getattr(node(), node.FUNCTION)(**{**defaults(name, "required"), **inputs})
    out = Out(made["result"] if isinstance(made, dict) else made)
    out.text = made["ui"]["text"][0] if isinstance(made, dict) and "text" in made["ui"] else ""
    return out


def sample(guider, noise, sigmas, latent=None, sampler="euler", mask=None, callback=None, seed=3) -> Tensor:
    """LATENT samples by a guider and the engine's own run; sampler: a SAMPLER, or the name of one of core's."""
    from nulltext.engine.sampler import core_sampler

    sampler = core_sampler(sampler) if isinstance(sampler, str) else sampler
    latent, more = torch.zeros_like(noise) if latent is None else latent, {"callback": callback, "denoise_mask": mask}
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed, **more).clone()


def walk(model, ends, cfg, noise, sigmas, *more, **options) -> Tensor:
    """The same with the pack's guider of a positive and a negative prompt, `ends`."""
    from nulltext.engine.guider import guider_class

    guider = guider_class()(model)
    guider.set_conds(*ends)
    guider.set_cfg(cfg)
    return sample(guider, noise, sigmas, *more, **options)


def noised_inversion(model, latent: Tensor, steps: int = 10, **more):
    """An INVERSION whose trajectory is the noised picture: one noise, scaled to every level."""
    from nulltext.engine.comfy import process_of, sigmas_of, to_model_space
    from nulltext.engine.noise import model_notes
    from nulltext.samplers.inversion.record import Inversion

    process, sigmas = process_of(model), sigmas_of(model, "normal", steps)
    clean = to_model_space(model, {"samples": latent})
    path = torch.stack([process.noised(clean, s, normal(*clean.shape, seed=2)) for s in sigmas])
    return Inversion(sigmas, path, process=process.name, metadata=model_notes(model, float(sigmas[0])), **more)


def likes_ones(model, mode="decoder", **more):
    """The model with a guidance that pulls every estimate towards 1."""
    from nulltext.engine import terms
    from nulltext.samplers.guidance.terms import Guidance

    term = Guidance(lambda x, s, d: -(d - 1).pow(2).flatten(1).sum(1), mode, 0.5, name="ones", **more)
    return terms.attach(model, [terms.Term(term)])


def block_patched(model, writes: bool):
    """The MODEL with FreeU V2's arithmetic before its output blocks, which may write into its input as that does."""

    def patch(h, skip, options):
        changed = h[:, :32] * (h.mean(1, keepdim=True).tanh() + 1)
        if not writes:
            return torch.cat([changed, h[:, 32:]], 1), skip
        h[:, :32] = changed
        return h, skip

    patched = model.clone()
    patched.set_model_output_block_patch(patch)
    return patched


class Traffic(TorchFunctionMode):
    """Counts, by file and line of the pack, what would wait for a GPU if the tensors lay there: tensors made from
    lists, indices that are lists, numbers and tensors fetched."""

    _WAITS = {"tensor", "cpu", "item", "tolist", "__float__", "__int__", "__bool__"}
    _PACK = str(Path(__file__).resolve().parent.parent)

    def __init__(self):
        super().__init__()
        self.sites: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        listed = any(isinstance(i, list) for i in (index if isinstance(index, tuple) else (index,)))
        if name in self._WAITS or listed:
            caller = sys._getframe(1)
            if caller.f_code.co_filename.startswith(self._PACK):
                self.sites[f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"] += 1
        return function(*args, **(kwargs or {}))

    def of(self, *files: str) -> int:
        return sum(count for site, count in self.sites.items() if site.split(":")[0] in files)


class Control:
    """A control net's face to the engine, which counts how often it was cleaned up."""

    previous_controlnet = extra_hooks = timestep_range = None
    multigpu_clones: dict = {}  # newer engines'
    cleaned = 0

    def pre_run(self, model, percent_to_timestep):
        pass

    def cleanup(self):
        self.cleaned += 1

    def get_models(self):
        return []

    get_control_models = get_extra_hooks = get_models

    def inference_memory_requirements(self, dtype):
        return 0


def fails_and_is_interrupted(engine, net: torch.nn.Module, run: Callable[[], object]) -> None:
    """Two runs of at least two calls of the network: one fails at its second call, one is interrupted there."""
    manage, calls = engine.get("model_management"), []

    def fail(module, given):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second call")
        if len(calls) == 4:
            manage.interrupt_current_processing(True)

    handle = net.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="second"):
            run()
        with pytest.raises(engine.Interrupted()):
            run()
    finally:
        handle.remove()
        manage.interrupt_current_processing(False)


class OnMac(Tensor):
    """As on Apple's GPUs: no float64 there, and ordinary once it is brought to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function == Tensor.device.__get__:
            return torch.device("mps")
        if function is Tensor.to and args[1] is torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        made = super().__torch_function__(function, types, args, kwargs or {})
        return made.as_subclass(Tensor) if function is Tensor.to and str(args[1]) == "cpu" else made
