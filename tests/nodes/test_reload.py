"""A checkpoint that is loaded anew is let go: nothing that a MODEL or a GUIDER carries holds the models it was made of.

The embedded engine forgets a model only where nobody but its own list refers to it, and it looks once a prompt."""

from __future__ import annotations

import gc
import os
import weakref

import nulltext
import pytest
import torch
from nulltext.tests import stand_ins
from nulltext.tests.running import noised_inversion

ROUNDS = int(os.environ.get("NULLTEXT_ROUNDS", 3))  # make hostile: 10
NODES = {
    key: node for key, node in nulltext.NODE_CLASS_MAPPINGS.items() if {"MODEL", "GUIDER"} & set(node.RETURN_TYPES)
}
#: what their widgets need beside their defaults, so that a run is short and asks for everything
WIDGETS = {
    "NullText_AttentionReweight": {"weights": "circle: 2"},
    "NullText_AttentionRecord": {"words": "circle"},
    "NullText_ClassifierGuidance": {"class_name": "cat"},
    "NullText_CLIPGuidance": {"gradient_mode": "through network and decoder (exact)", "cutouts": 1},
    "NullText_SemanticGuidance": {
        "text": "a red circle",
        "layers": "1",
        "content_weight": 0.0,
        "structure_weight": 0.0,
        "style_weight": 0.0,
    },
    "NullText_DiffusionCLIPTune": {"train_steps": 2, "passes": 1, "inversion_steps": 2, "source": "a red circle"},
    "NullText_TrainLora": {
        "steps": 1,
        "rank": 1,
        "batch": 1,
        "sample_every": 0,
        "word": "circle",
        "targets": "attention",
    },
    "NullText_PromptToPromptGuider": {"edit": "replace"},
}
WIDGETS["NullText_DiffusionCLIPTune"] |= {"target": "a blue circle", "rank": 1}


@pytest.fixture(scope="module")
def checkpoint(engine, tmp_path_factory):
    engine.get("folder_paths")
    return stand_ins.demo_checkpoint(tmp_path_factory.mktemp("checkpoints"), seed=1)


def arguments(key, parts, latent):
    """Every required input, and those optional wires that hold a model."""
    from nulltext.engine import weights
    from nulltext.engine.tuning_set import TuningSet
    from nulltext.samplers.tuning.lora import low_rank_all

    node, given = NODES[key], {}
    for each in node.INPUTS:
        if each.kind == "LORA_MODEL":
            factors = low_rank_all(weights.layers(parts["MODEL"], "all linear and conv").items(), 1, seed=0)
            given[each.name] = weights.to_lora_model(factors, weights.base_of(parts["MODEL"]))
        elif each.kind == "INVERSION" and each.wanted:
            given[each.name] = noised_inversion(parts["MODEL"], latent, conditioning=parts["CONDITIONING"][0][0])
        elif each.kind == "TUNING_SET" and each.wanted:
            given[each.name] = TuningSet((torch.rand(4, 8, 8),), ("a red circle",), (None,), ("one",))
        elif (
            isinstance(each.kind, str)
            and each.kind in parts
            and (each.wanted or each.kind == "VAE" or each.name == "source")
        ):
            given[each.name] = parts[each.kind]
        elif each.wanted and "default" in each.options:
            given[each.name] = each.options["default"]
        elif each.wanted and not isinstance(each.kind, str):
            given[each.name] = list(each.kind() if callable(each.kind) else each.kind)[0]
    return given | WIDGETS.get(key, {})


def once(key, engine, checkpoint, judges, folder):
    """Load the checkpoint, run the node, sample with what it gives: weak references to the network and the VAE."""
    from nulltext.engine.sampler import core_sampler, sample_latent
    from nulltext.engine.words import with_words

    model, clip, vae = engine.get("sd").load_checkpoint_guess_config(str(checkpoint))[:3]
    engine.load_models([vae.patcher])
    prompt = with_words(engine.encode(clip, "a red circle"), clip, "a red circle")
    latent = torch.randn(1, 4, 8, 8)
    parts = {"MODEL": model, "CLIP": clip, "VAE": vae, "CONDITIONING": prompt, "LATENT": {"samples": latent}, **judges}
    given = arguments(key, parts, latent)
    if key == "NullText_LoadLora":
        from nulltext.engine import weights

        weights.save(lora_of(model), folder / "one.safetensors", {})
        given["file"] = "one"
    result = NODES[key]().run(**given)
    values = result["result"] if isinstance(result, dict) else result
    made = dict(zip(NODES[key].RETURN_TYPES, values))
    sigmas = engine.sigmas_of(model, "normal", 2)
    if "GUIDER" in made:
        size = noised_inversion(model, latent).sigmas if key == "NullText_Guider" else sigmas
        made["GUIDER"].sample(torch.zeros_like(latent), latent, core_sampler("euler"), size, disable_pbar=True, seed=1)
    else:
        sample_latent(made["MODEL"], prompt, prompt, 3.0, core_sampler("euler"), sigmas, {"samples": latent}, 1, None)
    return [weakref.ref(each) for each in (model.model, vae.first_stage_model, clip.cond_stage_model)]


def lora_of(model):
    from nulltext.engine import weights
    from nulltext.samplers.tuning.lora import low_rank_all

    factors = low_rank_all(weights.layers(model, "attention").items(), 1, seed=0)
    return weights.to_lora_model(factors, weights.base_of(model))


def next_prompt(engine):
    """What the embedded engine does before it runs a prompt."""
    management = engine.get("model_management")
    if engine.get("cli_args") and hasattr(management, "cleanup_models"):
        try:
            management.cleanup_models(keep_clone_weights_loaded=True)
        except TypeError:
            management.cleanup_models()


@pytest.mark.parametrize("key", sorted(NODES))
def test_a_checkpoint_loaded_anew_is_let_go(key, engine, checkpoint, image_text, classifier, tmp_path, monkeypatch):
    judges = {"IMAGE_TEXT": image_text, "CLASSIFIER": classifier}
    paths = engine.get("folder_paths")
    monkeypatch.setattr(paths, "get_folder_paths", lambda kind: [str(tmp_path)])
    monkeypatch.setattr(paths, "get_full_path", lambda kind, name: str(tmp_path / name))
    rounds = 2 if key in ("NullText_TrainLora", "NullText_DiffusionCLIPTune") else ROUNDS
    alive = []
    with torch.inference_mode():
        for _ in range(rounds):
            alive.append(once(key, engine, checkpoint, judges, tmp_path))
            next_prompt(engine)
        for _ in range(2):
            gc.collect()  # core's own objects go in circles
            next_prompt(engine)
    left = [[name for name, each in zip(("network", "VAE", "text encoder"), refs) if each()] for refs in alive]
    assert not any(left[:-1]), f"still there after {rounds} loads: {left}"
