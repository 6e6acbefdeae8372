"""The image-text model: words by the trainer's path and from strings, files, and a few training steps."""

import pytest
import torch
from nulltext.demo import attributes, captions, image_text, scenes
from nulltext.demo.image_text import (
    IMAGE,
    NOISY,
    TEXT,
    WORDS,
    ClassCaptions,
    disturbed,
    info_nce,
    retrieval,
    training_rows,
    word_rows,
)
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.networks.image_text import ImageText
from safetensors import safe_open
from safetensors.torch import save_file


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ImageText(WORDS, IMAGE, TEXT, NOISY).eval()


def test_captions_as_rows_and_as_text_agree(model):
    batch = scenes.sample(300, generator())
    phrases, form = captions.phrases(batch, generator(1))
    rows, said = word_rows(phrases, form), model.rows(captions.text(phrases, form))
    assert set(form.tolist()) == {0, 1}
    assert torch.equal(rows[:, : said.shape[1]], said) and bool((rows[:, said.shape[1] :] == 1).all())


def test_training_captions_name_the_right_colour_and_shape(model):
    batch = scenes.sample(300, generator(), two=0)
    words = {v: k for k, v in WORDS.items()}
    spoken = [" ".join(words[i] for i in row if i > 1) for row in training_rows(batch, generator(2)).tolist()]
    lengths = sorted({len(s.split()) for s in spoken})
    assert lengths[0] <= 3 and lengths[-1] >= 9
    said = lambda name: (name, *captions.SYNONYMS.get(name, ()))  # noqa: E731
    for i, s in enumerate(spoken):
        colour, shape = scenes.COLOURS[batch.colour[i, 0]], scenes.SHAPES[batch.shape[i, 0]]
        nouns = {w for n in scenes.SHAPES for w in said(n)} & set(s.split())
        assert nouns <= set(said(shape)), s
        if nouns:
            front = s.split(" with ")[-1] if "background with" in s else s
            found = {w for n in scenes.COLOURS for w in said(n)} & set(front[: front.index(next(iter(nouns)))].split())
            assert found <= set(said(colour)), s


def test_unknown_and_empty_texts(model):
    assert model.unknown("a RED zebra, please") == ["zebra", "please"]
    out = model.embed_text(["", "zebra", "a red circle"])
    assert out.shape == (3, 128) and bool(torch.isfinite(out).all())
    torch.testing.assert_close(model.embed_text(["a red circle"])[0], out[2])  # padding changes nothing


def test_towers_take_any_size_and_levels(model):
    image = torch.rand(2, 3, 100, 80, generator=generator())
    assert model.embed_image(image).shape == (2, 128)
    assert tuple(f.shape[1] for f in model.image_features(image)) == IMAGE["widths"]
    x = torch.randn(2, 4, 16, 16, generator=generator())
    for process in (VE, FLOW):
        assert bool(torch.isfinite(model.embed_noisy(x, 0.5, process)).all())
    x.requires_grad_()
    assert torch.autograd.grad(model.embed_noisy(x, torch.tensor([0.5, 2.0])).pow(2).sum(), x)[0].abs().max() > 0


def test_a_file_gives_it_back_and_another_is_refused(model):
    state = {k: v.half() for k, v in model.state_dict().items()}
    again = ImageText.build(state, model.metadata())
    a, b = again.embed_text(["a blue ring"]), model.embed_text(["a blue ring"])
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
    assert sum(v.numel() for v in state.values()) * 2 < 5e6
    without = ImageText(WORDS, IMAGE, TEXT)
    with pytest.raises(ValueError, match="noise-aware"):
        without.embed_noisy(torch.zeros(1, 4, 16, 16), 1.0)
    with pytest.raises(ValueError, match="not an image-text model"):
        ImageText.build(state, {})


def test_retrieval_counts_colour_and_shape_apart(model):
    batch = scenes.sample(40, generator(), two=0)
    said = [
        f"a {scenes.COLOURS[c]} {scenes.SHAPES[(s + 1) % 6]}"
        for c, s in zip(batch.colour[:, 0].tolist(), batch.shape[:, 0].tolist(), strict=True)
    ]
    with torch.no_grad():
        assert retrieval(model.embed_text(said), model, batch) == {"colour": 1.0, "shape": 0.0, "pair": 0.0}


def test_the_caption_of_an_unseen_pair_is_no_negative(model):
    colour, shape = scenes.UNSEEN_PAIRS[0]
    batch = scenes.sample(6, generator(), two=0)
    assert not scenes.unseen_pair(batch).any()
    named = ClassCaptions(model)
    with torch.no_grad():
        pictures = model.embed_text([f"a {colour} {shape}"]).expand(6, -1)
        loss = named.loss(model, pictures, batch, torch.tensor(20.0))
        named.shown = torch.ones_like(named.shown)
        assert named.loss(model, pictures, batch, torch.tensor(20.0)) > loss + 0.1


def test_a_few_steps_learn():
    torch.manual_seed(0)
    net = ImageText(WORDS, IMAGE, TEXT)
    draws, losses = generator(5), []
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(10):
        batch = scenes.sample(12, draws, two=0)
        image = disturbed(scenes.draw(batch)[0], draws)
        assert image.shape == (12, 3, 64, 64) and float(image.min()) > -0.11
        loss = info_nce(net.embed_image(image), net.text(training_rows(batch, draws)), net.log_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_fresh_clone_trains_the_noise_aware_tower_too(tmp_path, monkeypatch):
    """The committed autoencoder is one: no folder of trainings is needed for it."""
    torch.manual_seed(0)
    trunk = attributes.Encoder(out=attributes.OUT, **attributes.TRUNK)
    save_file(trunk.state_dict(), tmp_path / "attributes.safetensors")
    monkeypatch.setattr(image_text.pool, "make", lambda *_: None)
    monkeypatch.setattr(attributes, "start_pictures", lambda *_: 1.0)
    monkeypatch.setattr(image_text, "train_towers", lambda model, *_: model)
    monkeypatch.setattr(image_text, "train_noisy", lambda model, autoencoder, *_: model.noisy)
    sample = image_text.scenes.sample
    monkeypatch.setattr(image_text.scenes, "sample", lambda n, *rest, **more: sample(min(n, 8), *rest, **more))
    arguments = ["--device", "cpu", "--state", str(tmp_path), "--out", str(tmp_path / "out.safetensors")]
    monkeypatch.setattr("sys.argv", ["image_text", *arguments])
    image_text.main()
    with safe_open(tmp_path / "out.safetensors", "pt") as made:
        assert any(key.startswith("noisy.") for key in made.keys())  # noqa: SIM118
