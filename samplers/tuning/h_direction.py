"""Directions in h-space: what is added to a UNet's h, as one frozen record that travels and is saved.

    steps   dh [N, C, h, w], one for each level of a schedule. Trained freely (Asyrp, Kwon et al. 2210.10960), or
            without training (Haas et al. 2303.11073): the mean of h over targets less its mean over sources, or a
            principal component of h
    block   f_s(h) = conv1x1(SiLU(norm(conv1x1(h) + linear(SiLU(e(s)))))), no residual (the authors' DeltaBlock)

Departures: e(s) is a sinusoid of the level's own time, arctan(s) 2/pi for VE and s for a flow, through one linear
layer, where the authors take the net's own time embedding; the last convolution begins at 0, so that training begins
at the unedited net; principal components are taken over all levels of a sample as one vector, so that a component
means the same at every level.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import PROCESSES, NoiseProcess, NoiseSource, Sigma, check_descending, euler_step, step_of
from ..record_file import Fields, Unsound, check_state, check_tensors, parsed, read, write
from .h_space import Change

VERSION, FORMAT = 1, "nulltext-h-direction"
WIDTH = 64  # of the time embedding
_SPREAD = 0.2  # of a free dh at the start, the authors' code's


def time_of(sigma: Sigma, process: str) -> Tensor:
    """The level's time in 0..1, which f_s is told."""
    sigma = torch.as_tensor(sigma, dtype=torch.float32)
    return sigma if process == "flow" else torch.atan(sigma) * (2 / math.pi)


