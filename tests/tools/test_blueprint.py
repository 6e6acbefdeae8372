"""The blueprints: one node that holds a part of a workflow, whose wires and widgets are sound."""

from __future__ import annotations

import copy
import json

import pytest
from nulltext.tools import blueprint, workflows

FILES = sorted(blueprint.FOLDER.glob("*.json"))


def info(name, output=(), **required):
    return {name: {"name": name, "input": {"required": required}, "output": [*output], "output_name": [*output]}}


INFOS = {
    **info("CheckpointLoaderSimple", ("MODEL", "VAE"), ckpt_name=[["a", "b"]]),
    **info("LoadImage", ("IMAGE",), image=[["x.png"], {"image_upload": True}]),
    **info("Edit", ("IMAGE", "MASK"), model=["MODEL"], image=["IMAGE"], text=["STRING", {}], cfg=["FLOAT", {}]),
    **info("SaveImage", (), images=["IMAGE"]),
}
FLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "b"}, "_meta": {"blueprint": ["ckpt_name"]}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "3": {
        "class_type": "Edit",
        "inputs": {"model": ["1", 0], "image": ["2", 0], "text": "a red circle", "cfg": 3.0},
        "_meta": {"blueprint": ["text", "cfg"], "note": "Changes it.", "heading": "Change it", "task": "Look inside"},
    },
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(workflows, "load", lambda name: copy.deepcopy(FLOW))
    return blueprint.of("flow", INFOS)


def definition(graph):
    (node,), (found,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert node["type"] == found["id"]
    return node, found


def ends(found, link):
    """The slots at the two ends of a link inside."""
    nodes = {node["id"]: node for node in found["nodes"]}
    origin, target = link["origin_id"], link["target_id"]
    left = found["inputs"] if origin == found["inputNode"]["id"] else nodes[origin]["outputs"]
    right = found["outputs"] if target == found["outputNode"]["id"] else nodes[target]["inputs"]
    return left[link["origin_slot"]], right[link["target_slot"]]


def check(graph):
    """Every link is told at both ends, every slot has its link, and the node outside has the slots of the inside."""
    node, found = definition(graph)
    links = {link["id"]: link for link in found["links"]}
    assert len(links) == len(found["links"]) and max(links) == found["state"]["lastLinkId"]
    told = []
    for number, link in links.items():
        left, right = ends(found, link)
        assert left["type"] == right["type"] == link["type"]
        assert number in (left.get("linkIds") or left["links"])
        assert number in (right.get("linkIds") or [right["link"]])
        told.append(number)
    held = [n for each in found["nodes"] for entry in each["inputs"] for n in [entry["link"]] if n]
    assert sorted(held + [n for slot in found["outputs"] for n in slot["linkIds"]]) == sorted(told)
    for mine, theirs in ((node["inputs"], found["inputs"]), (node["outputs"], found["outputs"])):
        assert [(slot["name"], slot["type"]) for slot in mine] == [(slot["name"], slot["type"]) for slot in theirs]
        assert len({slot["name"] for slot in theirs}) == len(theirs) and all(len(s["linkIds"]) == 1 for s in theirs)
    for slot, outside in zip(found["inputs"], node["inputs"], strict=True):
        _, entry = ends(found, links[slot["linkIds"][0]])
        assert entry.get("widget") == outside.get("widget"), slot["name"]


def test_wires_from_outside_become_inputs_and_what_nobody_takes_outputs(made):
    check(made)
    node, found = definition(made)
    assert [(slot["name"], "widget" in slot) for slot in node["inputs"]] == [
        ("image", False),
        ("ckpt_name", True),
        ("text", True),
        ("cfg", True),
    ]
    assert [slot["name"] for slot in node["outputs"]] == ["VAE", "IMAGE", "MASK"]
    assert [each["type"] for each in found["nodes"]] == ["CheckpointLoaderSimple", "Edit"]
    assert (found["name"], found["description"], node["title"]) == ("Change it", "Changes it.", "Change it")


def test_values_are_the_workflows_and_its_texts_are_left_out(made):
    _, found = definition(made)
    assert [each["widgets_values"] for each in found["nodes"]] == [["b"], ["", 3.0]]


def test_it_is_the_same_at_every_making(made):
    assert made == blueprint.of("flow", INFOS)


@pytest.mark.parametrize("shown", ["image", "colour"])
def test_what_is_no_widget_can_not_be_shown(monkeypatch, shown):
    flow = copy.deepcopy(FLOW)
    flow["3"]["_meta"]["blueprint"] = [shown]
    monkeypatch.setattr(workflows, "load", lambda name: flow)
    with pytest.raises(ValueError, match=f"Edit has no widget '{shown}' for its blueprint to show"):
        blueprint.of("flow", INFOS)


def test_one_file_for_each_blueprint():
    assert sorted(map(blueprint.path, blueprint.names())) == FILES and FILES


@pytest.mark.parametrize("name", blueprint.names())
def test_a_shipped_blueprint_is_sound_and_holds_what_the_workflow_does(name):
    graph = json.loads(blueprint.path(name).read_text(encoding="utf-8"))
    check(graph)
    node, found = definition(graph)
    assert found["name"] == node["title"] == blueprint.path(name).stem, "ComfyUI calls it by its file"
    page = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    whole = {each["id"]: each for each in page["nodes"]}
    part = blueprint.inside(workflows.load(name))
    assert {str(each["id"]) for each in found["nodes"]} == set(part)
    for each in found["nodes"]:
        same, shown = whole[each["id"]], part[str(each["id"])]["_meta"]["blueprint"]
        assert each["type"] == same["type"]
        changed = [a for a, b in zip(same["widgets_values"], each["widgets_values"], strict=True) if a != b]
        texts = [part[str(each["id"])]["inputs"][widget] for widget in shown]
        assert set(changed) <= {text for text in texts if isinstance(text, str)}, "only texts differ"


def test_edit_photo_asks_for_a_picture_two_texts_and_how_much():
    graph = json.loads(blueprint.path("edit_photo").read_text(encoding="utf-8"))
    node, _ = definition(graph)
    wanted = ["image", "ckpt_name", "source_prompt", "edited_prompt", "strength", "method"]
    assert [slot["name"] for slot in node["inputs"]] == wanted
    assert "circle" not in json.dumps(graph["definitions"]["subgraphs"][0]["nodes"]), "no word of the demo scene"
