"""The shipped ControlNet: the object stands where its mask says, and the judge of colours is right on drawn scenes."""

import pytest
import torch
from nulltext.demo import captions, control, scenes
from nulltext.demo.train_autoencoder import load_autoencoder

GENERATOR = 91


@pytest.fixture(scope="module")
def truth():
    drawn = scenes.sample(64, torch.Generator().manual_seed(GENERATOR), "held_out", two=0.0)
    return drawn[drawn.colour[:, 0] != drawn.background][:8]


def overlap(images, masks, truth):
    return float(control.object_iou(images, masks, truth.colour[:, 0], truth.background).mean())


def test_the_judge_finds_drawn_objects_and_not_elsewhere(truth):
    image, masks = scenes.draw(truth)
    assert overlap(image, masks, truth) > 0.9
    assert overlap(image, masks.flip(-1).flip(-2), truth) < 0.5


@torch.no_grad()
def test_the_object_follows_its_mask(truth):
    net, masks = control.locked(), scenes.draw(truth)[1]
    autoencoder = load_autoencoder(torch.device("cpu"))
    led, rows = control.load(net.unet), captions.token_rows(*control.sparing(truth))[0]
    with_hint, without = (
        control.generate(net, autoencoder, led, rows, control.hint_of(masks), 8, 5.0, 3, strength)
        for strength in (1.0, 0.0)
    )
    assert overlap(with_hint, masks, truth) > 0.55 > 0.35 > overlap(without, masks, truth)


def test_sparing_captions_say_neither_place_nor_size(truth):
    said = " ".join(captions.text(*control.sparing(truth)))
    assert not any(word in said for word in ("left", "right", "top", "bottom", "middle", *scenes.SIZES))
    assert all(scenes.COLOURS[int(c)] in said for c in truth.colour[:, 0])


def test_training_rows_are_often_empty():
    some = scenes.sample(200, torch.Generator().manual_seed(1))
    rows = control.control_rows(some, torch.Generator().manual_seed(2))
    assert 70 < int((rows[:, 1] == 2).sum()) < 130


def test_the_file_is_small():
    assert control.FILE.stat().st_size < 3e6
