"""Whose rows are whose in a network call.

A call holds len(cond_or_uncond) chunks of equal size in any order, and the engine may split a step into several
calls. An edit on a MODEL finds its rows by their text embedding: a conditioning that a node was given is looked for
in the positive chunks, so that areas, combined prompts and batches of prompts need no special case. ComfyUI's CFG asks
for the positive condition and the negative one, in this order. A guider of this pack says in the transformer options
which of its conditions are null branches (`NULLS`), and one that runs a source beside its edits what each is, by a
`Call` under `CALL`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from ..samplers.attention.indices import at
from ..samplers.attention.layers import QKV, Controller, Layer, Moment, Needs, Rows
from .clock import Clock
from .readers import running_job
from .words import words_of

CALL, NULLS = "nulltext_call", "nulltext_nulls"
NULL_ROLES = ("negative", "source_negative")


@dataclass(frozen=True)
class Place:
    """One transformer block of a network: its place among all of them, and how much smaller than the latent it
    works."""

    index: int
    scale: int


class Places(dict[tuple[str, int, int], Place]):
    """(block, number, depth) -> Place, in the order the network runs them; not changed once it is made."""

    @cached_property
    def scales(self) -> tuple[int, ...]:
        return tuple(sorted({place.scale for place in self.values()}))


def layer_at(
    places: Places, key: tuple[str, int, int], cross: bool, heads: int, latent: tuple, moment: Moment
) -> Layer:
    """The Layer a controller is asked about, for one transformer block at one latent size."""
    place = places[key]
    grid = tuple(ceil(side / place.scale) for side in latent)
    return Layer(*key, place.index, len(places), cross, heads, grid, tuple(latent), moment, places.scales)


@dataclass
class Call:
    """What a guider says of a call: roles[i] = (role, edit) of condition i, roles being "target", "negative" (an
    edit with and without its prompt), "source" and "source_negative"."""

    roles: Sequence[tuple[str, int]]
    moment: Moment
    lengths: Sequence[int]  # token counts of the source and of each edit
    #: the source's queries, keys and values, of each of its conditions, where some target stands in a later call
    store: dict[tuple, list[QKV]] = field(default_factory=dict)
    #: how many conditions of a role each layer has met, for combined prompts come in the source's order
    met: Counter = field(default_factory=Counter)
    elsewhere: bool = False  # the step has other calls than this one

    def complete(self, roles: Sequence[tuple[str, int]]) -> bool:
        """Whether these are all of the step's roles, so that the stored source may be dropped."""
        return not self.elsewhere and set(self.roles) <= set(roles)


def roles_of(options: dict, order: Sequence[int]) -> list[tuple[str, int]]:
    """(role, edit) of each chunk of a call, as `Call` names them; the order is the engine's `cond_or_uncond`."""
    if CALL in options:
        return [options[CALL].roles[i] for i in order]
    return [("negative" if i in options.get(NULLS, (1,)) else "target", 0) for i in order]


def check_joined(conditioning: list) -> None:
    """ValueError for a prompt whose embedding has other tokens than the words noted with it (Conditioning Concat)."""
    for embedding, extra in conditioning:
        for record in words_of([[embedding, extra]]) or []:
            known = len(record.get("ids") or ())
            if known and embedding.shape[1] != known:
                raise ValueError(
                    f"This prompt was joined from several: it has {embedding.shape[1]} tokens, and its words are noted "
                    f"for {known}. Write it as one text in Prompt (with words)."
                )


def is_regional(conditioning: list) -> bool:
    """Whether some prompt holds for a part of the picture alone; a mask leaves the network the whole of it."""
    return any("area" in extra or extra.get("set_area_to_bounds") for _, extra in conditioning)


def check_single(conditioning: list, what: str, instead: str, timed: str = "") -> None:
    """ValueError unless this is one text, for the whole picture and all steps. what: whose prompt; instead, timed: what
    to do about several, and beside taking a timestep range off."""
    if len(conditioning) != 1 or len(conditioning[0][0]) != 1 or is_regional(conditioning):
        raise ValueError(
            f"The {what} prompt must be one prompt for the whole picture, not combined, regional or a batch: {instead}."
        )
    extra = conditioning[0][1]
    if extra.get("start_percent", 0) > 0 or extra.get("end_percent", 1) < 1:
        raise ValueError(f"The {what} prompt holds for a part of the steps only: take the timestep range off{timed}.")


class PairEdit:
    """A controller between a source and its edits, for the calls of a guider that says who is who."""

    def __init__(self, controller: Controller):
        self.controller = controller