def _sinusoid(time: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=time.device) / (width // 2))
    angle = 1000 * time.reshape(-1, 1) * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class DeltaBlock(nn.Module):
    """f_s of h [R, C, ...], C channels: (h, sigma, process) -> dh of h's shape. 2 C^2 + 3 C WIDTH numbers about."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.into, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.embed, self.level = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, channels)
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, sigma: Sigma, process: str) -> Tensor:
        def over_channels(layer, t):  # a 1x1 convolution in any number of dimensions
            return layer(t.movedim(1, -1)).movedim(-1, 1)

        e = self.embed(_sinusoid(time_of(sigma, process).to(h.device), WIDTH))
        e = self.level(F.silu(e))
        z = over_channels(self.into, h) + e.reshape(*e.shape, *(1,) * (h.ndim - 2))
        return over_channels(self.out, F.silu(self.norm(z)))


def new_block(channels: int, seed: int) -> DeltaBlock:
    """A DeltaBlock drawn from its own generator, never from torch's global one."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return DeltaBlock(channels)


def free_shifts(steps: int, shape: Sequence[int], seed: int, spread: float = _SPREAD) -> Tensor:
    """The authors' start of a free dh: normal of standard deviation .2, [steps, *shape]."""
    with torch.inference_mode(False):
        return spread * torch.randn((steps, *shape), generator=torch.Generator("cpu").manual_seed(seed))


def _channels(block: Mapping[str, Tensor]) -> int:
    """C of a DeltaBlock's weights."""
    bias = block.get("out.bias")
    if bias is None or bias.ndim != 1 or not len(bias):
        raise Unsound("it has no tensor out.bias of one number for each channel")
    return len(bias)


@dataclass(frozen=True)
class Direction:
    """A direction for `site` of a model. sigmas [N+1]: the schedule it was made on, falling.

    shifts [N, C, ...]: dh of the step from each level (kind "steps"), or block: a DeltaBlock's weights (kind "block").
    site: 0 the middle block's output, k > 0 what output block k is given. edit: s_edit, below which it does nothing.
    ValueError in one sentence for parts that don't belong together."""

    sigmas: Tensor
    shifts: Tensor | None = None
    block: Mapping[str, Tensor] = field(default_factory=dict)
    process: str = "ve"
    site: int = 0
    edit: float = 0.0
    source: str = ""
    target: str = ""
    made_by: str = ""
    fingerprint: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self):
        if self.version != VERSION:
            raise ValueError(f"This direction has format version {self.version}, not {VERSION}: make it again.")
        if self.process not in PROCESSES:
            raise ValueError(f"A direction's process is one of {', '.join(PROCESSES)}; got {self.process!r}.")
        if (self.shifts is None) == (not self.block):
            raise ValueError("A direction holds either one shift for each step or a network, not both: make it again.")
        shifts, part = {} if self.shifts is None else {"shifts": self.shifts}, "direction"
        try:  # once for every tensor: `check_state` looks at the network's own
            check_tensors({"sigmas": self.sigmas, **shifts})
            if self.block:
                part = "direction's network"
                check_state(lambda: DeltaBlock(_channels(self.block)), self.block)
        except Unsound as error:
            raise ValueError(
                f"The {part} is not sound: {error}. Make it again; where it was trained, at a lower rate."
            ) from None
        with torch.inference_mode(False):
            set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
            set_("sigmas", self.sigmas.detach().float().cpu().clone())
            set_("block", {k: v.detach().float().cpu().clone() for k, v in self.block.items()})
            if self.shifts is not None:
                set_("shifts", self.shifts.detach().float().cpu().clone())
            check_descending(self.sigmas)
            if self.shifts is not None and (self.shifts.ndim < 3 or len(self.shifts) != self.steps):
                raise ValueError(f"{self.steps} steps need as many shifts; got {list(self.shifts.shape)}.")
            if self.block:
                net = DeltaBlock(_channels(self.block))
                net.load_state_dict(dict(self.block))
                set_("_net", net.eval().requires_grad_(False))

    @property
    def kind(self) -> str:
        return "block" if self.block else "steps"

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def at(self, sigma: Sigma) -> Change | None:
        """h -> dh at sigma as it was made, None below s_edit. Between two levels the nearer one's shift."""
        if float(torch.as_tensor(sigma).max()) < self.edit * (1 - 1e-6):
            return None
        if self.block:
            return lambda h: self._net.to(h.device)(h.float(), sigma, self.process)
        step = min(round(step_of(sigma, self.sigmas)), self.steps - 1)

        def change(h):
            shift = self.shifts[step]
            if shift.shape != h.shape[1:]:
                raise ValueError(
                    f"The direction was made for h of shape {list(shift.shape)}, and here it has {list(h.shape[1:])}: "
                    "use the picture size it was made at and prompts for the whole picture, or a trained network "
                    "direction, which fits every size."
                )
            return shift.to(h.device)

        return change

    # -- the file

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """(tensors, metadata) as safetensors holds them."""
        tensors = {"sigmas": self.sigmas.clone(), **{f"block.{k}": v.clone() for k, v in self.block.items()}}
        if self.shifts is not None:
            tensors["shifts"] = self.shifts.clone()
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("sigmas", "shifts", "block")]
        return tensors, {"format": FORMAT, **{name: json.dumps(getattr(self, name)) for name in names}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Direction:
        """The reverse. ValueError in one sentence for a file of another kind, version or content."""
        metadata = dict(metadata or {})
        if metadata.pop("format", None) != FORMAT:
            raise ValueError("This safetensors file is not an h-space direction: choose another file.")
        values = {name: parsed(text, name) for name, text in metadata.items()}
        if values.get("version") != VERSION:
            raise ValueError(
                f"This direction has format version {str(values.get('version'))[:20]}, not {VERSION}: make it again."
            )
        block = {k.removeprefix("block."): v for k, v in tensors.items() if k.startswith("block.")}
        known = {f.name for f in dataclasses.fields(cls)} - {"sigmas", "shifts", "block"}
        rest = {k for k in tensors if not k.startswith("block.")} - {"sigmas", "shifts"}
        if "sigmas" not in tensors or rest or set(values) - known:
            raise ValueError("The direction's content is not what its version says: make it again.")
        fields = Fields(values)
        fields.word("process", PROCESSES, default="ve"), fields.whole("site", 0, 64, default=0)
        fields.number("edit", 0, default=0.0)
        for name in ("source", "target", "made_by"):
            fields.text(name, default="")
        fields.table("fingerprint", lambda v: isinstance(v, str), "texts", default={})
        fields.table("metadata", lambda v: True, "anything", default={})
        notes = Fields(values.get("metadata", {}), "metadata")
        notes.number("boost", 0, default=0.0), notes.number("text_cosine", -1.01, 1.01, default=1.0)
        return cls(tensors["sigmas"], tensors.get("shifts"), block, **values)

    def save(self, path) -> None:
        """Write one safetensors file; it appears whole or not at all."""
        write(path, *self.to_tensors())

    @classmethod
    def load(cls, path) -> Direction:
        """Read what `save` wrote; never unpickles. ValueError for anything else, FileNotFoundError for no file."""
        return cls.from_tensors(*read(path, "direction"))


def together(directions: Sequence[tuple[Direction, float]], sigmas: Tensor, rescale: bool = True):
    """`Changes` of several directions, each with its strength: sum of strength_i (N_i/N) dh_i / sqrt(n).

    sigmas [N+1]: of the walk they are used on. N_i: how many of its own steps a direction has between this walk's ends,
    all of them on a whole walk, as in the authors' code. rescale False leaves N_i/N out. Directions of strength 0 count
    in n but are not computed; None at levels where nothing is added."""

    def denser(direction: Direction) -> float:
        first, last = (step_of(s, direction.sigmas) for s in (sigmas[0], sigmas[-1]))
        return (last - first) / (len(sigmas) - 1)

    factors = [s * (denser(d) if rescale else 1.0) / math.sqrt(len(directions)) for d, s in directions]

    def changes(sigma):
        found = ((f, d.at(sigma)) for f, (d, strength) in zip(factors, directions) if strength)
        live = [(factor, change) for factor, change in found if change is not None]
        return (lambda h: sum(factor * change(h) for factor, change in live)) if live else None

    return changes


def mean_difference(sources: Tensor, targets: Tensor) -> Tensor:
    """mean of h over targets less its mean over sources: [n, N, C, ...] and [m, N, C, ...] -> [N, C, ...]."""
    if not len(sources) or not len(targets):
        raise ValueError("A mean difference needs at least one source and one target.")
    return targets.mean(0) - sources.mean(0)


def principal_components(samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of h [n, N, C, ...] over samples: components [count, N, C, ...], each one standard deviation long, and the share
    of the variance that each explains [count]. The largest number of a component is positive.

    ValueError unless 1 <= count < n."""
    n = len(samples)
    if not 1 <= count < n:
        raise ValueError(f"{n} samples have 1 to {n - 1} principal components; asked for {count}.")
    flat = samples.flatten(1).cpu().double()
    flat -= flat.mean(0)
    values, sides = torch.linalg.eigh(flat @ flat.T)  # n is small, and h is long; the largest comes last
    long = sides.flip(1)[:, :count].T @ flat / math.sqrt(n - 1)
    long *= long.gather(1, long.abs().argmax(1, keepdim=True)).sign()
    share = values.flip(0)[:count].clamp(min=0) / values.sum().clamp(min=1e-30)
    components = long.reshape(count, *samples.shape[1:]).float().to(samples.device)
    return components, share.float().to(samples.device)


#: (x [B, C, ...], sigma) -> (h [B, C', h, w], D)
Read = Callable[[Tensor, Sigma], tuple[Tensor, Tensor]]


def h_of_walk(read: Read, x: Tensor, sigmas: Tensor) -> Tensor:
    """h at every level of the Euler walk from x [B, C, ...] at sigmas[0]: [B, N, C', h, w]."""
    found = []
    for s, s_next in pairwise(sigmas):
        h, denoised = read(x, s)
        found.append(h)
        x = euler_step(x, denoised, s, s_next)
    return torch.stack(found, 1)


def h_of_pictures(read: Read, x0: Tensor, sigmas: Tensor, process: NoiseProcess, noise: NoiseSource) -> Tensor:
    """h of pictures x0 [B, C, ...] noised to every level with one noise each: [B, N, C', h, w]."""
    drawn = noise()
    return torch.stack([read(process.noised(x0, s, drawn), s)[0] for s in sigmas[:-1]], 1)


def relative_size(shifts: Tensor, samples: Tensor) -> Tensor:
    """|dh| of every level [N, C, ...] as a share of the mean |h| of samples [n, N, C, ...]: [N]."""
    return shifts.flatten(1).norm(dim=1) / samples.flatten(2).norm(dim=2).mean(0).clamp(min=1e-12)
