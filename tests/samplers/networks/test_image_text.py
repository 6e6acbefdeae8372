"""The small image-text model: what its towers are given, and that padding is no word."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.networks.image_text import ImageText

WORDS = {word: i + 2 for i, word in enumerate(("a", "red", "blue", "circle", "square", ","))}
ENCODER = {"out": 8, "widths": (8, 16), "attention": (1,), "size": 8}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = ImageText(
        WORDS,
        {**ENCODER, "in_channels": 3},
        {"rows": 8, "out": 8, "width": 16, "length": 12},
        {**ENCODER, "in_channels": 4, "noise_aware": True},
        image_size=8,
    )
    for p in made.parameters():  # branches that begin at zero would hide what they are given
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return made.eval().requires_grad_(False)


def test_a_text_beside_a_longer_one_has_the_embedding_it_has_alone(model):
    both = model.embed_text(["red circle", "a red circle, a blue square"])
    torch.testing.assert_close(both[:1], model.embed_text(["red circle"]))
    assert torch.isfinite(model.embed_text([""])).all()  # an empty text is one padding token


def test_the_order_of_words_matters_and_unknown_words_share_a_row(model):
    a, b = model.embed_text(["a red circle, a blue square", "a blue circle, a red square"])
    assert (a - b).abs().max() > 1e-4
    torch.testing.assert_close(*model.embed_text(["a dog", "a horse"]))
    assert model.unknown("a red dog") == ["dog"]


def test_pictures_are_centred_and_brought_to_the_towers_size(model):
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.embed_image(image), model.image(2 * image - 1))
    large = image.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(model.embed_image(large), model.embed_image(image))
    for made, own in zip(model.image_features(image), model.image.features(2 * image - 1)):
        torch.testing.assert_close(made, own)


@pytest.mark.parametrize("process, sigma, scale", [(VE, 3.0, 0.1**0.5), (FLOW, 0.75, 1.6**0.5)])
def test_the_noisy_tower_sees_latents_of_unit_scale_at_their_noise_over_signal(model, process, sigma, scale):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model.embed_noisy(x, sigma, process), model.noisy(x * scale, 3.0))
    for made, own in zip(model.noisy_features(x, sigma, process), model.noisy.features(x * scale, 3.0)):
        torch.testing.assert_close(made, own)


def test_one_noisy_tower_serves_both_families(model):
    """A flow's x_s is (1 - s) times the noisy latent at sigma s / (1 - s)."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for s in (0.2, 0.9):
        other = model.embed_noisy(x / (1 - s), s / (1 - s), VE)
        torch.testing.assert_close(model.embed_noisy(x, s, FLOW), other, rtol=1e-4, atol=1e-5)
        assert (model.embed_noisy(x, s, VE) - other).abs().max() > 1e-3
    assert torch.isfinite(model.embed_noisy(x, 1.0, FLOW)).all()


def test_a_file_gives_it_back_and_a_model_without_a_noisy_tower_says_so(model):
    again = ImageText.build(model.state_dict(), model.metadata())
    torch.testing.assert_close(again.embed_text(["a red circle"]), model.embed_text(["a red circle"]))
    with pytest.raises(ValueError, match="not an image-text model"):
        ImageText.build(model.state_dict(), {"format": "pt"})
    bare = ImageText(WORDS, {**ENCODER, "in_channels": 3}, {"rows": 8, "out": 8, "width": 16}, image_size=8)
    with pytest.raises(ValueError, match="no noise-aware tower"):
        bare.embed_noisy(torch.zeros(1, 4, 8, 8), 1.0)
