"""Pictures as a training set: encoded alike in every run, masks on the latents' own grid."""

import os

import pytest
import torch
from nulltext.engine import tuning_set
from nulltext.samplers import record_file
from PIL import Image


class Drawing:
    """A VAE that draws from what it encodes to, as Stable Diffusion's does; frames: with an axis of frames."""

    device = torch.device("cpu")

    def __init__(self, frames=False):
        self.frames = frames

    def encode(self, pixels):
        mean = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)
        out = mean + torch.randn(mean.shape)
        return out[:, :, None] if self.frames else out


def made(vae, masks=None):
    found = [(f"picture {i}", Image.new("RGB", (64, 64), (40 * i, 0, 0)), None) for i in range(2)]
    return tuning_set.build(vae, found, ["a dog"], masks)


def test_a_vae_that_draws_gives_the_same_latents_again_and_each_picture_its_own_noise():
    torch.manual_seed(1)
    first = made(Drawing())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = made(Drawing())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.latents, second.latents))
    noises = [z - z.mean() for z in first.latents]
    assert not torch.allclose(*noises, atol=0.1)


def test_masks_of_latents_with_frames_train(make_model):
    masks = torch.zeros(1, 64, 64)
    masks[:, :32] = 1
    flat, frames = made(Drawing(), masks), made(Drawing(frames=True), masks)
    assert flat.masks[0].shape == (1, 8, 8) and frames.masks[0].shape == (1, 1, 8, 8)
    assert torch.equal(flat.masks[0], frames.masks[0][:, 0])
    batch = frames.examples(make_model()).batch(torch.tensor([0, 1]), torch.ones(2), torch.zeros(2, 4, 1, 8, 8))
    assert batch.mask.shape == (2, 1, 1, 8, 8) and batch.x0.shape == (2, 4, 1, 8, 8)


def test_hints_and_masks_of_other_proportions_than_their_pictures_are_refused():
    """A wide picture was cut to 96 x 64, as the bucket of its proportions is; a square hint shows other places."""
    wide = tuning_set.TuningSet((torch.zeros(4, 8, 12),), ("a dog",), (None,), ("picture 1",))
    for height, width in ((64, 96), (100, 150), (64, 90)):
        assert tuning_set.hints_for(wide, torch.ones(1, height, width, 3))[0].shape == (3, 64, 96)
    with pytest.raises(ValueError, match="Hint 1 has 64 x 64 pixels and its picture is cut to 96 x 64: .* one IMAGE"):
        tuning_set.hints_for(wide, torch.ones(1, 64, 64, 3))
    with pytest.raises(ValueError, match="mask of picture 0 has 96 x 64 pixels"):
        made(Drawing(), torch.ones(1, 64, 96))


def test_a_hint_of_its_pictures_size_stays_as_it_is():
    pictures = tuning_set.TuningSet((torch.zeros(4, 8, 12),), ("a dog",))
    hint = torch.randint(256, (1, 64, 96, 3)) / 255
    assert torch.equal(tuning_set.hints_for(pictures, hint)[0], hint[0].movedim(-1, 0))


@pytest.mark.parametrize("size", [32, 64, 128, 512, 1024])
def test_a_hint_of_its_pictures_proportions_is_always_taken(size):
    for width in range(200, 1800, 7):
        side = tuning_set.bucket(width, 600, size)
        picture = tuning_set.TuningSet((torch.zeros(4, side[1] // 8, side[0] // 8),), ("a dog",))
        hint = torch.ones(1, 60, width // 10, 3)
        assert tuning_set.hints_for(picture, hint)[0].shape == (3, side[1], side[0])


@pytest.mark.parametrize(
    ("caption", "word"),
    [
        ("a photo of SKS.", "sks"),
        ("a photo of (sks:1.1)", "sks"),
        ('a photo of "sks" dog', "sks"),
        ("a sks-dog", "sks"),
        ("a sks  dog, asleep", "sks dog"),
    ],
)
def test_a_word_stands_in_a_caption_beside_signs_too(caption, word):
    taught = tuning_set.TuningSet((torch.zeros(4, 8, 8),), (caption,))
    taught.check_word(word)
    assert taught.with_word(word, "embedding:a").captions != taught.captions
    for lacks in ("sk", "ks", "dog sks"):
        with pytest.raises(ValueError, match="lacks the word"):
            taught.check_word(lacks)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 16, 1, 8, 8)])
def test_class_pictures_are_found_again_with_frames_too_and_count_as_used(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_set, "cache_folder", lambda kind: tmp_path)
    drawn = torch.randn(shape)
    tuning_set.keep_prior("a", drawn)
    (path,) = tmp_path.iterdir()
    os.utime(path, (1, 1))
    assert torch.equal(tuning_set.find_prior("a"), drawn) and path.stat().st_mtime > 1


def test_class_pictures_that_cannot_be_opened_now_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_set, "cache_folder", lambda kind: tmp_path)
    tuning_set.keep_prior("a", torch.ones(1, 4, 8, 8))

    def locked(*args, **options):
        raise PermissionError(5, "Access is denied")

    with monkeypatch.context() as patched:
        patched.setattr(record_file, "safe_open", locked)
        assert tuning_set.find_prior("a") is None
    assert tuning_set.find_prior("a") is not None


def test_class_pictures_make_room_for_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_set, "cache_folder", lambda kind: tmp_path)
    for i, key in enumerate("abc"):
        tuning_set.keep_prior(key, torch.zeros(2, 4, 8, 8), limit=5000)
        os.utime(tmp_path / f"prior_{key}.safetensors", (i, i))
    assert {path.stem for path in tmp_path.iterdir()} == {"prior_b", "prior_c"}


def test_only_the_whole_word_is_exchanged():
    taken = tuning_set.exchanged("SKS, asks a,sks-dog for (sks:1.1) and sks", "sks", "embedding:a\\1")
    assert taken == "embedding:a\\1, asks a, embedding:a\\1 -dog for ( embedding:a\\1 :1.1) and embedding:a\\1"
