"""The text side of tuning on a real CLIP: its layers' LoRA, and a word with vectors of its own."""

import os
import tempfile
from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import tuning, weights
from nulltext.engine.demo_text import CONFIG
from nulltext.engine.gradients import grad_mode
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.textual_inversion import start_vectors

TEXT = "a photo of a small red circle on the left"


def text_hooks(clip):
    return sum(len(m._forward_hooks) for m in clip.cond_stage_model.modules())


def moved(clip, targets="attention"):
    where = weights.text_layers(clip, targets)
    factors = lora.low_rank_all(where.items(), 2, seed=0)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for f in factors.values():
            f.up.copy_(0.05 * torch.randn(f.up.shape, generator=g))
    return where, factors


@pytest.fixture
def two_encoders(engine):
    """CLIP-L and CLIP-G side by side as SDXL has them, tiny."""
    sd1 = engine.get("sd1_clip")
    model = torch.nn.Module()
    with torch.inference_mode():
        for name in ("clip_l", "clip_g"):
            config = {**CONFIG, "vocab_size": 49408, "hidden_size": 32, "intermediate_size": 64}
            setattr(model, name, sd1.SDClipModel(device="cpu", dtype=torch.float32, textmodel_json_config=config))
    return SimpleNamespace(cond_stage_model=model)


def test_names_are_cores_own_for_one_encoder_and_for_two(engine, demo, two_encoders):
    keys = engine.get("lora").model_lora_keys_clip
    without_l = torch.nn.Module()  # SD3 loaded with CLIP-G alone
    without_l.clip_l, without_l.clip_g = None, two_encoders.cond_stage_model.clip_g
    one = SimpleNamespace(cond_stage_model=without_l)
    for clip, prefixes in ((demo.clip, {"lora_te"}), (two_encoders, {"lora_te1", "lora_te2"}), (one, {"lora_te"})):
        model = clip.cond_stage_model
        modules, known = dict(model.named_modules()), keys(model, {})
        for targets, count in (("attention", 4), ("attention+ff", 6)):
            found = weights.text_layers(clip, targets)
            assert len(found) == 2 * count * len(prefixes)
            assert {name.split("_text_model")[0] for name in found} == prefixes
            assert all(modules[known[name].removesuffix(".weight")] is layer for name, layer in found.items())


def test_the_networks_names_are_cores_own(engine, demo):
    known = engine.get("lora").model_lora_keys_unet(demo.model.model, {})
    modules = dict(demo.model.model.named_modules())
    for targets in weights.TARGETS:
        for name, layer in weights.layers(demo.model, targets).items():
            assert modules[known[name].removesuffix(".weight")] is layer


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 2e-3)])
@pytest.mark.parametrize("targets", weights.TEXT_TARGETS)
def test_cores_loader_gives_what_the_hooks_gave(core, targets, dtype, tolerance):
    """fp16 weights take the change in with an fp16's rounding; hooks leave it whole."""
    clip = core.load("demo.safetensors").clip
    with torch.inference_mode():
        clip.cond_stage_model.to(dtype)
    bare = core.encode(clip, TEXT)[0][0]
    where, factors = moved(clip, targets)
    with weights.attached(where, factors):
        hooked = core.encode(clip, TEXT)[0][0]
    _, patched = weights.applied(None, clip, weights.to_lora_model(factors))
    loaded = core.encode(patched, TEXT)[0][0]
    assert float((loaded - hooked).norm() / (hooked - bare).norm()) < tolerance
    assert not torch.allclose(hooked, bare, atol=1e-2)
    assert torch.equal(core.encode(clip, TEXT)[0][0], bare) and not text_hooks(clip)


def test_core_reads_the_file_through_its_own_node(core, demo, folder):
    _, factors = moved(demo.clip)
    net_where = weights.layers(demo.model)
    net = lora.low_rank_all(net_where.items(), 2, seed=0)
    with torch.no_grad():
        for f in net.values():
            f.up.fill_(0.02)
    weights.save(weights.to_lora_model({**factors, **net}), folder / "both.safetensors")
    with torch.inference_mode():
        model, clip = core.nodes["LoraLoader"]().load_lora(demo.model, demo.clip, "both.safetensors", 1.0, 1.0)
    assert len(model.patches) == len(net) and len(clip.patcher.patches) == len(factors)


def test_the_encoders_factors_train(core, demo):
    target = core.encode(demo.clip, TEXT.replace("red", "blue"))[0][0].clone()
    before = [p.clone() for p in demo.clip.cond_stage_model.parameters()]
    where = weights.text_layers(demo.clip)
    factors = lora.low_rank_all(where.items(), 4, seed=0)
    with torch.inference_mode(), grad_mode(demo.clip.cond_stage_model), weights.attached(where, factors):
        tokens, wanted = demo.clip.tokenize(TEXT), target.clone()
        loop = Loop(lora.parameters(factors), Settings(steps=25, lr=0.01))
        loop.run(lambda g: {"loss": (tuning.encode(demo.clip, tokens)[0] - wanted).square().mean()})
    assert loop.curve[-1][1] < 0.7 * loop.curve[0][1]
    assert all(torch.equal(a, b) for a, b in zip(before, demo.clip.cond_stage_model.parameters()))
    assert not text_hooks(demo.clip)


