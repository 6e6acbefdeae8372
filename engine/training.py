"""A tuning run on a loaded MODEL: the loop of samplers/tuning inside ComfyUI's own sampling run.

The engine loads the model and cleans up; the weights stay the very same objects (`gradients.py`). What is trained lives
outside the model: low-rank factors on hooks, vectors of a word, an embedding. Progress, previews and interrupts are
ComfyUI's own; what is trained when a run ends early is kept.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..samplers.core import apply_cfg
from ..samplers.ode import sample_euler
from ..samplers.tuning.loop import PAUSE, Loop, NotFinite, Report
from ..samplers.tuning.lora import LowRank
from ..samplers.tuning.objective import FixedLoss, Levels, Net, Objective, Step
from .comfy import Interrupted, check_interrupt, compute_dtype, latent_out, process_of, sigmas_of, training_levels
from .gradients import check_differentiable, short_of_memory
from .run import Run, sample_with
from .training_memory import kept_for, make_room, needed
from .training_store import Store
from .tuning import caption_net, training, with_trained_text
from .weights import attached as attached_factors

FP16_LOSS_SCALE = 65536.0
_SAVE_SECONDS, _SHOW_SECONDS, _SAY_SECONDS = 120.0, 2.0, 20.0
_log = logging.getLogger("nulltext")

#: a caption -> (embedding [1, T, D], pooled [1, P] or None), anew at every call, differentiable
Encode = Callable[[str], tuple[Tensor, Tensor | None]]


def levels_of(model, name: str = "the model's own") -> Levels:
    """The levels a MODEL is trained at. "the model's own": uniform over its table of sigmas, or a flow's logit-normal
    with its own shift; "uniform", "logit-normal": that one."""
    sampling, flow = model.get_model_object("model_sampling"), process_of(model).name == "flow"
    if name == "the model's own":
        name = "logit-normal" if flow else "uniform"
    if flow:
        # the map u -> sigma at 1/2; a `shift` attribute is this factor in some samplings and its logarithm in others
        middle = float(sampling.sigma(0.5 * sampling.timestep(torch.ones((), dtype=torch.float64))))
        return Levels(name, shift=middle / (1 - middle))
    return Levels(name, training_levels(model))


def own_weight(model) -> str:
    """The name of the loss weight that a MODEL was trained with: "eps", "v" or "flow"."""
    kinds = [base.__name__ for base in type(model.get_model_object("model_sampling")).__mro__]
    if process_of(model).name == "flow":
        return "flow"
    return "v" if "V_PREDICTION" in kinds else "eps"


def loss_scale(model) -> float:
    """`Settings.loss_scale` for a MODEL that is not running yet: above 1 where it computes in fp16."""
    return FP16_LOSS_SCALE if compute_dtype(model.model) == torch.float16 else 1.0


def check_trainable(model, clip=None) -> None:
    """Every refusal that a model can be given before any work: an unknown noise process, quantised weights."""
    process_of(model)
    check_differentiable(model.model)
    if clip is not None:
        check_differentiable(clip.cond_stage_model)


@dataclass(frozen=True)
class Look:
    """A picture drawn every `every` optimiser steps (0: never), to see what the training does: `text` against `empty`
    at `cfg`, `steps` Euler steps from the noise of `seed`. Both are names of the run's captions."""

    text: str = ""
    every: int = 100
    seed: int = 0
    steps: int = 12
    cfg: float = 5.0
    empty: str = ""


@dataclass
class Outcome:
    """What a run leaves: looks [(step, LATENT samples [1, C, ...])], seconds of training, steps made now, how it
    ended ("" where it came to its end, else a sentence), memory: bytes told before the start (None: not known), again:
    whether blocks were computed again although nobody asked for it, peak: device memory in bytes (0 on a CPU)."""

    looks: list[tuple[int, Tensor]] = field(default_factory=list)
    seconds: float = 0.0
    made: int = 0
    stopped: str = ""
    memory: int | None = None
    again: bool = False
    peak: int = 0


#: (report, seconds left, looks so far) -> IMAGE [1, H, W, 3] for the preview, or None
Draw = Callable[[Report, float, list[tuple[int, Tensor]]], Tensor | None]


