"""The demo family through the core nodes of a real server: LoRA, ControlNet, unknown words, and flow from sigma 1."""

import pytest
from nulltext.tests.server.graph import far
from nulltext.tests.stand_ins import controlnet, lora, random_flow_checkpoint
from safetensors.torch import save_file


@pytest.fixture
def draw(comfy):
    """draw(text) -> LATENT samples by core nodes; `change(graph)` gives other inputs for KSampler."""

    def draw(change=lambda graph: {}, text="a photo of a (red:1.3) circle"):
        graph = comfy.graph()
        graph.wire(positive=graph.prompt(text), negative=graph.prompt(), latent_image=graph.empty())
        saved = graph.save(graph.draw(**{"steps": 2, "cfg": 3.0, **change(graph)}))
        return comfy.latent(comfy.run(graph).check(), saved)

    return draw


def test_lora_and_controlnet_apply(comfy, draw, temporary_file):
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    save_file(lora(name, 128, 64), temporary_file("models/loras/family.safetensors"))
    save_file(controlnet(comfy.unet, zero=True), temporary_file("models/controlnet/family.safetensors"))

    def with_lora(graph):
        return {"model": graph.add("LoraLoader", lora_name="family.safetensors")}

    def with_control(graph):
        net = graph.add("ControlNetLoader", control_net_name="family.safetensors")
        image = graph.add("EmptyImage", width=128, height=128, color=0xFF8000)
        more = {"conditioning": graph.wires["positive"], "strength": 1.0}
        return {"positive": graph.add("ControlNetApply", control_net=net, image=image, **more)}

    plain = draw()
    assert far(draw(with_lora), plain) > 1e-3
    assert far(draw(with_control), plain) <= 1e-3 * plain.abs().max()  # zero convolutions add nothing


def test_unknown_words_are_named_in_the_log(comfy, draw):
    draw(text="a red zeppelin")
    draw(text="a blue zeppelin")
    lines = [line for line in comfy.server.log.read_text().splitlines() if "vocabulary" in line and "zeppelin" in line]
    assert len(lines) == 1


def test_flow_models_run_from_sigma_one(draw, temporary_file):
    """The tiny SD3 file (text from the demo checkpoint), and the demo family under the core node ModelSamplingSD3."""
    random_flow_checkpoint(temporary_file("models/checkpoints/flow.safetensors"))

    def own(graph):
        loaded = graph.add("CheckpointLoaderSimple", ckpt_name="flow.safetensors")
        return {"model": loaded, "latent_image": graph.empty(kind="EmptySD3LatentImage")}

    out = draw(own)
    assert out.shape == (1, 16, 16, 16) and out.std() > 0.1
    patched = draw(lambda graph: {"model": graph.add("ModelSamplingSD3", shift=3.0)})
    assert patched.shape == (1, 4, 16, 16)
