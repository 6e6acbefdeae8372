"""`make publish` changes nothing: what is generated and committed is up to date."""

from __future__ import annotations

import filecmp
import re

import pytest
from nulltext.tools import gallery, help_pages, locales, workflows

CURRENT = "run `make publish ARGS='--pictures none'`"


@pytest.fixture(scope="module")
def classes(engine):
    return locales.classes()


def test_every_help_page_has_the_tables_of_its_class(classes):
    pages = help_pages.texts(classes)
    assert len(pages) == len(classes)
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: {CURRENT}"


def test_every_description_ends_in_the_search_words(classes):
    for path, text in locales.texts(classes).items():
        assert path.read_text(encoding="utf-8") == text, CURRENT


def test_the_gallery_is_that_of_the_workflows():
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.text(), CURRENT
    for name in gallery.shown():
        thumbnail, copy = workflows.FOLDER / f"{name}.jpg", gallery.PICTURES / f"{name}.jpg"
        assert filecmp.cmp(thumbnail, copy, shallow=False), f"{name}.jpg: {CURRENT}"


class Node:
    RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS = ("MODEL", "FLOAT"), ("out", "scale"), ("The clone.", "A | number.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model."}),
                "way": (["one", "two"], {"default": "one", "tooltip": "Which\nway."}),
                "on": ("BOOLEAN", {"default": False, "tooltip": "Or not."}),
            },
            "optional": {"text": ("STRING", {"default": "", "tooltip": "Words."})},
            "hidden": {"prompt": "PROMPT"},
        }


TABLES = """## Inputs

| input | type | meaning |
|---|---|---|
| `model` | MODEL | The model. |
| `way` | choice | Which way. Default: one. |
| `on` | BOOLEAN | Or not. Default: off. |
| `text` (optional) | STRING | Words. |

## Outputs

| output | meaning |
|---|---|
| out | The clone. |
| scale | A \\| number. |"""


def test_the_tables_say_what_the_class_says():
    assert help_pages.tables(Node) == TABLES


def test_a_page_keeps_its_own_prose_and_takes_new_tables():
    fresh = help_pages.renewed("# X\n\nProse.\n\n## When to use it\n\nNow.\n\n## Paper\n\nNone.\n", Node)
    assert re.findall(r"^#+ (.+)$", fresh, re.MULTILINE) == ["X", "When to use it", "Inputs", "Outputs", "Paper"]
    stale = fresh.replace("The clone.", "Something \\1 old.").replace("Prose.", "Better prose.")
    assert help_pages.renewed(stale, Node) == fresh.replace("Prose.", "Better prose.")
    assert help_pages.renewed(fresh, Node) == fresh
