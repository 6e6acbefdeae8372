"""The demo model's family in a real engine, without a server: what the core nodes find; other models stay themselves.

`nets` below is the trainer's own implementation (demo/nets.py) of the weights in the same file."""
import logging
from types import SimpleNamespace

import pytest
import torch
from nulltext.demo import captions, checkpoint, nets
from safetensors.torch import load_file, save_file

TEXT = "a photo of a small red circle on the left , striped blue background"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random checkpoint of the family, and a flow model, in a folder that the engine searches."""
    path = tmp_path_factory.mktemp("checkpoints")
    checkpoint.random_checkpoint(path / "demo.safetensors", seed=1)
    checkpoint.random_flow_checkpoint(path / "flow.safetensors", seed=2)
    return path


@pytest.fixture(scope="session")
def core(engine, folder):
    """The core nodes' classes by name; the family is registered and the folder searched for every kind of file."""
    import nulltext.nodes.bridge.family as family
    family.register()
    paths = engine.get("folder_paths")
    for kind in ("checkpoints", "loras", "controlnet", "embeddings"):
        paths.add_model_folder_path(kind, str(folder))
    return SimpleNamespace(**engine.get("nodes").NODE_CLASS_MAPPINGS)


@pytest.fixture(scope="session")
def demo(core):
    return load(core, "demo.safetensors")


@pytest.fixture(scope="session")
def trainer_nets(folder):
    """nets.py with the weights of the file (rounded to fp16, as the file holds them)."""
    made = {"unet": nets.UNet(), "text": nets.TextEncoder(), "autoencoder": nets.AutoEncoder()}
    for part, net in made.items():
        net.load_state_dict(checkpoint.read_part(folder / "demo.safetensors", part))
        net.eval().requires_grad_(False)
    return SimpleNamespace(**made)


def load(core, name):
    with torch.inference_mode():
        model, clip, vae = core.CheckpointLoaderSimple().load_checkpoint(name)[:3]
    return SimpleNamespace(model=model, clip=clip, vae=vae)


def encode(core, clip, text):
    with torch.inference_mode():
        return core.CLIPTextEncode().encode(clip, text)[0]


def sample(core, model, positive, negative, channels=4, steps=2, cfg=3.0, sampler="euler", scheduler="normal"):
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, channels, 16, 16)}
        out = core.KSampler().sample(model, 7, steps, cfg, sampler, scheduler, positive, negative, latent)
    return out[0]["samples"]


def rows_of(*token_ids):
    """Rows [1, 77] of a prompt, by the table alone."""
    row = {t: i for i, t in enumerate(captions.VOCABULARY) if t >= 0}
    ids = [captions.BOS, *token_ids]
    return torch.tensor([[row.get(t, 0) for t in ids + [captions.EOS] * (77 - len(ids))]])


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    scale = max(1.0, b.abs().max().item())
    assert (a.float() - b.float()).abs().max().item() <= tolerance * scale


# ------------------------------------------------------------------------------------- detection

def unet_like(**config):
    """State dict of shapes (no memory) of an SD-like UNet."""
    from comfy import ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    base = {"image_size": 32, "in_channels": 4, "out_channels": 4, "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4], "model_channels": 320, "num_heads": 8, "num_head_channels": -1,
            "use_spatial_transformer": True, "legacy": False,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
            "transformer_depth_middle": 1, "context_dim": 768, "dtype": torch.float32}
    net = UNetModel(**{**base, **config}, device="meta", operations=ops.disable_weight_init)
    return {"model.diffusion_model." + key: value for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name, config", [
    ("SD15", {}),
    ("SD15", {"context_dim": 768, "in_channels": 9}),  # inpainting
    ("SDXL", {"context_dim": 2048, "use_linear_in_transformer": True, "adm_in_channels": 2816,
              "num_classes": "sequential", "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
              "transformer_depth": [0, 0, 2, 2, 10, 10],
              "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}),
    ("Demo", {"model_channels": 64, "context_dim": 128, "channel_mult": [1, 2, 2], "num_res_blocks": [1, 1, 1],
              "num_heads": 4, "transformer_depth": [1, 1, 0], "transformer_depth_output": [1, 1, 1, 1, 0, 0]}),
    ("NoneType", {"model_channels": 96, "context_dim": 128, "channel_mult": [1, 2, 2], "num_res_blocks": [1, 1, 1],
                  "num_heads": 4, "transformer_depth": [1, 1, 0], "transformer_depth_output": [1, 1, 1, 1, 0, 0]}),
])
def test_every_model_is_detected_as_itself(core, name, config):
    from comfy import model_detection
    found = model_detection.model_config_from_unet(unet_like(**config), "model.diffusion_model.")
    assert type(found).__name__ == name


def test_family_is_registered_once_and_last(core):
    import nulltext.nodes.bridge.family as family
    from comfy import supported_models
    assert family.register() is False
    ours = [model for model in supported_models.models if getattr(model, "nulltext_family", None) == family.NAME]
    assert ours == [family.family()] and supported_models.models[-1] is ours[0]
    theirs = [model for model in supported_models.models if model is not ours[0]]
    config = {**family.family().unet_config, "in_channels": 4, "out_channels": 4}
    assert not any(model.matches(config) for model in theirs)


def test_models_folder_is_searched(core, engine):
    import nulltext.nodes.bridge.family as family
    searched = engine.get("folder_paths").get_folder_paths("checkpoints")
    assert searched.count(str(family.MODELS)) == 1
    assert checkpoint.CHECKPOINT.parent == family.MODELS


# ------------------------------------------------------------------------------------- the same networks

def test_unet_computes_what_the_trainer_computes(demo, trainer_nets):
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 128, generator=generator)
    t = torch.tensor([3.0, 870.0])
    with torch.inference_mode():
        theirs = demo.model.model.diffusion_model(x, t, context=context)
        ours = trainer_nets.unet(x, t, context)
    assert ours.std() > 0.1  # weights at zero would agree about anything
    close(theirs, ours)


