"""Guidance terms on a MODEL: one post-CFG function per model that adds all of them, and a trace of the run.

`attach` clones the MODEL. Terms attached one after another are kept together, so that all look at the same estimate.
The order in ComfyUI's chain is that of the first: hooks that rescale CFG belong before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..samplers.core import apply_cfg, measured_cfg
from ..samplers.guidance.terms import Guidance, shift
from ..samplers.underflow import keep_from_underflow
from ..samplers.window import ROUNDING
from .clock import Clock
from .comfy import as_image, check_interrupt, compute_dtype, get, ordinary, process_of, timestep
from .gradients import bring, control_networks, for_gradients, grad_mode, normal, normal_options, short_of_memory
from .matching import check_vae

_MARK = "nulltext_guidance"
_KEPT = 4  # samples of a batch whose estimates are recorded
_TOLD = ("log_likelihood", "rms", "limited")


@dataclass(frozen=True)
class Term:
    """A Guidance with the modules that its log-likelihood runs (made ready for backward), and what Trace may ask of it
    after the run: probabilities(x, sigma, guided D) -> (names, [B, K])."""

    guidance: Guidance
    modules: tuple[nn.Module, ...] = ()
    probabilities: Callable | None = None
    patchers: tuple = ()


@dataclass
class Trace:
    """The last run, per noise level: {"sigma", "x" and the guided "denoised" [<= 4, C, H, W] fp16 on the CPU,
    "terms": {name: {"log_likelihood", "rms", "limited"}}}; the terms' numbers are [B], the whole batch."""

    steps: list[dict] = field(default_factory=list)

    def step(self, sigma: float, x: Tensor, denoised: Tensor) -> dict:
        """The entry of this level. Where the run has climbed back, what it had reached below is forgotten."""
        self.steps[:] = [s for s in self.steps if s["sigma"] > sigma * (1 - ROUNDING)]
        if not self.steps or sigma < self.steps[-1]["sigma"] * (1 - ROUNDING):
            self.steps.append({"sigma": sigma, "terms": {}})
        for name, value in (("x", x), ("denoised", denoised)):
            self.steps[-1][name] = value[:_KEPT].detach().to("cpu", torch.float16, copy=True)
        return self.steps[-1]

    def bound_share(self, name: str) -> float:
        """Of the pushes of this term (one a step and picture), the share that its bound shrank; 0 where none acted."""
        acted = [s["terms"][name]["limited"] for s in self.steps if name in s["terms"]]
        return float(torch.cat(acted).mean()) if acted else 0.0


def decoder(model, vae) -> Callable[[Tensor], Tensor]:
    """D [B, C, H, W] in model space, with or without the model's axis of one frame -> pictures [B, 3, h, w],
    differentiable, not clamped to 0..1.

    ValueError if the VAE's latents are not the model's."""
    check_vae(model, vae)
    # a closure that held the MODEL would keep it loaded for good: the engine counts who refers to it
    form, stage, device = model.get_model_object("latent_format"), vae.first_stage_model, vae.patcher.load_device
    frames = getattr(form, "latent_dimensions", 2) == 3

    def decode(denoised: Tensor) -> Tensor:
        z = ordinary(form).process_out(denoised.unsqueeze(2) if frames and denoised.ndim == 4 else denoised)
        pixels = stage.decode(z.to(device, next(stage.parameters()).dtype))  # which may be the CPU (--cpu-vae)
        return (as_image(pixels).to(denoised.device).float() + 1) / 2

    return decode


def trace_of(model) -> Trace | None:
    """The trace of the last run of a guided MODEL, None if it has no guidance of this pack."""
    hook = _hook(model)
    return hook.trace if hook else None


def bounds_said(model) -> list[str]:
    """Of the last run, one sentence per term that has a bound: how often the bound acted."""
    said = []
    for guidance in (t.guidance for t in terms_of(model) if t.guidance.bound):
        share = trace_of(model).bound_share(guidance.name)
        sets = ": here it, not the scale, sets the strength." if share >= 0.5 else "."
        said.append(f"{guidance.name}: the bound of {guidance.bound:g} acted in {share:.0%} of the steps{sets}")
    return said


def probabilities_of(model) -> dict[str, tuple[list[str], list[Tensor]]]:
    """Of the last run, per term that can tell: names of the classes or captions, and [B, K] for each step."""
    trace, device, found = trace_of(model), model.load_device, {}
    for t in terms_of(model):
        if t.probabilities is None or not trace.steps:
            continue
        bring(device, t.patchers, t.modules)
        with grad_mode(*t.modules), torch.no_grad():
            told = [
                t.probabilities(*(as_image(s["x"].float().to(device)), torch.tensor(s["sigma"])), image)
                for s in trace.steps
                for image in [as_image(s["denoised"].float().to(device))]
            ]
        found[t.guidance.name] = told[0][0], [p.float().cpu() for _, p in told]
    return found


def terms_of(model) -> list[Term]:
    hook = _hook(model)
    return list(hook.terms) if hook else []


def without_terms(model) -> object:
    """A clone of the MODEL without the guidance of this pack."""
    clone, before = model.clone(), _hook(model)
    hooks = [h for h in clone.model_options.get("sampler_post_cfg_function", []) if h is not before]
    clone.model_options = {**clone.model_options, "sampler_post_cfg_function": hooks}
    return clone  # which still loads the networks of the terms with it: Optimise Start Noise asks them


