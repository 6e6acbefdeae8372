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


#: texts that are no prompts: names, numbers in a row, words that the shipped workflow has for any picture
NO_PROMPT = {"file_name", "folder", "layers", "more_etas", "more_levels", "name", "strengths", "strip", "templates"}
NO_PROMPT |= {"blend_layers", "blend_words", "word"}


@each
def test_every_prompt_of_an_edit_is_named(name):
    """A source prompt changed alone would leave the edit speaking of the shipped picture."""
    flow = workflows.load(name)
    if not workflows.of_class(flow, *workflows.PICTURES, "NullText_TuningPictures"):
        return
    advice = noted(name).partition("\n\n")[2]
    rare = {node["inputs"].get("word") for node in flow.values()}
    for key, node in flow.items():
        known = NODE_CLASS_MAPPINGS.get(node["class_type"])
        texts = {i.name for i in known.INPUTS if i.kind == "STRING"} - NO_PROMPT if known else {"text"}
        for widget in texts & node["inputs"].keys():
            text, title = node["inputs"][widget], notes.on_screen(flow, key)
            if isinstance(text, str) and text.strip() and text not in rare:
                known = title if widget in ("text", "class_prompt") else widget
                assert known in advice, f"{title}: {widget}"


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
    if not workflows.runs_here(name):
        return
    lines = [line for line in said.splitlines() if "set what real models take" in line]
    for key, node in flow.items():
        for widget, default in notes.defaults(node).items():
            text = notes._shown(default)
            assert any(notes.on_screen(flow, key) in line and f"{widget} {text}" in line for line in lines)
    for key in workflows.of_class(flow, *notes.TRAINS):
        (line,) = [line for line in said.splitlines() if line.startswith(f"In {notes.on_screen(flow, key)} set")]
        for box in NODE_CLASS_MAPPINGS[flow[key]["class_type"]].INPUTS:
            if box.name in ("learning_rate", "lr", "steps", "batch", "rank", "alpha"):
                own, default = flow[key]["inputs"][box.name], box.options["default"]
                assert (own == default) or f"{box.name} {default:g}" in line
    trains = [key for key, node in flow.items() if "training_seed" in node["inputs"]]
    assert {flow[key]["class_type"] for key in trains} <= {
        *notes.TRAINS,
        "NullText_PriorPictures",
        "NullText_MakeControlNet",
        "NullText_TrainLatentClassifier",  # whose defaults are this model's too
    }


def test_what_is_no_training_is_given_back_too():
    assert "In “Null-Text Inverter” set what real models take: cfg 7.5." in noted("null_text")
    assert "In “Direct Edit: FlowEdit” set what real models take: strength 0.66, source_cfg 3.5" in noted("direct_edit")
    assert "InfEdit” set" not in noted("direct_edit")  # whose few steps are its paper's
    assert "steps 50, start 0.08" in noted("masactrl").replace("cfg 7.5, ", "")
    assert "match off" in noted("disturbance")
    assert "overwrite" not in noted("inversion_files")  # a matter of taste: it is run again and again
    assert "t0" not in noted("sdedit").partition("own model")[2]  # a strip over it
    assert "(0: as the preset)" not in noted("clip_guidance")


def test_the_caption_of_a_wired_picture_is_named():
    assert "what your picture shows into captions of “Tuning Pictures”" in noted("train_controlnet")
    assert "captions" not in noted("unitune")  # the rare word alone, whatever the picture shows


def test_a_flow_edit_takes_the_papers_numbers():
    """The node's own default of target_cfg is for any model; SD3, the example in the note, has the paper's."""
    assert "set what real models take: source_cfg 3.5, target_cfg 13.5." in noted("direct_edit_flow")
    assert "target_cfg 7.5" in noted("direct_edit")


def test_what_is_set_for_any_model_is_in_a_workflow():
    """A name that no workflow has would silence nothing, or the wrong thing once it has."""
    flows = [workflows.load(name).values() for name in workflows.names()]
    for where, widgets in notes.MEANT.items():
        nodes = [n for flow in flows for n in flow if where in (n["class_type"], n.get("_meta", {}).get("title"))]
        for widget in widgets:
            (default,) = {
                box.v1()[1].get("default")
                for node in nodes
                for box in NODE_CLASS_MAPPINGS[node["class_type"]].INPUTS
                if box.name == widget
            }
            assert any(node["inputs"].get(widget, default) != default for node in nodes), f"{where}: {widget}"


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


def test_a_flow_checkpoint_keeps_its_own_shift():
    """The twin's ModelSamplingSD3 with shift 1 is wrong for SD3 (3), and its times are noise to Flux."""
    found = [name for name in workflows.names() if any("shift" in n["inputs"] for n in workflows.load(name).values())]
    assert len(found) == 8
    for name in found:
        said = noted(name)
        assert "its MODEL where that of “Sampled as a flow” goes; leave that node and “Flow twin” out" in said


def test_the_bottleneck_asks_for_a_unet():
    """h-space needs one: a flow transformer, which other networks alone are replaced by, would be refused."""
    for name in ("asyrp", "asyrp_train"):
        assert "SDXL checkpoint" in noted(name) and "SD3 and Flux have no bottleneck" in noted(name)
