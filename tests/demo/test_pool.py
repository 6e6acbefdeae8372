"""The pool of encoded scenes: what is in it, and that it is made once per autoencoder."""

import pytest
import torch
from nulltext.demo import pool, scenes
from nulltext.demo.autoencoder import SLIM_SIZE, AutoEncoder


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return AutoEncoder(SLIM_SIZE).eval().requires_grad_(False)


def generator():
    return torch.Generator().manual_seed(3)


def test_a_pool_is_made_once_per_autoencoder(autoencoder, tmp_path, monkeypatch):
    made = pool.make(50, autoencoder, generator(), tmp_path)
    drawn = []
    monkeypatch.setattr(scenes, "draw", lambda *args: drawn.append(args))
    again = pool.make(50, autoencoder, generator(), tmp_path)
    assert not drawn and torch.equal(made.latents, again.latents) and torch.equal(made.pictures, again.pictures)
    assert torch.equal(made.scenes.nuisance, again.scenes.nuisance)
    monkeypatch.undo()
    assert not torch.equal(pool.make(50, autoencoder, generator().manual_seed(4), tmp_path).pictures, made.pictures)
    autoencoder.taesd_encoder.get_parameter("0.bias").add_(1)
    other = pool.make(50, autoencoder, generator(), tmp_path)
    assert torch.equal(other.pictures, made.pictures) and not torch.equal(other.latents, made.latents)


def test_a_pool_holds_what_it_says(autoencoder, tmp_path):
    made = pool.make(50, autoencoder, generator(), tmp_path)
    assert len(made) == 50 and made.pictures.shape == (50, 3, 64, 64)
    assert int((made.scenes.count == 2).sum()) == 15 and int(scenes.unseen_pair(made.scenes).sum()) == 7
    picked = made[made.scenes.count == 2]
    image = scenes.draw(picked.scenes[:4])[0]
    with pool.precision(image.device):
        latents = autoencoder.encode(image).float()
    assert (picked.latents[:4] - latents).abs().max() < 0.05
    small = torch.nn.functional.adaptive_avg_pool2d(image, 64)
    assert (picked.pictures[:4] / 255 - small).abs().max() <= 0.5 / 255 + 1e-4
