"""The shipped workflows: reading them, and making them short for tests."""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
SUFFIX = ".api.json"

Workflow = dict[str, dict[str, Any]]

#: inputs that make a run long, and the most that `short` leaves of them
LIMITS = {"inner_steps": 2, "iterations": 2, "train_steps": 4, "particles": 2, "resample": 2, "batch_size": 2}


def names() -> list[str]:
    """Names of the shipped workflows, sorted."""
    return sorted(path.name[:-len(SUFFIX)] for path in FOLDER.glob("*" + SUFFIX))


def load(name: str) -> Workflow:
    """A shipped workflow in API format."""
    return json.loads((FOLDER / (name + SUFFIX)).read_text(encoding="utf-8"))


def is_link(value: Any, workflow: Workflow) -> bool:
    """Whether an input's value is a link [node id, slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int) and str(value[0]) in workflow


def short(workflow: Workflow, steps: int = 3) -> Workflow:
    """A copy whose samplers take at most `steps` steps and whose loops are few."""
    workflow = copy.deepcopy(workflow)
    limits = {**LIMITS, "steps": steps}
    for node in workflow.values():
        for key, value in node["inputs"].items():
            if key in limits and isinstance(value, int) and not isinstance(value, bool):
                node["inputs"][key] = min(value, limits[key])
    return workflow
