"""Null-text optimisation, and the corrections that need none, on a MODEL and an INVERSION."""

from __future__ import annotations

import time

import torch

from ..engine import files, record
from ..engine.comfy import latent_out
from ..engine.fingerprint import fingerprint
from ..engine.noise import source_latent
from ..engine.run import Run, sample_with
from ..samplers.inversion.corrections import negative_prompt
from ..samplers.inversion.null_text import default_rate, optimise_global_null, optimise_null_text, paper_schedule
from ..samplers.inversion.record import Inversion
from .inverting import Result


def most_calls(steps: int, inner: int, one_for_all: bool = False) -> tuple[int, int]:
    """(forwards, backwards) at most: per step the prompt once, `inner` looks with gradient and one without; with one
    embedding for all steps the prompt once more, along the replay."""
    return steps * (2 + one_for_all + inner), steps * inner


def refuse_cfg_1() -> None:
    raise ValueError(
        "At cfg 1 there is no null branch to correct: set the cfg you will edit with (7.5 is usual), or "
        "use the inversion as it is."
    )


def check_optimisable(inversion: Inversion, model, negative: list, cfg: float) -> None:
    """Every refusal that can be spoken before any work."""
    record.check_belongs(inversion, model)
    if cfg == 1:
        refuse_cfg_1()
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
    one_for_all: bool = False,
    checkpoint: bool = False,
    cache: bool = True,
) -> tuple[Inversion, Result | None]:
    """(the INVERSION with null embeddings for `cfg`, its reconstruction; None for the latter if the cache knew it).

    positive None: the inversion's own prompt. rate 0: `default_rate`. one_for_all: the paper's ablation, one embedding
    for all steps, `inner` passes over them; the tolerance is not read. checkpoint: recompute blocks in backward, for
    small memories."""
    check_optimisable(inversion, model, negative, cfg)
    rate = rate or default_rate(negative[0][0].shape[-1])
    positive = record.source_conditioning(inversion) if positive is None else positive
    record.check_prompt(positive)
    conds = {"positive": positive, "negative": negative}
    kind = "global_null" if one_for_all else "null_text"
    inputs = ([kind, cfg, inner, tolerance, rate], inversion.sigmas, inversion.trajectory, conds)
    key = files.cache_key(model, fingerprint(model), *inputs) if cache else None
    found = files.find(key)
    if found is not None:
        return found, None
    began = time.perf_counter()

    def body(run: Run):
        free = _rows_are_free(run, negative)
        net = run.embedding_net("negative")
        with run.gradients(checkpoint=checkpoint):
            given = (
                net,
                lambda x, sigma: run.predictions(x, sigma, ["positive"])[0],
                inversion.trajectory.to(run.device),
                inversion.sigmas,
                negative[0][0].clone().float().to(run.device),
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
    )
    seconds = time.perf_counter() - began
    error = (made.reconstruction.cpu() - inversion.source).flatten(1).square().mean(1).sqrt()
    stats = made.stats
    notes = {
        **inversion.metadata,
        **record.null_notes(negative),
        "null_forwards": stats.forwards,
        "null_backwards": stats.backwards,
        "null_seconds": seconds,
    }
    out = inversion.replace(null_embeddings=made.embeddings, correction=kind, cfg=cfg, metadata=notes)
    files.keep(key, out)
    return out, Result(samples.float(), stats.forwards, seconds, error)


def as_negative_prompt(inversion: Inversion, cfg: float) -> Inversion:
    """Negative-prompt inversion: the source prompt in the null branch, no optimisation."""
    if cfg == 1:
        refuse_cfg_1()
    source = record.source_conditioning(inversion)
    embeddings = negative_prompt(inversion.conditioning, inversion.steps, inversion.shape[0])
    notes = {**inversion.metadata, **record.null_notes(source)}
    return inversion.replace(null_embeddings=embeddings, correction="negative_prompt", cfg=cfg, metadata=notes)


def uncorrected(inversion: Inversion, cfg: float, correction: str = "none") -> Inversion:
    """The pivot as it is, to be walked at `cfg` ("overwrite": by nodes that lay the source branch on its
    trajectory)."""
    return inversion.replace(null_embeddings=None, correction=correction, cfg=cfg)


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
