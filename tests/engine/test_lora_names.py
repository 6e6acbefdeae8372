"""The names that LoRA files have: every tool's spelling is told apart, and what core's loader takes is known."""

import pytest
import torch
from nulltext.engine import lora_names, weights

UP, DOWN = "lora_up.weight", "lora_down.weight"


@pytest.mark.parametrize(
    "key, layer, part",
    [
        ("lora_unet_out_2.lora_up.weight", "lora_unet_out_2", UP),
        ("lora_unet_out_2.alpha", "lora_unet_out_2", "alpha"),
        ("diffusion_model.out.2.diff_b", "diffusion_model.out.2", "diff_b"),
        ("diffusion_model.blocks.0.q.lora_A.weight", "diffusion_model.blocks.0.q", DOWN),
        ("transformer.blocks.0.q.lora_B.default.weight", "transformer.blocks.0.q", UP),
        ("unet.mid.attn1.processor.to_q_lora.down.weight", "unet.mid.attn1.processor.to_q", DOWN),
        ("text_encoder.layers.0.lora_linear_layer.up.weight", "text_encoder.layers.0", UP),
        ("blocks.0.q.lora.up.weight", "blocks.0.q", UP),
        ("blocks.0.q.lora_B", "blocks.0.q", UP),
        ("lycoris_a.lokr_w1_a", "lycoris_a", "lokr_w1_a"),
        ("lora_unet_a.hada_w2_b", "lora_unet_a", "hada_w2_b"),
        ("lora_unet_a.dora_scale", "lora_unet_a", "dora_scale"),
        ("model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.weight", ""),
    ],
)
def test_a_key_is_a_layer_and_a_part(key, layer, part):
    assert lora_names.split(key) == (layer, part)


def test_a_layer_named_twice_is_renamed_once(tiny):
    names = ("diffusion_model.out.2.diff", "lora_unet_out_2.diff", "other.diff")
    tensors = {name: torch.full((1,), float(i)) for i, name in enumerate(names)}
    del tensors["lora_unet_out_2.diff"]
    assert list(lora_names.standard(tiny, tensors)) == ["lora_unet_out_2.diff", "other.diff"]
    both = {"lora_unet_conv_out.diff": torch.zeros(1), **tensors}
    assert list(lora_names.standard(tiny, both)) == ["lora_unet_out_2.diff", names[0], "other.diff"]


def test_what_cores_loader_left_is_told_by_layer(tiny):
    one = torch.ones(32, 32)
    to_q = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    mixed = {f"{to_q}.lora_up.weight": torch.ones(64, 2), f"{to_q}.lora_down.weight": torch.ones(2, 64)}
    mixed |= {f"{to_q}.alpha": torch.tensor(1.0), "lora_unet_out_2.diff": one, "lora_unet_there_is_none.diff": one + 1}
    patched, _ = weights.applied(tiny, None, mixed)
    assert lora_names.left_out(mixed, patched) == ["lora_unet_there_is_none"]
    assert lora_names.left_out(mixed, tiny) == [
        "lora_unet_" + name for name in ("middle_block_1_transformer_blocks_0_attn1_to_q", "out_2", "there_is_none")
    ]
