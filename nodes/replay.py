"""The way back: an INVERSION sampled from its noise end, and what a node reports of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine import record
from ..engine.comfy import latent_in
from ..engine.guider import null_text_guider
from ..engine.noise import source_latent
from ..engine.readers import readers
from ..engine.sampler import own_way_back, walk_back
from ..samplers.core import rms_apart
from ..samplers.inversion.pivots import whiteness
from ..samplers.inversion.record import Inversion
from ..samplers.inversion.replay import calls_back, cfg_of
from .report import before_after, text_result

#: how far the noise end may be from standard deviation 1 and correlation 0 and still be called white
WHITE = 0.1


@dataclass
class Result:
    """A reconstruction: LATENT samples [B, C, ...] on the CPU, and what it cost."""

    samples: Tensor
    calls: int
    seconds: float
    error: Tensor  #: [B] rms of the latent error in model space


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
    has no null embeddings. first: the step to start from. mask: 1 = change
    here, on the latent's grid."""
    cfg = cfg_of(inversion, cfg)
    positive, negative = record.prompts(inversion, positive, negative, cfg)
    sampler, sigmas = own_way_back(inversion, first)
    guider = null_text_guider(model, inversion, positive, negative, cfg)
    calls, began = calls_back(inversion, first), time.perf_counter()
    out = walk_back(guider, inversion, sampler, sigmas, calls=max(calls, 1), mask=mask)
    error = rms_apart(latent_in(model, out), inversion.source)
    return Result(out, calls, time.perf_counter() - began, error)


#: of the nodes that invert: the outputs that tell how the inversion comes back
_BACK = {1, 2}


class Inverting:
    """Of a node with the outputs inversion, reconstruction, report: it walks back only where somebody looks."""

    HIDDEN = {"unique_id": "UNIQUE_ID"}

    @classmethod
    def IS_CHANGED(cls, unique_id=None, **_):  # so that a result without its reconstruction isn't handed to a new wire
        return str(looked_at(unique_id, None))


def looked_at(unique_id: str | None, vae) -> bool:
    """Whether anybody sees how an inversion comes back: a VAE draws it, or reconstruction or report are wired."""
    wired = readers(unique_id)
    return vae is not None or wired is None or bool(wired & _BACK)


def untouched(inversion: Inversion) -> Result:
    """The source as its own reconstruction: what a branch is that lies on the stored path."""
    return Result(source_latent(inversion), 0, 0.0, torch.zeros(inversion.shape[0]))


def error_line(inversion: Inversion, result: Result | None) -> str:
    """How far the reconstruction lies from the source, per image, in model space; None: nobody looks."""
    if result is None:
        return "not walked back: wire reconstruction, report or vae to see how well it comes back"
    scale = inversion.source.flatten(1).std(1).clamp(min=1e-8)
    parts = [f"{float(e):.2g} ({float(e / s):.1%})" for e, s in zip(result.error, scale)]
    return f"latent rms error {', '.join(parts)} of the latent's std"


def cost_line(inversion: Inversion, result: Result | None, found: bool) -> str:
    """Network calls and seconds of the inversion and of the way back."""
    result = untouched(inversion) if result is None else result
    there, seconds = inversion.metadata.get("calls", 0), inversion.metadata.get("seconds", 0.0)
    if found:
        return f"network calls {result.calls} back in {result.seconds:.1f} s (found in the cache: {there} calls saved)"
    calls, total = there + result.calls, seconds + result.seconds
    return f"network calls {calls} ({there} there, {result.calls} back) in {total:.1f} s"


def noise_line(inversion: Inversion) -> str:
    """Whether the noise end looks like noise."""
    ratio, neighbours = whiteness(inversion.x_T, inversion.sigmas[0])
    verdict = "white" if max(abs(ratio - 1), abs(neighbours)) <= WHITE else "not white"
    return f"noise quality: std {ratio:.2f} (ideal 1), correlation of neighbours {neighbours:+.2f} (ideal 0): {verdict}"


def reconstructed(lines: list[str], inversion: Inversion, result: Result | None, vae) -> dict:
    """What the inverting nodes return: record, reconstruction, report, and both pictures for the page. The line with
    the PSNR comes third. result None: nobody looks, the source stands in."""
    result = untouched(inversion) if result is None else result
    line, pictures = before_after(vae, source_latent(inversion), result.samples, what="reconstruction")
    text = "\n".join([*lines[:2], *([line] if line else []), *lines[2:]])
    return text_result(text, inversion, {"samples": result.samples}, text, **pictures)
