"""The conditions of one prompt-to-prompt step, in as few network calls as the engine allows.

In the common case all stand in one call: the engine is given one x for all, and a network wrapper puts each chunk's own
x in its place. Where that can't be (ControlNet, several negative prompts, prompts whose lengths don't meet) the source
runs first and its attention is kept for the edits.
"""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from ..samplers.attention.layers import Moment
from .rows import CALL, Call

#: what makes the engine split conditions, or show one of them a part of the picture
_SPLITS = [
    "control",
    "gligen",
    "area",
    "mask",
    "hooks",
    "start_percent",
    "end_percent",
    "timestep_start",
    "timestep_end",
]


class Asked(NamedTuple):
    """One prediction that a step needs: of an edit, of the source (edit 0), or of either without its prompt."""

    role: str  #: "target", "negative", "source" or "source_negative"
    edit: int
    conds: list  #: processed, ready for the network
    x: Tensor  #: [B, C, ...]


def predict_together(
    guider,
    asked: list[Asked],
    timestep: Tensor,
    moment: Moment,
    lengths: list[int],
    model_options: dict,
    joint: bool = False,
) -> dict[tuple[str, int], Tensor]:
    """{(role, edit): D [B, C, ...]}. timestep: sigma [B]. lengths: the prompts' token counts, the source's first;
    joint: text and picture attend together, and the engine never repeats a prompt to meet another's length."""
    calls = [asked]
    if not _fit_together(asked, joint):
        of_source, of_edits = [], [[] for _ in lengths[1:]]
        for a in asked:
            (of_source if a.role.startswith("source") else of_edits[a.edit]).append(a)
        calls = [of_source, *of_edits]
    found, store = {}, {}
    for call in filter(None, calls):
        roles = [(a.role, a.edit) for a in call]
        note = Call(roles, moment, lengths, store, elsewhere=len(calls) > 1)
        transformer = {**model_options.get("transformer_options", {}), CALL: note}
        options = {**model_options, "transformer_options": transformer}
        if len(calls) == 1:
            options["model_function_wrapper"] = _placing([a.x for a in call], options.get("model_function_wrapper"))
        out = guider.predict(call[0].x, timestep, [a.conds for a in call], options)
        found.update(zip(roles, out))
    return found


def _fit_together(asked: list[Asked], joint: bool) -> bool:
    """Whether the engine is certain to batch all these conditions, each seeing the whole picture."""
    lists = [a.conds for a in asked]
    if any(len(conds) != 1 or any(conds[0].get(name) is not None for name in _SPLITS) for conds in lists):
        return False
    parts = [conds[0]["model_conds"] for conds in lists]
    tokens = {part["c_crossattn"].cond.shape[1] for part in parts}
    return all(part.keys() == parts[0].keys() for part in parts) and lcm(*tokens) // min(tokens) <= (1 if joint else 4)


def _placing(parts: list[Tensor], inner):
    """A network wrapper that gives every chunk its own x, in front of the MODEL's own wrapper."""

    def wrapper(apply_model, args):
        args = {**args, "input": torch.cat([parts[i] for i in args["cond_or_uncond"]])}
        if inner is not None:
            return inner(apply_model, args)
        return apply_model(args["input"], args["timestep"], **args["c"])

    return wrapper