def test_denoised_is_the_trainers_v_prediction(demo, trainer_nets):
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 16, 16, generator=generator) * 9, torch.randn(1, 77, 128, generator=generator)
    sigma = nets.sigmas()[[640]]
    a = (1 + sigma ** 2).rsqrt()
    with torch.inference_mode():
        theirs = demo.model.model.apply_model(x, sigma, c_crossattn=context)
        ours = a * a * x - sigma * a * trainer_nets.unet(a * x, torch.tensor([640.0]), context)
    close(theirs, ours)


def test_sigmas_are_the_trainers(demo):
    sampling = demo.model.get_model_object("model_sampling")
    torch.testing.assert_close(sampling.sigmas, nets.sigmas(), rtol=1e-5, atol=0)
    assert 60 < float(sampling.sigma_max) < 70


def test_text_encoder_computes_what_the_trainer_computes(core, demo, trainer_nets):
    cond, extra = encode(core, demo.clip, TEXT)[0]
    rows = rows_of(*captions.tokens_of(TEXT))
    assert (rows != 0).all()
    expected = trainer_nets.text(rows)
    close(cond, expected)
    end = 1 + len(captions.tokens_of(TEXT))
    close(extra["pooled_output"], expected[:, end])


def test_autoencoder_computes_what_the_trainer_computes(core, demo, trainer_nets):
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        latent = core.VAEEncode().encode(demo.vae, image)[0]
        decoded = core.VAEDecode().decode(demo.vae, latent)[0]
        space = demo.model.get_model_object("latent_format").process_in(latent["samples"])
    ours = trainer_nets.autoencoder.encode(image.movedim(-1, 1))
    close(space, ours)
    close(decoded, trainer_nets.autoencoder.decode(ours).clamp(0, 1).movedim(1, -1))


def test_eps_files_are_eps(core, folder, engine):
    checkpoint.random_checkpoint(folder / "eps.safetensors", prediction="eps")
    kinds = engine.get("model_base").ModelType
    assert load(core, "eps.safetensors").model.model.model_type == kinds.EPS
    assert load(core, "demo.safetensors").model.model.model_type == kinds.V_PREDICTION


def test_preview_factors_travel_with_the_file(core, folder, demo):
    fmt = demo.model.get_model_object("latent_format")
    assert fmt.scale_factor == checkpoint.SCALE and fmt.taesd_decoder_name is None and fmt.latent_rgb_factors is None
    state = load_file(folder / "demo.safetensors")
    state["latent_rgb_factors"] = torch.arange(12.0).reshape(4, 3)
    save_file(state, folder / "preview.safetensors")
    fmt = load(core, "preview.safetensors").model.get_model_object("latent_format")
    assert fmt.latent_rgb_factors == torch.arange(12.0).reshape(4, 3).tolist()
    assert demo.model.get_model_object("latent_format").latent_rgb_factors is None


# ------------------------------------------------------------------------------------- words

