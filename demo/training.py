"""What every training of the demo shares: a timed, resumable loop with EMA, progress, a loss curve, a polite pause."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..samplers.measure.charts import line_chart, tiles, to_picture
from . import turn

STATE = Path(__file__).resolve().parent.parent / ".training"


def wait_for_turn() -> None:
    """Block while `make test`, `demo` or `bench` holds the compute lock: two compute jobs starve each other."""
    if os.environ.get(turn.HELD):  # started by the holder itself: a test, for one
        return
    STATE.mkdir(exist_ok=True)
    with open(STATE / "compute.lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)


def device_of(name: str) -> torch.device:
    """The device of that name; on a CPU one thread computes: two starve each other beside anything else."""
    device = torch.device(name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


#: the option --device of every training command
DEVICE = {"type": device_of, "default": "cuda" if torch.cuda.is_available() else "cpu"}


def precision(device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 on a GPU and on a CPU with AVX512-BF16, where products take a quarter of the time; else fp32."""
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # torch has no public word for it
    if device.type == "cuda" or device.type == "cpu" and fast():
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def set_aside(names: Iterable[str], folder: Path) -> None:
    """Rename what these trainings kept, so that they begin anew and nothing is lost."""
    for name in names:
        path = Path(folder) / f"{name}.safetensors"
        if path.exists():
            path.replace(path.with_suffix(".old"))


class Trainer:
    """AdamW with warm-up and cosine decay over a time budget, EMA weights, state in one safetensors file.

    `step(i) -> dict of losses` gives "loss" and anything else worth logging. A run stops when `minutes` are over; the
    decay follows elapsed time, so the budget of a run is its schedule. Going on starts from the saved weights, or from
    `committed` (state dict, samples seen) where there are none, with a fresh optimiser and a new warm-up."""

    def __init__(
        self,
        name: str,
        net: nn.Module,
        minutes: float,
        lr: float,
        ema: float = 0.999,
        folder: Path = STATE,
        warmup: int = 200,
        weight_decay: float = 1e-4,
        committed: tuple[dict[str, Tensor], int] | None = None,
    ):
        self.name, self.net, self.seconds, self.lr, self.warmup = name, net, minutes * 60, lr, warmup
        self.path = Path(folder) / f"{name}.safetensors"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.samples, self.curve = 0, []
        if self.path.exists():
            self._load()
        elif committed:
            net.load_state_dict(committed[0])
            self.samples = committed[1]
            print(f"{name}: going on from the committed weights, {self.samples} samples", flush=True)
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.decay = ema
        self.optimiser = torch.optim.AdamW(
            net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=next(net.parameters()).is_cuda
        )

    def _load(self) -> None:
        with safe_open(self.path, "pt") as f:
            state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            meta = f.metadata()
        self.net.load_state_dict(state)
        self.samples, self.curve = int(meta["samples"]), json.loads(meta["curve"])
        print(f"{self.name}: going on from {self.samples} samples", flush=True)

    def save(self) -> None:
        """EMA weights, samples seen and the loss curve."""
        state = {k: v.detach().contiguous().cpu() for k, v in self.average.state_dict().items()}
        temporary = self.path.with_suffix(".tmp")
        save_file(state, temporary, {"samples": str(self.samples), "curve": json.dumps(self.curve)})
        temporary.replace(self.path)
        plot_curve(self.curve, self.path.with_suffix(".png"))

    @torch.no_grad()
    def _average(self, i: int) -> None:
        decay = min(self.decay, (1 + i) / (10 + i))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)

    def run(
        self,
        step: Callable[[int], dict[str, Tensor]],
        batch: int,
        report: Callable[[], str] | None = None,
        save_every: float = 60.0,
    ) -> nn.Module:
        start = saved = time.time()
        i, log = 0, {}
        paused = 0.0
        while (elapsed := time.time() - start - paused) < self.seconds:
            before = time.time()
            wait_for_turn()
            if time.time() - before > 1:
                paused += time.time() - before
            rate = min(1.0, (i + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1, elapsed / self.seconds)))
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr * max(rate, 0.005)
            losses = step(i)
            self.optimiser.zero_grad(set_to_none=True)
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimiser.step()
            self._average(i)
            i, self.samples = i + 1, self.samples + batch
            for k, v in losses.items():
                log[k] = log.get(k, 0) + v.detach()
            if i % 100 == 0 or i == 10:
                mean = {k: float(v) / (100 if i % 100 == 0 and i > 100 else i % 100 or 100) for k, v in log.items()}
                log = {}
                self.curve.append([self.samples, round(mean["loss"], 6)])
                bar = "#" * int(20 * elapsed / self.seconds)
                print(
                    f"{self.name} [{bar:<20}] {elapsed:5.0f}/{self.seconds:.0f} s  step {i}  "
                    f"{i * batch / elapsed:.0f}/s  " + "  ".join(f"{k} {v:.4f}" for k, v in mean.items()),
                    flush=True,
                )
            if time.time() - saved > save_every:
                saved = time.time()
                self.save()
                if report:
                    print(f"{self.name}: {report()}", flush=True)
        self.save()
        if report:
            print(f"{self.name}: done, {self.samples} samples, {report()}", flush=True)
        return self.average


def plot_curve(curve: list[list[float]], path: Path) -> None:
    """The loss against samples seen, both logarithmic, as a PNG."""
    points = [(math.log10(max(x, 1)), math.log10(max(y, 1e-9))) for x, y in curve[1:]]
    if len(points) > 1:
        x, y = zip(*points)
        chart = line_chart(f"log10 of the loss, last {curve[-1][1]:.4f}", {"loss": y}, x, x_label="log10 of samples")
        to_picture(chart).save(path)


def grid(images: Tensor, path: Path) -> None:
    """Images [B, 3, H, W] in 0..1 as one PNG, eight in a row."""
    to_picture(tiles(images)).save(path)


def chunks(n: int, size: int) -> Iterator[slice]:
    for i in range(0, n, size):
        yield slice(i, min(n, i + size))


def die(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(1)
