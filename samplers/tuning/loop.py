"""One training loop: what is trained and the step that gives its loss go in, a resumable state comes out.

The random numbers of a run come from one generator of its own on the CPU, never from torch's global one. A step is
drawn and computed whole or not at all: whatever is raised in the middle of one (an interrupt, out of memory) leaves the
state as it was before that step, so stopping and going on gives the same bits as never stopping.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..record_file import Fields, Unsound, check_tensors, parsed, read, write
from .objective import Step

FORMAT, VERSION = "nulltext tuning state", "1"
OPTIMISERS = ("AdamW", "Adam", "SGD")
SCHEDULES = ("constant", "cosine", "geometric")
#: an overflowing fp16 gradient halves the loss scale; below this it is the loss that is broken
_SMALLEST_SCALE = 1.0
#: up to so many bytes, what a step changes is copied beside itself before every step; more into main memory, and seldom
_BESIDE_BYTES = 2**30
#: times as long as it took, until something large is copied or saved again
PAUSE = 20
#: steps without an overflow after which a lowered loss scale is doubled
GROWTH = 2000
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch's optimisers of `OPTIMISERS` keep of each tensor


@dataclass(frozen=True)
class Settings:
    """steps: optimiser steps in all. lr: the highest rate. optimiser, schedule: a name of `OPTIMISERS`, `SCHEDULES`.

    accumulate: batches whose mean gradient makes one step. clip: largest norm of the whole gradient; 0: not clipped
    (1, as the common training scripts; the first code of textual inversion and of ControlNet does not clip).
    warmup: steps over which the rate rises from 0. ema: decay of a running mean of what is trained, 0: none; it starts
    faster, min(ema, (1 + i)/(10 + i)). factor, every: a geometric rate is multiplied by factor after every so many
    steps. fixed_every: steps between two measurements of the fixed loss; 0: before and after only.
    loss_scale: above 1 for a net that computes in fp16, whose small gradients vanish otherwise; halved on overflow,
    and doubled again, up to this, after every `GROWTH` steps without one (torch's GradScaler has no upper bound)."""

    steps: int = 500
    lr: float = 1e-4
    optimiser: str = "AdamW"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    accumulate: int = 1
    clip: float = 1.0
    warmup: int = 0
    schedule: str = "constant"
    factor: float = 1.0
    every: int = 1
    ema: float = 0.0
    fixed_every: int = 0
    loss_scale: float = 1.0

    def __post_init__(self):
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"There is no optimiser {self.optimiser!r}: choose one of {', '.join(OPTIMISERS)}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"There is no schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}.")
        if self.steps < 0 or self.accumulate < 1 or self.warmup < 0 or self.fixed_every < 0:
            raise ValueError("steps, warm-up and fixed-loss steps can't be below 0, nor accumulation below 1.")
        if not self.factor > 0 or self.every < 1:
            raise ValueError("A geometric rate needs a factor above 0 and at least 1 step between two changes.")
        if not self.lr > 0 or not 0 <= self.ema < 1 or self.clip < 0 or self.loss_scale < 1:
            raise ValueError("The rate must be above 0, ema in [0, 1), clip at least 0 and the loss scale at least 1.")

    def rate(self, i: int) -> float:
        """The learning rate of step i = 0, 1, ...: a straight rise over the warm-up, then constant, half a cosine
        down to 0, or lr * factor^(i // every)."""
        if i < self.warmup:
            return self.lr * (i + 1) / self.warmup
        if self.schedule == "geometric":
            return self.lr * self.factor ** (i // self.every)
        if self.schedule == "constant":
            return self.lr
        done = (i - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))


class NotFinite(ArithmeticError):
    """The loss or its gradient is NaN or infinite. The loop stands at the last state whose loss was finite."""


@dataclass(frozen=True)
class Report:
    """One optimiser step done. losses: the mean over its batches of all that `step` named, "loss" among them.

    fixed_loss: the latest fixed loss, None before the first. seconds: of this step. norm: of the gradient before
    clipping."""

    step: int
    steps: int
    losses: dict[str, float]
    fixed_loss: float | None
    rate: float
    norm: float
    seconds: float

    @property
    def loss(self) -> float:
        return self.losses["loss"]


@dataclass(eq=False)
class _Moment:
    """What a step changes, copied. tensors: as `Loop._tensors` names them."""

    step: int
    tensors: dict[str, Tensor]
    generator: Tensor
    curve: int
    scale: float
    since: int


