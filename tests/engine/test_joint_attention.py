"""Attention edits on transformers: SD3, Flux and Qwen-Image with tiny random networks of the engine's own classes.

On an engine that keeps their attention closed (the pip package) the refusal is what is tested."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks.families.stand_ins import newer
from nulltext.engine import joint_attention
from nulltext.engine.attention import attach, attention_places
from nulltext.engine.comfy import embeds_guidance, get, sigmas_of
from nulltext.engine.pair_guider import prompt_to_prompt_guider
from nulltext.engine.rows import Capture, WordEdit
from nulltext.samplers.attention.alignment import token_map
from nulltext.samplers.attention.controllers import MutualSelf, ReplaceCross, ReplaceSelf, Reweight
from nulltext.samplers.attention.joint import attend_jointly
from nulltext.samplers.attention.layers import StepWindow
from nulltext.samplers.attention.maps import LayerChoice, LocalBlend, MapRecorder
from nulltext.tests.running import Pixels, Traffic, noised_inversion, normal, run, sample, walk

FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 64}
FLUX |= {"vec_in_dim": 64, "context_in_dim": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2}
FLUX |= {"depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True}
SD3 = {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None, "adm_in_channels": 64}
SD3 |= {"num_patches": 256, "pos_embed_max_size": 16, "pos_embed_scaling_factor": None, "qk_norm": "rms"}
SD3 |= {"context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}}}
QWEN = {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 32}
QWEN |= {"num_attention_heads": 2, "joint_attention_dim": 64, "axes_dims_rope": (8, 12, 12)}
CHROMA = {key: value for key, value in FLUX.items() if key not in ("vec_in_dim", "guidance_embed")}
CHROMA |= {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64}
CHROMA |= {"hidden_dim": 64, "n_layers": 2}
NEXT = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": 64, "n_layers": 2}
NEXT |= {"n_heads": 8, "n_kv_heads": 8, "qk_norm": True, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512]}
NEXT |= {"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
KINDS = {
    "sd3": ("SD3", "SD3", SD3),
    "sd3.5-medium": ("SD3", "SD3", {**SD3, "x_block_self_attn_layers": [0]}),
    "flux": ("Flux", "Flux", FLUX),
    "chroma": ("Chroma", "Chroma", CHROMA),
    "qwen": ("QwenImage", "QwenImage", QWEN),
    "z-image": ("Lumina2", "ZImage", NEXT),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, engine):
    return request.param


def made(kind):
    """MODEL of the engine's own classes, weights at random, made in inference mode as a loader makes them."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    base, config, values = KINDS[kind]
    if not hasattr(comfy.model_base, base) or not hasattr(comfy.supported_models, config):
        pytest.skip(f"this engine knows no {base}")
    if "x_block_self_attn_layers" in values and not hasattr(get("ldm.modules.attention"), "wrap_attn"):
        pytest.skip("this engine knows no SD3.5 medium")
    values = values | newer(base)
    with torch.inference_mode():
        config = getattr(comfy.supported_models, config)({**values, "dtype": torch.float32})
        config.unet_config = {**values, "dtype": torch.float32}
        network = getattr(comfy.model_base, base)(config, device="cpu")
        generator = torch.Generator().manual_seed(0)
        for name, p in [*network.named_parameters(), *network.diffusion_model.named_buffers()]:
            scale = max(p[0].numel(), 1) ** -0.5 if p.ndim > 1 else 0.05
            shift = 1.0 if p.ndim == 1 and name.endswith(("weight", "scale")) else 0.0
            p.data.copy_(torch.randn(p.shape, generator=generator) * scale + shift)
        return comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def network(kind):
    return made(kind)


@pytest.fixture(scope="module")
def model(network):
    """Where this engine keeps the attention closed, test_closed_attention_is_refused is the test."""
    if closed(network):
        pytest.skip("this engine keeps the attention closed")
    return network


def closed(model) -> str:
    """The refusal, "" where there is none."""
    try:
        attention_places(model)
    except ValueError as error:
        return str(error)
    return ""


