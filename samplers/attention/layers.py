"""How an attention layer is edited: controllers that every layer asks once (after Prompt-to-Prompt, 2208.01626).

With M = softmax(Q K^T / sqrt d), pixels x tokens, a controller answers for a layer at a step: nothing; other queries,
keys or values; or another M. controllers.py and maps.py hold the techniques.

Windows are the authors': cross-attention is edited at step k of N where int(a (N+1)) <= k < int(b (N+1)),
self-attention where int(a N) <= k < int(b N). The step is told by sigma's place in the schedule, so samplers that
evaluate more than once per step get the same windows.

Only layers that a controller asks something of leave the engine's attention, and there only the rows concerned. A
prompt repeated to meet another's length (77 to 154 tokens) is read at its own length: attention over equal copies is
the same. Probabilities exist for some pixels at a time, so that memory does not grow with batch, heads and resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ..window import ALWAYS, Moment, SigmaWindow, StepWindow, Window  # noqa: F401 (the controllers' words for when)
from .indices import at, constant

#: floats of explicit probabilities that exist at once (64 MiB in fp32), whatever the batch, heads and resolution
PROBABILITY_BUDGET = 2**24


@dataclass(frozen=True)
class Layer:
    """One attention layer in one network call."""

    block: str  # "input", "middle" or "output"; "double" or "single" in a transformer
    number: int  # the block's id
    depth: int  # place inside the block's transformer
    index: int  # place among the network's attention layers of this kind
    count: int  # how many of those there are
    cross: bool
    heads: int
    grid: tuple[int, int]  # query tokens, rows x columns
    latent: tuple[int, int]
    moment: Moment
    #: factors by which the network's cross-attention grids are smaller than the latent
    scales: tuple[int, ...] = (1,)
    #: text tokens in front of the picture's among the keys, in joint attention (joint.py); 0: keys of one kind
    text: int = 0
    #: those of a source from an earlier call; 0: as many more as its keys are
    source_text: int = 0

    def text_of(self, source: QKV | None, qkv: QKV) -> int:
        """Text tokens in front of the source's keys: of one from an earlier call, or (None) of this one."""
        if source is None:
            return self.text
        return self.source_text or self.text + source.k.shape[1] - qkv.k.shape[1]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


class QKV(NamedTuple):
    """Projected queries [rows, pixels, heads*dim], keys and values [rows, tokens, heads*dim]."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Rows:
    """Which rows of a call a controller works on; all tuples but `source` (may be empty) are of one length."""

    target: tuple[int, ...]
    prompt: tuple[int, ...]  # which of the controller's prompts each row carries
    image: tuple[int, ...]  # which image of the batch it belongs to
    length: int = 0  # the prompt's own token count; 0: all
    source: tuple[int, ...] = ()  # the row each target row looks at
    source_length: int = 0


class Needs(Enum):
    """What a controller needs of a layer, from free to dear."""

    NOTHING = 0
    EXCHANGE = 1  # other queries, keys or values
    PROBABILITIES = 2  # softmax made explicit


class Controller:
    """An attention edit. Subclasses answer `needs` and do one of the others; nothing here touches what it is given."""

    #: also for the pairs of unconditional rows
    unconditional = False

    def needs(self, layer: Layer) -> Needs:
        return Needs.NOTHING

    def exchange(self, target: QKV, source: QKV, layer: Layer) -> QKV:
        """Other q, k, v for the target rows, in front of the softmax."""
        return target

    def edit(self, target: Tensor, source: Tensor | None, rows: Rows, layer: Layer) -> Tensor:
        """M* from M: probabilities [rows, heads, some pixels, tokens] of target and source rows -> the target's."""
        return target

    def watch(self, target: Tensor, source: Tensor | None, rows: Rows, layer: Layer, pixels: slice) -> None:
        """See the probabilities after all edits; `pixels` says which queries these are."""

    def between_steps(
        self, x: Tensor, x_source: Tensor, moment: Moment, prompt: Sequence[int], image: Sequence[int]
    ) -> Tensor:
        """Target latents [rows, C, H, W] after step `moment`, next to their sources'."""
        return x


def rows_of(qkv: QKV, rows: Sequence[int]) -> QKV:
    """Some rows of a call."""
    index = at(rows, qkv.q.device)
    return QKV(*(t[index] for t in qkv))


def _heads(t: Tensor, heads: int) -> Tensor:
    return t.reshape(t.shape[0], t.shape[1], heads, -1).transpose(1, 2)


