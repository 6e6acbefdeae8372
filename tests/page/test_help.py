"""Every help page follows one outline (three sentences, a picture, when to use it, each input, the paper); pictures and
gallery are there and name nothing that is missing."""

from __future__ import annotations

import json
import re

import pytest
from nulltext import NODE_CLASS_MAPPINGS as NODES
from nulltext.tools import gallery, help_pages, workflows

PAGES = sorted((gallery.ROOT / "web" / "docs").glob("*.md"))
PICTURE = re.compile(r"!\[[^\]]+\]\(pictures/(\w+)\.jpg\)")

each = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def parts(text: str) -> dict[str, str]:
    """{heading: what stands under it} of a page; the title's is what stands before the first heading."""
    pieces = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {heading: body.strip() for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?=\s|$)", re.sub(r"\*\*|`[^`]*`", "x", text)))


def test_every_node_has_a_page():
    assert {page.stem for page in PAGES} == set(NODES)


@each
def test_the_outline_of_a_help_page(page, engine):
    found = parts(page.read_text(encoding="utf-8"))
    assert sum(line.startswith("## Inputs") for line in page.read_text(encoding="utf-8").splitlines()) == 1
    node, headings = NODES[page.stem], list(found)
    outline = [node.TITLE, "When to use it", "Inputs", "Paper"]
    assert [heading for heading in headings if heading in outline] == outline and headings[0] == outline[0], headings
    said, *pictures = found[outline[0]].split("\n\n")
    assert sentences(said) == 3, f"what it does in three sentences, not {sentences(said)}"
    assert len(pictures) == 1 and PICTURE.fullmatch(pictures[0]), "then one picture"
    assert len(found["When to use it"].split()) >= 12
    unnamed = [
        name for name in help_pages.inputs(node) if not re.search(rf"(?<![a-z_]){name}(?![a-z_])", found["Inputs"])
    ]
    assert not unnamed, f"the inputs do not speak of {', '.join(unnamed)}"
    assert re.search(r"arXiv \d{4}\.\d{4,5}|^No paper of its own", found["Paper"]), found["Paper"]


@each
def test_pictures_of_a_help_page(page):
    """A picture is the thumbnail of a real run."""
    for name in PICTURE.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / "pictures" / f"{name}.jpg").is_file(), "run `make publish`"


def test_the_gallery_shows_every_workflow_that_has_a_picture():
    page = gallery.PAGE.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections == [name for name in workflows.names() if (workflows.FOLDER / f"{name}.jpg").exists()], (
        "run `make publish`"
    )
    for source in re.findall(r'<img src="([^"]+)"', page):
        assert (gallery.PAGE.parent / source).resolve().is_file()
    assert "<script" not in page and "http" not in page


@pytest.mark.parametrize("name", workflows.names())
def test_the_weights_that_drew_a_picture_stand_under_it(name):
    """All were drawn by the demo model; a workflow for another checkpoint says that its picture isn't from it."""
    said = gallery.section(name, "x.jpg")
    under = re.search(r'<p class="weights">([^<]+)</p>', said).group(1)
    assert under.startswith("Drawn by the shipped demo model")
    assert f'. {under}">' in said  # the picture's alt text says it too
    if not workflows.runs_here(name):
        assert "not by Stable Diffusion 1.5" in under and "(for Stable Diffusion 1.5)" in said
        assert "not by Stable Diffusion 1.5" in workflows.note(name, workflows.load(name))
        graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert "not by Stable Diffusion 1.5" in json.dumps(graph["nodes"])


def test_settings_are_the_workflows_own():
    flow = {
        "1": {"class_type": "NullText_X", "inputs": {"a": 3, "b": ["2", 0]}},
        "2": {"class_type": "KSampler", "inputs": {"seed": 1}},
    }
    assert gallery.settings(flow) == [("X", [("a", "3")])]
