"""The note of a workflow: it names what must be changed for one's own model and picture."""

import re

import pytest
from nulltext.nodes import NODE_CLASS_MAPPINGS
from nulltext.tools import notes, workflows

each = pytest.mark.parametrize("name", workflows.names())


def noted(name: str) -> str:
    return notes.note(name, workflows.load(name))


@each
def test_it_says_what_the_workflow_does_and_which_widgets_to_change(name):
    flow = workflows.load(name)
    head, advice = noted(name).split("\n\n", 1)
    assert len(head.split()) >= 15, "give a node of the file a `note` in its _meta"
    assert head.splitlines()[0] == workflows.title(name)
    assert re.search(r"“.+”", advice), "it names nodes by the titles on screen"
    assert "NullText_" not in advice and not re.search(r"\bnode \d", noted(name)), "class names are not on screen"
    assert workflows.headed(flow)["task"] in workflows.TASKS


@each
def test_every_prompt_of_an_edit_is_named(name):
    """A source prompt changed alone would leave the edit speaking of the shipped picture."""
    flow = workflows.load(name)
    titles = {node.get("_meta", {}).get("title") for node in flow.values()} & {"Source prompt", "Edited prompt"}
    if workflows.of_class(flow, *workflows.PICTURES):
        assert all(f"“{title}”" in noted(name) for title in titles)
        for widget, said in notes.WIDGETS.items():
            there = any(widget in node["inputs"] for node in flow.values())
            assert (said.partition(" of {}")[0] in noted(name).replace("Write", "write")) == there


@each
def test_every_size_of_the_demo_is_named(name):
    flow, said = workflows.load(name), noted(name)
    small = [key for key, node in flow.items() if {node["inputs"].get(i) for i in ("width", "size")} & {128}]
    for key in small:
        assert notes.on_screen(flow, key) in said.partition("Set the size")[2].partition("\n")[0]


@each
def test_it_gives_back_what_was_set_for_the_demo(name):
    """Whoever follows the note trains at the node's own defaults, the published ones."""
    flow, said = workflows.load(name), noted(name)
    for key in workflows.of_class(flow, *notes.TRAINS):
        (line,) = [line for line in said.splitlines() if line.startswith(f"In {notes.on_screen(flow, key)} set")]
        for box in NODE_CLASS_MAPPINGS[flow[key]["class_type"]].INPUTS:
            if box.name in ("learning_rate", "lr", "steps"):
                own, default = flow[key]["inputs"][box.name], box.options["default"]
                assert (own == default) or f"{box.name} {default:g}" in line
    trains = [key for key, node in flow.items() if "training_seed" in node["inputs"]]
    assert {flow[key]["class_type"] for key in trains} <= {
        *notes.TRAINS,
        "NullText_PriorPictures",
        "NullText_MakeControlNet",
        "NullText_TrainLatentClassifier",  # whose defaults are this model's too
    }


def test_what_belongs_to_the_demo_alone_is_named():
    assert "train one for your model first" in noted("classifier_guidance")
    assert "made for yours" in noted("controlnet")
    assert "the same CLIP" in noted("clip_guidance") and "gradient_mode" in noted("clip_guidance")
    assert "gradient_mode" not in noted("start_noise")  # which takes the decoder already
    assert "folder" in noted("dreambooth") and "folder" not in noted("unitune")  # whose picture is wired


def test_a_picture_whose_mask_is_used_says_how_to_make_one():
    for name in workflows.names():
        flow = workflows.load(name)
        wired = [value for node in flow.values() for value in node["inputs"].values()]
        used = [key for key in workflows.of_class(flow, *workflows.PICTURES) if [key, 1] in wired]
        assert bool(used) == ("transparent" in noted(name)), name


def test_a_network_alone_says_where_a_checkpoints_model_goes():
    flow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": "b"}},
    }
    assert "its MODEL where that of “Load Diffusion Model” goes" in notes.note("x", flow)
    flow["2"]["_meta"] = {"title": "Flow twin"}
    assert "that of “Flow twin” goes" in notes.note("x", flow)
    assert "flow" not in notes.note("x", {"1": flow["1"]})


def test_the_bottleneck_asks_for_a_unet():
    """h-space needs one: a flow transformer, which other networks alone are replaced by, would be refused."""
    for name in ("asyrp", "asyrp_train"):
        assert "SDXL checkpoint" in noted(name) and "SD3 and Flux have no bottleneck" in noted(name)
