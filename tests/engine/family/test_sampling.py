"""LoRA, ControlNet, KSampler and flow models, through the core nodes."""

import importlib
import logging

import pytest
import torch
from nulltext.demo import captions, nets, text_encoder
from nulltext.samplers.core import FLOW
from safetensors.torch import save_file

TEXT = "a photo of a small red circle on the left , striped blue background"


def test_lora(core, demo, folder, trainer_nets):
    generator = torch.Generator().manual_seed(5)
    lora, deltas = {}, {}
    for name, part, key in (
        (
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k",
            "unet",
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v",
            "unet",
            "middle_block.1.transformer_blocks.0.attn1.to_v.weight",
        ),
        ("lora_te_text_model_encoder_layers_1_mlp_fc1", "text", "encoder.layers.1.mlp.fc1.weight"),
    ):
        weight = getattr(trainer_nets, part).state_dict()[key]
        down = torch.randn(4, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], 4, generator=generator) * 0.05
        lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
        deltas[part, key] = up @ down * (2.0 / 4)
    save_file(lora, folder / "lora.safetensors")

    fresh = core.load("demo.safetensors")
    with torch.inference_mode():
        model, clip = core.nodes["LoraLoader"]().load_lora(fresh.model, fresh.clip, "lora.safetensors", 0.7, 0.4)
    patched = {"unet": nets.UNet(), "text": text_encoder.TextEncoder()}
    for part, net in patched.items():
        strength = 0.7 if part == "unet" else 0.4
        net.load_state_dict(
            {
                k: v + strength * deltas[part, k] if (part, k) in deltas else v
                for k, v in getattr(trainer_nets, part).state_dict().items()
            }
        )
        net.requires_grad_(False)
    cond = core.encode(clip, TEXT)[0][0]
    # fp16 storage of the patched text weights (both engines keep the text encoder so) rounds them again
    rows = core.rows_of(*captions.tokens_of(TEXT))
    core.close(cond, patched["text"](rows), 3e-3)
    assert (patched["text"](rows) - trainer_nets.text(rows)).abs().max() > 0.05

    x, t = torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500.0])
    with torch.inference_mode():
        import comfy.model_management

        comfy.model_management.load_models_gpu([model])
        out = model.model.diffusion_model(x, t, context=cond)
        model.unpatch_model()
        restored = model.model.diffusion_model(x, t, context=cond)
    core.close(out, patched["unet"](x, t, cond))
    core.close(restored, trainer_nets.unet(x, t, cond))
    assert (out - restored).abs().max() > 0.05


def test_controlnet(core, demo, folder, trainer_nets, controlnet, caplog):
    positive, negative = core.encode(demo.clip, TEXT), core.encode(demo.clip, "")
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(4))
    out = {"none": core.sample(demo.model, positive, negative)}
    for name, zero in (("zero", True), ("open", False)):
        save_file(controlnet(trainer_nets.unet, zero), folder / f"control_{name}.safetensors")
        with torch.inference_mode(), caplog.at_level(logging.WARNING):
            net = core.nodes["ControlNetLoader"]().load_controlnet(f"control_{name}.safetensors")[0]
            conditioned = core.nodes["ControlNetApply"]().apply_controlnet(positive, net, image, 1.0)[0]
        assert "missing controlnet keys" not in caplog.text
        assert net.control_model.num_res_blocks == [1, 1, 1] and net.control_model.model_channels == 64
        out[name] = core.sample(demo.model, conditioned, negative)
    torch.testing.assert_close(out["zero"], out["none"], rtol=0, atol=1e-4 * float(out["none"].abs().max()))
    assert torch.isfinite(out["open"]).all()
    assert (out["open"] - out["none"]).abs().max() > 0.01 * out["none"].abs().max()


@pytest.mark.parametrize("sampler, scheduler", [("euler", "normal"), ("dpmpp_2m", "karras"), ("ddim", "ddim_uniform")])
def test_ksampler(core, demo, sampler, scheduler):
    positive, negative = core.encode(demo.clip, TEXT), core.encode(demo.clip, "")
    how = {"steps": 3, "sampler": sampler, "scheduler": scheduler}
    out = core.sample(demo.model, positive, negative, **how)
    other = core.sample(demo.model, core.encode(demo.clip, "a green star"), negative, **how)
    assert torch.isfinite(out).all() and (out - other).abs().max() > 0.01
    with torch.inference_mode():
        picture = core.nodes["VAEDecode"]().decode(demo.vae, {"samples": out})[0]
    assert picture.shape == (1, 128, 128, 3) and picture.min() >= 0 and picture.max() <= 1


def test_flow_models_run_from_sigma_one(core, demo, engine):
    """Two ways to a flow model: the tiny SD3 file, and the demo family under the core node ModelSamplingSD3."""
    try:
        advanced = importlib.import_module("comfy_extras.nodes.nodes_model_advanced")
    except ModuleNotFoundError:
        advanced = importlib.import_module("comfy_extras.nodes_model_advanced")
    positive, negative = core.encode(demo.clip, TEXT), core.encode(demo.clip, "")
    patched = advanced.ModelSamplingSD3().patch(demo.model, 3.0)[0]
    for model, channels, family in ((core.load("flow.safetensors").model, 16, "SD3"), (patched, 4, "Demo")):
        assert type(model.model.model_config).__name__ == family
        assert engine.process_of(model) is FLOW and float(engine.sigmas_of(model, "normal", 3)[0]) == 1.0
        out = core.sample(model, positive, negative, channels=channels, steps=3)
        assert torch.isfinite(out).all()
        other = core.sample(model, core.encode(demo.clip, "a green star"), negative, channels=channels, steps=3)
        assert out.shape == (1, channels, 16, 16) and (out - other).abs().max() > 1e-3 * out.abs().max()