def test_closed_attention_is_refused(network):
    sentence = closed(network)
    if hasattr(get("ldm.modules.attention"), "wrap_attn"):
        assert not sentence
    else:
        assert "update it" in sentence and "SD1, SD2 and SDXL" in sentence and "\n" not in sentence


@pytest.fixture
def noise(kind):
    return normal(1, 16, *([1] if kind == "qwen" else []), 8, 8, seed=5)


def draw(model, positive, negative, noise, **more):
    return walk(model, (positive, negative), 3.0, noise, sigmas_of(model, "normal", 3), **more)


def prompts(prompt):
    return prompt("a red circle"), prompt("a green circle"), prompt("")


def test_places(kind, model):
    places = attention_places(model)
    lists = {"z-image": ["single"], "flux": ["double", "single"], "chroma": ["double", "single"]}.get(kind, ["double"])
    expected = [(name, i, 0) for name in lists for i in range(2)]
    assert list(places) == expected and {place.scale for place in places.values()} == {2}


def test_a_factor_of_one_and_an_edit_without_rows_change_nothing_to_the_bit(model, prompt, noise):
    source, other, empty = prompts(prompt)
    plain = draw(model, source, empty, noise)
    for edit in (Reweight([{3: 1.0}]), Reweight([{3: 4.0}])):
        conditioning = source if not edit.factors[0] else other
        assert torch.equal(draw(attach(model, [WordEdit(edit, conditioning)]), source, empty, noise), plain)


def test_a_word_turned_up_changes_the_picture_and_the_model_given_stays_as_it_was(model, prompt, noise):
    source, _, empty = prompts(prompt)
    before = draw(model, source, empty, noise)
    heavier = attach(model, [WordEdit(Reweight([{2: 6.0}]), source)])
    assert (draw(heavier, source, empty, noise) - before).abs().max() > 1e-3
    assert torch.equal(draw(model, source, empty, noise), before)
    # the empty prompt's rows are not among those the edit is for
    assert torch.equal(draw(heavier, empty, empty, noise), draw(model, empty, empty, noise))


