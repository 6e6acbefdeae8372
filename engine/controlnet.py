"""ControlNets of ComfyUI's own class: made from a loaded UNet, trained through core's control path, saved for core's
loader.

What a node hands on is core's CONTROL_NET, as the loader makes it, so Apply ControlNet and every sampler take it. What
is trained is its form (samplers/tuning/controlnet), a dict of weights; the locked network is never touched.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..samplers.record_file import whole_file
from ..samplers.tuning import controlnet as forms
from ..samplers.tuning.controlnet import MARKER, Hinted
from ..samplers.tuning.objective import Net
from .comfy import compute_dtype, get, load_models, network_of
from .gradients import check_differentiable, grad_mode, normal

Form = dict[str, Tensor]


def check_unet(model) -> None:
    """ValueError for a model whose ControlNet would be another thing: a transformer, a UNet without a middle block, an
    inpainting model, quantised weights. A UNet that samples a flow has one like any other UNet."""
    network = network_of(model.model)
    if not hasattr(network, "input_blocks") or not hasattr(network, "middle_block"):
        raise ValueError(
            "This model is no UNet, and a ControlNet here is a copy of a UNet's encoder: take a model of the SD 1, "
            "SD 2 or SDXL kind."
        )
    if network.middle_block is None:
        raise ValueError(
            "This UNet has no middle block (a distilled model such as KOALA 700M), and a ControlNet needs one to copy: "
            "take an ordinary model of the SD 1, SD 2 or SDXL kind."
        )
    if network.in_channels != model.get_model_object("latent_format").latent_channels:
        raise ValueError(
            "This model's network takes more than the latent (an inpainting model), and ComfyUI gives a control net "
            "the latent alone: make a full ControlNet from the ordinary model of its kind, which works here too."
        )
    check_differentiable(network)


def _skeleton(model, dtype: torch.dtype, hint_channels: int = 3) -> nn.Module:
    """Core's own network class in the MODEL's configuration, without weights: on the meta device."""
    config = dict(model.model.model_config.unet_config)
    config.pop("out_channels", None)
    config |= {"operations": get("ops").disable_weight_init, "dtype": dtype, "device": "meta"}
    with torch.inference_mode(False):
        return get("cldm.cldm").ControlNet(**config, hint_channels=hint_channels)


def _network(model) -> dict[str, Tensor]:
    return dict(network_of(model.model).state_dict())


def fresh(model, kind: str = "small", rank: int = 16, seed: int = 0, zero_conv: bool = True) -> Form:
    """A new ControlNet's form, "full" or "small", fp32 on the CPU; the network's own patches are part of a full copy.

    ValueError like `check_unet`, before anything is made."""
    check_unet(model)
    load_models([model])
    shapes = _shapes(_skeleton(model, torch.float32).state_dict())
    with torch.inference_mode(False), torch.no_grad():
        return forms.initial(shapes, _network(model), seed, zero_conv, rank if kind == "small" else None)


def _weights(control) -> Mapping[str, Tensor] | None:
    """What core holds of a UNet's control net; None for any other (an adapter, a transformer's control net)."""
    weights = getattr(control, "control_weights", None)  # of a Control-LoRA
    if weights is None and hasattr(getattr(control, "control_model", None), "zero_convs"):
        weights = control.control_model.state_dict()
    return weights if weights is not None and "zero_convs.0.0.weight" in weights else None


def form_of(control) -> Form:
    """The form of a CONTROL_NET, made here or read by core's loader; fp32 on the CPU, not to be written to.

    ValueError for an adapter, for a control net of another kind of network, and for one of several kinds of hint."""
    weights = _weights(control)
    if weights is None:
        raise ValueError("This control net is no copy of a UNet's encoder: make one, or load a file of that kind.")
    if "task_embedding" in weights:
        raise ValueError(
            "This control net takes several kinds of hint (a union net), which is neither trained nor saved here: take "
            "one for a single kind of hint."
        )
    if hasattr(control, "exact_form"):
        return dict(control.exact_form)
    with torch.inference_mode(False), torch.no_grad():
        return {k: v.detach().float().cpu().clone() for k, v in weights.items() if k != MARKER}


def form_for(model, control) -> Form:
    """`form_of` for a training on this MODEL.

    ValueError also for a control net of another kind of model, and for one whose outputs core averages."""
    form = form_of(control)
    if control.global_average_pooling:
        raise ValueError(
            "ComfyUI averages this control net's outputs over the picture, since its file's name ends in _shuffle, and "
            "a training here does not: rename the file to train it as an ordinary one."
        )
    wanted = _skeleton(model, torch.float32).state_dict()
    try:
        weights = forms.merged({k: v.to("meta") for k, v in form.items()}, wanted)
    except (KeyError, RuntimeError):  # a low-rank change of a weight that this network lacks or has in another shape
        weights = {}
    whole = {k: v for k, v in wanted.items() if forms.part(k) == forms.PARTS[1]} if forms.is_small(form) else {}
    if _shapes(whole | weights) != _shapes(wanted):
        raise ValueError(
            "This control net doesn't fit the model (it was made for a model of another kind, or for hints that are no "
            "RGB pictures): take the model that it was made for, or make a new ControlNet from this one."
        )
    return form


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def save(form: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] = {}, half: bool = True) -> None:  # noqa: B006
    """One safetensors file that core's ControlNetLoader reads on both engines; a file of that name is replaced
    whole."""
    with torch.inference_mode(False):
        tensors = forms.file_of(form, torch.float16 if half else torch.float32)
    with whole_file(path) as part:
        get("utils").save_torch_file(tensors, str(part), metadata=dict(metadata) or None)


def loaded(path: Path):
    """CONTROL_NET of a file, by core's own loader. ValueError where core can't tell what it is."""
    control = get("controlnet").load_controlnet(str(path))
    if control is None:
        raise ValueError(f"The file {path.name} holds no ControlNet: choose another.")
    return control


def control_of(form: Mapping[str, Tensor], folder: Path):
    """CONTROL_NET of a form, as its fp32 file would load; nothing stays in `folder`.

    Core loads the full form in the precision that it samples in; `form_of` finds the one given beside it."""
    with torch.inference_mode(False):
        exact = forms.file_of(form, torch.float32)
    if forms.is_small(form):
        return get("controlnet").ControlLora(exact)
    path = folder / f"control_{id(form):x}.safetensors"
    try:
        save(exact, path, half=False)
        control = loaded(path)
    finally:
        path.unlink(missing_ok=True)
    if control.control_model.dtype != torch.float32:
        control.exact_form = exact
    return control


# -- without a prompt


@functools.cache
def _weighed(kind: type) -> type:
    """A class of core's control nets whose outputs are weighed by layer before anything else."""

    class Weighed(kind):
        def control_merge(self, *parts, **more):  # engines differ in how many there are, and in which have names
            outputs = next(part for part in parts if part is not None)
            layers = outputs if isinstance(outputs, list) else [*outputs["output"], *outputs["middle"]]
            with_size = [x for x in layers if x is not None]
            for x, weight in zip(with_size, forms.guess_weights([x.shape[-1] for x in with_size], self.guess)):
                x *= weight
            return super().control_merge(*parts, **more)

        def copy(self):
            made = super().copy()
            made.__class__, made.guess = type(self), self.guess
            return made

    return Weighed


