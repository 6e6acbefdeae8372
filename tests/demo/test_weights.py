"""The demo model's file: what is written is read back, what can't load is refused."""

import pytest
import torch
from nulltext.demo import captions, nets, packing, weights
from nulltext.demo.autoencoder import AutoEncoder
from nulltext.demo.text_encoder import TextEncoder


def test_checkpoint_refuses_what_cannot_load(tmp_path):
    net = {
        part: made().state_dict()
        for part, made in (("unet", nets.UNet), ("text", TextEncoder), ("autoencoder", AutoEncoder))
    }
    parts = net["unet"], net["text"], net["autoencoder"]
    with pytest.raises(ValueError, match="names 3 rows"):
        weights.write_checkpoint(tmp_path / "x.safetensors", *parts, [-1, 49406, 49407], prediction="v")
    with pytest.raises(ValueError, match="'x0'"):
        weights.write_checkpoint(tmp_path / "x.safetensors", *parts, captions.VOCABULARY, prediction="x0")
    assert not list(tmp_path.iterdir())


def test_read_part_returns_what_was_written(tmp_path):
    net = {"unet": nets.UNet(), "text": TextEncoder(), "autoencoder": AutoEncoder()}
    path = weights.write_checkpoint(
        tmp_path / "x.safetensors",
        *(n.state_dict() for n in net.values()),
        captions.VOCABULARY,
        prediction="v",
        dtype=torch.float32,
        metadata={"samples": 7},
    )
    for part, module in net.items():
        back = weights.read_part(path, part)
        assert back.keys() == module.state_dict().keys()
        assert all(torch.equal(back[key], value) for key, value in module.state_dict().items())


def test_a_rare_word_of_the_committed_checkpoint_is_as_neutral_as_an_unknown_one_and_still_its_own():
    table = weights.read_part(weights.CHECKPOINT, "text")["embeddings.token_embedding.weight"].float()
    unknown, rare = table[0], table[-len(captions.RARE) :]
    assert captions.VOCABULARY[-len(captions.RARE) :] == list(captions.RARE.values()) and len(captions.RARE) == 3
    away = (rare - unknown).norm(dim=1) / unknown.norm()
    torch.testing.assert_close(away, torch.full((3,), packing.RARE_STRENGTH), rtol=1e-2, atol=0)
    known = table[3 : captions.VOCABULARY.index(-1, 3)]  # after the unknown word and the two ends
    assert torch.cdist(rare, known).min() > torch.cdist(rare, unknown[None]).max()
    apart = torch.cdist(rare, rare) + torch.eye(3) * unknown.norm()
    assert apart.min() > 0.4 * unknown.norm()


def test_rgb_factors_are_found():
    generator = torch.Generator().manual_seed(0)
    latent, factors = torch.randn(3, 4, 5, 6, generator=generator), torch.randn(4, 3, generator=generator)
    pixels = torch.einsum("bchw,cr->brhw", latent, factors)
    images = (pixels.repeat_interleave(8, 2).repeat_interleave(8, 3) + 1) / 2
    torch.testing.assert_close(weights.fit_rgb_factors(latent, images), factors, rtol=1e-4, atol=1e-5)
