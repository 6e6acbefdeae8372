"""The names that LoRA files have: every tool's spelling is told apart, and what core's loader takes is known."""

import pytest
import torch
from nulltext.engine import lora_names, weights
from nulltext.samplers.tuning.whole import unchanged_all

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
    whole = {names[0]: torch.zeros(1), names[1]: torch.ones(1)}
    found = lora_names.standard(tiny, whole)  # the standard name is its own, wherever it stands
    assert list(found) == list(whole) and all(found[name] is value for name, value in whole.items())


def test_files_of_an_sd1_unet_have_the_names_of_kohya_and_diffusers(tiny, make_model):
    """Core's loader finds the same layers by either name; SDXL's files keep the standard names."""
    where = weights.whole_layers(tiny)
    changes = unchanged_all(where.items())
    for i, change in enumerate(changes.values()):
        torch.nn.init.normal_(change.weight.data, std=0.01 + i / 1000)
    plain, written = weights.to_lora_model(changes), weights.to_lora_model(changes, model=tiny)
    names = {key.split(".")[0].removeprefix("lora_unet_") for key in written}
    ours = ("input_blocks", "middle_block", "output_blocks", "time_embed_", "out_")
    assert len(names) == len(where) and not any(name.startswith(ours) for name in names)
    assert {"down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0", "mid_block_resnets_1_conv2"} < names
    assert lora_names.standard(tiny, written).keys() == plain.keys()
    by_either = [weights.applied(tiny, None, each)[0].patches for each in (plain, written)]
    assert by_either[0].keys() == by_either[1].keys() and len(by_either[0]) == len(plain)
    for name, patches in by_either[0].items():
        assert torch.equal(patches[0][1][1][0], by_either[1][name][0][1][1][0])
    xl = make_model(adm=64)
    more = {name: changes[name] for name in list(changes)[:3]}
    assert weights.to_lora_model(more, model=xl).keys() == weights.to_lora_model(more).keys()


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
