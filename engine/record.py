"""Between ComfyUI's sockets and an INVERSION: what is taken from MODEL, CONDITIONING and LATENT, what is checked
against them later, and the source prompt back out of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..samplers.core import FLOW, PROCESSES, NoiseProcess
from ..samplers.inversion.record import Inversion
from .comfy import check_latent, process_of
from .files import of_file
from .fingerprint import ASPECTS, difference, fingerprint
from .matching import ROUNDED
from .words import KEY, text_of, words_of

_SMALL = 4096  # tensors of a condition with at most so many numbers travel in an inversion's metadata


def loaded(path: Path) -> Inversion:
    """The inversion in a file. ValueError in one sentence for one that doesn't say which model it belongs to, and for
    whatever else is wrong with it."""
    found = of_file(path, Inversion.from_tensors, "inversion")
    missing = [key for key in ASPECTS if not found.fingerprint.get(key)]
    if missing:
        raise ValueError(
            f"The inversion in {path.name} doesn't say which model it was made with ({', '.join(missing)}): make it "
            "again."
        )
    check_sigmas(found.sigmas, PROCESSES[found.process])
    if any({"words", "ids", "chunks"} - set(record) for record in found.words or []):
        raise ValueError(f"The inversion in {path.name} holds damaged words: make it again.")
    gains = found.metadata.get("latent_gain"), found.metadata.get("latent_offset")
    if any(g is not None and len(g) not in (1, found.shape[1]) for g in gains) or gains[0] and 0 in gains[0]:
        raise ValueError(f"The inversion in {path.name} has scalings of another latent: make it again.")
    return found


def check_prompt(conditioning: list, what: str = "source prompt") -> None:
    """ValueError for an empty list, or a text that the Prompt node knows to be empty."""
    if not conditioning:
        raise ValueError(f"The {what} is missing: wire a CONDITIONING.")
    if words_of(conditioning) is not None and not text_of(conditioning).strip():
        raise ValueError(f"The {what} is empty: say in words what the picture shows.")


def check_sigmas(sigmas: Tensor, process: NoiseProcess, name: str = "an inversion", least: int = 2) -> Tensor:
    """SIGMAS [N + 1] for the technique `name`: fp32 on the CPU, at least so many steps, falling to 0; a flow's 1 that
    was rounded up is 1. ValueError otherwise."""
    sigmas = sigmas.detach().float().cpu().clone()
    if len(sigmas) <= least:
        told = name[0].upper() + name[1:]
        raise ValueError(f"{told} needs at least {least} steps, and 20 to 50 to be good: raise the steps.")
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ValueError("The sigmas must fall from step to step: use a scheduler's sigmas as they are, not flipped.")
    if float(sigmas[-1]) != 0:
        raise ValueError(f"The sigmas must end at 0, where the image is: don't split them before {name}.")
    if process is FLOW and float(sigmas[0]) <= ROUNDED:
        sigmas.clamp_(max=1)
    return sigmas


def _plain(extra: dict) -> dict:
    """Of a condition's extras, those that are JSON values: sizes, guidance."""
    return {k: v for k, v in extra.items() if isinstance(v, str | int | float | bool) and not isinstance(v, Tensor)}


def _small(extra: dict) -> dict:
    """Of a condition's extras, the small tensors as lists (Lumina 2's and others' attention_mask)."""
    found = {k: v for k, v in extra.items() if isinstance(v, Tensor) and k != "pooled_output"}
    return {k: v.tolist() for k, v in found.items() if v.numel() <= _SMALL}


def _lost(extra: dict) -> list[str]:
    """Of a condition's extras, those that an inversion can't keep: large tensors, control nets, areas."""
    kept = {"pooled_output", KEY, *_plain(extra), *_small(extra)}
    return sorted(k for k, v in extra.items() if k not in kept and v is not None)


def _restored(tensors: dict | None) -> dict:
    return {k: torch.tensor(v) for k, v in (tensors or {}).items()}


