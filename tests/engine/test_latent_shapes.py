"""LATENTs come into the model's own shape in one place, for every node alike."""

from types import SimpleNamespace

import pytest
import torch


def model(dimensions: int, channels: int = 16, **scales):
    form = SimpleNamespace(latent_channels=channels, latent_dimensions=dimensions, **scales)
    return SimpleNamespace(get_model_object=lambda name: form)


@pytest.fixture
def picture():
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)).half()


def test_a_picture_becomes_one_frame_where_the_model_has_frames(engine, picture):
    mask = torch.ones(1, 64, 64)
    made = engine.fitted(model(3), {"samples": picture, "noise_mask": mask})
    assert made["samples"].shape == (2, 16, 1, 8, 8) and made["noise_mask"] is mask
    assert made["samples"].dtype == picture.dtype and torch.equal(made["samples"][:, :, 0], picture)
    assert engine.check_latent(model(3), {"samples": picture}).shape == (2, 16, 1, 8, 8)


def test_what_fits_is_passed_on_as_it_is(engine, picture):
    for latent, dimensions in ((picture, 2), (picture.unsqueeze(2).repeat(1, 1, 3, 1, 1), 3)):
        given = {"samples": latent}
        assert engine.fitted(model(dimensions), given) is given


def test_an_empty_latent_gets_the_models_channels(engine):
    made = engine.fitted(model(3), {"samples": torch.zeros(2, 4, 8, 8)})["samples"]
    assert made.shape == (2, 16, 1, 8, 8) and not made.any()


def test_an_empty_latent_is_for_its_pixels_and_frames_in_the_models_cells(engine):
    """Newer engines' Empty Latent Image says 8 pixels a cell; FLUX.2 has 16, Wan 2.2 16 and 4 frames."""
    flux2, wan = model(2, 128, spacial_downscale_ratio=16), {"spacial_downscale_ratio": 16}
    empty = engine.empty_latent(2, 256, 512)
    assert empty["samples"].shape == (2, 4, 32, 64)
    made = engine.fitted(flux2, empty)
    assert made["samples"].shape == (2, 128, 16, 32) and engine.fitted(flux2, made) is made
    assert engine.picture_size(flux2, made["samples"]) == (256, 512)
    assert engine.picture_size(model(2), empty["samples"]) == (256, 512), "an engine that says nothing has 8"
    assert engine.fitted(model(2, 4), empty) is empty
    frames = {"samples": torch.zeros(1, 48, 3, 16, 16), "downscale_ratio_spacial": 32, "downscale_ratio_temporal": 8}
    made = engine.fitted(model(3, 48, temporal_downscale_ratio=4, **wan), frames)["samples"]
    assert made.shape == (1, 48, 6, 32, 32) and not made.any()
    assert engine.fitted(model(3, 48, temporal_downscale_ratio=4), {**empty})["samples"].shape == (2, 48, 1, 32, 64)
    full = {**empty, "samples": torch.ones(1, 128, 4, 4)}
    assert engine.fitted(flux2, full) is full, "a picture is what it is"


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 16, 2, 8, 8), (1, 16, 8)], ids=str)
def test_what_does_not_fit_is_refused(engine, shape):
    with pytest.raises(ValueError, match="this model works on 16 channels in 4 dimensions"):
        engine.fitted(model(2), {"samples": torch.ones(shape)})


def test_one_frame_is_an_image_and_several_are_none(engine, picture):
    assert torch.equal(engine.as_image(picture.unsqueeze(2)), picture) and engine.as_image(picture) is picture
    with pytest.raises(ValueError, match="3 frames: give it a latent of one frame"):
        engine.as_image(picture.unsqueeze(2).repeat(1, 1, 3, 1, 1))


def test_a_masked_edit_holds_every_frame_of_every_picture():
    """Two pictures of three frames with a mask each: right of it changes, left of it stays to the bit."""
    from nulltext.nodes.masked import MaskedEdit

    samples, masks = torch.randn(2, 16, 3, 8, 8), torch.zeros(2, 64, 64)
    masks[0, :, 32:], masks[1, 32:] = 1, 1
    edit = MaskedEdit(samples, masks)
    assert edit.grid.shape == (2, 1, 1, 8, 8)
    out = edit.put_back(samples + 1)
    assert torch.equal(out[0, ..., :4], samples[0, ..., :4]) and torch.equal(out[0, ..., 4:], samples[0, ..., 4:] + 1)
    assert torch.equal(out[1, ..., :4, :], samples[1, ..., :4, :])
    assert torch.equal(out[1, ..., 4:, :], samples[1, ..., 4:, :] + 1)


def test_a_decoder_of_frames_gives_the_picture_and_its_gradient(engine):
    """Qwen-Image's way: D without the axis of frames, a VAE that has it."""
    from nulltext.engine import terms

    class Frames(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(2.0))

        def decode(self, z):
            assert z.shape == (2, 16, 1, 8, 8)
            return self.gain * z[:, :3]

    form = SimpleNamespace(latent_channels=16, latent_dimensions=3, process_out=lambda x: x / 4)
    decode = terms.decoder(
        SimpleNamespace(get_model_object=lambda name: form),
        SimpleNamespace(
            latent_channels=16, first_stage_model=Frames(), patcher=SimpleNamespace(load_device=torch.device("cpu"))
        ),
    )
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    picture = decode(x)
    assert torch.allclose(picture, (x[:, :3] / 2 + 1) / 2)
    assert torch.autograd.grad(picture.sum(), x)[0].abs().sum() > 0


def test_a_map_of_frames_is_one_map(engine):
    """DiffEdit's difference over channels and frames: a frame more of the same changes nothing."""
    from nulltext.samplers.core import VE
    from nulltext.samplers.picture.diffedit import difference_map

    x = torch.randn(2, 4, 8, 8)
    pull = torch.randn(2, 4, 8, 8)

    def of(x0, change):
        return difference_map(
            lambda x, s: (x, x + change), x0, 2.0, process=VE, noise=lambda: torch.zeros_like(x0), maps=1
        )

    framed = of(*(t.unsqueeze(2).repeat(1, 1, 3, 1, 1) for t in (x, pull)))
    assert torch.allclose(of(x, pull), framed) and torch.allclose(framed, pull.abs().mean(1) / 2)


def test_a_gradient_passes_a_format_that_was_made_in_inference_mode(engine):
    """Wan's and Qwen-Image's mean and deviation are tensors of the loader's."""

    class Form:
        def __init__(self):
            self.deviation = torch.full((1, 16, 1, 1, 1), 2.0)

        def process_out(self, x):
            return x * self.deviation

    with torch.inference_mode():
        form = Form()
    x = torch.randn(1, 16, 1, 8, 8, requires_grad=True)
    out = engine.latent_out(SimpleNamespace(get_model_object=lambda name: form), x)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full_like(x, 2.0)) and form.deviation.is_inference()
