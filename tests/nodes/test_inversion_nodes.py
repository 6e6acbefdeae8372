"""The inversion nodes' own part: files, parts, notices, pictures; no network is asked."""

import uuid

import pytest
import torch
from nulltext.engine import folders
from nulltext.engine.fingerprint import ASPECTS
from nulltext.engine.noise import model_notes
from nulltext.nodes import inversion_files, inversion_sampling
from nulltext.samplers.inversion.record import Inversion
from nulltext.samplers.measure.charts import captioned_grid
from nulltext.tests.running import run as node

SIGMAS = torch.tensor([4.0, 2.0, 1.0, 0.0])


@pytest.fixture
def inversion(tiny):
    trajectory = torch.randn(4, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Inversion(
        SIGMAS, trajectory, text="a red ring", conditioning=torch.zeros(1, 77, 64), metadata=model_notes(tiny, 4.0)
    )


def text(result):
    return result["ui"]["text"][0]


def test_files_round_trip_and_are_numbered(engine, inversion):
    save, load = inversion_files.SaveInversion(), inversion_files.LoadInversion()
    save.run(inversion, "a/b", True)
    with pytest.raises(ValueError, match="doesn't say which model it was made with"):
        load.run("a/b")
    inversion = inversion.replace(fingerprint=dict.fromkeys(ASPECTS, "known"))
    first, second, third = (save.run(inversion, "a/b", over)["result"][0] for over in (True, False, False))
    assert (first, second, third) == ("a/b.safetensors", "a/b_001.safetensors", "a/b_002.safetensors")
    state = load.IS_CHANGED("a/b")
    back, prompt = load.run("a/b")["result"]
    assert torch.equal(back.trajectory, inversion.trajectory) and prompt == "a red ring"
    save.run(inversion.replace(text="another"), "a/b", True)
    assert load.IS_CHANGED("a/b") != state and load.run("a/b.safetensors")["result"][1] == "another"
    assert load.IS_CHANGED() == "" and "no inversion file" in load.IS_CHANGED("a/none")
    for path in (folders.folder("output") / "a").iterdir():
        path.unlink()


def test_a_second_file_of_a_name_is_kept_beside_the_first_and_told(engine, inversion):
    name = f"inversions_{uuid.uuid4().hex}/scene"
    first, second = (node("SaveInversion", inversion=inversion, name=name) for _ in range(2))
    assert (first[0], second[0]) == (f"{name}.safetensors", f"{name}_001.safetensors")
    assert second.text.endswith(f"the name {name} was taken: load this one as {name}_001.")
    again = node("SaveInversion", inversion=inversion, name=name, overwrite=True)
    assert again[0] == first[0] and "was taken" not in first.text + again.text


@pytest.mark.parametrize("name", ["../b", "", "/etc/b", "a/../../b"])
def test_names_outside_are_refused_by_both(inversion, name):
    for run in (
        lambda: inversion_files.SaveInversion().run(inversion, name, True),
        lambda: inversion_files.LoadInversion().run(name),
    ):
        with pytest.raises(ValueError, match="file name"):
            run()


def test_parts_begin_where_the_strength_says(inversion):
    noise, sigmas, latent, _ = inversion_sampling.InversionParts().run(inversion, 0.67)
    assert torch.equal(sigmas, SIGMAS[1:]) and noise.first == 1
    assert torch.allclose(latent["samples"] * 0.18215, inversion.source, rtol=1e-5)
    x = noise.generate_noise(latent) * 2.0 + inversion.source
    assert torch.allclose(x, inversion.trajectory[1], rtol=1e-4, atol=1e-5)
    noise, sigmas, latent, _ = inversion_sampling.InversionParts().run(inversion, 0.0)
    assert len(sigmas) == 0 and not noise.generate_noise(latent).any()


def test_nothing_to_change_is_said(tiny, inversion):
    tiny.model.apply_model = None
    node = inversion_sampling.Sampler()
    empty = torch.zeros(1, 8, 8)
    for arguments, words in (({"strength": 0.0}, "samples no step"), ({"strength": 1.0, "mask": empty}, "mask")):
        result = node.run(tiny, inversion, **arguments)
        assert words in text(result)
        assert torch.allclose(result["result"][0]["samples"] * 0.18215, inversion.source, rtol=1e-5)
    overwritten = inversion.replace(correction="overwrite", cfg=7.5)
    result = node.run(tiny, overwritten, 1.0, negative=[[torch.zeros(1, 77, 64), {}]])
    assert "stored path" in text(result)
    with pytest.raises(ValueError, match="wire the negative"):
        node.run(tiny, inversion.replace(cfg=7.5), 1.0)


def test_grid_holds_every_picture_under_its_caption():
    images = torch.rand(5, 20, 60, 3)
    grid = captioned_grid(images, ["a", "b", "c", "d", "a much longer caption that takes several lines"], 3)[0]
    height = grid.shape[0] // 2
    assert grid.shape[1] == 180 and height > 20 + 12 * 4
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        cell = grid[row * height : (row + 1) * height, column * 60 : (column + 1) * 60]
        assert torch.equal(cell[-20:], image) and (cell[:-20] < 0.5).any()
    assert bool((grid[height:, 120:] == 1).all())
    with pytest.raises(ValueError, match="captions"):
        captioned_grid(images, ["a"], 3)
