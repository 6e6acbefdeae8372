"""Workflows as tests run them: short, and under ids of a test's own."""

from __future__ import annotations

import copy
from typing import Any

from nulltext.tools.workflows import Workflow, is_link

#: inputs that make a run long, and the most that `short` leaves of them
LIMITS = {
    "inner_steps": 2,
    "iterations": 2,
    "train_steps": 4,
    "inversion_steps": 4,
    "passes": 1,
    "embedding_steps": 2,
    "model_steps": 2,
    "count": 2,
    "maps": 2,
    "steps_above": 2,
    "levels": 4,
    "resamples": 2,
    "particles": 2,
    "batch_size": 2,
}


def short(workflow: Workflow, steps: int = 3) -> Workflow:
    """A copy whose samplers take at most `steps` steps and whose loops are few."""
    workflow = copy.deepcopy(workflow)
    limits = {**LIMITS, "steps": steps}
    for node in workflow.values():
        for key, value in node["inputs"].items():
            if key in limits and isinstance(value, int) and not isinstance(value, bool):
                node["inputs"][key] = min(value, limits[key])
    return workflow


def renamed(workflow: Workflow, ids: dict[str, str]) -> Workflow:
    """The workflow with other ids for its nodes, {old: new}; its links follow."""

    def moved(value: Any) -> Any:
        return [ids[str(value[0])], value[1]] if is_link(value, workflow) else value

    return {
        ids[key]: {**node, "inputs": {name: moved(value) for name, value in node["inputs"].items()}}
        for key, node in workflow.items()
    }
