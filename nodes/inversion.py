"""Invert Image: from a picture to the noise it could have come from, by any pivot."""

from __future__ import annotations

import time

from torch import Tensor

from ..engine import files, record
from ..engine.comfy import check_latent, process_of, sigmas_of
from ..engine.fingerprint import fingerprint
from ..engine.noise import model_notes
from ..engine.run import Run, sample_with
from ..samplers.core import gaussian
from ..samplers.inversion.exact_pair import fitting_gamma
from ..samplers.inversion.record import Inversion
from ..samplers.inversion.replay import first_step
from ..samplers.inversion.table import BY_TITLE, PIVOTS
from .base import (
    LATENT,
    MODEL,
    NEGATIVE,
    POSITIVE,
    SCHEDULER,
    SEED,
    SIGMAS,
    STEPS,
    VAE,
    Boolean,
    Box,
    Choice,
    Float,
    Int,
    Output,
    optional,
)
from .masked import check_picture
from .replay import Inverting, cost_line, error_line, looked_at, noise_line, reconstructed, replay

# inputs of Invert Image, Null-Text Optimise and the Null-Text Inverter
PATCHED = MODEL("The diffusion model; LoRA loaders may stand before it.")
SHOWS = POSITIVE("What the picture shows: Prompt (with words) or any conditioning.")
PICTURE = LATENT("The picture, from VAE Encode; a batch is inverted at once.")
WALK = (
    STEPS("Steps N to the noise and back."),
    SCHEDULER(
        "How the steps are spaced: 'normal' from the model's noisiest level on, 'ddim_uniform' as the papers' code."
    ),
)
#: of those that plain Euler steps bring back
EULER_PIVOTS = (
    "How the way to noise is found. DDIM: fast, the usual start, N calls. DDIM, lower level: the same cost; the model "
    "is read at the less noisy end of each step. Fixed point: more exact, for (1 + iterations) times the cost."
)
PIVOT = Choice(
    "pivot",
    list(BY_TITLE),
    f"{EULER_PIVOTS} Exact pair: comes back exactly at the same cfg, N + iterations calls; edits may fall apart at a "
    "high cfg. Edit-friendly DDPM: comes back exactly and takes strong edits, N calls.",
    "DDIM",
)
ITERATIONS = Int(
    "iterations",
    5,
    "Iterations of the fixed point (each costs N calls), or of the exact pair's first step (one call each).",
    0,
    50,
)
USE_CACHE = Boolean(
    "use_cache",
    True,
    "Look up an inversion already made for the same inputs, also after a restart. Files lie in ComfyUI's user folder "
    "under nulltext/inversions, at most 2 GB, the longest unused go first.",
)
COMPARED = VAE("Shows source and reconstruction in the node, with their PSNR. Left open: no pictures.")
OUTPUTS = (
    Output(
        "INVERSION",
        "The inversion: trajectory, schedule, source prompt, model fingerprint, null embeddings if optimised.",
        "inversion",
    ),
    Output("LATENT", "The reconstruction, sampled back from noise with the source prompt.", "reconstruction"),
    Output("STRING", "What it cost and how well it comes back.", "report"),
)


def check_invertible(model, conds: dict, latent: dict, sigmas: Tensor, pivot: str, cfg: float) -> Tensor:
    """Every refusal that can be spoken before any work; returns the latent's samples [B, C, ...]."""
    process = process_of(model)
    samples = check_latent(model, latent)
    check_picture({"samples": samples}, "An inversion needs a picture", "encode one with VAE Encode")
    if pivot not in PIVOTS:
        raise ValueError(f"The pivot is one of {', '.join(BY_TITLE)}; got {pivot!r}.")
    if cfg != 1 and not conds.get("negative"):
        raise ValueError(
            f"At cfg {cfg:g} the inversion has a null branch: wire the negative (empty) prompt, or set cfg 1."
        )
    if process.name == "flow" and float(sigmas[0]) > 1:
        raise ValueError("These sigmas are not a flow model's (they exceed 1): make them with this model.")
    return samples