def test_unknown_words_share_row_zero_and_are_reported_once(core, trainer_nets, caplog):
    from nulltext.nodes.bridge.family import unknown_words
    clip = load(core, "demo.safetensors").clip
    with caplog.at_level(logging.WARNING):
        first = encode(core, clip, "a red zeppelin")[0][0]
        second = encode(core, clip, "a red (locomotive:1.0) zeppelin, zeppelin")
        encode(core, clip, "a red zeppelin")
    said = [r.getMessage() for r in caplog.records if "vocabulary" in r.getMessage()]
    assert len(said) == 2 and said[0].endswith(": zeppelin.") and said[1].endswith(": locomotive.")
    ids = [entry[0] for entry in clip.tokenize("a red zeppelin")["l"][0]][1:-1]
    ids = ids[:ids.index(captions.EOS)]
    assert not set(ids[2:]) & set(captions.VOCABULARY)
    close(first, trainer_nets.text(rows_of(320, 736, *[-5] * len(ids[2:]))))  # -5: no row has it
    assert second is not None and unknown_words(clip, "an aubergine circle") == ["an", "aubergine"]
    assert unknown_words(SimpleNamespace(tokenizer=object()), "an aubergine") == []


def test_every_token_has_its_own_row(demo):
    table = demo.clip.cond_stage_model.clip_l.transformer.get_input_embeddings()
    named = torch.tensor([t for t in captions.VOCABULARY if t >= 0])
    rows = table.rows(named)
    assert rows.tolist() == [captions.VOCABULARY.index(t) for t in named.tolist()]
    # by a remainder these would meet a known row; by the table they are unknown
    others = (named + len(captions.VOCABULARY))
    others = others[~torch.isin(others, named)]
    assert (table.rows(others) == 0).all() and (table.rows(torch.tensor([0, 191, 49405])) == 0).all()


def test_emphasis(core, demo):
    plain = encode(core, demo.clip, TEXT)[0][0]
    weighted = encode(core, demo.clip, TEXT.replace("red", "(red:1.5)"))[0][0]
    empty = encode(core, demo.clip, "")[0][0]
    at = 1 + captions.tokens_of(TEXT).index(736)
    expected = plain.clone()
    expected[0, at] = empty[0, at] + 1.5 * (plain[0, at] - empty[0, at])
    close(weighted, expected)
    assert (weighted - plain).abs().max() > 0.05


def test_long_prompts_are_chunked(core, demo, trainer_nets):
    cond = encode(core, demo.clip, " ".join(["red"] * 80))[0][0]
    assert cond.shape == (1, 154, 128)
    close(cond[:, :77], trainer_nets.text(rows_of(*[736] * 75)))
    close(cond[:, 77:], trainer_nets.text(rows_of(*[736] * 5)))


def test_textual_inversion(core, demo, folder, trainer_nets):
    table = trainer_nets.text.embeddings["token_embedding"].weight
    row = {t: i for i, t in enumerate(captions.VOCABULARY)}
    # the vectors of two known words: the embedding must read exactly as those words
    save_file({"emb_params": torch.stack([table[row[736]], table[row[7117]]]).clone()}, folder / "mine.safetensors")
    save_file({"emb_params": table[row[1746]][None].clone()}, folder / "bluish.safetensors")
    cond = encode(core, demo.clip, "a embedding:mine and a embedding:bluish embedding:mine")[0]
    expected = trainer_nets.text(rows_of(320, 736, 7117, 537, 320, 1746, 736, 7117))
    close(cond[0], expected)
    close(cond[1]["pooled_output"], expected[:, 9])
    after = encode(core, demo.clip, TEXT)[0][0]
    close(after, trainer_nets.text(rows_of(*captions.tokens_of(TEXT))))  # nothing is left behind


def test_textual_inversion_of_another_width_is_left_out(core, demo, folder, caplog):
    save_file({"emb_params": torch.randn(1, 768)}, folder / "wide.safetensors")
    with caplog.at_level(logging.WARNING):
        cond = encode(core, demo.clip, "a embedding:wide red circle")[0][0]
    assert torch.isfinite(cond).all() and "768" in caplog.text
    close(cond[:, :4], encode(core, demo.clip, "a red circle")[0][0][:, :4])


def test_what_the_engine_saves_loads_again(core, demo, folder, engine):
    with torch.inference_mode():
        state = demo.model.model.state_dict_for_saving(demo.clip.get_sd(), demo.vae.get_sd())
    engine.get("utils").save_torch_file(state, str(folder / "saved.safetensors"))
    assert load_file(folder / "saved.safetensors")[checkpoint.TOKEN_IDS].tolist() == captions.VOCABULARY
    again = load(core, "saved.safetensors")
    assert again.model.model.model_type == demo.model.model.model_type
    close(encode(core, again.clip, TEXT)[0][0], encode(core, demo.clip, TEXT)[0][0])


