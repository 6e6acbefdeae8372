"""Invert Image, Null-Text Optimise, and both in one box: the Null-Text Inverter."""

from __future__ import annotations

from ..engine import record
from ..engine.comfy import schedulers, sigmas_of
from ..engine.noise import source_latent
from ..samplers.inversion.table import BY_TITLE, PIVOTS
from . import inverting, optimising
from .report import before_after, cost_line, error_line, noise_line, text_result

_CACHE = (
    "BOOLEAN",
    {
        "default": True,
        "tooltip": "Look up an inversion already made for the same inputs, also after a restart. Files lie in "
        "ComfyUI's "
        "user folder under nulltext/inversions, at most 2 GB, the longest unused go first.",
    },
)
_PIVOT = (
    list(BY_TITLE),
    {
        "default": "DDIM",
        "tooltip": "How the path to noise is found. DDIM: as the code of null-text inversion does, N calls; "
        "lower level: "
        "the network asked where the picture still is, one level lower. Fixed point: each step solved, N x "
        "(1 + iterations) calls. "
        "Exact pair: comes back exactly at the cfg it was made at, N + iterations calls. Edit-friendly DDPM: "
        "independent noises and recorded residuals, comes back exactly, N calls.",
    },
)
#: pivots that come back by plain Euler steps, which guidance drives off and a correction brings back
_CORRECTABLE = [title for title, name in BY_TITLE.items() if not PIVOTS[name].needs]
_MODEL = ("MODEL", {"tooltip": "The diffusion model; LoRA loaders may stand before it."})
_LATENT = ("LATENT", {"tooltip": "The picture, from VAE Encode; a batch is inverted at once."})
_STEPS = ("INT", {"default": 50, "min": 1, "max": 1000, "tooltip": "Steps N of the walk to noise and back."})
_SCHEDULER = (schedulers(), {"default": "normal", "tooltip": "Where the steps lie; 'normal' is DDIM's spacing."})
_ITERATIONS = (
    "INT",
    {
        "default": 5,
        "min": 0,
        "max": 50,
        "tooltip": "Iterations of the fixed point (each costs N calls), or of the exact pair's first step "
        "(one call each).",
    },
)
_GAMMA = (
    "FLOAT",
    {
        "default": 0.0,
        "min": 0.0,
        "max": 1.0,
        "step": 0.01,
        "tooltip": "Of the exact pair. 0: O-BELM, second order. Above: BDIA with this gamma; 1 inverts stably, less "
        "inverts with an error that grows as gamma to the power -N.",
    },
)
_EMBEDDINGS = ("one per step", "one for all steps (the paper's ablation)")
_SIGMAS = ("SIGMAS", {"tooltip": "Instead of steps and scheduler: a schedule that falls to 0."})
_CFG = (
    "FLOAT",
    {
        "default": 7.5,
        "min": 1.0,
        "max": 30.0,
        "step": 0.1,
        "tooltip": "The guidance scale that you will edit with (ComfyUI's cfg, 1 + w in the paper).",
    },
)
_INNER = (
    "INT",
    {
        "default": 10,
        "min": 1,
        "max": 100,
        "tooltip": "The most gradient steps per step. Cost: at most N x (inner + 2) forwards and N x inner backwards.",
    },
)
_TOLERANCE = (
    "FLOAT",
    {
        "default": 1e-5,
        "min": 0.0,
        "max": 1.0,
        "step": 1e-6,
        "round": False,
        "tooltip": "A step is done when its loss falls below this (it grows with the step as in the paper). "
        "0: always all inner steps.",
    },
)
_RATE = (
    "FLOAT",
    {
        "default": 0.0,
        "min": 0.0,
        "max": 10.0,
        "step": 1e-3,
        "round": False,
        "tooltip": "Adam's first rate for the null embedding. 0: the paper's 0.01, and more where the embedding is "
        "narrower than Stable Diffusion's 768 numbers.",
    },
)
_CHECKPOINT = (
    "BOOLEAN",
    {"default": False, "tooltip": "Recompute blocks in the backward pass: much less memory, about half more time."},
)
_VAE = ("VAE", {"tooltip": "Shows source and reconstruction in the node, with their PSNR. Left open: no pictures."})
_OUTPUTS = (
    "The inversion: trajectory, schedule, source prompt, model fingerprint, null embeddings if optimised.",
    "The reconstruction, walked back from noise with the source prompt.",
    "What it cost and how well it comes back.",
)


def _shown(lines: list[str], inversion, result, vae):
    """What the three nodes return: record, reconstruction, report, and both pictures for the page."""
    line, pictures = before_after(vae, source_latent(inversion), result.samples)
    text = "\n".join([*lines[:2], *([line] if line else []), *lines[2:]])
    return text_result(text, inversion, {"samples": result.samples}, text, **pictures)


