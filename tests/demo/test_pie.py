"""The PIE-Bench runner's reading of its files, and one row of its table."""
import pytest
import torch
from nulltext.benchmarks import pie
from PIL import Image

ITEM = {"mask": [10 * 512 + 100, 50], "editing_prompt": "a [green] cat", "blended_word": "cat cat"}


def test_masks_are_run_lengths_with_the_border_set():
    mask = pie.read_mask(ITEM["mask"])[0, 0]
    assert mask[10, 100:150].all()
    assert mask[10, 90:100].sum() == mask[10, 150:160].sum() == 0
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    assert float(mask.sum()) == 50 + 4 * 512 - 4


def test_a_strip_of_pictures_is_cut_at_its_right(tmp_path):
    strip = Image.new("RGB", (1024, 512), "red")
    strip.paste("blue", (512, 0, 1024, 512))
    strip.save(tmp_path / "strip.png")
    assert pie.read_image(tmp_path / "strip.png").mean((0, 2, 3)).tolist() == [0, 0, 1]


def test_settings_are_pie_benchs():
    assert pie.settings(ITEM) == {"cross_steps": 0.4, "self_steps": 0.6, "blend_words": "cat", "weights": "cat: 2"}
    assert pie.settings({}) == {"cross_steps": 0.4, "self_steps": 0.6}
    assert pie.plain(ITEM["editing_prompt"]) == "a green cat"


def test_a_row():
    source = torch.full((1, 3, 512, 512), 0.5)
    row = pie.measure(ITEM, source, source + 0.1, pie.Judges(None, None))
    background = 1 - float(pie.read_mask(ITEM["mask"]).mean())
    assert row["mse"] == pytest.approx(1e4 * 0.01 * background, rel=1e-4)  # zeros under the mask count
    assert row["structure"] is None and row["clip_whole"] is None
    whole = pie.measure({**ITEM, "mask": [0, 512 * 512]}, source, source, pie.Judges(None, None))
    assert whole["psnr"] is None  # no background
    assert pie.measure(ITEM, source, source, pie.Judges(None, None))["psnr"] == 100.0
