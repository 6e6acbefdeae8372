"""Every help page follows one outline (three sentences, a picture, when to use it, each input, the paper); pictures and
gallery are there and name nothing that is missing."""

from __future__ import annotations

import json
import re

import pytest
from nulltext import NODE_CLASS_MAPPINGS as NODES
from nulltext.tools import gallery, help_pages, notes, workflows

PAGES = sorted((gallery.ROOT / "web" / "docs").glob("*.md"))
PICTURE = re.compile(r"!\[[^\]]+\]\((pictures/\w+\.(?:webp|jpg))\)")

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
        assert (page.parent / name).is_file(), "run `make publish`"


def test_the_gallery_shows_every_workflow_that_has_a_picture():
    page = gallery.PAGE.read_text(encoding="utf-8")
    sections = re.findall(r'<a id="(\w+)">', page)
    assert sorted(sections) == workflows.names(), "run `make publish`"
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(workflows.TASKS)
    for source in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page):
        assert (gallery.PAGE.parent / source).resolve().is_file()
    assert "<script" not in page and "http" not in page


@pytest.mark.parametrize("name", workflows.names())
def test_the_weights_that_drew_a_picture_stand_under_it(name):
    """All were drawn by the demo model; a workflow for another checkpoint says that its picture isn't from it."""
    said = gallery.section(name)
    under = re.search(r"^\*(.+)\*$", said, re.MULTILINE).group(1)
    assert workflows.drawn_by(name) in under and "Drawn by the shipped demo model" in under
    if not workflows.runs_here(name):
        assert "not by Stable Diffusion 1.5" in under and "(for Stable Diffusion 1.5)" in said
        assert "not by Stable Diffusion 1.5" in notes.note(name, workflows.load(name))
        graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert "not by Stable Diffusion 1.5" in json.dumps(graph["nodes"])


def test_settings_are_the_workflows_own():
    flow = {
        "1": {"class_type": "NullText_X", "inputs": {"a": 3, "b": ["2", 0]}},
        "2": {"class_type": "KSampler", "inputs": {"seed": 1}},
        "3": {"class_type": "NullText_Inverter", "inputs": {"cfg": 4.0}},
    }
    assert gallery.settings(flow) == [("X", [("a", "3")]), ("Null-Text Inverter", [("cfg", "4.0")])], "by their titles"


def said(text: str) -> list[str]:
    """The sentences of a text of six words or more, without marks; cells of a table are sentences too."""
    text = re.sub(r"`[^`]*`", lambda found: found[0].replace(".", " "), text)
    pieces = [part for line in text.splitlines() for part in re.split(r"(?<=[.;:!?])\s+|\|", line)]
    plain = [re.sub(r"\W+", " ", part).strip().lower() for part in pieces]
    return [part for part in plain if len(part.split()) >= 6]


@each
def test_a_page_says_no_sentence_twice(page):
    """The table may repeat itself where two inputs are alike (weight, weight_2); prose repeats nothing."""
    text = page.read_text(encoding="utf-8")
    table = text[text.index(help_pages.BEGIN) : text.index(help_pages.END)]
    prose = said(text.replace(table, ""))
    assert len(prose) == len(set(prose)) and not set(prose) & set(said(table))
    assert text.count("\n## Inputs\n") == 1
