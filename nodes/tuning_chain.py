"""What DiffusionCLIP and Asyrp's training share: inverted pictures, a loss by text direction, the loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..engine import files
from ..engine.comfy import check_latent, load_models
from ..engine.fingerprint import networks
from ..engine.gradients import bring, grad_mode, short_of_memory
from ..engine.image_text import modules_of, patchers_of
from ..engine.streamed import settled
from ..engine.terms import decoder
from ..engine.training import duration
from ..engine.training_store import run_resumable
from ..samplers.measure.charts import line_chart, smoothed
from ..samplers.tuning.diffusion_clip import Pictures
from ..samplers.tuning.directional import FORMS, text_cosine, text_direction
from ..samplers.tuning.loop import Loop
from . import words
from .base import Choice, Text
from .clip_guidance import check_words
from .inversion import invert
from .report import temporary

_SHOW_SECONDS = 2.0
#: pictures of one call where a whole set of them is walked
ROWS = 8
TEMPLATES = "{}\na photo of {}\na picture of {}\na drawing of {}"
SOURCE = Text("source", "plain background", "What the pictures show, in the words that the edit changes.")
TARGET = Text("target", "striped background", "What they shall show instead.")
FORM = Choice(
    "form",
    list(FORMS),
    "The loss of the cosine between the pictures' direction and the texts'. log: minus the logarithm of "
    "(1 + cosine) / 2, as in the authors' code. printed: 1 - cosine, as in the paper.",
)
TEMPLATES_INPUT = Text(
    "templates",
    TEMPLATES,
    "Sentences, one a line, with {} where the text goes; their mean is the text.",
    multiline=True,
)


def direction_of(image_text, source: str, target: str, templates: str):
    """(text direction, cosine of the two texts, notices)."""
    lines = words.lines(templates)
    notices = check_words(image_text, [source, target])
    with torch.inference_mode(False), torch.no_grad():
        return (
            text_direction(image_text.embed_text, source, target, lines).clone(),
            text_cosine(image_text.embed_text, source, target),
            notices,
        )


def check_one_prompt(positive) -> None:
    """ValueError where the prompt says something else of each picture, for a training gives it with every picture."""
    if any(len(text) != 1 for text, _ in positive):
        raise ValueError(
            "This prompt holds a text for each picture, and a training gives every picture the same one: wire a "
            "single text, usually an empty one."
        )


def inverted(model, positive, latent: dict, sigmas, cache: bool = True):
    """INVERSION of the pictures along these sigmas by the frozen net, and its line for the report.

    In parts of `ROWS`; at once where the prompt says something else of each picture."""
    samples = check_latent(model, latent)
    alike = all(len(text) == 1 and "control" not in extra for text, extra in positive)
    parts, found = zip(
        *(
            invert(model, {"positive": positive}, {"samples": part}, sigmas, "ddim", cache=cache)
            for part in samples.split(ROWS if alike else len(samples))
        )
    )
    inversion = parts[0].replace(trajectory=torch.cat([part.trajectory for part in parts], 1))
    return inversion, f"Inverted {inversion.shape[0]} pictures to sigma {float(sigmas[0]):.3g}" + (
        " (found in the cache)." if all(found) else f" in {inversion.steps} steps."
    )


@contextlib.contextmanager
def differentiable(run, model, vae, *towers, checkpoint: bool = False, advice: str = "take smaller pictures."):
    """decode, from model space to pictures; network, decoder and image-text models are ready for gradients.

    checkpoint: the network's blocks are computed again in backward. ValueError with the advice where the device's
    memory runs out."""
    vae = settled(vae)
    patchers = [vae.patcher, *(p for tower in towers for p in patchers_of(tower))]
    load_models([run.patcher, *patchers])
    decode = decoder(model, vae)
    modules = [m for tower in towers for m in modules_of(tower)]
    bring(run.device, patchers, modules)
    told = short_of_memory(f"the gradient through the network: {advice}")
    with run.gradients(checkpoint), grad_mode(vae.first_stage_model, *modules), told:
        yield decode


def resume_key(model, vae, towers: Sequence, *inputs) -> str | None:
    """The name under which a run is kept: of all that enters it, the decoder and the image-text models too."""
    read = networks(vae.first_stage_model, *(m for tower in towers for m in modules_of(tower)))
    return files.cache_key(model, read, *inputs)


def pictures_of(inversion, decode, device, condition="positive") -> Pictures:
    """What is trained on: each picture's noise at s0, and the picture as the decoder shows it."""
    starts = [inversion.x_T[i : i + 1].to(device) for i in range(inversion.shape[0])]
    with torch.no_grad():
        sources = [
            decode(inversion.source[i : i + 1].to(device)).clamp(0, 1).clone() for i in range(inversion.shape[0])
        ]
    return Pictures(starts, sources, [condition] * len(starts))


def trained(loop: Loop, step, key: str | None, show: Callable[[Tensor], None]) -> tuple[list, bool]:
    """Run the loop to its end: (the report of every step, whether it went on from an earlier run of the same key, and
    has no step left where that one ended).

    show: takes the curve so far as the preview, every few seconds."""
    reports: list = []
    began, shown = time.monotonic(), 0.0

    def note(report):
        nonlocal shown
        reports.append(report)
        if time.monotonic() - shown > _SHOW_SECONDS:
            shown = time.monotonic()
            left = (shown - began) / len(reports) * (report.steps - report.step)
            show(curve_figure(reports, f"step {report.step} of {report.steps}, {duration(left)} left"))

    begun = run_resumable(loop, step, key, note)
    return reports, begun > 0


def curve_figure(reports: list, title: str = "loss of each step, and the agreement with the words") -> Tensor:
    """IMAGE of a run's curves: each the mean over neighbours."""
    curves = {"loss": "loss", "agreement": "cosine"}
    lines = {name: smoothed([float(r.losses[of]) for r in reports]) for name, of in curves.items()}
    return line_chart(title, lines, [r.step for r in reports], height=220)


def curve_shown(reports: list) -> dict:
    """The curves for the box's panel; none where there was nothing to train."""
    return {"images": temporary(curve_figure(reports)) if reports else []}


def curve_line(reports: list, resumed: bool) -> str:
    """First and last losses of a run, averaged over a tenth of it each."""
    if not reports:
        return "Found again: trained before with the same inputs."
    part = max(len(reports) // 10, 1)

    def means(name):
        return [sum(r.losses[name] for r in some) / part for some in (reports[:part], reports[-part:])]

    (loss, loss_now), (cosine, cosine_now) = means("loss"), means("cosine")
    seconds = sum(r.seconds for r in reports) / len(reports)
    return (
        f"{'Went on from a stopped run. ' if resumed else ''}{len(reports)} steps, {seconds:.2f} s each; loss "
        f"{loss:.3f} -> {loss_now:.3f}, agreement with the words {cosine:+.2f} -> {cosine_now:+.2f}."
    )
