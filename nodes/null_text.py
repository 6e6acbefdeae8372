"""Null-Text Optimise: the empty prompt's embedding of every step, so that guided sampling comes back to the picture."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..engine import files, record
from ..engine.comfy import latent_out
from ..engine.fingerprint import fingerprint
from ..engine.gradients import short_of_memory
from ..engine.noise import source_latent
from ..engine.run import Run, sample_with
from ..engine.training_memory import room_for
from ..samplers.core import rms_apart
from ..samplers.inversion.null_text import (
    default_rate,
    optimise_global_null,
    optimise_null_text,
    paper_schedule,
    start_towards,
)
from ..samplers.inversion.record import Inversion
from .base import INVERSION, NEGATIVE, POSITIVE, Boolean, Box, Choice, Float, Int, optional
from .early import early
from .inversion import COMPARED, OUTPUTS, PATCHED, USE_CACHE
from .replay import Result, error_line, reconstructed

EMPTY = NEGATIVE("The empty prompt, from which the null embedding starts.")
CFG = Float(
    "cfg", 7.5, "The guidance scale that you will edit with (ComfyUI's cfg, 1 + w in the paper).", 1.0, 30.0, 0.1
)
INNER = (
    Int(
        "inner_steps",
        10,
        "The most gradient steps per step. Cost: at most N x (inner + 2) forwards and N x inner backwards.",
        1,
        100,
    ),
    Float(
        "tolerance",
        1e-5,
        "A step is done when its loss falls below this (it grows with the step as in the paper). Higher: faster, and "
        "the picture comes back less exactly. 0: always all inner steps.",
        step=1e-6,
        round=False,
    ),
)
CHECKPOINTING = Boolean(
    "checkpointing",
    False,
    "Recompute blocks in the backward pass: less memory, up to two fifths more time. Off: still done where the memory "
    "is too small for less, and the server's log says so.",
)
RATE = Float(
    "rate",
    0.0,
    "Adam's first rate for the null embedding. 0: the paper's 0.01, and more where the embedding is narrower than "
    "Stable Diffusion's 768 numbers.",
    0.0,
    10.0,
    1e-3,
    round=False,
)
TOWARDS = Float(
    "towards_source",
    0.0,
    "Where the null embedding starts: 0 at the empty prompt, as in the paper; up to 1, that far on the way to the "
    "source prompt, from where fewer gradient steps are needed: at 0.5 a fifth to two fifths, on the demo model.",
    0.0,
    1.0,
    0.05,
)
PER_STEP, FOR_ALL = "one per step", "one for all steps (the paper's ablation)"


def most_calls(steps: int, inner: int, one_for_all: bool = False) -> tuple[int, int]:
    """(forwards, backwards) at most: per step the prompt once, `inner` looks with gradient and one without; with one
    embedding for all steps the prompt once more, along the replay."""
    return steps * (2 + one_for_all + inner), steps * inner


def refuse_cfg_1() -> None:
    raise ValueError(
        "At cfg 1 there is no null branch to correct: set the cfg you will edit with (7.5 is usual), or use the "
        "inversion as it is."
    )


def check_cfg(cfg: float) -> None:
    """ValueError where there is no null branch."""
    if cfg == 1:
        refuse_cfg_1()


def check_optimisable(inversion: Inversion, model, negative: list, cfg: float) -> None:
    """Every refusal that can be spoken before any work."""
    record.check_belongs(inversion, model)
    check_cfg(cfg)
    if inversion.kind.needs:
        raise ValueError(
            f"An inversion by {inversion.pivot.replace('_', ' ')} comes back by itself and has nothing "
            f"to optimise: use "
            "DDIM or fixed point as the pivot."
        )
    if not negative:
        raise ValueError("The negative prompt is missing: wire the empty prompt, from which the null embedding starts.")
    if inversion.words is not None and not inversion.text.strip():
        raise ValueError("The source prompt is empty: say in words what the picture shows.")


def check_start(towards: float | None, positive: list, negative: list) -> None:
    """ValueError where no embedding lies between the two prompts."""
    if towards and negative and (len(positive) != 1 or positive[0][0].shape[1:] != negative[0][0].shape[1:]):
        raise ValueError(
            "towards_source mixes the source prompt's embedding with the empty prompt's, which needs one source prompt "
            "of the same length in tokens: write a shorter one, or set towards_source to 0."
        )


def _rows_are_free(run: Run, negative: list) -> bool:
    """Whether images can leave a batch one by one: nothing but latent and embedding is tied to the rows."""

    def single(entry):
        cond, extra = entry
        tensors = [v for v in (cond, *extra.values()) if isinstance(v, torch.Tensor)]
        return all(t.shape[0] == 1 for t in tensors)

    tied = {"control", "mask", "gligen"}  # the engine hands a control net of the positive on to the negative
    free = not any(tied & set(c) for conds in run.guider.conds.values() for c in conds)
    return free and all(single(entry) for entry in negative) and not getattr(run.model, "concat_keys", ())


def optimise(
    model,
    inversion: Inversion,
    positive: list | None,
    negative: list,
    cfg: float,
    *,
    inner: int = 10,
    tolerance: float = 1e-5,
    rate: float = 0.0,
    towards: float = 0.0,
    one_for_all: bool = False,
    checkpoint: bool = False,
    cache: bool = True,
) -> tuple[Inversion, Result | None]:
    """(the INVERSION with null embeddings for `cfg`, its reconstruction; None for the latter if the cache knew it).

    positive None: the inversion's own prompt. rate 0: `default_rate`. towards: the share of `start_towards`.
    one_for_all: the paper's ablation, one embedding for all steps, `inner` passes over them; the tolerance is not read.
    checkpoint: recompute blocks in backward, for small memories."""
    check_optimisable(inversion, model, negative, cfg)
    rate = rate or default_rate(negative[0][0].shape[-1])
    positive = record.source_conditioning(inversion) if positive is None else positive
    record.check_prompt(positive)
    check_start(towards, positive, negative)
    conds = {"positive": positive, "negative": negative}
    kind = "global_null" if one_for_all else "null_text"
    inputs = ([kind, cfg, inner, tolerance, rate, towards], inversion.sigmas, inversion.trajectory, conds)
    key = files.cache_key(model, fingerprint(model), *inputs) if cache else None
    found = files.find(key)
    if found is not None and found.reconstruction is not None:  # an inversion of other words may have the same path
        made = {name: note for name, note in found.metadata.items() if name.startswith("null_")}
        return _optimised(inversion, found.null_embeddings, found.reconstruction, kind, cfg, made), None
    began = time.perf_counter()

    def body(run: Run):
        free = _rows_are_free(run, negative)
        net = run.embedding_net("negative")
        again = room_for(run, "negative", len(run.latent), checkpoint)
        smaller = "use a smaller picture." if again else "turn checkpointing on, or use a smaller picture."
        with run.gradients(checkpoint=again), short_of_memory(f"the null embedding's gradient: {smaller}"):
            start = negative[0][0] if not towards else start_towards(negative[0][0], positive[0][0], towards)
            given = (
                net,
                lambda x, sigma: run.predictions(x, sigma, ["positive"])[0],
                inversion.trajectory.to(run.device),
                inversion.sigmas,
                start.clone().float().to(run.device),
            )
            common = {"cfg": cfg, "process": run.process, "tick": run.tick}
            if one_for_all:
                made = optimise_global_null(*given, rounds=inner, rate=rate, **common)
            else:
                made = optimise_null_text(
                    *given,
                    schedule=paper_schedule(inversion.steps, inner, tolerance, rate),
                    drop_finished=free,
                    callback=run.callback,
                    **common,
                )
            return made, latent_out(model, made.reconstruction.cpu())

    made, samples = sample_with(
        model,
        conds,
        source_latent(inversion),
        inversion.sigmas,
        body,
        total=most_calls(inversion.steps, inner, one_for_all)[0],
        gradients=True,
    )
    seconds = time.perf_counter() - began
    stats = made.stats
    notes = {
        **record.null_notes(negative),
        "null_forwards": stats.forwards,
        "null_backwards": stats.backwards,
        "null_seconds": seconds,
    }
    out = _optimised(inversion, made.embeddings, made.reconstruction, kind, cfg, notes)
    files.keep(key, out)
    return out, Result(samples.float(), stats.forwards, seconds, _error(out))


def _optimised(inversion, embeddings, reconstruction, kind: str, cfg: float, notes: dict) -> Inversion:
    """The inversion given, with what an optimisation made for its path; notes are those whose names begin "null_"."""
    return inversion.replace(
        null_embeddings=embeddings,
        reconstruction=reconstruction,
        correction=kind,
        cfg=cfg,
        metadata={**inversion.metadata, **notes},
    )


def _error(inversion: Inversion) -> Tensor:
    """[B] rms of what the optimisation left between the picture and its reconstruction, in model space."""
    return rms_apart(inversion.reconstruction, inversion.source)


def notices(model) -> list[str]:
    """What of the model's patches the optimisation can't take into account."""
    patched = [
        k
        for k in (
            "sampler_cfg_function",
            "sampler_post_cfg_function",
            "sampler_pre_cfg_function",
            "sampler_calc_cond_batch_function",
        )
        if model.model_options.get(k)
    ]
    if not patched:
        return []
    return [
        "Note: the model carries guidance patches (" + ", ".join(patched) + "), which the optimisation leaves out: "
        "the reconstruction is exact without them"
    ]


def corrected(
    model,
    inversion,
    negative,
    cfg,
    positive,
    vae,
    *,
    inner_steps,
    tolerance,
    checkpointing,
    use_cache,
    rate=0.0,
    towards_source=0.0,
    embeddings=PER_STEP,
):
    """What a node returns that optimises null embeddings; the keywords are its widgets."""
    one_for_all = embeddings == FOR_ALL
    options = {"inner": inner_steps, "tolerance": tolerance, "rate": rate, "towards": towards_source}
    options |= {"one_for_all": one_for_all, "checkpoint": checkpointing, "cache": use_cache}
    out, result = optimise(model, inversion, positive, negative, cfg, **options)
    found = result is None
    if found:  # what the optimisation came out at, to the bit; a walk back rounds otherwise
        result = Result(latent_out(model, out.reconstruction).float(), 0, 0.0, _error(out))
    meta, name = out.metadata, "Global null-text" if one_for_all else "Null-text"
    lines = [
        f"{name} at cfg {cfg:g}: {out.steps} steps, {out.shape[0]} image(s)"
        + (f", started {towards_source:g} of the way towards the source prompt" if towards_source else ""),
        error_line(out, result),
        ("found in the cache; made with " if found else "") + f"{meta['null_forwards']} forwards and "
        f"{meta['null_backwards']} backwards in {meta['null_seconds']:.1f} s",
        *notices(model),
    ]
    return reconstructed(lines, out, result, vae)


class NullTextOptimise(Box):
    ID, TITLE, CATEGORY = "NullText_Optimise", "Null-Text Optimise", "NullText/inversion"
    SEARCH_ALIASES = ["null text inversion", "NTI", "real image editing", "optimise uncond"]
    DESCRIPTION = (
        "Null-text inversion: optimises the empty prompt's embedding at every step until guided sampling comes back "
        "to the inverted picture. Cost: at most N x (inner steps + 2) forwards and N x inner steps backwards; the "
        "pivot is not made again."
    )
    INPUTS = (
        PATCHED,
        INVERSION("From Invert Image with DDIM or fixed point at cfg 1."),
        EMPTY,
        CFG,
        *INNER,
        CHECKPOINTING,
        USE_CACHE,
        *optional(
            POSITIVE("Only where the inversion couldn't keep the source prompt (control nets, combined prompts)."),
            COMPARED,
            RATE,
            Choice(
                "embeddings",
                [PER_STEP, FOR_ALL],
                "one per step: the method. One for all steps: the paper's ablation, a single embedding for all of "
                "sampling, optimised in inner_steps passes over it; it comes back less well. tolerance is not read; "
                "cost N x (inner + 3) forwards.",
            ),
            TOWARDS,
        ),
    )
    OUTPUTS = OUTPUTS

    @classmethod
    def VALIDATE_INPUTS(cls, cfg=None):
        return early(cls, check_cfg, cfg=cfg)

    def run(self, model, inversion, negative, cfg, positive=None, vae=None, **widgets):
        return corrected(model, inversion, negative, cfg, positive, vae, **widgets)


NODES = (NullTextOptimise,)
