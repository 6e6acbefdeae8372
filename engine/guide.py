"""Guidance terms on a MODEL: one post-CFG function per model that adds all of them, and a record of the run.

`attach` clones the MODEL. Terms attached one after another are kept together, so that all look at the same estimate.
The order in ComfyUI's chain is that of the first: hooks that rescale CFG belong before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..samplers.guidance.terms import Guidance, shift
from ..samplers.window import ROUNDING
from .clock import Clock
from .comfy import check_interrupt, get, latent_out, load_models, process_of
from .gradients import grad_mode, normal

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
class Record:
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


def decoder(model, vae) -> Callable[[Tensor], Tensor]:
    """D [B, C, H, W] in model space -> pictures [B, 3, h, w], differentiable, not clamped to 0..1.

    ValueError if the VAE's latents are not the model's."""
    channels = model.get_model_object("latent_format").latent_channels
    theirs = getattr(vae, "latent_channels", channels)
    if theirs != channels:
        raise ValueError(
            f"The VAE makes latents of {theirs} channels, the model works on {channels}: wire the VAE "
            "that belongs to the model."
        )

    def decode(denoised: Tensor) -> Tensor:
        if denoised.ndim != 4:
            raise ValueError("Guidance by a decoded picture works on images, not on video latents.")
        z = latent_out(model, denoised)
        return (vae.first_stage_model.decode(z.to(_dtype(vae.first_stage_model))).float() + 1) / 2

    return decode


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def ready(module: nn.Module, device) -> nn.Module:
    """A small network of this pack on the device, its weights ordinary frozen tensors."""
    with torch.inference_mode(False):
        return module.to(device)


def attention_notice() -> str | None:
    """What the user is told where ComfyUI runs another attention than PyTorch's, which stands in for gradients."""
    module = get("ldm.modules.attention")
    if module.optimized_attention is module.attention_pytorch:
        return None
    name = getattr(module.optimized_attention, "__name__", "the attention in use")
    return f"While gradients are computed, PyTorch's own attention takes the place of {name}."


def record_of(model) -> Record | None:
    """The record of the last run of a guided MODEL, None if it has no guidance of this pack."""
    hook = _hook(model)
    return hook.record if hook else None


def bounds_said(model) -> list[str]:
    """Of the last run, one sentence per term that has a bound: how often the bound acted."""
    record = record_of(model)
    return [_bound_said(t.guidance, record.bound_share(t.guidance.name)) for t in terms_of(model) if t.guidance.bound]


def _bound_said(guidance: Guidance, share: float) -> str:
    said = f"{guidance.name}: the bound of {guidance.bound:g} acted in {share:.0%} of the steps"
    return said + (": here it, not the scale, sets the strength." if share >= 0.5 else ".")


def probabilities_of(model) -> dict[str, tuple[list[str], list[Tensor]]]:
    """Of the last run, per term that can tell: names of the classes or captions, and [B, K] for each step."""
    record, found = record_of(model), {}
    for t in terms_of(model):
        if t.probabilities is None or not record.steps:
            continue
        load_models_if_away(list(t.patchers), model.load_device)
        for module in t.modules:
            if not any(p.device == model.load_device for p in module.parameters()):
                ready(module, model.load_device)
        with grad_mode(*t.modules), torch.no_grad():
            told = [
                t.probabilities(
                    s["x"].float().to(model.load_device),
                    torch.tensor(s["sigma"]),
                    s["denoised"].float().to(model.load_device),
                )
                for s in record.steps
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
    return clone


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
    return clone


def _post_cfg(model, terms: list[Term]):
    """The hook: a plain function, since cloning a MODEL copies everything else deeply."""
    record, clock = Record(), Clock()
    process = process_of(model)

    def hook(args: dict) -> Tensor:
        x, sigma, denoised = args["input"], args["sigma"].flatten()[:1], args["denoised"]
        level = float(sigma[0])
        if clock.tick(level, args["model_options"].get("transformer_options", {}).get("sample_sigmas")):
            record.steps.clear()
        schedule = clock.seen
        step = record.step(level, x, denoised)
        live = [t for t in terms if t.guidance.scale_at(level, schedule)]
        if not live:
            return denoised
        check_interrupt()

        def report(said: dict) -> None:
            step["terms"][said["name"]] = {key: said[key].float().cpu() for key in _TOLD}

        through = any(t.guidance.mode == "network" for t in live)
        modules = {id(m): m for t in live for m in t.modules}
        load_models_if_away([p for t in live for p in t.patchers], x.device)
        for module in modules.values():
            if not any(p.device == x.device for p in module.parameters()):
                ready(module, x.device)
        if through:
            modules[id(args["model"])] = args["model"]
        try:
            with grad_mode(*modules.values()):
                inputs = normal(x).float(), sigma.clone().float()[0], normal(denoised).float()
                change = shift(
                    [t.guidance for t in live],
                    *inputs,
                    process=process,
                    sigmas=schedule,
                    report=report,
                    network=_network(args) if through else None,
                )
        except torch.cuda.OutOfMemoryError:
            raise ValueError(_too_large([t.guidance.mode for t in live])) from None
        if not bool(torch.isfinite(change).all()):
            raise ValueError(
                "The guidance gradient is not finite: lower the scale, set a bound (1 for example), or "
                "load the model in fp32 or bf16."
            )
        guided = denoised + change.to(denoised)
        record.step(level, x, guided)
        return guided

    hook.kind, hook.terms, hook.record = _MARK, terms, record
    return hook


def load_models_if_away(patchers: list, device) -> None:
    away = [p for p in {id(p): p for p in patchers}.values() if any(w.device != device for w in p.model.parameters())]
    if away:
        load_models(away)


def _too_large(modes: list[str]) -> str:
    said = "Not enough GPU memory for the guidance gradient"
    if "network" in modes:
        return f"{said} through the network: set gradient_mode to decoder, which needs no network backward."
    if "decoder" in modes:
        return (
            f"{said} through the decoder: use fewer cutouts, a smaller picture or a tiny VAE (TAESD), or "
            "gradient_mode latent with a noise-aware classifier."
        )
    return f"{said}: use a smaller batch."


def _network(args: dict):
    """The engine's own prediction with CFG, differentiable. The scale is measured from the three predictions that the
    hook was given: one engine doesn't tell it, and hooks may have changed it."""
    conds, scale = [args["cond"]], 1.0
    cond, uncond = args["cond_denoised"], args["uncond_denoised"]
    if args["uncond"] is not None and uncond is not None:
        gap = (cond - uncond).float()
        power = float(gap.pow(2).sum())
        scale = float(((args["denoised"] - uncond).float() * gap).sum()) / power if power > 0 else 1.0
    if abs(scale - 1) > 1e-4:
        conds.append(args["uncond"])
    conds = normal(conds)
    options = normal(args["model_options"])
    transformer = options.get("transformer_options", {})
    if "optimized_attention_override" in transformer:  # may have no backward
        kept = {k: v for k, v in transformer.items() if k != "optimized_attention_override"}
        options = {**options, "transformer_options": kept}

    def denoise(x, sigma):
        sigma = sigma.expand(x.shape[0]).clone()
        out = get("samplers").calc_cond_batch(args["model"], conds, x, sigma, options)
        if len(conds) == 1:
            return out[0]
        return out[1] + scale * (out[0] - out[1])

    return denoise
