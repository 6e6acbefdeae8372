"""The page's graph of a workflow: widget places, links, and the way back to what is queued."""

import copy
import json

import pytest
from nulltext.tools import litegraph, workflows


def info(name, output=(), **inputs):
    """What /object_info says of a node class; `required`, `optional` and `hidden` inputs."""
    return {name: {"name": name, "input": {"required": {}, **inputs}, "output": [*output], "output_name": [*output]}}


WORK = {
    "image": ["IMAGE"],
    "seed": ["INT", {"default": 7}],
    "steps": ["INT", {"default": 20, "min": 1}],
    "mode": [["fast", "good"], {"control_after_generate": True}],
    "said": ["STRING", {"forceInput": True}],
}
MORE = {
    "strength": ["FLOAT", {"default": 0.5, "control_after_generate": False}],
    "mask": ["MASK"],
    "on": ["BOOLEAN", {}],
}
INFOS = {
    **info("Load", ("IMAGE", "MASK"), required={"image": [["a.png", "b.png"], {"image_upload": True}]}),
    **info("Work", ("LATENT",), required=WORK, optional=MORE, hidden={"prompt": "PROMPT"}),
    **info("Number", ("INT", "STRING")),
}
FLOW = {
    "3": {
        "class_type": "Work",
        "_meta": {"title": "Mine"},
        "inputs": {"image": ["1", 0], "seed": 5, "steps": ["2", 0], "mode": "good", "said": ["2", 1], "mask": ["1", 1]},
    },
    "1": {"class_type": "Load", "inputs": {"image": "b.png"}},
    "2": {"class_type": "Number", "inputs": {}},
}


def node(graph, number):
    return next(n for n in graph["nodes"] if n["id"] == number)


def test_widget_values_stand_where_the_page_reads_them():
    graph = litegraph.to_ui(FLOW, INFOS, "a note")
    places = "seed control_after_generate steps mode control_after_generate control_filter_list said strength on"
    assert " ".join(place for place, _ in litegraph.widgets(INFOS["Work"])) == places
    assert node(graph, 3)["widgets_values"] == [5, "fixed", 20, "good", "fixed", "", "", 0.5, False]
    assert node(graph, 1)["widgets_values"] == ["b.png", "image"]


def test_wired_widgets_become_inputs_and_every_link_is_told_at_both_ends():
    graph = litegraph.to_ui(FLOW, INFOS, "a note")
    inputs = {entry["name"]: entry for entry in node(graph, 3)["inputs"]}
    assert list(inputs) == ["image", "said", "mask", "steps"]
    assert inputs["steps"]["widget"] == {"name": "steps"} and "widget" not in inputs["image"]
    for number, source, output, target, slot, kind in graph["links"]:
        assert number in node(graph, source)["outputs"][output]["links"]
        entry = node(graph, target)["inputs"][slot]
        assert (entry["link"], entry["type"]) == (number, kind)
    assert len(graph["links"]) == 4
    assert node(graph, 3)["title"] == "Mine"


def test_the_page_queues_what_the_api_file_says():
    graph = json.loads(json.dumps(litegraph.to_ui(FLOW, INFOS, "a note")))
    assert litegraph.to_api(graph, INFOS) == litegraph.filled(FLOW, INFOS)
    broken = copy.deepcopy(graph)
    node(broken, 3)["widgets_values"].pop(1)
    with pytest.raises(ValueError, match="Work"):
        litegraph.to_api(broken, INFOS)


def test_a_widget_that_only_a_newer_engine_has_is_kept_for_both():
    """The older page reads past its place; the newer engine asks for it."""
    older = {"name": "UNETLoader", "input": {"required": {"unet_name": [["a", "b"]]}}, "output": ["MODEL"]}
    types = {"weight_dtype": [["default", "fp8_e4m3fn"]]}
    newer = {**older, "input": {"required": {**older["input"]["required"], **types}}}
    flow = {"1": {"class_type": "UNETLoader", "inputs": {"unet_name": "b", "weight_dtype": "default"}}}
    for info in (older, newer):
        graph = litegraph.to_ui(flow, {"UNETLoader": info}, "")
        assert node(graph, 1)["widgets_values"] == ["b", "default"]
        for other in (older, newer):
            assert litegraph.to_api(graph, {"UNETLoader": other}) == flow