class WordEdit:
    """A controller on the rows that carry one of the prompts in a CONDITIONING, in any run of the MODEL."""

    def __init__(self, controller: Controller, conditioning: list):
        self.controller = controller
        #: per prompt: its embedding [T, D], its row and the number of rows of the conditioning's entry
        self.prompts = [
            (embedding[i].detach().cpu(), i, len(embedding))
            for embedding, _ in conditioning
            for i in range(len(embedding))
        ]
        self.conditioning = [[e, x] for e, x in conditioning]
        self._cache: tuple = (None, None, None)

    def rows(self, context: Tensor, kinds: Sequence[str]) -> list[Rows]:
        """The rows of a call whose text embedding is one of ours, by token count. kinds: one role per chunk."""
        seen, of, rows = self._cache
        if seen is None or seen() is not context or of != list(kinds):
            rows = self._find(context, kinds)
            self._cache = (weakref.ref(context), list(kinds), rows)
        return rows

    def _find(self, context, kinds):
        size = max(1, context.shape[0] // len(kinds))
        found: dict[int, list[tuple[int, int, int]]] = {}
        taken: set[int] = set()
        for prompt, (embedding, place, count) in enumerate(self.prompts):
            length = len(embedding)
            rows = [
                r
                for r in range(context.shape[0])
                if (r % size) % count == place
                and r not in taken
                and kinds[min(r // size, len(kinds) - 1)] in ("target", "source")
            ]
            if not rows or context.shape[1] % length or context.shape[2] != embedding.shape[1]:
                continue
            same = (context[at(rows, context.device), :length] == embedding.to(context)).flatten(1).all(1).tolist()
            hits = [r for r, equal in zip(rows, same) if equal]
            taken.update(hits)
            found.setdefault(length, []).extend((r, prompt, r % size) for r in hits)
        return [
            Rows(*(tuple(column) for column in zip(*hits)), length=length) for length, hits in found.items() if hits
        ]

    def begin(self, moment: Moment, options: dict) -> None:
        """Called first for every layer."""


class Capture(WordEdit):
    """A MapRecorder that starts anew with every run: where the clock tells one, and with each prompt of the queue."""

    def __init__(self, controller, conditioning):
        super().__init__(controller, conditioning)
        self._clock = Clock()

    def begin(self, moment, options):
        job = running_job()
        if self._clock.tick(moment.sigma, options.get("sample_sigmas")) or job != self.controller.job:
            self.controller.begin(job, self._clock.climbs)


def in_order(edits: Sequence[PairEdit | WordEdit]) -> list[PairEdit | WordEdit]:
    """Replacing comes before re-weighting, as the paper wraps it."""
    return sorted(edits, key=lambda edit: isinstance(edit, WordEdit))


#: the network call at hand: its list of conditions, which the engine makes anew for each, its sigmas, and when it is
_latest: tuple = (None, None, None)


def moment_of(options: dict) -> Moment:
    """When a call happens; options: the engine's transformer options of the call. Every layer asks, and sigma, which
    lies on the GPU, is fetched once."""
    global _latest
    if CALL in options:
        return options[CALL].moment
    order, sigmas = options["cond_or_uncond"], options["sigmas"]
    of, at_sigmas, moment = _latest
    if of is not order or at_sigmas() is not sigmas:
        moment = Moment(float(sigmas.max()))
        _latest = (order, weakref.ref(sigmas), moment)
    return moment


def jobs_for(edits: Sequence, qkv: QKV, layers: Sequence[Layer], options: dict, context: Tensor | None):
    """What the edits ask of one attention call, and the source's q, k, v where it ran in an earlier one. layers: the
    call as controllers are asked about it, first as the rows are cut; context: the call's text embedding."""
    call: Call | None = options.get(CALL)
    order = options["cond_or_uncond"]

    def asks(edit) -> bool:
        return any(edit.controller.needs(layer) is not Needs.NOTHING for layer in layers)

    asking = [e.controller for e in edits if isinstance(e, PairEdit) and call and asks(e)]
    jobs, source = pair_jobs(asking, qkv, layers[0], call, order) if asking else ([], None)
    roles = [role for role, _ in roles_of(options, order)]
    for edit in (e for e in edits if isinstance(e, WordEdit) and any(layer.cross for layer in layers)):
        edit.begin(layers[0].moment, options)
        if asks(edit) and context is not None:
            jobs += [(edit.controller, rows) for rows in edit.rows(context, roles)]
    return jobs, source


def pair_jobs(controllers: Sequence[Controller], qkv: QKV, layer: Layer, call: Call, order: Sequence[int]):
    """Jobs between the chunks of this call, and the source's q, k, v where it ran in an earlier one."""
    roles = [call.roles[i] for i in order]
    size = qkv.q.shape[0] // len(roles)
    at: dict[tuple[str, int], list[int]] = {}
    for i, role in enumerate(roles):
        at.setdefault(role, []).append(i * size)
    own_length = layer.cross and not layer.text  # joint attention reads the picture behind the words
    length = call.lengths[0] if own_length else 0
    wanted = {"target": "source"}
    if any(c.unconditional for c in controllers):
        wanted["negative"] = "source_negative"

    def parts_of(role):
        tokens = slice(length or None)
        rows = [slice(start, start + size) for start in at[role, 0]]
        return [QKV(qkv.q[r], qkv.k[r, tokens], qkv.v[r, tokens]) for r in rows]

    key = (layer.block, layer.number, layer.depth, layer.cross)
    for role in wanted.values():
        if (role, 0) in at and not call.complete(roles):
            kept = [QKV(*(t.clone() for t in part)) for part in parts_of(role)]
            call.store.setdefault((role, key), []).extend(kept)
    present = {mine: role for mine, role in wanted.items() if any(name == mine for name, _ in roles)}
    inside = all((role, 0) in at for role in present.values())
    offsets, parts = {}, []
    for mine, role in present.items():
        found = parts_of(role) if (role, 0) in at else call.store[role, key]
        offsets[mine] = at[role, 0] if inside else [(len(parts) + n) * size for n in range(len(found))]
        parts += found
    jobs = []
    for mine in present:
        by_length: dict[int, list[tuple[int, int, int, int]]] = {}
        for (role, edit), starts in at.items():
            if role == mine:
                own, met = call.lengths[1 + edit] if own_length else 0, call.met[role, edit, key]
                call.met[role, edit, key] += len(starts)
                pairs = zip(starts, offsets[mine][met:])
                by_length.setdefault(own, []).extend((to + b, edit, b, of + b) for to, of in pairs for b in range(size))
        for own, targets in by_length.items():
            row, prompt, image, source = (tuple(column) for column in zip(*targets))
            rows = Rows(row, prompt, image, own, source, length)
            jobs += [(c, rows) for c in controllers if mine == "target" or c.unconditional]
    return jobs, None if inside else QKV(*(torch.cat(t) for t in zip(*parts)))
