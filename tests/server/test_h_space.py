"""h-space and DiffusionCLIP through a real server: a saved direction edits, degree 0 does nothing, refusals."""

import pytest
import torch
from nulltext.tests.server.graph import Node, far, pixels

SMALL = {
    "asyrp": {"6": {"batch_size": 2}, "9": {"samples": 2}},
    "diffusion_clip": {"5": {"batch_size": 1}, "7": {"passes": 1, "train_steps": 2, "file": "server/striped"}},
}
WITHOUT = {"asyrp": ("19", "20", "21"), "diffusion_clip": ("13", "14", "15", "16", "17", "18", "19", "20")}


def flow_of(comfy, name: str, changed: dict[str, dict]) -> dict:
    """The workflow made small, without its second half; changed: inputs by node."""
    flow = comfy.workflow(name, steps=2)
    for key, inputs in [*SMALL[name].items(), *changed.items()]:
        flow[key]["inputs"].update(inputs)
    return {key: node for key, node in flow.items() if key not in WITHOUT[name]}


def edited(comfy, **own) -> torch.Tensor:
    return pixels(comfy.run(flow_of(comfy, "asyrp", {"15": own})).check(), Node("18"))


def test_a_direction_goes_through_its_file_and_at_strength_0_nothing_is_edited(comfy):
    still = edited(comfy, strength=0.0)
    assert far(edited(comfy, strength=0.0, t_edit=0.9), still) == 0
    assert far(edited(comfy, strength=3.0, t_edit=0.0), still) > 8
    assert list((comfy.tree / "output").rglob("pink_to_blue*"))


def test_diffusion_clip_writes_a_lora_that_core_loads_and_degree_0_is_the_models_own_walk(comfy):
    flow = flow_of(comfy, "diffusion_clip", {})
    tuned = pixels(comfy.run(flow).check(), Node("12"))
    assert (comfy.tree / "models" / "loras" / "server" / "striped.safetensors").is_file()
    flow["10"]["inputs"]["degree"] = 0.0
    own = pixels(comfy.run(flow).check(), Node("12"))
    assert far(tuned, own) > 0
    load = {"model": ["1", 0], "lora_name": "server/striped.safetensors", "strength_model": 1.0}
    flow["20"] = {"class_type": "LoraLoaderModelOnly", "inputs": load}
    flow["6"]["inputs"].update(model=["20", 0], seed=8)
    flow["11"]["inputs"]["samples"] = ["6", 0]
    drawn = {key: node for key, node in flow.items() if key not in ("2", "7", "8", "9", "10")}
    assert comfy.run(drawn).check().images


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("asyrp", {"9": {"site": 20}}, "sites go from 0"),
        ("asyrp", {"10": {"name": "../away"}}, "'..'"),
        ("asyrp", {"15": {"levels": "measured"}}, "wire vae"),
        ("diffusion_clip", {"7": {"file": "../away"}}, "'..'"),
        ("diffusion_clip", {"7": {"source": "striped background"}}, "the same to the image-text model"),
    ],
)
def test_refusals(comfy, name, changed, words):
    comfy.refuses(flow_of(comfy, name, changed), words)
