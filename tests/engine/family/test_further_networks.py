"""The demo's further UNets, files of a network alone, through core's own loader: the flow twin and the one with a
bottleneck. What they compute is what the trainer's own networks compute."""

import importlib

import pytest
import torch
from nulltext.demo import nets, weights
from nulltext.engine.comfy import process_of, sigma_range
from nulltext.samplers.core import FLOW, VE
from nulltext.tests.stand_ins import random_state


def node(name):
    """A class of core's nodes_model_advanced, where either engine keeps it."""
    for place in ("comfy_extras.nodes.nodes_model_advanced", "comfy_extras.nodes_model_advanced"):
        try:
            return getattr(importlib.import_module(place), name)
        except ModuleNotFoundError:
            continue
    return pytest.skip(f"this engine has no {name}")


@pytest.fixture(scope="module")
def load(core, folder, engine):
    """load(net, name, prediction) -> MODEL of a written file, by Load Diffusion Model."""
    engine.get("folder_paths").add_model_folder_path("unet", str(folder))
    loader = core.nodes["UNETLoader"]

    def loaded(net, name, prediction):
        factors = torch.arange(12.0).reshape(4, 3)
        weights.write_network(folder / name, net.state_dict(), prediction=prediction, latent_rgb=factors)
        more = {"weight_dtype": "default"} if "weight_dtype" in loader.INPUT_TYPES()["required"] else {}
        with torch.inference_mode():
            return loader().load_unet(unet_name=name, **more)[0]

    return loaded


def network(seed, **size):
    """A UNet with random weights, as the file will hold them: rounded to fp16."""
    net, generator = nets.UNet(**size), torch.Generator().manual_seed(seed)
    net.load_state_dict({k: v.half().float() for k, v in random_state(net, generator).items()})
    return net.eval().requires_grad_(False)


def given(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 128, generator=generator)


def test_the_flow_twin_is_a_flow_model_behind_cores_sampling_node(core, load):
    net = network(3)
    bare = load(net, "flow_twin.safetensors", None)
    with torch.inference_mode():
        model = node("ModelSamplingSD3")().patch(bare, 1.0)[0]
    assert process_of(model) is FLOW and process_of(bare) is VE
    assert sigma_range(model) == pytest.approx((0.001, 1.0))
    x, context = given(4)
    for s in (1.0, 0.6, 0.05):
        with torch.inference_mode():
            theirs = model.get_model_object("model_sampling").calculate_denoised(
                torch.tensor([s]), model.model.diffusion_model(x, torch.tensor([1000 * s] * 2), context=context), x
            )
        core.close(theirs, x - s * net(x, torch.tensor([1000 * s] * 2), context))
    assert float(model.get_model_object("model_sampling").timestep(torch.tensor(0.6))) == pytest.approx(600)


def test_the_second_net_is_detected_and_computes_what_the_trainer_computes(core, load):
    net = network(5, **nets.BOTTLENECK)
    model = load(net, "bottleneck.safetensors", "v")
    assert type(model.model.model_config).__name__ == "DemoBottleneck" and process_of(model) is VE
    x, context = given(6)
    sigma = nets.sigmas()[[500]]
    a = (1 + sigma**2).rsqrt()
    with torch.inference_mode():
        theirs = model.model.apply_model(9 * x, sigma.expand(2), c_crossattn=context)
    core.close(theirs, a * a * 9 * x - sigma * a * net(a * 9 * x, torch.tensor([500.0, 500.0]), context))
    assert model.get_model_object("latent_format").latent_rgb_factors == torch.arange(12.0).reshape(4, 3).tolist()


def test_a_closed_skip_says_nothing_and_stays_closed_in_training():
    net = nets.UNet(**nets.BOTTLENECK)
    net.load_state_dict(random_state(net, torch.Generator().manual_seed(7)))
    net.close_skips(but=nets.OPEN_SKIPS)
    x, context = given(8)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.01)
    net(x, torch.tensor([5.0, 800.0]), context).square().mean().backward()
    optimiser.step()
    for i, (block, width) in enumerate(zip(net.output_blocks, net.trunk_widths, strict=True)):
        for weight in (block[0].in_layers[-1].weight, block[0].skip_connection.weight):
            assert bool((weight[:, width:] == 0).all()) is (i not in nets.OPEN_SKIPS)
            assert bool((weight[:, :width] != 0).any())
