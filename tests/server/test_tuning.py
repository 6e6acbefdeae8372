"""Training through a real server: a file that core loads, nothing trained twice, refusals in one sentence."""

import pytest

OWN = 77  # no other test trains with this seed, so that nothing is found finished


def report(result, words):
    return next(text for text in result.texts if words in text)


def test_a_trained_lora_loads_through_core_and_the_same_graph_trains_nothing(comfy):
    flow = comfy.workflow("dreambooth", steps=3, seed=OWN, training_seed=OWN)
    flow["4"]["inputs"]["file_name"] = "server/dream"
    first = comfy.run(flow).check()
    assert "Trained 3 steps" in report(first, "Saved as dream.safetensors")
    assert (comfy.tree / "models" / "loras" / "server" / "dream.safetensors").is_file()
    flow["4"]["inputs"]["sample_every"] = 7  # enters no number of the training
    again = comfy.run(flow).check()
    assert "nothing was trained" in report(again, "Saved as dream.safetensors")
    # core's loader draws what the training's own MODEL draws
    load = {"model": ["1", 0], "clip": ["1", 1], "lora_name": "server/dream.safetensors"}
    flow["20"] = {"class_type": "LoraLoader", "inputs": {**load, "strength_model": 1.0, "strength_clip": 1.0}}
    flow["8"]["inputs"]["model"] = ["20", 0]
    assert comfy.run(flow).check().images


def test_a_prompt_reads_the_learnt_word(comfy):
    flow = comfy.workflow("textual_inversion", steps=3)
    flow["3"]["inputs"]["file_name"] = "server_word"
    assert "embedding:server_word" in report(comfy.run(flow).check(), "Saved as server_word.safetensors")
    flow["20"] = {
        "class_type": "CLIPTextEncode",
        "inputs": {"clip": ["1", 1], "text": "a embedding:server_word circle"},
    }
    flow["6"]["inputs"]["positive"] = ["20", 0]
    assert comfy.run(flow).check().images


def test_imagic_gives_a_strip(comfy):
    flow = comfy.workflow("imagic", steps=3, seed=OWN, training_seed=OWN)
    result = comfy.run(flow).check()
    assert len(result.outputs["14"]["images"]) == 4
    assert report(result, "Text:").count("Trained 2 steps") == 2


def test_unitune_saves_and_loads(comfy):
    result = comfy.run(comfy.workflow("unitune", steps=3)).check()
    assert "rank 8" in report(result, "Loaded") and result.images


@pytest.mark.parametrize(
    ("name", "own", "words"),
    [
        ("dreambooth", {"word": "zwx"}, "lacks the word"),
        ("dreambooth", {"file_name": "../away"}, "'..'"),
        ("dreambooth", {"rank": 200}, "Rank 200"),
        ("dreambooth", {"folder": "no such folder"}, "no folder"),
        ("textual_inversion", {"start_word": ""}, "start word is empty"),
        ("imagic", {"lora_to": 1.0}, "lora_from above"),
        ("train_controlnet", {"file_name": "../away"}, "'..'"),
    ],
)
def test_refusals(comfy, name, own, words):
    flow = comfy.workflow(name, steps=3, **own)
    if name == "imagic":
        flow["6"]["inputs"].update(embedding_steps=1, model_steps=1)
    comfy.refuses(flow, words)


def test_a_trained_control_net_loads_through_core_and_leads(comfy):
    flow = comfy.workflow("train_controlnet", steps=3, seed=OWN, training_seed=OWN)
    flow["6"]["inputs"]["file_name"] = "server/edges"
    result = comfy.run(flow).check()
    assert "Trained 3 steps" in report(result, "Saved as edges.safetensors")
    assert (comfy.tree / "models" / "controlnet" / "server" / "edges.safetensors").is_file()
    flow["20"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "server/edges.safetensors"}}
    flow["9"]["inputs"]["control_net"] = ["20", 0]
    assert comfy.run(flow).check().images


def test_the_shipped_control_net_draws_after_a_hand_painted_mask(comfy):
    assert len(comfy.run(comfy.workflow("controlnet", steps=3)).check().images) >= 4
