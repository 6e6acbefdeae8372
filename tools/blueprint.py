"""A part of a workflow as a blueprint: one node of the page's node library that opens into several.

    subgraphs/<heading>.json        ComfyUI offers these of every pack in custom_nodes/, by the file's name

A node of an API file that belongs inside says so in its `_meta`, with the widgets that the blueprint shows:

    "_meta": {"title": "Edit Photo", "blueprint": ["source_prompt", "edited_prompt", "strength", "method"]}

Wires from the other nodes become the blueprint's inputs, outputs that no node inside takes its outputs. A text that it
shows is empty when it is put on the page: the workflow's own speaks of the workflow's picture.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from . import litegraph, workflows
from .workflows import Workflow, is_link

FOLDER = workflows.FOLDER.parent / "subgraphs"
INPUTS, OUTPUTS = -10, -20  # the ids under which a subgraph's links name its own two ends
LINK = ("origin_id", "origin_slot", "target_id", "target_slot")
SIDE, LINE = 160, 20  # width of such an end, height of a slot
WIDTH, TITLE, WIDGET = 320, 30, 60  # of the blueprint's node: its width, heights of its title and, at most, of a widget


def names() -> list[str]:
    """The workflows of which a part is a blueprint."""
    return [name for name in workflows.names() if inside(workflows.load(name))]


def path(name: str) -> Path:
    return FOLDER / f"{workflows.title(name)}.json"


def inside(workflow: Workflow) -> Workflow:
    """The nodes that belong to the blueprint."""
    return {key: node for key, node in workflow.items() if "blueprint" in node.get("_meta", {})}


def _identity(*parts: str) -> str:
    """A UUID that is the same at every making."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("nulltext", *parts))))


class _Ends:
    """The links of a subgraph and, for each slot of its own two ends, {name, type, linkIds}."""

    def __init__(self, links: list[list[Any]]):
        self.links = [dict(zip(("id", *LINK, "type"), link)) for link in links]
        self.entering: list[dict[str, Any]] = []
        self.leaving: list[dict[str, Any]] = []

    def enter(self, node: dict[str, Any], entry: dict[str, Any]) -> None:
        """A slot of the blueprint that feeds this input of the node."""
        ends = (INPUTS, len(self.entering), node["id"], node["inputs"].index(entry))
        entry["link"] = self._link(ends, entry, self.entering)

    def leave(self, node: dict[str, Any], slot: int) -> None:
        """A slot of the blueprint that this output of the node feeds."""
        entry = node["outputs"][slot]
        entry["links"] = [self._link((node["id"], slot, OUTPUTS, len(self.leaving)), entry, self.leaving)]

    def _link(self, ends: tuple[int, ...], entry: dict[str, Any], slots: list[dict[str, Any]]) -> int:
        number = len(self.links) + 1
        self.links.append({"id": number, **dict(zip(LINK, ends)), "type": entry["type"]})
        slots.append({"name": entry["name"], "type": entry["type"], "linkIds": [number]})
        return number


def of(name: str, infos: dict[str, Any]) -> dict[str, Any]:
    """The blueprint of a shipped workflow: a graph of one node, whose definition holds the part. ValueError for a
    widget that its node does not have."""
    whole = workflows.load(name)
    part = {key: _opened(name, node, infos[node["class_type"]]) for key, node in inside(whole).items()}
    graph = litegraph.to_ui(part, infos, "")
    nodes = [node for node in graph["nodes"] if str(node["id"]) in part]
    ends = _Ends(graph["links"])
    for node in nodes:
        given = part[str(node["id"])]["inputs"]
        for entry in node["inputs"]:
            if entry["link"] is None and is_link(given.get(entry["name"]), whole):
                ends.enter(node, entry)
    wired = len(ends.entering)
    for node in nodes:
        node["inputs"] += _sockets(infos[node["type"]], {entry["name"] for entry in node["inputs"]})
        by_name = {entry["name"]: entry for entry in node["inputs"]}
        for widget in part[str(node["id"])]["_meta"]["blueprint"]:
            ends.enter(node, by_name[widget])
    for node in nodes:
        for slot, entry in enumerate(node["outputs"]):
            if not entry["links"]:
                ends.leave(node, slot)
    return _page(_definition(workflows.title(name), workflows.headed(whole)["note"], nodes, ends), wired)


def _opened(name: str, node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The node with the texts that the blueprint shows emptied. ValueError for what is no widget of it."""
    known, shown = litegraph.inputs_of(info), node["_meta"]["blueprint"]
    for widget in shown:
        if widget not in known or not litegraph.is_widget(known[widget][0]):
            raise ValueError(f"{name}: {node['class_type']} has no widget {widget!r} for its blueprint to show.")
    kept = {key: value for key, value in node["inputs"].items() if key not in shown or known[key][0] != "STRING"}
    return {**node, "inputs": kept}


def _sockets(info: dict[str, Any], there: set[str]) -> list[dict[str, Any]]:
    """The sockets of a node's widgets, which a page with subgraphs puts behind those of its wires, in its order."""
    return [
        {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": None, "widget": {"name": name}}
        for name, (kind, _) in litegraph.inputs_of(info).items()
        if litegraph.is_widget(kind) and name not in there
    ]


def _definition(title: str, note: str, nodes: list[dict[str, Any]], ends: _Ends) -> dict[str, Any]:
    left = min(node["pos"][0] for node in nodes) - 2 * SIDE
    right = max(node["pos"][0] + node["size"][0] for node in nodes) + SIDE
    top = min(node["pos"][1] for node in nodes)

    def slots(kind: str, found: list[dict[str, Any]], x: int) -> list[dict[str, Any]]:
        return [
            {"id": _identity(title, kind, slot["name"]), **slot, "pos": [x, top + LINE * (i + 1)]}
            for i, slot in enumerate(found)
        ]

    def box(x: int, found: list[dict[str, Any]]) -> list[int]:
        return [x, top, SIDE, LINE * (len(found) + 2)]

    last = {"lastNodeId": max(node["id"] for node in nodes), "lastLinkId": len(ends.links)}
    return {
        "id": _identity(title),
        "version": 1,
        "state": {**last, "lastGroupId": 0, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": title,
        "inputNode": {"id": INPUTS, "bounding": box(left, ends.entering)},
        "outputNode": {"id": OUTPUTS, "bounding": box(right, ends.leaving)},
        "inputs": slots("input", ends.entering, left + SIDE),
        "outputs": slots("output", ends.leaving, right),
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": ends.links,
        "extra": {},
        "category": "NullText",
        "description": note,
    }


def _page(made: dict[str, Any], wired: int) -> dict[str, Any]:
    """A graph that holds one node of the definition; its first `wired` inputs are wires, the others widgets."""
    inputs = [{"name": slot["name"], "type": slot["type"], "link": None} for slot in made["inputs"]]
    for entry in inputs[wired:]:
        entry["widget"] = {"name": entry["name"]}
    host = {
        "id": 1,
        "type": made["id"],
        "pos": [0, 0],
        "size": [WIDTH, TITLE + LINE * max(wired, len(made["outputs"])) + WIDGET * len(inputs[wired:])],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": slot["name"], "type": slot["type"], "links": None} for slot in made["outputs"]],
        "properties": {},
        "widgets_values": [],
        "title": made["name"],
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [host],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [made]},
        "config": {},
        "extra": {"BlueprintDescription": made["description"]},
        "version": 0.4,
    }


def text(name: str, infos: dict[str, Any]) -> str:
    """What subgraphs/<heading>.json holds."""
    return json.dumps(of(name, infos), indent=1, ensure_ascii=False) + "\n"