class InvertImage:
    ID = "NullText_InvertImage"
    TITLE = "Invert Image"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "Walks a picture back to the noise it could have come from, so that it can be sampled again with another "
        "prompt. Works for eps, v-prediction and flow models. Cost: N calls for the pivot (more for fixed point) and "
        "N for the reconstruction. Search: unsampler, ddim inversion, noise inversion, unsample, rf inversion."
    )
    SEARCH_ALIASES = ["unsampler", "ddim inversion", "noise inversion", "unsample", "rf inversion"]
    FUNCTION = "run"
    RETURN_TYPES = ("INVERSION", "LATENT", "STRING")
    RETURN_NAMES = ("inversion", "reconstruction", "report")
    OUTPUT_TOOLTIPS = _OUTPUTS

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": _MODEL,
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "What the picture shows: Prompt (with words) or any conditioning."},
                ),
                "latent": _LATENT,
                "pivot": _PIVOT,
                "steps": _STEPS,
                "scheduler": _SCHEDULER,
                "cfg": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "Guidance while inverting. 1 for DDIM and fixed point. Exact pair and edit-friendly "
                        "come back at the cfg given here (above 1 it needs the negative prompt and doubles the "
                        "cost); edit-friendly's authors take 3.5, and edit at 15 by the sampler's target_cfg.",
                    },
                ),
                "iterations": _ITERATIONS,
                "seed": (
                    "INT",
                    {"default": 0, "min": 0, "max": 2**32 - 1, "tooltip": "Noise of the edit-friendly pivot."},
                ),
                "use_cache": _CACHE,
            },
            "optional": {
                "negative": ("CONDITIONING", {"tooltip": "The empty prompt; only asked where cfg is not 1."}),
                "sigmas": _SIGMAS,
                "vae": _VAE,
                "gamma": _GAMMA,
            },
        }

    def run(
        self,
        model,
        positive,
        latent,
        pivot,
        steps,
        scheduler,
        cfg,
        iterations,
        seed,
        use_cache,
        negative=None,
        sigmas=None,
        vae=None,
        gamma=0.0,
    ):
        sigmas = sigmas_of(model, scheduler, steps) if sigmas is None else sigmas
        conds = {"positive": positive, "negative": negative}
        inversion, found = inverting.invert(
            model,
            conds,
            latent,
            sigmas,
            BY_TITLE[pivot],
            cfg=cfg,
            iterations=iterations,
            gamma=gamma or None,
            seed=seed,
            cache=use_cache,
        )
        result = inverting.replay(model, inversion, positive, negative)
        how = f" (BDIA, gamma {gamma:g})" if pivot == "exact pair" and gamma else ""
        lines = [
            f"Inverted with {pivot}{how}, {inversion.steps} steps, {inversion.shape[0]} image(s), cfg {cfg:g}",
            error_line(inversion, result),
            cost_line(inversion, result, found),
            noise_line(inversion),
        ]
        if cfg != 1 and not inversion.kind.needs:
            lines.append("Note: a guided DDIM inversion drifts; cfg 1 and null-text optimisation are the remedy")
        return _shown(lines, inversion, result, vae)


class NullTextOptimise:
    ID = "NullText_Optimise"
    TITLE = "Null-Text Optimise"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "Null-text inversion: optimises the empty prompt's embedding at every step until guided sampling comes back "
        "to the inverted picture. Cost: at most N x (inner steps + 2) forwards and N x inner steps backwards; the "
        "pivot is not made again. Search: null text inversion, NTI, real image editing, optimise uncond."
    )
    SEARCH_ALIASES = ["null text inversion", "NTI", "real image editing", "optimise uncond"]
    FUNCTION = "run"
    RETURN_TYPES = ("INVERSION", "LATENT", "STRING")
    RETURN_NAMES = ("inversion", "reconstruction", "report")
    OUTPUT_TOOLTIPS = _OUTPUTS

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": _MODEL,
                "inversion": ("INVERSION", {"tooltip": "From Invert Image with DDIM or fixed point at cfg 1."}),
                "negative": ("CONDITIONING", {"tooltip": "The empty prompt, from which the null embedding starts."}),
                "cfg": _CFG,
                "inner_steps": _INNER,
                "tolerance": _TOLERANCE,
                "checkpointing": _CHECKPOINT,
                "use_cache": _CACHE,
            },
            "optional": {
                "positive": (
                    "CONDITIONING",
                    {
                        "tooltip": "Only where the inversion couldn't keep the source prompt (control nets, combined "
                        "prompts)."
                    },
                ),
                "vae": _VAE,
                "rate": _RATE,
                "embeddings": (
                    list(_EMBEDDINGS),
                    {
                        "default": _EMBEDDINGS[0],
                        "tooltip": "one per step: the method. One for all steps: the paper's ablation, a "
                        "single embedding "
                        "for the whole walk, optimised in inner_steps passes over it; it comes back less well. "
                        "tolerance is not read; cost N x (inner + 3) forwards.",
                    },
                ),
            },
        }

    def run(
        self,
        model,
        inversion,
        negative,
        cfg,
        inner_steps,
        tolerance,
        checkpointing,
        use_cache,
        positive=None,
        vae=None,
        rate=0.0,
        embeddings=_EMBEDDINGS[0],
    ):
        one_for_all = embeddings == _EMBEDDINGS[1]
        corrected, result = optimising.optimise(
            model,
            inversion,
            positive,
            negative,
            cfg,
            inner=inner_steps,
            tolerance=tolerance,
            rate=rate,
            one_for_all=one_for_all,
            checkpoint=checkpointing,
            cache=use_cache,
        )
        found = result is None
        if found:
            prompt = record.source_conditioning(corrected) if positive is None else positive
            result = inverting.replay(model, corrected, prompt, negative)
        meta = corrected.metadata
        name = "Global null-text" if one_for_all else "Null-text"
        lines = [
            f"{name} at cfg {cfg:g}: {corrected.steps} steps, {corrected.shape[0]} image(s)",
            error_line(corrected, result),
            ("found in the cache; made with " if found else "") + f"{meta['null_forwards']} forwards and "
            f"{meta['null_backwards']} backwards in {meta['null_seconds']:.1f} s",
            *optimising.notices(model),
        ]
        return _shown(lines, corrected, result, vae)


