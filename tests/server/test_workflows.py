"""Every shipped workflow, queued once with few steps; its page file queues the same; its files are all there."""

import json

import pytest
from nulltext.batch import engines
from nulltext.demo import weights
from nulltext.tests.chromium import CHROMIUM
from nulltext.tools import litegraph, notes, publish, workflows
from PIL import Image

each = pytest.mark.parametrize("name", workflows.names())


def test_there_are_workflows():
    assert workflows.names()


REAL = [name for name in workflows.names() if not workflows.runs_here(name)]


@each
def test_every_node_of_it_runs_and_it_shows_something(comfy, name):
    """On a server whose input folder is empty."""
    if CHROMIUM and comfy.engine == "embedded" and workflows.runs_here(name):
        pytest.skip("tests/browser runs it from the page, and looks at the same")
    flow = comfy.workflow(name, steps=3)
    result = comfy.run(flow if workflows.runs_here(name) else workflows.on_demo(flow)).check()
    assert result.images, "a workflow ends in a picture"
    idle = set(flow) - result.ran - set(result.cached)
    assert not idle, f"never executed: {[flow[key]['class_type'] for key in idle]}"


@pytest.mark.parametrize("name", REAL)
def test_of_a_workflow_for_a_real_checkpoint_only_the_checkpoint_is_missing(comfy, name):
    flow = workflows.load(name)
    assert {node["class_type"] for node in flow.values()} <= set(comfy.object_info)
    answer = comfy.client.post("/prompt", {"prompt": flow}).json()
    errors = [
        (node["class_type"], error["type"], error["extra_info"]["input_name"])
        for node in answer["node_errors"].values()
        for error in node["errors"]
    ]
    assert errors == [("CheckpointLoaderSimple", "value_not_in_list", "ckpt_name")], answer


def test_running_a_workflow_writes_nothing_into_the_input_folder(comfy):
    def there():
        return sorted(path for path in (comfy.tree / "input").rglob("*"))

    before = there()  # what other tests have uploaded
    comfy.run(comfy.workflow("direct_edit", steps=2)).check()
    assert there() == before


def test_two_workflows_wait_for_a_real_checkpoint():
    assert REAL == ["cartoon_photo_sd", "edit_photo_sd"]


@each
def test_the_page_file_queues_what_the_api_file_says(comfy, name):
    graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    infos, flow = comfy.object_info, workflows.load(name)
    assert litegraph.to_api(graph, infos) == litegraph.filled(flow, infos), "run `make publish`"
    if comfy.engine == "embedded":  # its widget order is what the files are made with
        assert graph == json.loads(publish.page_text(name, infos)), "run `make publish`"
    shown = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "Note"]
    assert shown == [notes.note(name, flow)], "run `make publish`"


@each
def test_links_join_sockets_of_one_type(comfy, name):
    graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, source, output, target, slot, _ in graph["links"]:
        given, wanted = nodes[source]["outputs"][output]["type"], nodes[target]["inputs"][slot]["type"]
        assert "*" in (given, wanted) or given in wanted.split(","), f"{source} gives {given}, {target} wants {wanted}"


@each
def test_it_opens_on_the_demo_checkpoint_and_shipped_pictures(name):
    flow = workflows.load(name)
    checkpoints = {node["inputs"]["ckpt_name"] for node in flow.values() if "ckpt_name" in node["inputs"]}
    assert (checkpoints == {workflows.DEMO_CHECKPOINT}) == workflows.runs_here(name)
    for key in workflows.of_class(flow, "UNETLoader"):
        assert (weights.FLOW.parent / flow[key]["inputs"]["unet_name"]).is_file()
    assert not workflows.of_class(flow, "LoadImage", "LoadImageMask"), "the user's input folder has no picture of ours"
    for key in workflows.of_class(flow, *workflows.PICTURES):
        name = flow[key]["inputs"]["image"]
        assert name.endswith(workflows.SAMPLE)
        assert (workflows.FOLDER / "inputs" / name.removesuffix(workflows.SAMPLE)).is_file()


@each
def test_it_has_a_thumbnail(name):
    with Image.open(workflows.FOLDER / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and picture.size == (256, 256)
        assert len(picture.convert("L").getcolors(70000)) > 16, "the thumbnail is blank"


def test_the_template_browser_lists_every_workflow_with_its_thumbnail(comfy):
    answer = comfy.client.get("/workflow_templates")
    if answer.status_code == 404:
        assert comfy.engine == "embedded"
        pytest.skip("the engine of 2024 has no template browser")
    assert set(workflows.names()) <= set(answer.json()[engines.PACK])
    for name in workflows.names():
        place = f"/api/workflow_templates/{engines.PACK}/{name}"
        assert comfy.client.get(place + ".json").json()["nodes"], name
        assert comfy.client.get(place + ".jpg").content[:2] == b"\xff\xd8", name