def test_nodes_go_from_left_to_right_and_do_not_overlap():
    graph = litegraph.to_ui(FLOW, INFOS, "a note")
    places = {n["id"]: (n["pos"], n["size"]) for n in graph["nodes"]}
    for _, source, _, target, _, _ in graph["links"]:
        assert places[source][0][0] + places[source][1][0] < places[target][0][0]
    boxes = list(places.values())
    for i, ((x, y), (w, h)) in enumerate(boxes):
        for (u, v), (a, b) in boxes[i + 1 :]:
            assert x + w <= u or u + a <= x or y + h <= v or v + b <= y
    assert node(graph, 4)["type"] == "Note" and "a note" in node(graph, 4)["widgets_values"][0]


def test_room_is_left_for_what_a_run_adds():
    infos = info("Make", ("MODEL",)) | info("NullText_Sampler", ("LATENT",), required={"model": ["MODEL"]})
    below = {key: {"class_type": "NullText_Sampler", "inputs": {"model": ["1", 0]}} for key in "23"}
    flow = {"1": {"class_type": "Make", "inputs": {}}, **below}
    graph = litegraph.to_ui(flow, infos, "")
    above, below = node(graph, 2), node(graph, 3)
    assert above["pos"][0] == below["pos"][0]
    free = below["pos"][1] - above["pos"][1] - above["size"][1]
    assert free >= litegraph.REPORT + litegraph.PREVIEW + 30  # a title bar stands over `pos`


def test_the_template_browser_finds_each_workflow_once_and_can_open_it():
    """ComfyUI offers every workflows/*.json of a pack as a template, and looks into no folder below it."""
    listed = sorted(workflows.FOLDER.glob("*.json"))
    assert [path.stem for path in listed] == workflows.names()
    assert all("nodes" in json.loads(path.read_text(encoding="utf-8")) for path in listed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.update(x=f.pop("1")), "whole numbers"),
        (lambda f: f["1"].update(class_type="Gone"), "does not know Gone"),
        (lambda f: f["1"]["inputs"].update(colour=1), "no input named colour"),
    ],
)
def test_a_workflow_that_no_page_can_show_is_refused(change, words):
    flow = copy.deepcopy(FLOW)
    change(flow)
    with pytest.raises(ValueError, match=words):
        litegraph.to_ui(flow, INFOS, "")


def test_short_limits_steps_and_leaves_the_file_alone():
    flow = {"1": {"class_type": "A", "inputs": {"steps": 50, "inner_steps": 10, "cfg": 7.5, "text": "steps"}}}
    assert workflows.short(flow, 3)["1"]["inputs"] == {"steps": 3, "inner_steps": 2, "cfg": 7.5, "text": "steps"}
    assert flow["1"]["inputs"]["steps"] == 50


@pytest.mark.parametrize("name", workflows.names())
def test_a_workflows_note_says_what_it_does_and_which_widget_to_change(name):
    flow = workflows.load(name)
    said = workflows.note(name, flow).split("\n\n")
    assert len(said[0].split()) >= 15, "give a node of the file a `note` in its _meta"
    assert "ckpt_name (node" in said[1]


def test_the_note_of_a_workflow_on_a_network_alone_says_where_a_checkpoints_model_goes():
    flow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": "b"}},
    }
    assert "its MODEL where that of node 2 goes" in workflows.note("x", flow)
    assert "flow" not in workflows.note("x", {"1": flow["1"]})


def test_a_link_is_told_from_a_list():
    assert workflows.is_link(["1", 0], FLOW) and workflows.is_link([1, 0], FLOW)
    assert not workflows.is_link(["9", 0], FLOW) and not workflows.is_link([1, 2, 3], FLOW)