def test_encoding_is_the_text_nodes_own(core, demo):
    want = core.encode(demo.clip, TEXT)[0]
    with torch.inference_mode():
        cond, pooled = tuning.encode(demo.clip, demo.clip.tokenize(TEXT))
    assert torch.equal(cond, want[0]) and torch.equal(pooled, want[1]["pooled_output"])


def test_a_word_reads_as_its_vectors_and_nothing_else_changes(core, demo):
    """With the vector of "red" the new word is red; the same file is what core reads as an embedding."""
    table = tuning.table(tuning.encoders(demo.clip)["clip_l"])
    red = int(table.rows(torch.tensor(tuning.word_tokens(demo.clip, "red")["clip_l"])))
    vectors = {"clip_l": start_vectors(table.weight, [red], 1)}
    own = tuning.own_ids(1)
    with torch.inference_mode(), tuning.word_attached(demo.clip, own, vectors):
        tokens = tuning.tokens_with_word(demo.clip, TEXT.replace("red", "sks"), "sks", own)
        cond, _ = tuning.encode(demo.clip, tokens)
        other, _ = tuning.encode(demo.clip, demo.clip.tokenize("a blue ring"))
    core.close(cond, core.encode(demo.clip, TEXT)[0][0], 1e-5)
    assert torch.equal(other, core.encode(demo.clip, "a blue ring")[0][0])
    assert not text_hooks(demo.clip)


@pytest.mark.parametrize("count", [1, 3])
def test_a_learnt_word_through_a_file_is_the_word_that_was_learnt(core, demo, folder, count):
    table = tuning.table(tuning.encoders(demo.clip)["clip_l"])
    before = table.weight.clone()
    vectors = {"clip_l": start_vectors(table.weight, [3], count)}
    own, text = tuning.own_ids(count), "a sks circle"
    with torch.inference_mode(), grad_mode(demo.clip.cond_stage_model), tuning.word_attached(demo.clip, own, vectors):
        tokens = tuning.tokens_with_word(demo.clip, text, "sks", own)
        wanted = core.encode(demo.clip, "a blue circle")[0][0].clone()
        loop = Loop(vectors, Settings(steps=5, lr=0.1))
        loop.run(lambda g: {"loss": (tuning.encode(demo.clip, tokens)[0] - wanted).square().mean()})
        learnt = tuning.encode(demo.clip, tokens)[0].detach()
    assert loop.curve[-1][1] < loop.curve[0][1] and torch.equal(table.weight, before)
    tuning.save_word(vectors, folder / f"learnt{count}.safetensors", {"word": "sks"})
    core.close(core.encode(demo.clip, f"a embedding:learnt{count} circle")[0][0], learnt, 1e-4)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks Linux which files are mapped")
def test_the_file_that_stands_for_the_word_is_let_go_of_before_it_is_removed(demo, monkeypatch):
    """Windows lets nobody remove a file while a tensor is a part of it."""
    mapped = []

    class Watched(tempfile.TemporaryDirectory):
        def cleanup(self):
            with open("/proc/self/maps") as maps:
                mapped.append(self.name in maps.read())
            super().cleanup()

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Watched)
    tuning.tokens_with_word(demo.clip, "a red sks", "sks", tuning.own_ids(1))
    assert mapped == [False]


def test_captions_without_the_word_or_of_another_width_are_refused(demo):
    own = tuning.own_ids(2)
    with pytest.raises(ValueError, match=r"does not have the word 'sks'"):
        tuning.tokens_with_word(demo.clip, "a red circle", "sks", own)
    with pytest.raises(ValueError, match="uses a token"):
        tuning.tokens_with_word(demo.clip, "a red sks", "sks", tuning.word_tokens(demo.clip, "red")["clip_l"])
    saved = SimpleNamespace(cond_stage_model=demo.clip.cond_stage_model)
    saved.tokenize = lambda text: {"l": [[(49406, 1.0), (torch.zeros(128), 1.0), (49407, 1.0)]]}
    with pytest.raises(ValueError, match="saved embedding"):
        tuning.tokens_with_word(saved, "a embedding:mine sks", "sks", own)
    saved.tokenize, saved.tokenizer = demo.clip.tokenize, SimpleNamespace()
    with pytest.raises(ValueError, match="reads no saved embeddings"):
        tuning.tokens_with_word(saved, "a red sks", "sks", own)
    before = text_hooks(demo.clip)
    with (
        pytest.raises(ValueError, match=r"\[1, 5\].*width 128"),
        tuning.word_attached(demo.clip, own, {"clip_l": torch.zeros(1, 5)}),
    ):
        pass
    assert text_hooks(demo.clip) == before
    stranger = SimpleNamespace(cond_stage_model=torch.nn.Linear(2, 2))
    for refuse in (weights.text_layers, tuning.encoders):
        with pytest.raises(ValueError, match="no CLIP"):
            refuse(stranger)
