"""The committed classifiers and image-text model do what their metadata says, on held-out scenes."""

import torch
from nulltext.demo import classifiers, scenes
from nulltext.demo import model as demo_model
from nulltext.demo.autoencoder import narrow
from nulltext.demo.image_text import pair_accuracy
from nulltext.demo.robust_image_text import SHIPPED, agreement
from nulltext.engine.classifiers import load_image_classifier, load_latent_classifier
from nulltext.engine.files import MODELS
from nulltext.engine.image_text import load_image_text
from safetensors import safe_open


def some(n=96, split="held_out"):
    return scenes.sample(n, torch.Generator().manual_seed(77), split, two=0)


def test_pair_names_follow_the_index():
    batch = some(40)
    for i, name in enumerate(classifiers.pair_index(batch).tolist()):
        colour, shape = scenes.COLOURS[batch.colour[i, 0]], scenes.SHAPES[batch.shape[i, 0]]
        assert classifiers.PAIR_NAMES[name] == f"{colour} {shape}"


def test_the_picture_classifier_sees_colours():
    made = load_image_classifier(classifiers.COLOURS)
    batch = some()
    assert made.labels == list(scenes.COLOURS)
    with torch.no_grad():
        right = (made(scenes.draw(batch)[0]).argmax(1) == batch.colour[:, 0]).float().mean()
    assert right > 0.95
    with safe_open(classifiers.COLOURS, "pt") as f:
        assert abs(float(f.metadata()["accuracy_held_out"]) - right) < 0.06


def test_the_image_text_model_is_as_good_as_it_says():
    path = MODELS / "nulltext_image_text.safetensors"
    made = load_image_text(path)
    assert path.stat().st_size <= 5e6 and made.noisy is not None
    batch = some()
    with torch.no_grad():
        share = pair_accuracy(made.embed_image(scenes.draw(batch)[0]), made, batch)
    with safe_open(path, "pt") as f:
        claimed = float(f.metadata()["pair_accuracy"])
    assert share > 0.6 and abs(share - claimed) < 0.15


def test_attacks_move_the_robust_image_tower_less():
    path = MODELS / "nulltext_image_text_robust.safetensors"
    with safe_open(path, "pt") as f:
        claimed = f.metadata()
    shipped, robust = load_image_text(SHIPPED), load_image_text(path)
    epsilon = float(claimed["epsilon"])
    before, after = (agreement(made.image, shipped, epsilon, 32) for made in (shipped, robust))
    assert path.stat().st_size <= 2.5e6 and robust.words == shipped.words and robust.noisy is None
    assert before < 0.6 and after > 0.8 and abs(after - float(claimed["agreement_attacked"])) < 0.05
    with torch.no_grad():
        share = pair_accuracy(robust.embed_image(scenes.draw(some())[0]), robust, some())
    assert share > 0.6 and abs(share - float(claimed["pair_accuracy"])) < 0.15


def test_the_noisy_nets_see_pairs_through_little_noise():
    """Both on latents of the committed autoencoder: right far above the 1 in 48 of chance, less so in more noise."""
    made, tower = (
        load(MODELS / name)
        for load, name in (
            (load_latent_classifier, classifiers.PAIRS.name),
            (load_image_text, "nulltext_image_text.safetensors"),
        )
    )
    batch = some()
    with torch.no_grad():
        x0 = narrow(demo_model.load()[1].state_dict()).encode(scenes.draw(batch)[0])  # the same numbers, sooner
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        shares = {
            s: [
                float((made(x0 + s * noise, s).argmax(1) == classifiers.pair_index(batch)).float().mean()),
                pair_accuracy(tower.embed_noisy(x0 + s * noise, s), tower, batch),
            ]
            for s in (0.1, 2.0)
        }
    with safe_open(classifiers.PAIRS, "pt") as f:
        assert abs(float(f.metadata()["accuracy_sigma_0.1"]) - shares[0.1][0]) < 0.15
    for low, high in zip(shares[0.1], shares[2.0], strict=True):
        assert low > 0.4 and low > high + 0.1