def test_vocabulary_is_checked(core, folder):
    from nulltext.nodes.bridge.family_text import text_target
    state = load_file(folder / "demo.safetensors")
    del state[checkpoint.TOKEN_IDS]
    save_file(state, folder / "wordless.safetensors")
    with pytest.raises(ValueError, match="no vocabulary"):
        load(core, "wordless.safetensors")
    for broken in ([-1, 49406, 49407, 320, 320], [320, 49406, 49407], [-1, 49406, 320]):
        with pytest.raises(ValueError, match="token_ids"):
            text_target(torch.tensor(broken))


# ------------------------------------------------------------------------------------- LoRA, ControlNet, sampling

def test_lora(core, demo, folder, trainer_nets):
    generator = torch.Generator().manual_seed(5)
    lora, deltas = {}, {}
    for name, part, key in (
            ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", "unet",
             "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v", "unet",
             "middle_block.1.transformer_blocks.0.attn1.to_v.weight"),
            ("lora_te_text_model_encoder_layers_1_mlp_fc1", "text", "encoder.layers.1.mlp.fc1.weight")):
        weight = getattr(trainer_nets, part).state_dict()[key]
        down = torch.randn(4, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], 4, generator=generator) * .05
        lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
        deltas[part, key] = up @ down * (2.0 / 4)
    save_file(lora, folder / "lora.safetensors")

    fresh = load(core, "demo.safetensors")
    with torch.inference_mode():
        model, clip = core.LoraLoader().load_lora(fresh.model, fresh.clip, "lora.safetensors", 0.7, 0.4)
    patched = {"unet": nets.UNet(), "text": nets.TextEncoder()}
    for part, net in patched.items():
        strength = 0.7 if part == "unet" else 0.4
        net.load_state_dict({k: v + strength * deltas[part, k] if (part, k) in deltas else v
                             for k, v in getattr(trainer_nets, part).state_dict().items()})
        net.requires_grad_(False)
    cond = encode(core, clip, TEXT)[0][0]
    # fp16 storage of the patched text weights (both engines keep the text encoder so) rounds them again
    rows = rows_of(*captions.tokens_of(TEXT))
    close(cond, patched["text"](rows), 3e-3)
    assert (patched["text"](rows) - trainer_nets.text(rows)).abs().max() > 0.05

    x, t = torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500.0])
    with torch.inference_mode():
        import comfy.model_management
        comfy.model_management.load_models_gpu([model])
        out = model.model.diffusion_model(x, t, context=cond)
        model.unpatch_model()
        restored = model.model.diffusion_model(x, t, context=cond)
    close(out, patched["unet"](x, t, cond))
    close(restored, trainer_nets.unet(x, t, cond))
    assert (out - restored).abs().max() > 0.05


def controlnet(unet, zero):
    """A ControlNet file: the encoder's weights, a hint stem, and zero convolutions (or, zero=False, open ones)."""
    generator = torch.Generator().manual_seed(9)
    state = {key: value.clone() for key, value in unet.state_dict().items()
             if key.startswith(("time_embed.", "input_blocks.", "middle_block."))}

    def conv(key, n_out, n_in, k):
        state[key + ".weight"] = torch.randn(n_out, n_in, k, k, generator=generator) * (n_in * k * k) ** -.5
        state[key + ".bias"] = torch.zeros(n_out)

    widths = [3, 16, 16, 32, 32, 96, 96, 256, 64]
    for i, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
        conv(f"input_hint_block.{2 * i}", n_out, n_in, 3)
    for i, width in enumerate((64, 64, 64, 128, 128, 128)):
        conv(f"zero_convs.{i}.0", width, width, 1)
    conv("middle_block_out.0", 128, 128, 1)
    if zero:
        for key in state:
            if key.startswith(("zero_convs", "middle_block_out")):
                state[key] = torch.zeros_like(state[key])
    return state


def test_controlnet(core, demo, folder, trainer_nets, caplog):
    positive, negative = encode(core, demo.clip, TEXT), encode(core, demo.clip, "")
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(4))
    out = {"none": sample(core, demo.model, positive, negative)}
    for name, zero in (("zero", True), ("open", False)):
        save_file(controlnet(trainer_nets.unet, zero), folder / f"control_{name}.safetensors")
        with torch.inference_mode(), caplog.at_level(logging.WARNING):
            net = core.ControlNetLoader().load_controlnet(f"control_{name}.safetensors")[0]
            conditioned = core.ControlNetApply().apply_controlnet(positive, net, image, 1.0)[0]
        assert "missing controlnet keys" not in caplog.text
        assert net.control_model.num_res_blocks == [1, 1, 1] and net.control_model.model_channels == 64
        out[name] = sample(core, demo.model, conditioned, negative)
    torch.testing.assert_close(out["zero"], out["none"], rtol=0, atol=1e-4 * float(out["none"].abs().max()))
    assert torch.isfinite(out["open"]).all()
    assert (out["open"] - out["none"]).abs().max() > 0.01 * out["none"].abs().max()