_CORRECTIONS = ["null-text", "negative prompt", "direct overwrite", "none", "global null-text"]


class NullTextInverter:
    ID = "NullText_Inverter"
    TITLE = "Null-Text Inverter"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "One box: inverts a picture and corrects the inversion for guided editing, by null-text optimisation, by the "
        "negative-prompt shortcut, or by direct overwrite. Cost with null-text: N + N x (inner steps + 2) forwards "
        "and N x inner steps backwards at most; the others cost 2 N forwards. Search: null text inversion, unsampler, "
        "invert image, negative prompt inversion, direct inversion."
    )
    SEARCH_ALIASES = [
        "null text inversion",
        "unsampler",
        "invert image",
        "negative prompt inversion",
        "direct inversion",
    ]
    FUNCTION = "run"
    RETURN_TYPES = ("INVERSION", "LATENT", "STRING")
    RETURN_NAMES = ("inversion", "reconstruction", "report")
    OUTPUT_TOOLTIPS = _OUTPUTS

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": _MODEL,
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "What the picture shows: Prompt (with words) or any conditioning."},
                ),
                "negative": ("CONDITIONING", {"tooltip": "The empty prompt, from which the null embedding starts."}),
                "latent": _LATENT,
                "correction": (
                    _CORRECTIONS,
                    {
                        "default": "null-text",
                        "tooltip": "null-text: optimise the empty prompt (best, slow). negative prompt: put the source "
                        "prompt in its place (no optimisation). direct overwrite: nothing is optimised, nodes "
                        "that carry the source along lay it on the stored path. none: the bare pivot. global "
                        "null-text: one embedding for all steps, the paper's ablation.",
                    },
                ),
                "steps": _STEPS,
                "scheduler": _SCHEDULER,
                "cfg": _CFG,
                "inner_steps": _INNER,
                "tolerance": _TOLERANCE,
                "pivot": (_CORRECTABLE, {"default": "DDIM", "tooltip": _PIVOT[1]["tooltip"]}),
                "iterations": _ITERATIONS,
                "checkpointing": _CHECKPOINT,
                "use_cache": _CACHE,
            },
            "optional": {"sigmas": _SIGMAS, "vae": _VAE, "rate": _RATE},
        }

    def run(
        self,
        model,
        positive,
        negative,
        latent,
        correction,
        steps,
        scheduler,
        cfg,
        inner_steps,
        tolerance,
        pivot,
        iterations,
        checkpointing,
        use_cache,
        sigmas=None,
        vae=None,
        rate=0.0,
    ):
        sigmas = sigmas_of(model, scheduler, steps) if sigmas is None else sigmas
        if cfg == 1 and correction in ("null-text", "global null-text", "negative prompt"):
            optimising.refuse_cfg_1()
        conds = {"positive": positive}
        inversion, found = inverting.invert(
            model, conds, latent, sigmas, BY_TITLE[pivot], iterations=iterations, cache=use_cache
        )
        if correction in ("null-text", "global null-text"):
            return NullTextOptimise().run(
                model,
                inversion,
                negative,
                cfg,
                inner_steps,
                tolerance,
                checkpointing,
                use_cache,
                positive,
                vae,
                rate,
                _EMBEDDINGS[correction != "null-text"],
            )
        if correction == "negative prompt":
            inversion = optimising.as_negative_prompt(inversion, cfg)
        else:
            inversion = optimising.uncorrected(inversion, cfg, "none" if correction == "none" else "overwrite")
        overwritten = correction == "direct overwrite"  # its source branch is the stored path
        result = (
            inverting.untouched(inversion) if overwritten else inverting.replay(model, inversion, positive, negative)
        )
        lines = [
            f"Inverted with {pivot}, correction {correction}, {inversion.steps} steps, "
            f"{inversion.shape[0]} image(s), cfg {cfg:g}",
            error_line(inversion, result),
            cost_line(inversion, result, found),
            noise_line(inversion),
        ]
        return _shown(lines, inversion, result, vae)


NODES = (InvertImage, NullTextOptimise, NullTextInverter)
