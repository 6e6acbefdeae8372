"""What the training nodes take from their sources: the presets' layers and rates, the guidance told, the start word."""

import types

import pytest
import torch
from nulltext.engine import comfy, tuning, weights
from nulltext.nodes import own_word, train_lora, tuning_inputs, tuning_pictures
from nulltext.samplers.tuning import dreambooth, textual_inversion
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.tests import stand_ins

pytestmark = pytest.mark.usefixtures("inference", "own_folders")


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    return stand_ins.demo_parts(engine, tmp_path_factory.mktemp("checkpoints"), seed=1)


@pytest.fixture
def seen(monkeypatch):
    """The loops that are made; none of them trains a step."""
    made = []

    def loop(*args, **options):
        made.append(Loop(*args, **options))
        raise RuntimeError("seen")

    monkeypatch.setattr(train_lora, "Loop", loop)
    return made


def trained(parts, **own):
    images = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    given = {"vae": parts.vae, "captions": "a sks circle", "size": 64, "images": images, "mask": None}
    subject = tuning_pictures.TuningPictures().run(**(required(tuning_pictures.TuningPictures) | given))["result"][0]
    given = {"model": parts.model, "clip": parts.clip, "pictures": subject, "steps": 1, "sample_every": 0, **own}
    return train_lora.TrainLora().run(**(required(train_lora.TrainLora) | given))


def required(box):
    inputs = box.INPUT_TYPES()["required"].items()
    return {name: spec[1]["default"] for name, spec in inputs if "default" in spec[1]}


def rate(loop, name):
    fits = [key for key in loop.rates if name.startswith(key)]
    return loop.rates[max(fits, key=len)] if fits else 1.0


def test_unitunes_code_has_its_full_rate_in_each_attentions_last_layer(parts, seen):
    """xuduo35/UniTune, configure_optimizers: to_out of attn1 and attn2; a thousandth of it everywhere else."""
    with pytest.raises(RuntimeError, match="seen"):
        trained(parts, preset="UniTune code")
    names = list(seen[0].parameters)
    full = {name for name in names if rate(seen[0], name) == 1}
    assert full == {name for name in names if "attn" in name and "_to_out" in name} and full
    assert {rate(seen[0], name) for name in set(names) - full} == {1e-3}
    assert any("_to_q" in name for name in names) and any("_in_layers_" in name for name in names)


@pytest.mark.parametrize("preset, forward", [("kohya", True), ("diffusers", False), ("paper", False)])
def test_kohyas_text_part_has_the_feed_forward_layers_too(parts, seen, preset, forward):
    with pytest.raises(RuntimeError, match="seen"):
        trained(parts, preset=preset, text_encoder=train_lora.TRAIN)
    text = [name for name in seen[0].parameters if name.startswith("lora_te")]
    assert text and any("_mlp_" in name for name in text) == forward


def test_a_network_without_such_names_has_the_full_rate_in_all_its_attention(monkeypatch):
    named = {"lora_unet_blocks_0_attn_qkv": 1, "lora_unet_blocks_0_attn_proj": 1}
    monkeypatch.setattr(weights, "layers", lambda model, targets: named)
    assert weights.attention_outputs(None) == set(named)


def test_captions_of_a_network_that_takes_its_guidance_as_a_number_are_told_1(parts, monkeypatch):
    plain = tuning.conditions_of(parts.model, parts.clip, ["a circle"])
    assert "guidance" not in plain["a circle"][0][1]
    monkeypatch.setattr(tuning, "embeds_guidance", lambda model: True)
    told = tuning.conditions_of(parts.model, parts.clip, ["a circle"])
    assert told["a circle"][0][1]["guidance"] == 1.0 and torch.equal(told["a circle"][0][0], plain["a circle"][0][0])


def test_such_a_network_draws_prior_pictures_at_cfg_1(parts, monkeypatch):
    given = required(tuning_pictures.PriorPictures) | {"model": parts.model, "clip": parts.clip}
    given |= {"width": 64, "height": 64, "steps": 1, "count": 1, "class_prompt": "a circle"}

    def drawn(**own):
        return tuning_pictures.PriorPictures().run(**(given | own))

    alone, guided = drawn(cfg=1.0), drawn(cfg=7.5)
    monkeypatch.setattr(comfy, "embeds_guidance", lambda model: True)
    told = drawn(cfg=7.5)
    assert torch.equal(told["result"][1]["samples"], alone["result"][1]["samples"])
    assert not torch.equal(told["result"][1]["samples"], guided["result"][1]["samples"])
    assert "at cfg 1" in told["ui"]["text"][0] and "Notice" not in drawn(cfg=1.0)["ui"]["text"][0]


def test_a_start_word_of_more_tokens_than_vectors_is_refused(parts):
    """The authors' code and diffusers' refuse it, too; the demo model's `a red circle` are three tokens."""
    with pytest.raises(ValueError, match="has 3 tokens, and the new word 2: raise vectors to 3"):
        own_word.begun(parts.clip, "a red circle", 2)
    (whole,), (first,) = (own_word.begun(parts.clip, "a red circle", n, whole=n == 3)[0].values() for n in (3, 2))
    assert whole.shape[0] == 3 and torch.equal(first, whole[:2])


def test_the_rates_of_textual_inversion_are_their_sources():
    """In units of the rms .014 of Stable Diffusion 1's table: main.py of the authors multiplies by the batch."""
    rates = {name: way.relative_lr * 0.014 for name, way in textual_inversion.PRESETS.items()}
    assert rates == pytest.approx({"authors, SD 1": 0.01, "paper": 0.04, "diffusers": 0.002})
    assert dreambooth.PRESETS["kohya"].text_targets == "attention+ff"


def test_flux_names_its_clip_as_the_first_of_two(parts, monkeypatch):
    alone = weights.text_layers(parts.clip)
    assert all(name.startswith("lora_te_") for name in alone)
    both = torch.nn.Module()
    both.clip_l, both.t5xxl = parts.clip.cond_stage_model.clip_l, torch.nn.Linear(2, 2)
    beside = weights.text_layers(types.SimpleNamespace(cond_stage_model=both))
    assert [name.replace("lora_te1_", "lora_te_") for name in beside] == list(alone) and len(beside) == len(alone)
    assert all(name.startswith("lora_te1_") for name in beside)


def test_the_loss_on_fixed_levels_is_drawn_straight_between_its_points(monkeypatch):
    lines = {}
    monkeypatch.setattr(tuning_inputs, "line_chart", lambda title, found, steps, **_: lines.update(found, steps=steps))
    with torch.inference_mode(False):
        loop = Loop({"a": torch.zeros(1)}, Settings(steps=4))
    loop.curve, loop.fixed = [(i, 1.0) for i in range(1, 5)], {0: 3.0, 2: 1.0}
    tuning_inputs.loss_figure(loop)
    drawn = lines["on fixed levels and noises"]
    assert lines["steps"] == [0, 1, 2, 3, 4] and drawn[:3] == [3.0, 2.0, 1.0]
    assert all(value != value for value in drawn[3:]), "not known yet"


def test_it_is_measured_with_every_sample_picture(parts, seen):
    with pytest.raises(RuntimeError, match="seen"):
        trained(parts, sample_every=7)
    assert seen[0].settings.fixed_every == 7