def train(
    model,
    loop: Loop,
    make_step: Callable[[Net, torch.device], Step],
    captions: Mapping[str, list],
    shape: Sequence[int],
    *,
    attached: Callable[[], AbstractContextManager],
    clip=None,
    encode: Encode | None = None,
    wrap: Callable[[Net], Net] | None = None,
    fixed_loss: FixedLoss | None = None,
    objective: Objective | None = None,
    look: Look | None = None,
    draw: Draw | None = None,
    checkpoint: bool = False,
    store: Store | None = None,
    rows: int = 1,
    measured: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> Outcome:
    """Run `loop` up to its number of steps on a MODEL.

    make_step(net, device) gives the loop's step; net's conditions are names of `captions`, CONDITIONINGs. shape: of
    one latent [C, ...]. attached(): entered around the whole run, puts what is trained into the network. encode: where
    the text encoder of `clip` or a word learns too. wrap: the net in another form. store: where the state is kept.
    rows: of one call of the net, and measured(): like `attached` on the meta device; both for the memory said before.

    An interrupt and a loss that is not finite keep what was trained by then in the store; the interrupt goes on to
    ComfyUI, the other ends the run with a sentence in `stopped`."""
    outcome, left = Outcome(), loop.settings.steps - loop.step
    looks = 0 if look is None or not look.every else left // look.every + 1
    total = left * loop.settings.accumulate + looks * (0 if look is None else look.steps)

    def body(run: Run):
        with training(run, clip):
            kept = kept_for(run, next(iter(captions)), rows, measured, encode is not None or wrap is not None)
        again = make_room(run, kept, checkpoint, loop.memory(), [] if clip is None else [clip.patcher])
        outcome.memory, outcome.again = needed(run, kept, loop.memory(), again), again and not checkpoint
        if outcome.memory is not None:
            _log.info("about %.1f GB of memory are needed", outcome.memory / 1e9)
        smaller = (
            "take a smaller batch or smaller pictures." if again else "turn checkpointing on, or take a smaller batch."
        )
        with training(run, clip, again), attached(), short_of_memory(f"the training: {smaller}"):
            net = caption_net(run)
            net = net if encode is None else with_trained_text(net, encode)
            net = net if wrap is None else wrap(net)
            measure = None if fixed_loss is None else (lambda: fixed_loss.loss(net, objective, run.device))
            watch = _Watch(run, loop, outcome, net, look, draw, store)
            loop.run(make_step(net, run.device), fixed_loss=measure, on_step=watch.step, tick=watch.tick)

    device, begun, first = torch.device(model.load_device), time.perf_counter(), loop.step
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        sample_with(model, dict(captions), torch.zeros(1, *shape), sigmas_of(model, "normal", 2), body, total=total)
    except NotFinite as error:
        outcome.stopped = str(error)
    finally:
        outcome.seconds, outcome.made = time.perf_counter() - begun, loop.step - first
        if device.type == "cuda":
            outcome.peak = torch.cuda.max_memory_allocated(device)
        if store is not None and outcome.made:
            store.save(loop)
    return outcome


def train_to_file(
    write: Callable[[], Any], model, loop: Loop, *rest, store: Store | None = None, **options
) -> tuple[Outcome, Any]:
    """(`train` of these arguments where steps are left, what `write()` gives). It is called at the end, and where the
    user stops a training that has made a step. ValueError for a file that can't be replaced; it tells whether the state
    is kept."""
    outcome = Outcome()
    try:
        if loop.step < loop.settings.steps:
            outcome = train(model, loop, *rest, store=store, **options)
    except Interrupted():
        if loop.step:
            write()
        raise
    try:
        return outcome, write()
    except PermissionError as error:  # on Windows: a file that a loader of this very server holds
        name = Path(error.filename2 or error.filename or "").name
        kept = store is not None and loop.step in store.steps()
        raise ValueError(
            f"The file {name} can't be written now; another program, or a loader of ComfyUI, may have it open. Give "
            f"another file name: the training is {'kept and is not' if kept else 'not kept and is'} done again."
        ) from None


@contextlib.contextmanager
def on_meta(where: Mapping[str, nn.Module], factors: Mapping[str, LowRank]) -> Iterator[None]:
    """`weights.attached` for a run on the meta device."""
    moved = {
        name: replace(f, **{part: getattr(f, part).detach().to("meta").requires_grad_() for part in ("down", "up")})
        for name, f in factors.items()
    }
    with attached_factors(where, moved):
        yield


class _Watch:
    """Counts, previews, looks and saves while a loop runs."""

    def __init__(self, run: Run, loop: Loop, outcome: Outcome, net: Net, look, draw, store):
        self.run, self.loop, self.outcome, self.net = run, loop, outcome, net
        self.look, self.draw, self.store = look, draw, store
        self.begun = self.shown = self.said = time.perf_counter()
        self.due = self.begun + _SAVE_SECONDS
        self.first = loop.step

    def tick(self) -> None:
        """Before each batch: an interrupt is noticed here."""
        self.run.tick(0)

    def step(self, report: Report) -> None:
        """After each optimiser step."""
        self.run.tick(self.loop.settings.accumulate)
        look, last = self.look, report.step == report.steps
        if look is not None and look.every and (report.step % look.every == 0 or last):
            self.outcome.looks.append((report.step, self._picture()))
            self.shown = 0.0
        now = time.perf_counter()
        left = (now - self.begun) / (report.step - self.first) * (report.steps - report.step)
        if self.draw is not None and now - self.shown > _SHOW_SECONDS:
            with torch.inference_mode():
                image, self.shown = self.draw(report, left, self.outcome.looks), now
            if image is not None:
                self.run.progress.show(image)
        if now - self.said > _SAY_SECONDS:
            self.said = now
            _log.info("step %d of %d, loss %.4g, %s left", report.step, report.steps, report.loss, duration(left))
        if self.store is not None and (now := time.perf_counter()) > self.due:
            self.store.save(self.loop)
            ended = time.perf_counter()
            self.due = ended + max(_SAVE_SECONDS, PAUSE * (ended - now))

    @torch.no_grad()
    def _picture(self) -> Tensor:
        """A few Euler steps with what is trained by now; LATENT samples [1, C, ...] on the CPU."""
        look, run, net = self.look, self.run, self.net
        sigmas = sigmas_of(run.patcher, "normal", look.steps).to(run.device)
        generator = torch.Generator("cpu").manual_seed(look.seed)
        shape = (1, *run.latent.shape[1:])
        noise = torch.randn(shape, generator=generator).to(run.device)

        def denoise(x, sigma):
            check_interrupt()
            run.tick(1)
            rows = torch.as_tensor(sigma, device=x.device).expand(2)
            cond, uncond = net(torch.cat([x, x]), rows, [look.text, look.empty]).chunk(2)
            return apply_cfg(cond, uncond, look.cfg)

        start = run.process.noised(torch.zeros_like(noise), sigmas[0], noise)
        return latent_out(run.patcher, sample_euler(denoise, start, sigmas)).cpu()


def duration(seconds: float) -> str:
    """1:05:09, 12:03 or 9 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