@pytest.mark.parametrize("sampler, scheduler", [("euler", "normal"), ("dpmpp_2m", "karras"), ("ddim", "ddim_uniform")])
def test_ksampler(core, demo, sampler, scheduler):
    positive, negative = encode(core, demo.clip, TEXT), encode(core, demo.clip, "")
    how = {"steps": 3, "sampler": sampler, "scheduler": scheduler}
    out = sample(core, demo.model, positive, negative, **how)
    other = sample(core, demo.model, encode(core, demo.clip, "a green star"), negative, **how)
    assert torch.isfinite(out).all() and (out - other).abs().max() > 0.01
    with torch.inference_mode():
        picture = core.VAEDecode().decode(demo.vae, {"samples": out})[0]
    assert picture.shape == (1, 128, 128, 3) and picture.min() >= 0 and picture.max() <= 1


def test_flow_models_run_from_sigma_one(core, demo, engine):
    """Two ways to a flow model: the tiny SD3 file, and the demo family under the core node ModelSamplingSD3."""
    import importlib

    from nulltext.samplers.core import FLOW
    try:
        advanced = importlib.import_module("comfy_extras.nodes.nodes_model_advanced")
    except ModuleNotFoundError:
        advanced = importlib.import_module("comfy_extras.nodes_model_advanced")
    positive, negative = encode(core, demo.clip, TEXT), encode(core, demo.clip, "")
    patched = advanced.ModelSamplingSD3().patch(demo.model, 3.0)[0]
    for model, channels, family in ((load(core, "flow.safetensors").model, 16, "SD3"), (patched, 4, "Demo")):
        assert type(model.model.model_config).__name__ == family
        assert engine.process_of(model) is FLOW and float(engine.sigmas_of(model, "normal", 3)[0]) == 1.0
        out = sample(core, model, positive, negative, channels=channels, steps=3)
        assert torch.isfinite(out).all()
        other = sample(core, model, encode(core, demo.clip, "a green star"), negative, channels=channels, steps=3)
        assert out.shape == (1, channels, 16, 16) and (out - other).abs().max() > 1e-3 * out.abs().max()


# ------------------------------------------------------------------------------------- the file

def test_checkpoint_refuses_what_cannot_load(tmp_path):
    net = {part: made().state_dict() for part, made in
           (("unet", nets.UNet), ("text", nets.TextEncoder), ("autoencoder", nets.AutoEncoder))}
    parts = net["unet"], net["text"], net["autoencoder"]
    with pytest.raises(ValueError, match="names 3 rows"):
        checkpoint.write_checkpoint(tmp_path / "x.safetensors", *parts, [-1, 49406, 49407], prediction="v")
    with pytest.raises(ValueError, match="'x0'"):
        checkpoint.write_checkpoint(tmp_path / "x.safetensors", *parts, captions.VOCABULARY, prediction="x0")
    assert not list(tmp_path.iterdir())


def test_read_part_returns_what_was_written(tmp_path):
    net = {"unet": nets.UNet(), "text": nets.TextEncoder(), "autoencoder": nets.AutoEncoder()}
    path = checkpoint.write_checkpoint(tmp_path / "x.safetensors", *(n.state_dict() for n in net.values()),
                                       captions.VOCABULARY, prediction="v", dtype=torch.float32,
                                       metadata={"samples": 7})
    for part, module in net.items():
        back = checkpoint.read_part(path, part)
        assert back.keys() == module.state_dict().keys()
        assert all(torch.equal(back[key], value) for key, value in module.state_dict().items())


def test_rgb_factors_are_found():
    generator = torch.Generator().manual_seed(0)
    latent, factors = torch.randn(3, 4, 5, 6, generator=generator), torch.randn(4, 3, generator=generator)
    pixels = torch.einsum("bchw,cr->brhw", latent, factors)
    images = (pixels.repeat_interleave(8, 2).repeat_interleave(8, 3) + 1) / 2
    torch.testing.assert_close(checkpoint.fit_rgb_factors(latent, images), factors, rtol=1e-4, atol=1e-5)
