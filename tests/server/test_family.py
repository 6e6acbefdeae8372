"""The demo family through the core nodes of a real server: LoRA, ControlNet, unknown words, and flow from sigma 1."""

import pytest
import torch
from nulltext.demo import weights
from safetensors.torch import load_file, save_file


def graph(model=("1", 0), positive=("2", 0), latent="EmptyLatentImage", text="a photo of a (red:1.3) circle"):
    """Prompt to picture with core nodes, SaveLatent at the end; `model` and `positive` may come from other nodes."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nulltext_demo.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": latent, "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": list(model),
                "positive": list(positive),
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 3,
                "steps": 2,
                "cfg": 3.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "family"}},
    }


@pytest.fixture
def draw(comfy):
    """Runs a graph and returns the LATENT samples that its SaveLatent wrote."""

    def draw(flow):
        before = set((comfy.tree / "output").glob("family*.latent"))
        comfy.run(flow).check()
        (made,) = set((comfy.tree / "output").glob("family*.latent")) - before
        out = load_file(made)["latent_tensor"].float()
        assert torch.isfinite(out).all()
        return out

    return draw


def test_lora_and_controlnet_apply(comfy, draw, temporary_file):
    generator = torch.Generator().manual_seed(0)
    width, context = 64, 128
    lora = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    path = temporary_file("models/loras/family.safetensors")
    save_file(
        {
            f"{lora}.lora_down.weight": torch.randn(2, context, generator=generator),
            f"{lora}.lora_up.weight": torch.randn(width, 2, generator=generator),
        },
        path,
    )
    trained = weights.CHECKPOINT
    used = trained if trained.exists() else comfy.tree / "models/checkpoints" / trained.name
    unet = weights.read_part(used, "unet")
    control = {
        key: value for key, value in unet.items() if key.startswith(("time_embed.", "input_blocks.", "middle_block."))
    }
    widths = [3, 16, 16, 32, 32, 96, 96, 256, width]
    for i, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
        control[f"input_hint_block.{2 * i}.weight"] = torch.randn(n_out, n_in, 3, 3, generator=generator) * n_in**-0.5
        control[f"input_hint_block.{2 * i}.bias"] = torch.zeros(n_out)
    for name, n in [(f"zero_convs.{i}.0", 64 if i < 3 else 128) for i in range(6)] + [("middle_block_out.0", 128)]:
        control[name + ".weight"], control[name + ".bias"] = torch.zeros(n, n, 1, 1), torch.zeros(n)
    path = temporary_file("models/controlnet/family.safetensors")
    save_file(control, path)

    plain = draw(graph())
    loras = {
        "7": {
            "class_type": "LoraLoader",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "lora_name": "family.safetensors",
                "strength_model": 1.0,
                "strength_clip": 1.0,
            },
        }
    }
    assert (draw(graph(model=("7", 0)) | loras) - plain).abs().max() > 1e-3
    controls = {
        "7": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "family.safetensors"}},
        "8": {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 128, "batch_size": 1, "color": 0xFF8000}},
        "9": {
            "class_type": "ControlNetApply",
            "inputs": {"conditioning": ["2", 0], "control_net": ["7", 0], "image": ["8", 0], "strength": 1.0},
        },
    }
    same = draw(graph(positive=("9", 0)) | controls)  # zero convolutions add nothing
    assert (same - plain).abs().max() <= 1e-3 * plain.abs().max()


def test_unknown_words_are_named_in_the_log(comfy, draw):
    draw(graph(text="a red zeppelin"))
    draw(graph(text="a blue zeppelin"))
    lines = [line for line in comfy.server.log.read_text().splitlines() if "vocabulary" in line and "zeppelin" in line]
    assert len(lines) == 1


def test_flow_models_run_from_sigma_one(comfy, draw, temporary_file):
    """The tiny SD3 file (text from the demo checkpoint), and the demo family under the core node ModelSamplingSD3."""
    weights.random_flow_checkpoint(temporary_file("models/checkpoints/flow.safetensors"))
    own = {"7": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flow.safetensors"}}}
    out = draw(graph(model=("7", 0), latent="EmptySD3LatentImage") | own)
    assert out.shape == (1, 16, 16, 16) and out.std() > 0.1
    patched = {"7": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], "shift": 3.0}}}
    assert draw(graph(model=("7", 0)) | patched).shape == (1, 4, 16, 16)