def guessing(control, way: str):
    """A copy of a CONTROL_NET whose outputs are weighed as guess mode does it; what is given is not changed.

    ValueError for an unknown way, and for a control net that is no copy of a UNet's encoder."""
    forms.guess_weights([1], way)
    if _weights(control) is None:
        raise ValueError(
            "This control net has no layers that guess mode can weight: take a ControlNet of a UNet (SD 1, SD 2 or "
            "SDXL), or Apply ControlNet (Advanced) for this one."
        )
    made = control.copy()
    made.__class__, made.guess = _weighed(type(made)), way
    return made


def in_positive(control, positive, image, strength: float, start: float, end: float):
    """The CONDITIONING with the control in it, by core's own node; the negative prompt goes without."""
    apply = get("nodes").ControlNetApplyAdvanced().apply_controlnet
    return apply(positive, [], control, image, strength, start, end)[0]


# -- while it trains


class _Live:
    """Core's network called with weights that are made anew at every call with gradients, which reach the form; calls
    without them use the same weights until the form changes."""

    def __init__(self, model, form: Mapping[str, Tensor]):
        self.dtype = compute_dtype(model.model)
        self.form, self.model = form, model
        self.module = _skeleton(model, self.dtype)
        self.names = {name for name, _ in _tensors(self.module)}
        self.held: tuple[list, dict[str, Tensor]] = ([], {})  #: the form's versions, and the weights made of it

    @functools.cached_property
    def own(self) -> dict[str, Tensor]:
        """The network's tensors as the first call finds them, on the meta device or not, where the form needs them."""
        return dict(_tensors(network_of(self.model.model))) if forms.is_small(self.form) else {}

    def weights(self) -> dict[str, Tensor]:
        """Every weight of the network, of the form as it is now."""
        now = [(id(v), v._version) for v in self.form.values()]
        if torch.is_grad_enabled() or self.held[0] != now:
            self.held = ([], {})
            weights = forms.merged(self.form, self.own)
            kept = {k: v for k, v in self.own.items() if k not in weights and k in self.names}
            made = {k: v.to(self.dtype) for k, v in (kept | weights).items()}
            if torch.is_grad_enabled():
                return made
            self.held = (now, made)
        return self.held[1]

    def __call__(self, **inputs):
        given = {k: v for k, v in inputs.items() if v is not None}
        return torch.func.functional_call(self.module, self.weights(), (), given)


