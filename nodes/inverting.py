"""Inversion and its way back inside ComfyUI: the pivots of samplers/ run on MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine import files, record
from ..engine.comfy import Progress, check_latent, is_empty, latent_in, process_of
from ..engine.fingerprint import fingerprint
from ..engine.guider import null_text_guider
from ..engine.noise import model_notes, source_latent
from ..engine.run import Run, sample_with
from ..engine.sampler import own_way_back
from ..samplers.core import gaussian
from ..samplers.inversion.record import Inversion
from ..samplers.inversion.replay import calls_back, cfg_of
from ..samplers.inversion.table import BY_TITLE, PIVOTS


@dataclass
class Result:
    """A reconstruction: LATENT samples [B, C, ...] on the CPU, and what it cost."""

    samples: Tensor
    calls: int
    seconds: float
    error: Tensor  #: [B] rms of the latent error in model space


def check_invertible(model, conds: dict, latent: dict, sigmas: Tensor, pivot: str, cfg: float) -> Tensor:
    """Every refusal that can be spoken before any work; returns the latent's samples [B, C, ...]."""
    process = process_of(model)
    samples = check_latent(model, latent)
    if is_empty({"samples": samples}):
        raise ValueError("The latent is empty: encode the picture to invert with VAE Encode.")
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
) -> tuple[Inversion, bool]:
    """(INVERSION of a LATENT, whether it came from the cache). conds: "positive", and "negative" where cfg is not 1.

    Fixed point and exact pair solve with `iterations`; the exact pair is BDIA with `gamma`, O-BELM for None; only
    edit-friendly uses the seed. ValueError before any work."""
    record.check_prompt(conds["positive"])
    sigmas = record.check_sigmas(sigmas)
    samples = check_invertible(model, conds, latent, sigmas, pivot, cfg)
    used = {"positive": conds["positive"], **({"negative": conds["negative"]} if cfg != 1 else {})}
    fields = record.conditioning_fields(used["positive"])
    marks = fingerprint(model)
    kind = PIVOTS[pivot]
    seeded = seed if kind.seeded else 0
    gamma = gamma if "gamma" in kind.takes else None
    options = [pivot, iterations if "iterations" in kind.takes else 0, gamma or 0.0, cfg, seeded]
    key = files.cache_key(model, marks, options, sigmas, samples, used) if cache else None
    found = files.find(key)
    if found is not None:
        return found, True

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
    }
    inversion = Inversion(
        sigmas=sigmas,
        trajectory=made.trajectory,
        process=process_of(model).name,
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


def replay(
    model,
    inversion: Inversion,
    positive: list | None,
    negative: list | None,
    *,
    cfg: float = 0.0,
    first: int = 0,
    mask: Tensor | None = None,
) -> Result:
    """Walk an INVERSION back with a prompt (None, the source's: reconstruction; another: an edit).

    cfg: the target's, 0 for the inversion's own (`cfg_of`). negative: needed where the cfg is not 1 and the inversion
    has no null embeddings. first: the step to start from. mask: 1 = change here."""
    cfg = cfg_of(inversion, cfg)
    positive, negative = record.prompts(inversion, positive, negative, cfg)
    sampler, sigmas = own_way_back(inversion, first)
    guider = null_text_guider(model, inversion, positive, negative, cfg)
    latent = source_latent(inversion)
    calls = calls_back(inversion, first)
    progress = Progress(max(calls, 1), model)

    def step(i, denoised, x, total):
        progress.tick(1, x0=denoised)

    began = time.perf_counter()
    out = (
        guider.sample(
            torch.zeros_like(latent),
            latent,
            sampler,
            sigmas,
            denoise_mask=mask,
            callback=step,
            disable_pbar=True,
            seed=0,
        )
        .float()
        .cpu()
    )
    error = (latent_in(model, out) - inversion.source).flatten(1).square().mean(1).sqrt()
    return Result(out, calls, time.perf_counter() - began, error)


def untouched(inversion: Inversion) -> Result:
    """The source as its own reconstruction: what a branch is that lies on the stored path."""
    return Result(source_latent(inversion), 0, 0.0, torch.zeros(inversion.shape[0]))