def _hook(model):
    hooks = model.model_options.get("sampler_post_cfg_function", [])
    return next((h for h in hooks if getattr(h, "kind", None) == _MARK), None)


def attach(model, terms: list[Term]) -> object:
    """A clone of the MODEL with these terms added to those it has."""
    clone = model.clone()
    hooks = clone.model_options.get("sampler_post_cfg_function", [])
    before = _hook(model)
    hook = _post_cfg(clone, [*(before.terms if before else []), *terms])
    if before:
        replaced = [hook if h is before else h for h in hooks]
        clone.model_options = {**clone.model_options, "sampler_post_cfg_function": replaced}
    else:
        clone.set_model_sampler_post_cfg_function(hook)
    beside = [*{id(p): p for t in hook.terms for p in t.patchers}.values()]
    if beside and hasattr(clone, "set_additional_models"):
        clone.set_additional_models(_MARK, beside)  # loaded with the network; later, they could push it off the device
    return clone


def _post_cfg(model, terms: list[Term]):
    """The hook: a plain function, since cloning a MODEL copies everything else deeply."""
    trace, clock = Trace(), Clock()
    process = process_of(model)

    def hook(args: dict) -> Tensor:
        x, sigma, denoised = args["input"], args["sigma"].flatten()[:1], args["denoised"]
        level = float(sigma[0])
        begins = clock.tick(level, args["model_options"].get("transformer_options", {}).get("sample_sigmas"))
        if clock.meet(args["cond"]) or begins:
            trace.steps.clear()
        schedule = clock.seen
        step = trace.step(level, x, denoised)
        live = [t for t in terms if t.guidance.scale_at(level, schedule, process)]
        if not live:
            return denoised
        check_interrupt()

        def report(said: dict) -> None:
            step["terms"][said["name"]] = {key: said[key].float().cpu() for key in _TOLD}

        through = any(t.guidance.mode == "network" for t in live)
        modules = [*{id(m): m for t in live for m in t.modules}.values()]
        bring(x.device, [p for t in live for p in t.patchers], modules)
        advice = _advice([t.guidance.mode for t in live])
        if through:
            modules += [args["model"], *control_networks([args["cond"], args["uncond"]])]
        with short_of_memory(advice), grad_mode(*modules):
            change = shift(
                [t.guidance for t in live],
                *(as_image(normal(x)).float(), sigma.clone().float()[0], as_image(normal(denoised)).float()),
                process=process,
                sigmas=schedule,
                report=report,
                network=_network(args) if through else None,
            )
        if not bool(torch.isfinite(change).all()):
            raise ValueError(
                "The guidance gradient is not finite: lower the scale, set a bound (1 for example), or "
                "load the model in fp32 or bf16."
            )
        guided = denoised + change.to(denoised).reshape(denoised.shape)
        trace.step(level, x, guided)
        return guided

    hook.kind, hook.terms, hook.trace = _MARK, terms, trace
    return hook


def _advice(modes: list[str]) -> str:
    what = "the guidance gradient"
    if "network" in modes:
        return f"{what} through the network: set gradient_mode to decoder, which needs no network backward."
    if "decoder" in modes:
        return (
            f"{what} through the decoder: use fewer cutouts, a smaller picture or a tiny VAE (TAESD), or "
            "gradient_mode latent with a noise-aware classifier."
        )
    return f"{what}: use a smaller batch."


def _network(args: dict):
    """The engine's own prediction with CFG, differentiable. The scale is measured from the three predictions that the
    hook was given: one engine doesn't tell it, and hooks may have changed it."""
    conds, scale = [args["cond"]], 1.0
    if args["uncond"] is not None and args["uncond_denoised"] is not None:
        scale = measured_cfg(args["cond_denoised"], args["uncond_denoised"], args["denoised"], torch.float32)
        scale = 1.0 if scale is None else scale
    if abs(scale - 1) > 1e-4:
        conds.append(args["uncond"])
    options = for_gradients(normal_options(args["model_options"]), conds)
    shape = args["input"].shape
    conds = normal(conds)

    def denoise(x, sigma):  # x [B, C, h, w]; the network's own latents may have an axis of frames
        out = get("samplers").calc_cond_batch(args["model"], conds, x.reshape(shape), timestep(sigma, x), options)
        return as_image(out[0] if len(out) == 1 else apply_cfg(*out, scale))

    return keep_from_underflow(denoise) if compute_dtype(args["model"]) == torch.float16 else denoise


def loss_of(terms: list[Term], sigma: float) -> Callable[[Tensor], Tensor]:
    """D -> [B]: the terms' negative log-likelihoods of a clean picture at sigma, each times its scale over the sum of
    the scales' sizes; a negative scale leads away."""
    scales = [float(t.guidance.scale) for t in terms]
    whole = sum(map(abs, scales))

    def loss(x0: Tensor) -> Tensor:
        x = as_image(x0).float()
        level = torch.tensor(sigma, device=x.device)
        return sum(-t.guidance.log_likelihood(x, level, x) * (k / whole) for t, k in zip(terms, scales))

    return loss