@dataclass(eq=False)
class Loop:
    """A training run over `parameters` by name (ordinary leaf tensors, floating point).

    rates: factor on the learning rate for names that begin with a key, the longest key wins (1 elsewhere).
    step: optimiser steps done. curve: (step, loss) of each. fixed: fixed loss by step. The caller's tensors are
    trained in place. ValueError for tensors made in inference mode, which have no gradients."""

    parameters: Mapping[str, Tensor]
    settings: Settings
    seed: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)

    @torch.inference_mode(False)  # also under a caller's inference mode: what is made here is written to later
    def __post_init__(self):
        if not self.parameters:
            raise ValueError("There is nothing to train: no layer of the model was chosen.")
        self.parameters = dict(self.parameters)
        for name, p in self.parameters.items():
            if p.is_inference() or not p.is_leaf or not p.is_floating_point():
                raise ValueError(f"{name} can't be trained: it must be an ordinary floating point tensor.")
            p.requires_grad_(True)
        s = self.settings
        groups: dict[float, list[Tensor]] = {}
        for name, p in self.parameters.items():
            fits = [key for key in self.rates if name.startswith(key)]
            groups.setdefault(self.rates[max(fits, key=len)] if fits else 1.0, []).append(p)
        options = {} if s.optimiser == "SGD" else {"betas": s.betas}
        self.optimiser = getattr(torch.optim, s.optimiser)(
            [{"params": tensors, "factor": factor} for factor, tensors in groups.items()],
            lr=s.lr,
            weight_decay=s.weight_decay,
            **options,
        )
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if s.ema else {}
        self.step, self.curve, self.fixed = 0, [], {}
        self.scale, self.since = s.loss_scale, 0  #: since: steps since the scale was changed
        self._good: _Moment | None = None
        self._far, self._due = self._changed() > _BESIDE_BYTES, 0.0  # copies lie in main memory; when the next is made

    # -- the run

    def run(
        self,
        step: Step,
        *,
        until: int | None = None,
        fixed_loss: Callable[[], float] | None = None,
        on_step: Callable[[Report], bool | None] | None = None,
        tick: Callable[[], None] | None = None,
    ) -> None:
        """Train up to `until` optimiser steps (all of them by default).

        step(generator) -> {"loss": 0-d, ...} is called `accumulate` times a step and takes every random number from
        that generator. fixed_loss() -> the fixed loss, asked before, after and every `fixed_every` steps.
        on_step(report) after each step; True ends the run. tick() before each call of `step`: what it raises
        interrupts. Raises NotFinite for a NaN or infinite loss or gradient, with the last good state in place."""
        last = self.settings.steps if until is None else min(until, self.settings.steps)
        with torch.inference_mode(False), torch.enable_grad():
            self._measure(fixed_loss)
            while self.step < last:
                report = self._one(step, tick, fixed_loss)
                if report is not None and on_step is not None and on_step(report):
                    break

    def _measure(self, fixed_loss) -> None:
        every = self.settings.fixed_every
        due = self.step in (0, self.settings.steps) or every and self.step % every == 0
        if fixed_loss is not None and due and self.step not in self.fixed:
            self.fixed[self.step] = float(fixed_loss())

    def _one(self, step, tick, fixed_loss) -> Report | None:
        """One optimiser step; None where only the loss scale was halved."""
        begun, before = time.perf_counter(), self.generator.get_state()
        try:
            losses = self._gradients(step, tick)
            tensors = [p for p in self.parameters.values() if p.grad is not None]
            norm = self._norm(tensors)
            finite = math.isfinite(losses["loss"]) and math.isfinite(norm)
            if finite and (self._good is None or time.perf_counter() >= self._due):
                self._remember(before)
        except BaseException:
            self.generator.set_state(before)
            self.optimiser.zero_grad(set_to_none=True)
            raise
        if not finite:
            return self._not_finite(losses["loss"], before)
        rate = self.settings.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        try:
            self.optimiser.step()
            self._follow()
        except BaseException:  # out of memory for the moments, of which some numbers may have them and others not
            self._back_to(self._good)
            raise
        finally:
            self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.since += 1
        if self.since >= GROWTH and self.scale < self.settings.loss_scale:
            self.scale, self.since = self.scale * 2, 0
        self.curve.append((self.step, losses["loss"]))
        self._measure(fixed_loss)
        latest = self.fixed[max(self.fixed)] if self.fixed else None
        return Report(self.step, self.settings.steps, losses, latest, rate, norm, time.perf_counter() - begun)

    def _gradients(self, step, tick) -> dict[str, float]:
        n, totals = self.settings.accumulate, {}
        for _ in range(n):
            if tick is not None:
                tick()
            losses = step(self.generator)
            (losses["loss"] * (self.scale / n)).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / n
        return totals

    def _norm(self, tensors: list[Tensor]) -> float:
        """Unscale the gradients and clip them; their norm before clipping."""
        if self.scale != 1:
            torch._foreach_div_([p.grad for p in tensors], self.scale)
        return float(torch.nn.utils.clip_grad_norm_(tensors, self.settings.clip or math.inf))

    def _not_finite(self, loss: float, before: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if math.isfinite(loss) and self.scale / 2 >= _SMALLEST_SCALE:
            self.scale, self.since = self.scale / 2, 0
            return
        at = self.step + 1
        self.generator.set_state(before)
        if not math.isfinite(loss) and self._good is not None:
            self._back_to(self._good)  # the loss is taken before the update: the update before this one broke it
        what = "gradient" if math.isfinite(loss) else "loss"
        raise NotFinite(
            f"The {what} of step {at} is not finite: lower the learning rate. "
            f"What was trained by step {self.step} is kept."
        )

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average:
            decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    def result(self) -> dict[str, Tensor]:
        """Copies of what was trained, the running mean where there is one."""
        return {n: p.detach().clone() for n, p in (self.average or self.parameters).items()}

    # -- the state

    def memory(self) -> int:
        """Bytes that a run holds on its device for what it trains: the values, their gradient, the optimiser's moments,
        the running mean; and all but the gradient once more, as they were before a step, where no main memory has
        them."""
        values = list(self.parameters.values())
        copies = 0 if self._far and values[0].device.type != "cpu" else 1
        return sum(p.nbytes for p in values) + (1 + copies) * self._changed()

    def _changed(self) -> int:
        """Bytes of what a step changes: the values, the optimiser's moments, the running mean."""
        moments, mean = 0 if self.settings.optimiser == "SGD" else 2, 1 if self.average else 0
        return sum(p.nbytes for p in self.parameters.values()) * (1 + moments + mean)

    def _tensors(self) -> dict[str, Tensor]:
        """What a step changes, by the names of a saved state; the tensors themselves."""
        tensors = {}
        for name, p in self.parameters.items():
            tensors[f"value/{name}"] = p.detach()
            for key, value in self.optimiser.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser/{key}/{name}"] = value
        return tensors | {f"average/{name}": value for name, value in self.average.items()}

    @torch.no_grad()
    def _remember(self, generator: Tensor) -> None:
        """Copy what a step changes over the copies of an earlier one, so that they are held once."""
        begun, now, old = time.perf_counter(), self._tensors(), {} if self._good is None else self._good.tensors
        self._good = None  # half overwritten it would be no state at all
        where = "cpu" if self._far else None
        kept = {k: old[k] if k in old else torch.empty_like(v, device=where) for k, v in now.items()}
        for device in {v.device for v in now.values()}:  # each device's in one go
            names = [k for k, v in now.items() if v.device == device]
            torch._foreach_copy_([kept[k] for k in names], [now[k] for k in names])
        self._good = _Moment(self.step, kept, generator, len(self.curve), self.scale, self.since)
        if self._far:
            ended = time.perf_counter()
            self._due = ended + PAUSE * (ended - begun)

    @torch.no_grad()
    def _back_to(self, moment: _Moment) -> None:
        self._good = None  # its copies become the optimiser's own tensors
        for name, p in self.parameters.items():
            p.copy_(moment.tensors[f"value/{name}"])
            named = {key: f"optimiser/{key}/{name}" for key in _MOMENTS}
            inner = {key: moment.tensors[full] for key, full in named.items() if full in moment.tensors}
            inner = {key: v if key == "step" else v.to(p.device) for key, v in inner.items()}
            self.optimiser.state.pop(p, None)
            if inner:
                self.optimiser.state[p] = inner
        for name, own in self.average.items():
            own.copy_(moment.tensors[f"average/{name}"])
        self.step, self.scale, self.since = moment.step, moment.scale, moment.since
        del self.curve[moment.curve :]
        self.fixed = {at: value for at, value in self.fixed.items() if at <= self.step}
        self.generator.set_state(moment.generator)

    def state(self, over: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """All that is needed to go on, as one flat dict of CPU tensors and one of strings.

        over: the tensors of an earlier state that nobody needs any more; they are written over where they fit."""
        tensors = {"generator": self.generator.get_state(), **self._tensors()}
        tensors["curve"] = torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 2)
        tensors["fixed"] = torch.tensor(list(self.fixed.items()), dtype=torch.float64).reshape(-1, 2)
        strings = {"format": FORMAT, "version": VERSION, "step": str(self.step), "loss_scale": repr(self.scale)}
        strings |= {"since": str(self.since), "settings": json.dumps(asdict(self.settings))}
        kept = over or {}
        return {
            k: kept[k].copy_(v) if k in kept and kept[k].shape == v.shape else v.detach().cpu().contiguous().clone()
            for k, v in tensors.items()
        }, strings

    @staticmethod
    def _numbers(tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> tuple[dict, int, float, int]:
        """(settings, step, loss scale, steps with it) of a state whose small tensors have the right form. ValueError
        otherwise."""
        try:
            told = Fields({k: parsed(strings.get(k), k) for k in ("settings", "step", "loss_scale", "since")})
            settings = Fields(told.values["settings"], "settings")
            settings.text("optimiser"), settings.number("ema", 0, 1)
            check_tensors({k: v for k, v in tensors.items() if k != "generator"})
            shapes = [(tensors[k].ndim, tensors[k].shape[-1]) for k in ("curve", "fixed")]
            if shapes != [(2, 2), (2, 2)] or tensors["generator"].dtype != torch.uint8:
                raise Unsound("its curve is damaged")
            torch.Generator().set_state(tensors["generator"].clone())
            numbers = told.whole("step", 0, 10**9), told.number("loss_scale", 0), told.whole("since", 0, 10**9)
            return settings.values, *numbers
        except (Unsound, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"The saved training is damaged ({error}): begin a new one.") from None

    @torch.inference_mode(False)
    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> None:
        """Go on from what `state` gave. The rate, the number of steps and the like are this loop's, not the state's.

        ValueError, before anything changes, for a state of other parameters or of another optimiser."""
        if strings.get("format") != FORMAT or strings.get("version") != VERSION:
            raise ValueError("This is no saved training of this version: begin a new one.")
        settings, step, scale, since = self._numbers(tensors, strings)
        saved = {k.removeprefix("value/"): v for k, v in tensors.items() if k.startswith("value/")}
        if settings["optimiser"] != self.settings.optimiser or bool(settings["ema"]) != bool(self.settings.ema):
            raise ValueError("The saved training has another optimiser or running mean: set those, or begin a new one.")
        if {n: v.shape for n, v in saved.items()} != {n: p.shape for n, p in self.parameters.items()}:
            raise ValueError("The saved training has other layers or another rank: set those, or begin a new one.")
        for name, p in self.parameters.items():
            p.copy_(saved[name])
            inner = {}
            for key in _MOMENTS:
                value = tensors.get(f"optimiser/{key}/{name}")
                if value is not None:
                    inner[key] = value.clone() if key == "step" else value.to(p, copy=True)
            if inner:
                self.optimiser.state[p] = inner
        for name, own in self.average.items():
            own.copy_(tensors[f"average/{name}"])
        self.generator.set_state(tensors["generator"].clone())
        self.step, self.scale, self.since = step, scale, since
        self.curve = [(int(at), float(loss)) for at, loss in tensors["curve"].tolist()]
        self.fixed = {int(at): float(loss) for at, loss in tensors["fixed"].tolist()}
        self._good = None

    def save(self, path: Path | str, **strings: str) -> None:
        """The state, and any strings beside it, as one safetensors file; a file of that name is replaced whole."""
        tensors, own = self.state()
        write(path, tensors, {**strings, **own})

    def load(self, path: Path | str) -> dict[str, str]:
        """Go on from a file that `save` wrote; its strings. ValueError in one sentence for a foreign or damaged one,
        OSError for one that can't be opened now."""
        try:
            tensors, strings = read(path, "training")
        except ValueError as error:
            raise ValueError(f"The saved training {Path(path).name} can't be read: begin a new one.") from error
        self.restore(tensors, strings)
        return strings
