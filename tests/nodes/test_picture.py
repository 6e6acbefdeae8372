"""Load Picture: the pack's samples beside the input folder, sizes, transparency, what it refuses."""

from __future__ import annotations

import pytest
import torch
from nulltext.tests.running import run
from PIL import Image, ImageDraw

SCENE = "demo_scene.png [sample]"


@pytest.fixture
def inputs(engine):
    """ComfyUI's input folder, emptied afterwards."""
    from nulltext.engine.folders import folder

    root = folder("input")
    root.mkdir(parents=True, exist_ok=True)
    before = set(root.iterdir())
    yield root
    for path in set(root.iterdir()) - before:
        path.unlink()


def test_samples_are_offered_behind_the_users_own_pictures_and_copied_nowhere(inputs):
    from nulltext.engine import samples

    Image.new("RGB", (8, 8), "red").save(inputs / "zebra.png")
    (inputs / "notes.txt").write_text("no picture")
    listed = samples.listed()
    assert listed == ["zebra.png", *samples.samples()] and SCENE in listed
    before = sorted(inputs.iterdir())
    image = run("LoadPicture", image=SCENE, size=0)[0]
    assert image.shape == (1, 128, 128, 3) and 0 <= float(image.min()) < float(image.max()) <= 1
    assert sorted(inputs.iterdir()) == before


def test_the_users_picture_is_read_by_its_name_even_if_a_sample_has_it_too(inputs):
    Image.new("RGB", (24, 16), (255, 0, 0)).save(inputs / "demo_scene.png")
    image, mask = run("LoadPicture", image="demo_scene.png", size=0)
    assert image.shape == (1, 16, 24, 3) and torch.equal(image[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert not mask.any()
    assert run("LoadPicture", image=SCENE, size=0)[0].shape == (1, 128, 128, 3)


def test_transparency_is_the_mask(inputs):
    picture = Image.new("RGBA", (16, 16), (0, 255, 0, 255))
    picture.paste((0, 255, 0, 0), (0, 0, 8, 16))
    picture.save(inputs / "clear.png")
    _, mask = run("LoadPicture", image="clear.png", size=0)
    assert mask.shape == (1, 16, 16) and mask[0, :, :8].eq(1).all() and mask[0, :, 8:].eq(0).all()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (120, 480), (128, 128)])
def test_a_size_keeps_the_shape_in_whole_latent_cells(inputs, width, height):
    Image.new("RGB", (width, height), "blue").save(inputs / "wide.png")
    image, mask = run("LoadPicture", image="wide.png", size=128)
    h, w = image.shape[1:3]
    assert h % 8 == w % 8 == 0 and mask.shape == (1, h, w)
    assert w * h == pytest.approx(128 * 128, rel=0.1) and w / h == pytest.approx(width / height, rel=0.1)


@pytest.mark.parametrize("width, height", [(96, 160), (160, 96)])
def test_a_size_cuts_what_is_over_and_stretches_nothing(inputs, width, height):
    """A round disc stays round, a mask stays on its picture: 128 px of 3:5 are 96 x 168."""
    picture = Image.new("RGBA", (4 * width, 4 * height), (0, 0, 0, 255))
    ImageDraw.Draw(picture).ellipse(
        [(2 * n) - 100 for n in (width, height)] + [2 * n + 100 for n in (width, height)], 0
    )
    picture.save(inputs / "disc.png")
    image, mask = run("LoadPicture", image="disc.png", size=128)[:2]
    assert image.shape[1:3] == mask.shape[1:] == tuple(168 if n == 160 else n for n in (height, width))
    across, down = (float((mask > 0.5).any(axis)[0].sum()) for axis in (1, 2))
    assert abs(across - down) <= 1


def test_what_is_not_there_is_refused_before_a_run(inputs):
    from nulltext.nodes.picture import LoadPicture

    assert LoadPicture.VALIDATE_INPUTS(SCENE) is True
    for name, said in {
        "gone.png": "upload it",
        "gone.png [sample]": "demo_scene.png",
        "../secret.png": "without '..'",
        "x [output]": "output folder",
    }.items():
        assert said in LoadPicture.VALIDATE_INPUTS(name), name
    (inputs / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="can't be read"):
        run("LoadPicture", image="text.png", size=0)


def test_a_changed_file_is_loaded_anew(inputs):
    from nulltext.nodes.picture import LoadPicture

    marks = []
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(inputs / "mine.png")
        marks.append(LoadPicture.IS_CHANGED("mine.png", size=0))
    assert marks[0] != marks[1] == LoadPicture.IS_CHANGED("mine.png")


def test_a_folder_of_the_pack_stands_in_where_the_user_has_none(inputs):
    from nulltext.engine.samples import FOLDER, folder_path

    assert folder_path("classes") == FOLDER / "classes"
    (inputs / "classes").mkdir()
    try:
        assert folder_path("classes") == inputs / "classes"
    finally:
        (inputs / "classes").rmdir()
    assert folder_path("nothing") == inputs / "nothing"
    with pytest.raises(ValueError, match="without"):
        folder_path("../classes")