def conditioning_fields(positive: list) -> dict:
    """The fields of an INVERSION that speak of the source prompt, and the extras (sizes, guidance, the text's mask) in
    its metadata.

    metadata["needs"] names what can't be kept (control nets, several conditions): then the prompt must be wired
    again."""
    cond, extra = positive[0]
    plain, small = _plain(extra), _small(extra)
    needs = _lost(extra)
    if len(positive) > 1:
        needs.append("combined prompts")
    pooled = extra.get("pooled_output")
    return {
        "conditioning": cond,
        "pooled": pooled if isinstance(pooled, Tensor) else None,
        "text": text_of(positive),
        "words": words_of(positive),
        "metadata": {"extras": plain, "tensors": small, "needs": needs},
    }


def source_conditioning(inversion: Inversion) -> list:
    """CONDITIONING of the source prompt. ValueError if the inversion couldn't keep it."""
    needs = inversion.metadata.get("needs") or []
    if inversion.conditioning is None or needs:
        what = ", ".join(needs) or "no text embedding"
        raise ValueError(
            f"The source prompt has {what}, which an inversion can't keep: wire that prompt again as positive."
        )
    extra = dict(inversion.metadata.get("extras") or {}) | _restored(inversion.metadata.get("tensors"))
    if inversion.pooled is not None:
        extra["pooled_output"] = inversion.pooled
    if inversion.words is not None:
        extra[KEY] = inversion.words
    return [[inversion.conditioning, extra]]


def null_conditioning(inversion: Inversion, negative: list | None = None) -> list | None:
    """CONDITIONING of the null branch (the first step's embedding and what belongs to it), None without null
    embeddings.

    What it could not keep (large tensors, control nets) comes from `negative`, the prompt that they were made from;
    ValueError without it."""
    if inversion.null_embeddings is None:
        return None
    needs = inversion.metadata.get("null_needs")
    if needs:
        if not negative:
            raise ValueError(
                f"The null branch has {', '.join(needs)}, which an inversion can't keep: wire the negative prompt "
                "that it was optimised from."
            )
        return [[inversion.null_embeddings[0], dict(negative[0][1])]]
    pooled = inversion.metadata.get("null_pooled")
    extra = dict(inversion.metadata.get("null_extras") or {}) | _restored(inversion.metadata.get("null_tensors"))
    if pooled is not None:
        extra["pooled_output"] = torch.tensor(pooled)
    return [[inversion.null_embeddings[0], extra]]


def prompts(inversion: Inversion, positive: list | None, negative: list | None, cfg: float) -> tuple[list, list | None]:
    """(positive, negative) to sample an inversion with at `cfg`: what is wired, else what it holds; negative None at
    cfg 1."""
    if positive is None:
        positive = source_conditioning(inversion)
    if cfg == 1:
        return positive, None
    negative = null_conditioning(inversion, negative) or negative
    if negative is None:
        raise ValueError(
            f"This inversion is sampled at cfg {cfg:g} and has no null embeddings: wire the negative (empty) prompt."
        )
    return positive, negative


def null_notes(negative: list) -> dict:
    """What `null_conditioning` needs of the negative prompt, as JSON values for the metadata."""
    _, extra = negative[0]
    pooled = extra.get("pooled_output")
    return {
        "null_pooled": pooled.float().tolist() if isinstance(pooled, Tensor) else None,
        "null_extras": _plain(extra),
        "null_tensors": _small(extra),
        "null_needs": _lost(extra),
    }


def check_belongs(inversion: Inversion, model, latent: dict | None = None) -> None:
    """ValueError in one sentence if the inversion was made with another model or a latent of another shape."""
    inversion.check_process(process_of(model))
    if inversion.fingerprint:
        differs = difference(inversion.fingerprint, fingerprint(model))
        if differs:
            raise ValueError(differs)
    if latent is not None:
        inversion.check_latent(check_latent(model, latent).shape)


def check_stored(inversion: Inversion, name: str) -> None:
    """ValueError unless the technique `name` can follow this inversion's trajectory from level to level."""
    if not inversion.kind.followable:
        raise ValueError(
            f"{name} follows one path from noise to image, and the pivot {inversion.pivot.replace('_', ' ')} draws "
            "every level's noise anew: invert with DDIM, fixed point or exact pair."
        )
