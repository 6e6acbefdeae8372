"""Direct Edit: FlowEdit and InfEdit, from a picture and two prompts, without inversion."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..engine import record
from ..engine.comfy import check_latent, fitted, latent_out, process_of, sigmas_of
from ..engine.null_branch import looks_back
from ..engine.run import Run, sample_with
from ..samplers.core import gaussian, rms_apart
from ..samplers.inversion.direct_edit import sample_flow_edit, sample_infedit
from ..samplers.inversion.replay import first_step
from ..samplers.picture.repaint import blend
from .base import (
    LATENT,
    MASK,
    MODEL,
    NEGATIVE,
    POSITIVE,
    SCHEDULER,
    SEED,
    SIGMAS,
    STEPS,
    Choice,
    Float,
    Int,
    Output,
    optional,
)
from .masked import MaskedEdit, own_mask
from .replay import Result
from .report import nothing_to_change, text_result
from .shown import SEEN, EditBox

METHODS = {"FlowEdit": sample_flow_edit, "InfEdit": sample_infedit}


def calls(method: str, steps: int, average: int, plain_steps: int) -> int:
    """Network calls of a direct edit over `steps` steps."""
    if method == "InfEdit":
        return 2 * steps
    return 2 * average * (steps - plain_steps) + plain_steps


def equal(a: list, b: list) -> bool:
    """Whether two CONDITIONINGs ask the network for the same."""

    def same(x, y):
        if isinstance(x, Tensor):
            return isinstance(y, Tensor) and x.shape == y.shape and bool(torch.equal(x, y))
        return x is y or (isinstance(x, str | int | float | bool | None) and x == y)

    if len(a) != len(b):
        return False
    for (cond_a, extra_a), (cond_b, extra_b) in zip(a, b):
        keys = {k for k in (*extra_a, *extra_b) if k != record.KEY}
        if not same(cond_a, cond_b) or not all(same(extra_a.get(k), extra_b.get(k)) for k in keys):
            return False
    return True


def edit(
    model,
    conds: dict,
    latent: dict,
    sigmas: Tensor,
    method: str,
    *,
    source_cfg: float,
    target_cfg: float,
    strength: float,
    average: int,
    plain_steps: int,
    seed: int,
    mask: Tensor | None,
) -> tuple[Result, str | None]:
    """(the edited LATENT, why nothing was done or None). conds: "source", "target", and "negative" where a cfg is not
    1.

    ValueError before any work; equal prompts and scales, an empty mask, strength 0: the source as it is."""
    samples = check_latent(model, latent)
    edited = MaskedEdit(samples, mask)
    sigmas = record.check_sigmas(sigmas, process_of(model), "Direct Edit", least=1)
    record.check_prompt(conds["source"])
    record.check_prompt(conds["target"], "target prompt")
    if (source_cfg != 1 or target_cfg != 1) and not conds.get("negative"):
        raise ValueError(
            "A cfg above 1 needs the null branch: wire the negative (empty) prompt, or set both scales to 1."
        )
    if (source_cfg != 1 or target_cfg != 1) and looks_back(model):
        raise ValueError(
            f"The rollback of Null-Text Disturbance looks back at one run, and {method} asks for two pictures with new "
            "noise in every step: take the disturbance off the model, or let it look at a picture (Image-D)."
        )
    first = first_step(strength, len(sigmas) - 1)
    steps = len(sigmas) - 1 - first
    if method == "FlowEdit" and plain_steps > steps:
        raise ValueError(
            f"{plain_steps} plain steps don't fit into {steps} steps: lower them, or raise steps or strength."
        )
    reason = None
    if steps == 0:
        reason = f"strength {strength:g} samples no step"
    elif edited.empty:
        reason = "the mask is empty"
    elif (
        equal(conds["source"], conds["target"])
        and source_cfg == target_cfg
        and not (method == "FlowEdit" and plain_steps)
    ):
        reason = "source and target ask for the same"
    if reason:
        return Result(fitted(model, latent)["samples"], 0, 0.0, torch.zeros(len(samples))), reason

    def body(run: Run):
        def branch(name, cfg):
            guided = run.guided(name, "negative" if cfg != 1 else None, cfg)

            def denoise(x, sigma):
                run.tick()
                return guided(x, sigma)

            return denoise

        options = {"average": average, "plain_steps": plain_steps} if method == "FlowEdit" else {}
        out = METHODS[method](
            branch("target", target_cfg),
            run.latent,
            run.sigmas,
            process=run.process,
            noise=gaussian(run.latent, seed),
            source=branch("source", source_cfg),
            callback=run.callback,
            **options,
        )
        if edited.grid is not None:
            out = blend(edited.grid.to(out), out, run.latent)
        error = rms_apart(out, run.latent)
        return edited.put_back(latent_out(model, out.cpu())), error.cpu(), run.calls

    began = time.perf_counter()
    used = {"positive": conds["target"], **{k: v for k, v in conds.items() if v is not None}}
    out, error, made = sample_with(
        model, used, samples, sigmas[first:], body, total=calls(method, steps, average, plain_steps), seed=seed
    )
    return Result(out, made, time.perf_counter() - began, error), None


class DirectEdit(EditBox):
    ID, TITLE, CATEGORY = "NullText_DirectEdit", "Direct Edit (FlowEdit, InfEdit)", "NullText/edit"
    SEARCH_ALIASES = ["FlowEdit", "InfEdit", "inversion free editing", "image edit", "DDCM"]
    DESCRIPTION = (
        "Edits a picture by the difference of two prompts, without inversion and without optimisation; equal prompts "
        "at equal scales give the source back exactly, unless plain_steps sample the target alone. Works for eps, "
        "v-prediction and flow models. Cost for n = steps x strength: FlowEdit 2 x average x (n - plain_steps) + "
        "plain_steps calls, InfEdit 2 x n."
    )
    INPUTS = (
        MODEL("The diffusion model."),
        POSITIVE("What the picture shows.", name="source"),
        POSITIVE("What it shall show.", name="target"),
        LATENT("The picture, from VAE Encode; a batch is edited at once."),
        Choice(
            "method",
            list(METHODS),
            "FlowEdit: moves the picture by the difference of the two velocities. InfEdit: replaces its noise at "
            "every step; made for few steps and consistency models.",
        ),
        STEPS("Steps of the full schedule."),
        SCHEDULER,
        Float(
            "strength",
            0.66,
            "The fraction of the schedule that is sampled (the paper's n_max / T): more changes more. 0 is the source.",
        ),
        Float(
            "source_cfg",
            3.5,
            "Guidance of the source prompt (3.5 in the paper for SD3). Nearer to target_cfg: what both prompts say "
            "moves less. For Flux: cfg 1 and 1, and 1.5 / 5.5 by FluxGuidance on the two prompts.",
            1.0,
            30.0,
            0.1,
        ),
        Float(
            "target_cfg",
            7.5,
            "Guidance of the target prompt: higher edits more strongly and keeps less (13.5 in the paper for SD3; 7.5 "
            "is ours). InfEdit's authors: source 1, target 2, 15 steps. For Flux: 1, and 5.5 by FluxGuidance on the "
            "target prompt.",
            1.0,
            30.0,
            0.1,
        ),
        Int(
            "average",
            1,
            "FlowEdit: noise draws per step (n_avg). More: a steadier edit; the cost grows with it.",
            1,
            32,
        ),
        Int(
            "plain_steps",
            0,
            "FlowEdit: number of last steps that sample the target alone (n_min): more style, less source.",
            0,
            1000,
        ),
        SEED("Noise of the edit."),
        *optional(
            NEGATIVE("The negative (empty) prompt; needed where a scale is above 1."),
            MASK(
                "Change only here (1 = change); outside the source's latent is kept exactly. Not wired: the latent's "
                "own noise mask, if it has one."
            ),
            SIGMAS,
            SEEN,
        ),
    )
    OUTPUTS = (
        Output("LATENT", "The edited latent, for VAE Decode.", "latent"),
        Output("STRING", "What it cost and how far it lies from the source.", "report"),
    )
    READS_MASK = True

    def run(
        self, model, source, target, latent, method, steps, scheduler, negative=None, mask=None, sigmas=None, **options
    ):
        sigmas = sigmas_of(model, scheduler, steps) if sigmas is None else sigmas
        conds = {"source": source, "target": target, "negative": negative}
        mask = own_mask(latent) if mask is None else mask
        result, reason = edit(model, conds, latent, sigmas, method, mask=mask, **options)
        moved = ", ".join(f"{float(e):.2g}" for e in result.error)
        text = f"{method}: {result.calls} network calls in {result.seconds:.1f} s; latent rms distance from the source "
        text = nothing_to_change(reason) if reason else text + moved
        return text_result(text, {"samples": result.samples}, text)


NODES = (DirectEdit,)
