"""The page's graph of a workflow: widget places, links, and the way back to what is queued."""

import copy
import json

import pytest
from nulltext.tools import layout, litegraph, sizes, workflows


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


def boxes(graph, infos):
    """{node id: (left, top, right, bottom)} with the title bar; a folded node is its title alone."""
    found = {}
    for each in graph["nodes"]:
        (x, y), (width, height) = each["pos"], each["size"]
        folded = each["flags"].get("collapsed")
        found[each["id"]] = (x, y - layout.TITLE, x + (sizes.PILL if folded else width), y + (0 if folded else height))
    return found


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


CORE = {
    **info("CheckpointLoaderSimple", ("MODEL", "CLIP", "VAE"), required={"ckpt_name": [["a"]]}),
    **info("NullText_LoadPicture", ("IMAGE", "MASK"), required={"image": [["a.png [sample]"]]}),
    **info("VAEEncode", ("LATENT",), required={"pixels": ["IMAGE"], "vae": ["VAE"]}),
    **info("VAEDecode", ("IMAGE",), required={"samples": ["LATENT"], "vae": ["VAE"]}),
    **info("CLIPTextEncode", ("CONDITIONING",), required={"clip": ["CLIP"], "text": ["STRING", {"multiline": True}]}),
    **info("KSamplerSelect", ("SAMPLER",), required={"sampler_name": [["euler"]]}),
    **info(
        "NullText_Sampler", ("LATENT",), required={"model": ["MODEL"], "latent": ["LATENT"], "text": ["CONDITIONING"]}
    ),
    **info("SaveImage", (), required={"images": ["IMAGE"]}),
}
EDIT = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
    "2": {"class_type": "NullText_LoadPicture", "inputs": {"image": "a.png [sample]"}},
    "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a dog"}},
    "5": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "6": {"class_type": "NullText_Sampler", "inputs": {"model": ["1", 0], "latent": ["3", 0], "text": ["4", 0]}},
    "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0]}},
}


def many(count):
    """EDIT with more samplers in a row."""
    flow = dict(EDIT)
    for i in range(9, 9 + count):
        before = "6" if i == 9 else str(i - 1)
        flow[str(i)] = {"class_type": "NullText_Sampler", "inputs": {**EDIT["6"]["inputs"], "latent": [before, 0]}}
    return flow


@pytest.mark.parametrize("flow", [EDIT, many(6)], ids=["one row", "two rows"])
def test_nodes_stand_in_numbered_groups(flow):
    graph = litegraph.to_ui(flow, CORE, "a note")
    assert [group["title"] for group in graph["groups"]] == ["1 your picture", "2 words", "3 edit", "4 result"]
    assert len({group["color"] for group in graph["groups"]}) == 4
    places, member = boxes(graph, CORE), layout.grouped(flow, CORE)
    assert member.items() >= {"1": 0, "2": 0, "3": 0, "4": 1, "5": 2, "6": 2, "7": 3, "8": 3}.items()
    for key, index in member.items():
        x, y, width, height = graph["groups"][index]["bounding"]
        left, top, right, bottom = places[int(key)]
        assert x < left and y < top and right <= x + width and bottom <= y + height, f"node {key} leaves its group"
    (note,) = [each for each in graph["nodes"] if each["type"] == "Note"]
    assert "a note" in note["widgets_values"][0]
    assert not any(overlap(places[note["id"]], box) for key, box in places.items() if key != note["id"])


def test_a_workflow_stands_in_one_row_where_that_ends_higher():
    """The result is then seen without scrolling."""
    for flow, rows in ((EDIT, 1), (many(6), 2)):
        found = [group["bounding"] for group in litegraph.to_ui(flow, CORE, "a note")["groups"]]
        assert len({top + height for _, top, _, height in found}) == rows
        lefts = [left for left, *_ in found]
        assert (lefts == sorted(lefts)) == (rows == 1)
    graph = json.loads((workflows.FOLDER / "edit_photo.json").read_text(encoding="utf-8"))
    (edit,) = [each for each in graph["nodes"] if each["type"] == "NullText_EditPhoto"]
    end = edit["pos"][1] + edit["size"][1] + edit["size"][0]  # the square picture under its widgets
    assert (end + graph["extra"]["ds"]["offset"][1]) * litegraph.ZOOM <= 950 - 80, "seen on a page 950 pixels high"


def test_without_a_picture_the_first_group_is_the_model():
    flow = {key: value for key, value in EDIT.items() if key in "14"}
    assert [group["title"] for group in litegraph.to_ui(flow, CORE, "")["groups"]] == ["1 model", "2 words"]


def test_the_page_opens_at_a_zoom_at_which_text_is_drawn():
    zoom = litegraph.to_ui(EDIT, CORE, "")["extra"]["ds"]["scale"]
    assert zoom * layout.WIDTH <= 1360 and zoom > 0.6  # the narrowest common screen; text is left out below 0.6


@pytest.mark.parametrize("name", workflows.names())
def test_a_page_file_is_at_most_1600_pixels_wide_and_nothing_overlaps(name):
    graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    places = boxes(graph, None)
    ends = [group["bounding"][0] + group["bounding"][2] for group in graph["groups"]]
    assert max(ends) <= layout.WIDTH and max(box[2] for box in places.values()) <= layout.WIDTH
    found = list(places.items())
    for i, (key, box) in enumerate(found):
        for other, under in found[i + 1 :]:
            assert not overlap(box, under), f"{key} and {other}"
    (note,) = [places[each["id"]] for each in graph["nodes"] if each["type"] == "Note"]
    for x, y, width, height in (group["bounding"] for group in graph["groups"]):
        assert not overlap(note, (x, y, x + width, y + height)), "the note hides a group's title"
    assert [group["title"][0] for group in graph["groups"]] == [str(i + 1) for i in range(len(graph["groups"]))]


@pytest.mark.parametrize("name", [name for name in workflows.names() if not workflows.runs_here(name)])
def test_a_workflow_for_a_real_checkpoint_says_where_to_fetch_it(name):
    graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    loader = next(each for each in graph["nodes"] if each["type"] == "CheckpointLoaderSimple")
    model = loader["properties"]["models"][0]
    assert model["name"] == loader["widgets_values"][0] and model["url"].startswith("https://")


def test_room_is_left_for_what_a_run_adds():
    flow = {**EDIT, "9": {"class_type": "NullText_Sampler", "inputs": {**EDIT["6"]["inputs"]}}}
    flow |= {str(i): {**flow["9"], "inputs": {**flow["9"]["inputs"], "latent": [str(i - 1), 0]}} for i in range(10, 15)}
    graph = litegraph.to_ui(flow, CORE, "")
    places, found = boxes(graph, CORE), 0
    for i in range(9, 15):
        below = [box[1] for box in places.values() if box[0] == places[i][0] and box[1] > places[i][1]]
        if below:
            found += 1
            assert min(below) - places[i][3] >= sizes.REPORT + sizes.PREVIEW
    assert found, "no sampler stands above another node"


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


def test_a_link_is_told_from_a_list():
    assert workflows.is_link(["1", 0], FLOW) and workflows.is_link([1, 0], FLOW)
    assert not workflows.is_link(["9", 0], FLOW) and not workflows.is_link([1, 2, 3], FLOW)


def test_a_workflow_without_a_task_is_named(monkeypatch):
    monkeypatch.setattr(workflows, "headed", lambda workflow: {"note": "x"})
    with pytest.raises(ValueError, match="asyrp: give the node with its note a task"):
        workflows.by_task()
