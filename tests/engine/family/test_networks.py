"""What ComfyUI's modules compute from the file is what the trainer's own (demo/) compute."""

import torch
from nulltext.demo import captions, nets, weights
from nulltext.tests import stand_ins
from safetensors.torch import load_file, save_file

TEXT = "a photo of a small red circle on the left , striped blue background"


def test_unet_computes_what_the_trainer_computes(core, demo, trainer_nets):
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 128, generator=generator)
    t = torch.tensor([3.0, 870.0])
    with torch.inference_mode():
        theirs = demo.model.model.diffusion_model(x, t, context=context)
        ours = trainer_nets.unet(x, t, context)
    assert ours.std() > 0.1  # weights at zero would agree about anything
    core.close(theirs, ours)


def test_denoised_is_the_trainers_v_prediction(core, demo, trainer_nets):
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 16, 16, generator=generator) * 9, torch.randn(1, 77, 128, generator=generator)
    sigma = nets.sigmas()[[640]]
    a = (1 + sigma**2).rsqrt()
    with torch.inference_mode():
        theirs = demo.model.model.apply_model(x, sigma, c_crossattn=context)
        ours = a * a * x - sigma * a * trainer_nets.unet(a * x, torch.tensor([640.0]), context)
    core.close(theirs, ours)


def test_sigmas_are_the_trainers(demo):
    sampling = demo.model.get_model_object("model_sampling")
    torch.testing.assert_close(sampling.sigmas, nets.sigmas(), rtol=1e-5, atol=0)
    assert 60 < float(sampling.sigma_max) < 70


def test_text_encoder_computes_what_the_trainer_computes(core, demo, trainer_nets):
    cond, extra = core.encode(demo.clip, TEXT)[0]
    rows = core.rows_of(*captions.tokens_of(TEXT))
    assert (rows != 0).all()
    expected = trainer_nets.text(rows)
    core.close(cond, expected)
    end = 1 + len(captions.tokens_of(TEXT))
    core.close(extra["pooled_output"], expected[:, end])


def test_autoencoder_computes_what_the_trainer_computes(core, demo, trainer_nets):
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        latent = core.nodes["VAEEncode"]().encode(demo.vae, image)[0]
        decoded = core.nodes["VAEDecode"]().decode(demo.vae, latent)[0]
        space = demo.model.get_model_object("latent_format").process_in(latent["samples"])
    ours = trainer_nets.autoencoder.encode(image.movedim(-1, 1))
    core.close(space, ours)
    core.close(decoded, trainer_nets.autoencoder.decode(ours).clamp(0, 1).movedim(1, -1))


def test_eps_files_are_eps(core, folder, engine):
    stand_ins.random_checkpoint(folder / "eps.safetensors", prediction="eps")
    kinds = engine.get("model_base").ModelType
    assert core.load("eps.safetensors").model.model.model_type == kinds.EPS
    assert core.load("demo.safetensors").model.model.model_type == kinds.V_PREDICTION


def test_preview_factors_travel_with_the_file(core, folder, demo):
    fmt = demo.model.get_model_object("latent_format")
    assert fmt.scale_factor == weights.SCALE and fmt.taesd_decoder_name is None and fmt.latent_rgb_factors is None
    state = load_file(folder / "demo.safetensors")
    state["latent_rgb_factors"] = torch.arange(12.0).reshape(4, 3)
    save_file(state, folder / "preview.safetensors")
    fmt = core.load("preview.safetensors").model.get_model_object("latent_format")
    assert fmt.latent_rgb_factors == torch.arange(12.0).reshape(4, 3).tolist()
    assert demo.model.get_model_object("latent_format").latent_rgb_factors is None
