"""Attention Re-weight on the demo family beside a LoRA, a ControlNet and masks, through the core nodes."""

import pytest
import torch
from nulltext.engine.attention import attach
from nulltext.engine.rows import WordEdit
from nulltext.engine.words import words_of
from nulltext.nodes.attention import AttentionReweight
from nulltext.nodes.prompt import Prompt
from nulltext.samplers.attention.alignment import token_map
from nulltext.samplers.attention.controllers import Reweight
from safetensors.torch import save_file

TEXT = "a photo of a small red circle on the left, striped blue background"
KEY = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def prompts(demo):
    with torch.inference_mode():
        return [Prompt().run(demo.clip, text)["result"][0] for text in (TEXT, "")]


def heavier(model, positive, weights="red: 4, circle: -1"):
    return AttentionReweight().run(model, positive, weights, 0.0, 1.0)["result"][0]


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def lora(folder):
    """A LoRA on the keys that the words' attention is made of, and the change of the weight at strength 0.7."""
    generator = torch.Generator().manual_seed(5)
    down, up = torch.randn(4, 128, generator=generator), torch.randn(64, 4, generator=generator) * 0.2
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)},
        folder / "keys.safetensors",
    )
    return 0.7 * up @ down


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_beside_a_lora(core, demo, prompts, lora, cfg):
    def load(model):
        return core.nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, "keys.safetensors", 0.7)[0]

    def sample(model):
        return core.sample(model, *prompts, cfg=cfg)

    plain, with_lora, weighed = sample(demo.model), sample(load(demo.model)), sample(heavier(demo.model, prompts[0]))
    both = sample(heavier(load(demo.model), prompts[0]))
    assert torch.equal(sample(load(heavier(demo.model, prompts[0]))), both)  # in either order
    assert min(apart(both, with_lora), apart(both, weighed), apart(with_lora, plain)) > 1e-3
    merged = core.load("demo.safetensors").model
    with torch.inference_mode():
        weight = merged.model.diffusion_model.get_submodule(KEY).weight
        weight += lora.to(weight)
    core.close(sample(heavier(merged, prompts[0])), both, 2e-3)  # the sum is rounded to fp16 storage
    assert torch.equal(sample(demo.model), plain)
    one = attach(load(demo.model), [WordEdit(Reweight([{4: 1.0}]), prompts[0])])
    assert torch.equal(sample(one), with_lora)  # a factor of 1 is the unhooked run


def test_beside_a_controlnet(core, demo, prompts, folder, trainer_nets, controlnet):
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(4))
    out, weighed = {}, {}
    model = heavier(demo.model, prompts[0])
    for name in ("none", "zero", "open"):
        positive, negative = prompts
        if name != "none":
            save_file(controlnet(trainer_nets.unet, name == "zero"), folder / f"beside_{name}.safetensors")
            with torch.inference_mode():
                net = core.nodes["ControlNetLoader"]().load_controlnet(f"beside_{name}.safetensors")[0]
                positive = core.nodes["ControlNetApply"]().apply_controlnet(positive, net, image, 1.0)[0]
        out[name], weighed[name] = (core.sample(m, positive, negative) for m in (demo.model, model))
        assert apart(weighed[name], out[name]) > 1e-3
    core.close(weighed["zero"], weighed["none"])
    assert apart(weighed["open"], weighed["none"]) > 1e-2


def test_beside_masks(core, demo, prompts):
    """A mask on the words' own conditioning, and an inpainting mask on the latent: outside of both nothing changes."""
    positive, negative = prompts
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    with torch.inference_mode():
        other = Prompt().run(demo.clip, "a green star")["result"][0]
        masked = core.nodes["ConditioningSetMask"]().append(positive, left, "default", 1.0)[0]
        rest = core.nodes["ConditioningSetMask"]().append(other, 1 - left, "default", 1.0)[0]
    model = heavier(demo.model, positive)
    plain, weighed = (core.sample(m, masked + rest, negative, steps=1) for m in (demo.model, model))
    change = (weighed - plain).abs()
    assert float(change[..., 8:].max()) <= 1e-4 * float(plain.abs().max())
    assert float(change[..., :8].max()) > 1e-3 * float(plain.abs().max())

    picture = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latent = {"samples": picture, "noise_mask": left}
    with torch.inference_mode():
        plain, weighed = (
            core.nodes["KSampler"]().sample(m, 7, 2, 3.0, "euler", "normal", positive, negative, latent)[0]["samples"]
            for m in (demo.model, model)
        )
    for made in (plain, weighed):
        torch.testing.assert_close(made[..., 8:], picture[..., 8:], rtol=1e-4, atol=1e-4)
    assert all(apart(weighed[i, ..., :8], plain[i, ..., :8]) > 1e-3 for i in range(2))


def test_emphasis_is_no_part_of_the_words_or_of_their_alignment(demo):
    with torch.inference_mode():
        plain, emphasised = (
            Prompt().run(demo.clip, text)["result"][0] for text in ("a red circle", "a (red:1.5) ((circle))")
        )
    assert not torch.equal(plain[0][0], emphasised[0][0])  # it scales embeddings
    source, target = (words_of(c)[0] for c in (plain, emphasised))
    assert source["words"] == target["words"]
    mapping, said = token_map(source, target)
    assert mapping.identity
    assert said == "replace"