class _Stack:
    """Probabilities of chosen rows, rows of one token count in one tensor [rows, heads, pixels, tokens]."""

    def __init__(self, qkv: QKV, lengths: dict[int, int], heads: int):
        self.dtype = torch.promote_types(qkv.q.dtype, torch.float32)
        self.place, self.groups = {}, []
        for length in dict.fromkeys(lengths.values()):
            rows = [row for row, own in lengths.items() if own == length]
            part = rows_of(qkv, rows)
            q, k, v = (_heads(t, heads).to(self.dtype) for t in (part.q, part.k[:, :length], part.v[:, :length]))
            self.place |= {row: (len(self.groups), i) for i, row in enumerate(rows)}
            self.groups.append((rows, q * q.shape[-1] ** -0.5, k.transpose(-1, -2), v))
        self.probabilities: list[Tensor] = []

    @property
    def floats_per_pixel(self) -> int:
        return sum(q.shape[0] * q.shape[1] * k.shape[-1] for _, q, k, _ in self.groups)

    def fill(self, pixels: slice) -> None:
        self.probabilities = [(q[:, :, pixels] @ k).softmax(-1) for _, q, k, _ in self.groups]

    def _places(self, rows: Sequence[int]) -> tuple[int, list[int]]:
        return self.place[rows[0]][0], [self.place[r][1] for r in rows]  # a controller's rows share one length

    def get(self, rows: Sequence[int]) -> Tensor:
        group, places = self._places(rows)
        probabilities = self.probabilities[group]
        return probabilities[at(places, probabilities.device)]

    def put(self, rows: Sequence[int], value: Tensor) -> None:
        group, places = self._places(rows)
        old = self.probabilities[group]
        if places == list(range(len(old))):
            self.probabilities[group] = value
        else:  # out of place, for gradients
            self.probabilities[group] = old.index_copy(0, constant(places, old.device), value)

    def write(self, out: Tensor, pixels: slice) -> None:
        for (rows, _, _, v), p in zip(self.groups, self.probabilities, strict=True):
            out[at(rows, out.device), pixels] = (p @ v).transpose(1, 2).flatten(2).to(out.dtype)


def attend(
    qkv: QKV,
    layer: Layer,
    jobs: Sequence[tuple[Controller, Rows]],
    backend: Callable[[QKV], Tensor],
    source: QKV | None = None,
) -> Tensor:
    """One layer's attention [rows, pixels, heads*dim] under its controllers, before the output projection.

    `backend` is the engine's own attention. `source` holds the source rows when they ran in an earlier call
    (Rows.source counts in it); None: they are rows of this call, and are then made with the same arithmetic as their
    targets, so that equal prompts give equal rows to the bit. With nothing asked the call goes to the backend as it
    came."""
    asked = [(controller, rows, controller.needs(layer)) for controller, rows in jobs if rows.target]
    origin = source or qkv
    for controller, rows, ask in asked:
        if ask is Needs.EXCHANGE:
            new = controller.exchange(rows_of(qkv, rows.target), rows_of(origin, rows.source), layer)
            index = constant(rows.target, qkv.q.device)
            qkv = QKV(*(old.index_copy(0, index, t) for old, t in zip(qkv, new, strict=True)))
    dear = [(controller, rows) for controller, rows, ask in asked if ask is Needs.PROBABILITIES]
    if not dear:
        return backend(qkv)

    concerned = {row for _, rows in dear for row in (*rows.target, *(() if source else rows.source))}
    rest = [row for row in range(qkv.q.shape[0]) if row not in concerned]
    out = torch.empty_like(qkv.q[..., : qkv.v.shape[-1]])
    if rest:
        out[at(rest, out.device)] = backend(rows_of(qkv, rest))
    return with_probabilities(out, qkv, layer, dear, source)


def with_probabilities(
    out: Tensor, qkv: QKV, layer: Layer, dear: Sequence[tuple[Controller, Rows]], source: QKV | None
) -> Tensor:
    """`out` [rows, pixels, heads*dim], the rows that the jobs name (and sources of this call) written anew from
    explicit probabilities. With `layer.text` the controllers see the text's columns of them and no others."""
    origin = source or qkv
    text, text_of_source = layer.text, layer.text_of(source, qkv)

    def words(probabilities: Tensor, columns: int) -> Tensor:
        return probabilities[..., :columns] if text else probabilities

    def before(rows: Rows) -> Tensor | None:
        return words(origin_stack.get(rows.source), text_of_source) if rows.source else None

    watching = [(controller, rows) for controller, rows in dear if type(controller).watch is not Controller.watch]
    own, outside = {}, {}
    for _, rows in dear:
        own |= dict.fromkeys(rows.target, rows.length or qkv.k.shape[1])
        (own if source is None else outside).update(dict.fromkeys(rows.source, rows.source_length or origin.k.shape[1]))
    stack = _Stack(qkv, own, layer.heads)
    origin_stack = stack if source is None else _Stack(source, outside, layer.heads)
    per_pixel = stack.floats_per_pixel + (origin_stack.floats_per_pixel if source is not None else 0)
    size = max(1, PROBABILITY_BUDGET // per_pixel)
    for start in range(0, qkv.q.shape[1], size):
        pixels = slice(start, min(start + size, qkv.q.shape[1]))
        stack.fill(pixels)
        if source is not None:
            origin_stack.fill(pixels)
        for controller, rows in dear:
            whole = stack.get(rows.target)
            edited = controller.edit(words(whole, text), before(rows), rows, layer)
            stack.put(rows.target, torch.cat([edited, whole[..., text:]], -1) if text else edited)
        for controller, rows in watching:
            controller.watch(words(stack.get(rows.target), text), before(rows), rows, layer, pixels)
        stack.write(out, pixels)
    return out
