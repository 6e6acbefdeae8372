"""h on the demo family: the middle block's output at 4 x 4, after a ControlNet's part of it; a transformer has none."""

import pytest
import torch
from nulltext.engine import h_space
from nulltext.engine.run import sample_with
from safetensors.torch import save_file


def test_h_is_read_after_a_controlnets_middle(core, demo, engine, folder, trainer_nets, controlnet):
    save_file(controlnet(trainer_nets.unet, False), folder / "h_control.safetensors")
    sigmas, latent, middle = engine.sigmas_of(demo.model, "normal", 3), torch.randn(1, 4, 16, 16), []
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(4))
    plain = core.encode(demo.clip, "a green star")
    with torch.inference_mode():
        net = core.nodes["ControlNetLoader"]().load_controlnet("h_control.safetensors")[0]
        hinted = core.nodes["ControlNetApply"]().apply_controlnet(plain, net, image, 1.0)[0]

    def read(positive):
        hook = demo.model.model.diffusion_model.middle_block[-1].register_forward_hook(
            lambda m, i, out: middle.append(out.clone())
        )
        try:
            with torch.inference_mode():
                return sample_with(
                    demo.model,
                    {"positive": positive},
                    latent,
                    sigmas,
                    lambda run: h_space.read(run, h_space.Site(), 5 * run.latent, sigmas[1])[0],
                )
        finally:
            hook.remove()

    bare = read(plain)
    assert bare.shape == (1, 128, 4, 4) and torch.equal(bare, middle[-1])
    controlled = read(hinted)
    assert not torch.allclose(controlled, middle[-1], rtol=1e-3)  # the control's middle has been added


def test_a_transformer_is_refused_in_one_sentence(core, engine):
    loaded = core.load("flow.safetensors")
    with pytest.raises(ValueError, match="transformer"):
        h_space.check_site(loaded.model, 0)