def invert(
    model,
    conds: dict,
    latent: dict,
    sigmas: Tensor,
    pivot: str,
    *,
    cfg: float = 1.0,
    iterations: int = 5,
    gamma: float | None = None,
    seed: int = 0,
    cache: bool = True,
    depth: float = 1.0,
) -> tuple[Inversion, bool]:
    """(INVERSION of a LATENT, whether it came from the cache). conds: "positive", and "negative" where cfg is not 1.

    depth: the share of the steps that are climbed, from the picture on; metadata "schedule_steps" tells them all.

    Fixed point and exact pair solve with `iterations`; the exact pair is BDIA with `gamma`, for None what
    `fitting_gamma` says, metadata "gamma" being what it was; only edit-friendly uses the seed. ValueError before any
    work."""
    record.check_prompt(conds["positive"])
    process = process_of(model)
    sigmas = record.check_sigmas(sigmas, process)
    whole = len(sigmas) - 1
    sigmas = record.check_sigmas(sigmas[first_step(depth, whole) :], process)
    samples = check_invertible(model, conds, latent, sigmas, pivot, cfg)
    used = {"positive": conds["positive"], **({"negative": conds["negative"]} if cfg != 1 else {})}
    fields = record.conditioning_fields(used["positive"])
    marks = fingerprint(model)
    kind = PIVOTS[pivot]
    seeded = seed if kind.seeded else 0
    gamma = (gamma or fitting_gamma(sigmas, process)) if "gamma" in kind.takes else None
    options = [pivot, iterations if "iterations" in kind.takes else 0, gamma or 0.0, cfg, seeded]
    key = files.cache_key(model, marks, options, sigmas, samples, used) if cache else None
    found = files.find(key)
    if found is not None:  # the same levels may be a part of another schedule
        return found.replace(metadata={**found.metadata, "schedule_steps": whole}), True

    def body(run: Run):
        denoise = run.guided("positive", "negative", cfg)
        given = {"iterations": iterations, "gamma": gamma, "noise": gaussian(run.latent, seed)}
        options = {name: given[name] for name in kind.takes}
        made = kind.invert(
            denoise, run.latent, run.sigmas, process=run.process, callback=run.callback, tick=run.tick, **options
        )
        return made, run.calls

    began = time.perf_counter()
    total = kind.calls(len(sigmas) - 1, iterations)
    made, calls = sample_with(model, used, samples, sigmas, body, total=total, seed=seed)
    notes = {
        **fields.pop("metadata"),
        **model_notes(model, float(sigmas[0])),
        "calls": calls,
        "iterations": iterations,
        "gamma": gamma,
        "seconds": time.perf_counter() - began,
        "seed": seeded,
        "schedule_steps": whole,
    }
    inversion = Inversion(
        sigmas=sigmas,
        trajectory=made.trajectory,
        process=process.name,
        pivot=pivot,
        cfg=cfg,
        fingerprint=marks,
        pair=made.pair,
        residuals=made.residuals,
        metadata=notes,
        **fields,
    )
    files.keep(key, inversion)
    return inversion, False


class InvertImage(Inverting, Box):
    ID, TITLE, CATEGORY = "NullText_InvertImage", "Invert Image (unsampler)", "NullText/inversion"
    SEARCH_ALIASES = ["unsampler", "ddim inversion", "noise inversion", "unsample", "rf inversion"]
    DESCRIPTION = (
        "Follows a picture back to the noise it could have come from, so that it can be sampled again with another "
        "prompt. Works for eps, v-prediction and flow models. Cost: N calls for the pivot (more for fixed point), and "
        "N for the reconstruction where it, the report or a VAE is wired."
    )
    INPUTS = (
        PATCHED,
        SHOWS,
        PICTURE,
        PIVOT,
        *WALK,
        Float(
            "cfg",
            1.0,
            "Guidance while inverting. 1 for DDIM and fixed point. Exact pair and edit-friendly come back at the cfg "
            "given here (above 1 it needs the negative prompt and doubles the cost); edit-friendly's authors take "
            "3.5, and edit at 15 by the sampler's target_cfg.",
            1.0,
            30.0,
            0.1,
        ),
        ITERATIONS,
        SEED("Noise of the edit-friendly pivot."),
        USE_CACHE,
        *optional(
            NEGATIVE("The empty prompt; read only where cfg is not 1."),
            SIGMAS,
            COMPARED,
            Float(
                "gamma",
                0.0,
                "Of the exact pair. 0: O-BELM, second order, or BDIA with gamma 1 where a step is too long for O-BELM "
                "(zero-terminal-SNR models, few steps). Above: BDIA with this gamma; 1 inverts stably, less inverts "
                "with an error that grows as gamma to the power -N.",
            ),
            Float(
                "depth",
                1.0,
                "How far towards noise to invert. Below 1 where the edit starts lower anyway: DiffEdit at depth 0.8 "
                "needs no more than 0.8, and costs that much less.",
                0.05,
            ),
        ),
    )
    OUTPUTS = OUTPUTS

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
        depth=1.0,
        unique_id=None,
    ):
        sigmas = sigmas_of(model, scheduler, steps) if sigmas is None else sigmas
        conds, options = (
            {"positive": positive, "negative": negative},
            {"iterations": iterations, "gamma": gamma or None},
        )
        inversion, found = invert(
            model, conds, latent, sigmas, BY_TITLE[pivot], cfg=cfg, seed=seed, cache=use_cache, depth=depth, **options
        )
        result = replay(model, inversion, positive, negative) if looked_at(unique_id, vae) else None
        used = inversion.metadata.get("gamma")
        why = "" if gamma else ", for a step is too long for O-BELM"
        how = f" (BDIA, gamma {used:g}{why})" if used else ""
        lines = [
            f"Inverted with {pivot}{how}, {inversion.steps} steps, {inversion.shape[0]} image(s), cfg {cfg:g}",
            error_line(inversion, result),
            cost_line(inversion, result, found),
            *([noise_line(inversion)] if depth == 1 else []),
        ]
        if cfg != 1 and not inversion.kind.needs:
            lines.append("Note: a guided DDIM inversion drifts; use cfg 1 and null-text optimisation instead")
        return reconstructed(lines, inversion, result, vae)


NODES = (InvertImage,)