def test_a_factor_does_to_the_attention_what_it_says(model, prompt, noise):
    """Against the layer written out: M[picture, word] times the factor, the text's own queries untouched."""
    source, _, empty = prompts(prompt)
    heavier, seen, plain_attend = attach(model, [WordEdit(Reweight([{2: 6.0}]), source)]), [], attend_jointly

    def noted(qkv, cross, own, jobs, *more):
        out = plain_attend(qkv, cross, own, jobs, *more)
        seen.append((qkv, cross, jobs, out))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_attention, "attend_jointly", noted)
        draw(heavier, source, empty, noise)
    qkv, cross, jobs, out = seen[0]
    rows = jobs[0][1].target
    q, k, v = (t.unflatten(2, (cross.heads, -1)).transpose(1, 2) for t in qkv)
    m = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    plain = (m @ v).transpose(1, 2).flatten(2)
    for row in rows:
        m[row, :, cross.text : cross.text + cross.tokens, 2] *= 6
    wanted = (m @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert (out - plain).abs().max() > 1e-3
    torch.testing.assert_close(out[:, : cross.text], plain[:, : cross.text], rtol=1e-4, atol=1e-5)


def test_another_packs_attention_and_this_one_go_together(model, prompt, noise):
    source, _, empty = prompts(prompt)
    calls = []

    def theirs(attention, *tensors, **more):
        calls.append(1)
        return attention(*tensors, **more)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = theirs
    heavier = attach(clone, [WordEdit(Reweight([{2: 6.0}]), source)])
    both = draw(heavier, source, empty, noise)
    assert calls
    assert torch.equal(both, draw(attach(model, [WordEdit(Reweight([{2: 6.0}]), source)]), source, empty, noise))


def test_a_block_of_another_pack_is_named(kind, model, prompt):
    if kind == "z-image":
        pytest.skip("no patch can stand around its blocks")
    clone = model.clone()
    clone.set_model_patch_replace(noised_inversion, "dit", "double_block", 1)
    with pytest.raises(ValueError, match="double_block 1 already belongs to .*noised_inversion"):
        attach(clone, [WordEdit(Reweight([{2: 6.0}]), prompt("a"))])


def test_maps_are_read_from_the_texts_columns(model, prompt, noise):
    source, _, empty = prompts(prompt)
    recorder = MapRecorder([[[1], [2, 3], list(range(77))]], LayerChoice("auto"))
    recorded = attach(model, [Capture(recorder, source)])
    out = draw(recorded, source, empty, noise)
    torch.testing.assert_close(out, draw(model, source, empty, noise), rtol=1e-3, atol=1e-3)
    maps = recorder.maps.maps()
    assert maps.shape == (3, 4, 4) and len(recorder.maps.sigmas()) == 3
    assert bool((maps > 0).all()) and bool((maps[2] < 1).all())  # the rest is the picture's own
    with Traffic() as traffic:
        draw(recorded, source, empty, noise)
    assert len(recorder.maps.sigmas()) == 3  # a new run starts anew
    assert traffic.of("rows.py") == 2 * 3  # sigma, and which rows carry the prompt, once a call


def controllers(source, edit):
    maps = [token_map(source[0][1]["nulltext_words"][0], edit[0][1]["nulltext_words"][0])[0]]
    return {
        "replace": [ReplaceCross(maps, StepWindow(0.0, 0.8)), ReplaceSelf(StepWindow(0.0, 0.4, points=0))],
        "mutual": [ReplaceCross(maps, StepWindow(0.0, 0.8)), MutualSelf(StepWindow(0, 1, points=0))],
        "blend": [ReplaceCross(maps, StepWindow(0.0, 1.0)), LocalBlend([[3]], [[3]], start=0.0)],
    }


@pytest.mark.parametrize("how", ["replace", "mutual", "blend"])
def test_equal_prompts_are_the_source_to_the_bit_and_another_is_not(model, prompt, noise, how):
    source, other, empty = prompts(prompt)
    sigmas, rest = sigmas_of(model, "normal", 3), {}
    for edit in (source, other):
        chosen = controllers(source, edit)[how]
        guider = prompt_to_prompt_guider(model, source, [edit], empty, 3.0, chosen, keep_source=True)
        kept, changed = sample(guider, noise, sigmas)
        assert torch.equal(kept, changed) == (edit is source)
        rest[edit is source] = kept
    assert torch.equal(rest[True], rest[False])  # the source does not see its edits
    without = prompt_to_prompt_guider(model, source, [other], empty, 3.0, [], keep_source=True)
    assert not torch.equal(sample(without, noise, sigmas)[1], changed)


def test_an_edit_of_another_length_looks_at_the_source_in_a_call_of_its_own(model, prompt, make_condition, noise):
    source, other, empty = prompts(prompt)
    words = {**other[0][1]["nulltext_words"][0]}
    words["ids"] = words["ids"] + words["ids"][-1:] * 20
    embedding = torch.cat([other[0][0], make_condition(3)[0][0][:, :20]], 1)
    longer = [[embedding, {**other[0][1], "nulltext_words": [words]}]]
    sigmas = sigmas_of(model, "normal", 3)
    maps = [token_map(source[0][1]["nulltext_words"][0], other[0][1]["nulltext_words"][0])[0]]
    open_ = [ReplaceSelf(StepWindow(0.0, 1.0, points=0))]
    guider = prompt_to_prompt_guider(model, source, [longer], empty, 1.0, open_, keep_source=True)
    kept, changed = sample(guider, noise, sigmas)
    alone = prompt_to_prompt_guider(model, source, [other], empty, 1.0, open_, keep_source=True)
    torch.testing.assert_close(kept, sample(alone, noise, sigmas)[0], rtol=1e-3, atol=1e-3)
    assert not torch.equal(kept, changed) and maps[0].columns


def test_a_real_picture_is_edited_from_its_stored_path(model, prompt, noise):
    source, other, empty = prompts(prompt)
    latent = model.model.latent_format.process_out(0.3 * noise)
    inversion = noised_inversion(model, latent, 3)
    outs = []
    for window in (0.0, 1.0):
        chosen = [ReplaceSelf(StepWindow(0.0, window, points=0))]
        guider = prompt_to_prompt_guider(model, source, [other], empty, 3.0, chosen, inversion=inversion)
        outs.append(sample(guider, torch.zeros_like(noise), inversion.sigmas))
    assert (outs[0] - outs[1]).abs().max() > 1e-3 and torch.isfinite(outs[1]).all()


def test_the_nodes(model, prompt, noise):
    source, other, empty = prompts(prompt)
    values = {"model": model, "seed": 3, "steps": 2, "scheduler": "normal", "cfg": 3.0, "negative": empty}
    values |= {"latent": {"samples": torch.zeros_like(noise)}, "source": source}
    out = run("PromptToPrompt", edited=source, **values)
    assert torch.equal(out[0]["samples"], out[1]["samples"])
    out = run("PromptToPrompt", edited=other, blend_words="circle", weights="green: 2", **values)
    assert not torch.equal(out[0]["samples"], out[1]["samples"])
    assert run("AttentionReweight", model=model, positive=source, weights="red: 1")[0] is model


@pytest.mark.parametrize("method", ["thorough", "thorough, null-text"])
def test_edit_photo_is_thorough_on_a_transformer_too(model, prompt, noise, monkeypatch, method):
    from nulltext.nodes import edit_photo

    monkeypatch.setattr(edit_photo, "worded", lambda clip, text: prompt(text))
    clip = SimpleNamespace(tokenize=None, encode_from_tokens=None)  # the prompts are made without it
    vae = SimpleNamespace(encode=None, decode=lambda samples: Pixels().decode(samples.reshape(-1, 16, 8, 8)))
    given = {"model": model, "clip": clip, "vae": vae, "latent": 0.3 * noise, "steps": 3, "cfg": 3.0}
    given |= {"source_prompt": "a red circle", "edited_prompt": "a green circle", "method": method}
    given["blend"] = False  # a random network sees no place
    if embeds_guidance(model) and method == "thorough, null-text":
        with pytest.raises(ValueError, match="at cfg 1, where null-text has nothing to optimise: choose thorough"):
            run("EditPhoto", **given, strength=0.7)
        return
    picture, latent, mask, report = run("EditPhoto", **given, strength=0.7)
    assert latent["samples"].shape == noise.shape and picture.shape == (1, 64, 64, 3)
    assert "red -> green" in report and "Prompt-to-Prompt" in report
    edited, source = latent["samples"].reshape(16, 8, 8), 0.3 * noise.reshape(16, 8, 8)
    assert torch.isfinite(edited).all() and (edited - source).abs().max() > 1e-3 and bool((mask == 1).all())


def test_layers_that_a_transformer_does_not_have_are_refused(model, prompt):
    with pytest.raises(ValueError, match='has no layers "up".*(double|single).0'):
        attach(model, [Capture(MapRecorder([[[1]]], LayerChoice("up")), prompt("a"))])


def test_a_longer_negative_prompt_has_calls_of_its_own(model, prompt, make_condition, noise):
    source, other, _ = prompts(prompt)
    longer = [[make_condition(2, 154)[0][0], {"pooled_output": torch.zeros(1, 64)}]]
    heavier = attach(model, [WordEdit(Reweight([{2: 6.0}]), source)])
    assert not torch.equal(draw(heavier, source, longer, noise), draw(model, source, longer, noise))
    for edit in (source, other):
        chosen = controllers(source, edit)["replace"]
        guider = prompt_to_prompt_guider(model, source, [edit], longer, 3.0, chosen, keep_source=True)
        kept, changed = sample(guider, noise, sigmas_of(model, "normal", 2))
        near = float((kept - changed).abs().max()) <= 1e-3 * float(kept.abs().max())
        assert near == (edit is source)