def _tensors(network: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


class Controlled:
    """A form on a MODEL as a net whose conditions are `Hinted`, for `training.train`'s `wrap` and `attached`."""

    def __init__(self, model, form: Mapping[str, Tensor]):
        self.model, self.form, self.live = model, form, None

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """For the duration the form's network can be called; nothing is left behind."""
        self.live = _Live(self.model, self.form)
        try:
            with grad_mode(self.live.module):
                yield
        finally:
            self.live = None

    @contextlib.contextmanager
    def measured(self) -> Iterator[list[Tensor]]:
        """`attached` on the meta device, for the memory said before the start: a call of the MODEL's network calls the
        form's first. What is yielded is memory that is counted elsewhere: the form itself."""
        form = {k: torch.empty_like(v, device="meta").requires_grad_() for k, v in self.form.items()}
        live = _Live(self.model, form)

        def controlled(_, args, given):
            x, time = args
            hint = x.new_empty((len(x), 3, *(n * forms.HINT_SCALE for n in x.shape[-2:])))
            made = live(x=x, hint=hint, timesteps=time, context=given["context"], y=given.get("y"))
            if not isinstance(made, dict):
                made = {"output": made[:-1], "middle": made[-1:]}
            return args, {**given, "control": made}

        with grad_mode(live.module), contextlib.ExitStack() as undo:
            network = network_of(self.model.model)
            undo.callback(network.register_forward_pre_hook(controlled, with_kwargs=True).remove)
            yield list(form.values())

    def wrap(self, net: Net) -> Net:
        """net(x, sigma, conditions [B] of `Hinted`) -> D, through core's own control path."""

        def controlled(x: Tensor, sigma: Tensor, conditions: Sequence[Hinted]) -> Tensor:
            control = get("controlnet").ControlNet(None, load_device=x.device)
            control.control_model, control.device = self.live, x.device
            control.model_sampling_current = self.model.model.model_sampling
            hints = torch.stack([normal(c.hint) for c in conditions])
            control.set_cond_hint(hints.to(x.device))
            return net(x, sigma, [c.caption for c in conditions], control=control)

        return controlled
