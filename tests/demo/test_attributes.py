"""Attributes read all at once: the loss counts what it should, and the trunk hands on what it learned."""

import pytest
import torch
from nulltext.demo import attributes, pool, scenes
from nulltext.demo.classifiers import PAIR_NAMES
from nulltext.samplers.networks.encoder import Encoder
from safetensors.torch import save_file


def batch(n=40, two=0.5):
    return scenes.sample(n, torch.Generator().manual_seed(5), two=two)


def sure(made):
    """Logits [B, OUT] that are sure of the truth."""
    return torch.cat(
        [
            30.0 * torch.nn.functional.one_hot(attributes.truth(made, name), len(values))
            for name, values in attributes.HEADS.items()
        ],
        1,
    )


def test_the_loss_counts_objects_of_one_object_scenes_only():
    made = batch()
    out = sure(made)
    assert 0 < int((made.count == 2).sum()) < len(made) and attributes.loss(out, made) < 1e-3
    at = [i for i, name in enumerate(attributes.HEADS) if name == "shape"][0]
    wrong = attributes.split(out)["shape"].roll(1, 1)
    for count, least in ((1, 20.0), (2, 0.0)):
        rows = made.count == count
        parts = [
            torch.where(rows[:, None], wrong, v) if i == at else v for i, v in enumerate(attributes.split(out).values())
        ]
        loss = attributes.loss(torch.cat(parts, 1), made) / attributes.WEIGHTS["shape"]
        assert least <= loss <= least + 11


def test_a_pair_begins_as_colour_plus_shape():
    torch.manual_seed(0)
    trunk = Encoder(out=attributes.OUT, **attributes.TRUNK)
    weight, bias = attributes.pair_head(trunk)
    x = torch.randn(3, trunk.pool.out.in_features)
    told = attributes.split(trunk.pool.out(x))
    pairs = x @ weight.T + bias
    for i, name in enumerate(PAIR_NAMES):
        colour, shape = name.split()
        want = told["colour"][:, scenes.COLOURS.index(colour)] + told["shape"][:, scenes.SHAPES.index(shape)]
        torch.testing.assert_close(pairs[:, i], want)


def test_a_network_starts_from_the_trunk(tmp_path):
    torch.manual_seed(0)
    trunk, net = Encoder(out=attributes.OUT, **attributes.TRUNK), Encoder(out=7, **attributes.TRUNK)
    with pytest.raises(SystemExit, match="tools attributes"):
        attributes.started(net, tmp_path)
    save_file(trunk.state_dict(), tmp_path / "attributes.safetensors")
    last = net.pool.out.weight.clone()
    attributes.started(net, tmp_path)
    x = torch.randn(2, 4, 16, 16)
    for a, b in zip(net.features(x, 0.5), trunk.features(x, 0.5), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(net.pool.out.weight, last)
    assert torch.equal(attributes.trained(tmp_path)(x, 0.5), trunk(x, 0.5))


def test_an_encoder_of_pictures_begins_as_the_trunk():
    """Where latents are a linear function of the picture the stem's fit is exact, and so is all above it."""
    torch.manual_seed(0)
    trunk = Encoder(out=attributes.OUT, **attributes.TRUNK)
    for p in trunk.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    net = Encoder(out=7, **attributes.TRUNK | {"in_channels": 3, "size": 64, "stem_stride": 4, "noise_aware": False})
    pictures = torch.randint(0, 256, (300, 3, 64, 64), dtype=torch.uint8)
    low = torch.nn.functional.avg_pool2d(pictures / 127.5 - 1, 4)
    latents = torch.cat([low, low.mean(1, keepdim=True)], 1)
    trunk.stem.weight.data[..., 0, :] = trunk.stem.weight.data[..., 2, :] = 0  # the stem of pictures sees 9 pixels
    trunk.stem.weight.data[..., 0] = trunk.stem.weight.data[..., 2] = 0
    made = pool.Pool(latents, pictures, scenes.sample(300, torch.Generator().manual_seed(1)))
    assert attributes.start_pictures(net, trunk, made) > 0.99
    for a, b in zip(net.features(pictures[:2] / 127.5 - 1), trunk.features(latents[:2], 0.03), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * float(b.std()))
