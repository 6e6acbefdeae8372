"""The shipped workflows, workflows/api/<name>.api.json: reading them, and what they say of themselves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
API, SUFFIX = FOLDER / "api", ".api.json"  # the files that queue over HTTP as they are
DEMO_CHECKPOINT = "nulltext_demo.safetensors"
DEMO_SIDE = 128  # pixels
REAL = "_sd"  # ends the name of a workflow for a checkpoint that is not shipped

#: classes that load a picture of one's own
PICTURES = ("NullText_LoadPicture", "LoadImage")
SAMPLE = " [sample]"  # ends the name of a picture that the pack brings

#: what one comes for: the sections of the gallery
TASKS = (
    "Edit with words",
    "Fill or replace a part",
    "Restyle or redraw",
    "Guide what is drawn",
    "Teach the model",
    "Look inside",
)
Workflow = dict[str, dict[str, Any]]


def names() -> list[str]:
    """Names of the shipped workflows, sorted."""
    return sorted(path.name[: -len(SUFFIX)] for path in API.glob("*" + SUFFIX))


def load(name: str) -> Workflow:
    """A shipped workflow in API format. FileNotFoundError names the ones there are."""
    if name not in names():
        raise FileNotFoundError(f"There is no workflow {name!r}; shipped are: {', '.join(names()) or 'none'}.")
    return json.loads((API / (name + SUFFIX)).read_text(encoding="utf-8"))


def runs_here(name: str) -> bool:
    """Whether a workflow runs as it opens, on what the pack ships; the others wait for a real checkpoint."""
    return not name.endswith(REAL)


def on_demo(workflow: Workflow) -> Workflow:
    """A copy of a workflow for a real checkpoint on the demo checkpoint, at its size: the same wires and settings."""
    workflow = copy.deepcopy(workflow)
    for node in workflow.values():
        if "ckpt_name" in node["inputs"]:
            node["inputs"]["ckpt_name"] = DEMO_CHECKPOINT
        if node["class_type"] == "ImageScale":
            node["inputs"].update(width=DEMO_SIDE, height=DEMO_SIDE)
        if node["class_type"] in PICTURES and node["inputs"].get("size"):
            node["inputs"]["size"] = DEMO_SIDE
    return workflow


def is_link(value: Any, workflow: Workflow) -> bool:
    """Whether an input's value is a link [node id, slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int) and str(value[0]) in workflow


def of_class(workflow: Workflow, *classes: str) -> list[str]:
    """Ids of the nodes of these classes, in order."""
    return sorted((key for key, node in workflow.items() if node["class_type"] in classes), key=int)


def titles(workflow: Workflow) -> dict[str, str]:
    """What a person calls each node: its title, else its class."""
    return {key: node.get("_meta", {}).get("title") or node["class_type"] for key, node in workflow.items()}


def source_names(workflow: Workflow) -> list[str]:
    """The shipped pictures that the workflow loads, by file name, in the order of the nodes."""
    named = [str(workflow[key]["inputs"]["image"]) for key in of_class(workflow, *PICTURES)]
    return [name.removesuffix(SAMPLE) for name in named if name.endswith(SAMPLE)]


def source_pictures(workflow: Workflow) -> list[Image.Image]:
    """The same as pictures."""
    return [Image.open(FOLDER / "inputs" / name).convert("RGB") for name in source_names(workflow)]


def result(workflow: Workflow) -> str | None:
    """The node whose pictures are the workflow's result: the one that says what it shows, else the last that saves."""
    saving = of_class(workflow, "SaveImage", "PreviewImage")
    said = [key for key in saving if "shows" in workflow[key].get("_meta", {})]
    return (said or saving or [None])[-1]


def headed(workflow: Workflow) -> dict[str, str]:
    """What the file says of itself: "task" (one of TASKS), "heading" (what one does with it) and "note"."""
    return next((node["_meta"] for _, node in by_id(workflow) if node.get("_meta", {}).get("note")), {})


def by_id(workflow: Workflow) -> list[tuple[str, dict[str, Any]]]:
    """(key, node) in the order of the nodes' numbers."""
    return sorted(workflow.items(), key=lambda item: int(item[0]))


def title(name: str) -> str:
    """A workflow's name as a person reads it: what one does with it."""
    said = headed(load(name)).get("heading", name)
    return said if runs_here(name) else f"{said} (for Stable Diffusion 1.5)"


def by_task() -> dict[str, list[str]]:
    """{task: the workflows for it}, in the order of TASKS. ValueError for one that names none."""
    found = {task: [] for task in TASKS}
    for name in names():
        task = headed(load(name)).get("task")
        if task not in found:
            raise ValueError(f"{name}: give the node with its note a task in _meta, one of: {', '.join(TASKS)}.")
        found[task].append(name)
    return found


def drawn_by(name: str) -> str:
    """Which weights drew the workflow's thumbnail: a sentence to stand under it."""
    if runs_here(name):
        return "Drawn by the shipped demo model (128 x 128 scenes of shapes)."
    return (
        "Drawn by the shipped demo model, not by Stable Diffusion 1.5: the workflow waits for a checkpoint of "
        "yours, and none was at hand to draw with. The wires and settings are the same, at 128 x 128."
    )
