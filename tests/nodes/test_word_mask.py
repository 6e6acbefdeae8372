"""Word Mask: the model's attention on a picture that is not sampled, and what is refused."""

from __future__ import annotations

import pytest
import torch
from nulltext.tests.running import CLIP, Pixels, run

TEXT = "a red cat on grass"


@pytest.fixture
def mask(tiny, prompt, monkeypatch):
    from nulltext.nodes import word_mask

    monkeypatch.setattr(word_mask, "worded", lambda clip, text: prompt(text))

    def made(**inputs):
        photo = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        given = {"model": tiny, "clip": CLIP, "vae": Pixels(), "prompt": TEXT, "words": "cat", "image": photo, **inputs}
        return run("WordMask", **given)

    return made


def test_a_mask_for_each_picture_and_a_heat_map(mask):
    out = mask()
    found, over = out
    assert found.shape == (2, 64, 64) and over.shape == (2, 64, 64, 3)
    assert 0 < float(found.mean()) < 1 and "5 network calls" in out.text
    assert torch.equal(found, mask()[0]), "the same seed looks at the same noise"
    assert float(mask(threshold=0.8)[0].mean()) < float(found.mean())


def test_the_mask_has_the_decoded_pictures_size(mask):
    """FLUX.2's latent cells are of 16 pixels."""

    class Coarse(Pixels):
        def decode(self, samples):
            return super().decode(samples).repeat_interleave(2, 1).repeat_interleave(2, 2)

    found, over = mask(vae=Coarse())
    assert found.shape == (2, 128, 128) and over.shape == (2, 128, 128, 3)


def test_other_words_look_elsewhere_and_several_count_together(mask):
    cat, grass = mask()[0], mask(words="grass")[0]
    assert not torch.equal(cat, grass)
    assert not torch.equal(cat, mask(words="cat, grass")[0])


def test_a_latent_stands_in_for_the_picture(mask):
    photo = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask()[0], mask(image=None, latent={"samples": Pixels().encode(photo)})[0])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({"words": " "}, "click one"), ({"words": "dog"}, '"dog" is not in the prompt'), ({"image": None}, "no picture")],
)
def test_what_is_missing_is_said_before_any_work(mask, idle, inputs, words):
    with pytest.raises(ValueError, match=words):
        mask(model=idle, **inputs)
