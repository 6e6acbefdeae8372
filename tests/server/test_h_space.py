"""h-space and DiffusionCLIP through a real server: a saved direction edits, degree 0 does nothing, refusals."""

import pytest
import torch
from nulltext.tests.server.graph import Node, far, pixels


def edited(comfy, **own) -> torch.Tensor:
    flow = comfy.workflow("asyrp", steps=3, batch_size=2, samples=1, **own)
    for key in ("19", "20", "21"):
        flow.pop(key)
    return pixels(comfy.run(flow).check(), Node("18"))


def test_a_direction_goes_through_its_file_and_at_strength_0_nothing_is_edited(comfy):
    still = edited(comfy, strength=0.0)
    assert far(edited(comfy, strength=0.0, t_edit=0.9), still) == 0
    assert far(edited(comfy, strength=3.0, t_edit=0.0), still) > 8
    assert list((comfy.tree / "output").rglob("pink_to_blue*"))


def test_diffusion_clip_writes_a_lora_that_core_loads_and_degree_0_is_the_models_own_walk(comfy):
    flow = comfy.workflow("diffusion_clip", steps=2, batch_size=1, passes=1, train_steps=2, file="server/striped")
    for key in ("13", "14", "15", "16", "17", "18", "19", "20"):
        flow.pop(key)
    tuned = pixels(comfy.run(flow).check(), Node("12"))
    assert (comfy.tree / "models" / "loras" / "server" / "striped.safetensors").is_file()
    flow["10"]["inputs"]["degree"] = 0.0
    own = pixels(comfy.run(flow).check(), Node("12"))
    assert far(tuned, own) > 0
    load = {"model": ["1", 0], "lora_name": "server/striped.safetensors", "strength_model": 1.0}
    flow["20"] = {"class_type": "LoraLoaderModelOnly", "inputs": load}
    flow["6"]["inputs"].update(model=["20", 0], seed=8)
    flow["11"]["inputs"]["samples"] = ["6", 0]
    assert comfy.run({k: v for k, v in flow.items() if k not in ("7", "8", "9", "10")}).check().images


@pytest.mark.parametrize(
    ("name", "own", "words"),
    [
        ("asyrp", {"site": 20}, "sites go from 0"),
        ("asyrp", {"name": "../away"}, "'..'"),
        ("diffusion_clip", {"file": "../away"}, "'..'"),
        ("diffusion_clip", {"source": "striped background"}, "same"),
    ],
)
def test_refusals(comfy, name, own, words):
    comfy.refuses(comfy.workflow(name, steps=2, batch_size=1, samples=1, **own), words)
