"""The help pages' pictures and the gallery are there and name nothing that is missing."""
from __future__ import annotations

import re

import pytest
from nulltext.demo import gallery, workflows

PAGES = sorted((gallery.ROOT / "web" / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_of_a_help_page(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (page.parent / name).is_file(), f"{name}: run `make workflows` and `python demo gallery`"


def test_the_gallery_shows_every_workflow_that_has_a_picture():
    page = gallery.PAGE.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections == [name for name in workflows.names() if (workflows.FOLDER / f"{name}.jpg").exists()], \
        "run `python demo gallery`"
    for source in re.findall(r'<img src="([^"]+)"', page):
        assert (gallery.PAGE.parent / source).resolve().is_file()
    assert "<script" not in page and "http" not in page


def test_settings_are_the_workflows_own():
    flow = {"1": {"class_type": "NullText_X", "inputs": {"a": 3, "b": ["2", 0]}},
            "2": {"class_type": "KSampler", "inputs": {"seed": 1}}}
    assert gallery.settings(flow) == [("X", [("a", "3")])]
