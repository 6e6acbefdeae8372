"""Load LoRA: what it says of a file, what it refuses; and what the guiders say of it."""

import json

import pytest
import torch
from nulltext.engine import comfy as bridge
from nulltext.engine import files, weights
from nulltext.nodes import diffusion_clip_edit, imagic_guider, tuning_files
from nulltext.samplers.tuning import lora
from nulltext.tests import stand_ins

FILE = "x.safetensors"
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    """MODEL, CLIP and VAE of a random checkpoint of the demo's family."""
    return stand_ins.demo_parts(engine, tmp_path_factory.mktemp("checkpoints"), seed=1)


@pytest.fixture
def path(engine, tmp_path, monkeypatch):
    """Where the LoRA's file lies."""
    monkeypatch.setattr(engine.get("folder_paths"), "get_full_path", lambda kind, name: str(tmp_path / name))
    return tmp_path / FILE


def a_lora(model, clip):
    """A LoRA of network and text encoder that says what it was trained on."""
    layers = weights.layers(model) | weights.text_layers(clip)
    factors = lora.low_rank_all(layers.items(), 2, seed=0)
    with torch.no_grad():
        for factor in factors.values():
            factor.up.fill_(0.01)
    return weights.to_lora_model(factors, weights.base_of(model) | weights.text_base_of(clip), model)


def load(model, clip=None, strength=1.0, same_model=True):
    return tuning_files.LoadLora().run(model, clip, FILE, strength, same_model)


def said(*given, **more):
    return load(*given, **more)["ui"]["text"][0]


def test_it_tells_what_was_laid_on(parts, path):
    whole = a_lora(parts.model, parts.clip)
    weights.save(whole, path)
    net, text = len(weights.layers(parts.model)), len(weights.text_layers(parts.clip))
    told = said(parts.model, parts.clip)
    assert f"{net + text} layers, rank 2" in told and "Notice" not in told
    assert f"Laid on {net} weights of the model and {text} of the text encoder." in told
    assert f"its {text} layers of the text encoder are not used" in said(parts.model)
    assert "At strength 0 nothing is laid on." in said(parts.model, strength=0.0)
    foreign = {f"lora_unet_of_another_{k}": v.clone() for k, v in whole.items() if k.startswith("lora_unet_")}
    weights.save(whole | foreign, path)
    assert f"{net} layers are not known here and were left out, lora_unet_of_another_" in said(parts.model, parts.clip)


def test_a_file_of_which_nothing_fits_is_refused(parts, path):
    whole = a_lora(parts.model, parts.clip)
    weights.save({f"lora_unet_of_another_{k}": v for k, v in whole.items()}, path)
    with pytest.raises(
        ValueError, match=r"None of the \d+ layers of x.safetensors is known here .*this model's family"
    ):
        load(parts.model, parts.clip)
    weights.save({"lora_unet_x.alpha": torch.ones(())}, path)
    with pytest.raises(ValueError, match="None of the 1 layers"):
        load(parts.model, parts.clip)
    weights.save({k: v for k, v in whole.items() if k.startswith("lora_te_")}, path)
    with pytest.raises(ValueError, match="wire a text encoder"):
        load(parts.model)


def test_a_lora_over_a_lora_says_so_when_it_is_laid_on_the_bare_model(parts, path):
    model, clip = weights.applied(parts.model, parts.clip, a_lora(parts.model, parts.clip))
    weights.save(a_lora(model, clip), path)
    assert "Notice" not in said(model, clip)
    told = said(parts.model, parts.clip)
    assert "other LoRAs on the model" in told and "other LoRAs on the text encoder" in told


def test_same_model_off_takes_a_lora_of_another_checkpoint_into_the_guider_too(parts, path):
    made = a_lora(parts.model, parts.clip)
    base = json.loads(made.metadata[weights.BASE]) | {"weights": "other"}
    weights.save(made, path, {weights.BASE: json.dumps(base)})
    with pytest.raises(ValueError, match="switch off same_model in Load LoRA"):
        load(parts.model)
    taken = load(parts.model, same_model=False)["result"][2]
    ends = (*(bridge.encode(parts.clip, text) for text in ("a circle", "")), 0.7, "", 3.0, 1.0, 1.0, 0.0)
    imagic_guider.ImagicGuider().run(parts.model, *ends, lora=taken)
    with pytest.raises(ValueError, match="switch off same_model in Load LoRA"):
        imagic_guider.ImagicGuider().run(parts.model, *ends, lora=weights.load(path))


def test_the_guiders_tell_what_is_not_as_it_was_in_training(tiny, make_condition, monkeypatch):
    monkeypatch.setattr(files, "cache_key", lambda *_: None)

    def told(model):
        cond, pictures = make_condition(), {"samples": torch.ones(1, 4, 4, 4)}
        for made in (
            diffusion_clip_edit.DiffusionCLIPEdit().run(model, cond, pictures, found, 1.0, 0.5, 2, 2, 0, 2, 0),
            diffusion_clip_edit.MixModels().run(model, cond, cond, 2.0, found, 1.0, 0.0, 1.0, lora_model_2=found),
            imagic_guider.ImagicGuider().run(model, cond, cond, 0.7, "", 3.0, 1.0, 1.0, 0.0, lora=found),
        ):
            yield made["ui"]["text"][0].count("Notice: the LoRA was trained with other LoRAs on the model")

    factors = lora.low_rank_all(weights.layers(tiny).items(), 2, seed=0)
    beneath = weights.applied(tiny, None, weights.to_lora_model(factors))[0]
    found = weights.to_lora_model(factors, weights.base_of(beneath))
    assert list(told(tiny)) == [1, 1, 1] and list(told(beneath)) == [0, 0, 0]
