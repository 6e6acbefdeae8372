"""The pages that a forge shows: their links lead somewhere, and the list of tables is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nulltext.benchmarks.families import __main__ as families
from nulltext.nodes import NODE_CLASS_MAPPINGS
from nulltext.tools import bench, ways, workflows

ROOT = workflows.FOLDER.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "demo" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What a forge makes of headings, and the anchors that the page sets itself."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", said.lower()).replace(" ", "-") for said in headings} | set(
        re.findall(r'<a id="([^"]+)"', text)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_benchmarks_page_names_every_table_and_its_command():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(bench.names()) >= 11
    for name, said in bench.names().items():
        assert f"make bench NAME={name}" in page, name
        assert said and not said.endswith("`"), name


def test_the_families_table_says_which_text_encoder_stood_beside():
    """Train Embedding runs on every network and learns a CLIP's words alone."""
    for text in ((ROOT / "README.md").read_text(encoding="utf-8"), families.markdown({}, "x")):
        assert families.ENCODER in text


def test_readmes_table_of_nodes_names_every_node():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    table = page.partition("## Nodes")[2].partition("### What a run costs")[0]
    for box in NODE_CLASS_MAPPINGS.values():
        assert re.sub(r" \((?!with words|FlowEdit|paper|Null|Prox|Guess).*\)$", "", box.TITLE) in table, box.TITLE


def test_the_six_ways_are_workflows_that_ship():
    assert set(ways.WAYS) <= set(workflows.names()) and len(ways.WAYS) == 6
    prompts = {
        tuple(node["inputs"]["text"] for node in workflows.load(name).values() if node["inputs"].get("text"))
        for name in ways.WAYS
    }
    assert len(prompts) == 1, "one edit"


def test_sdedits_words_agree_with_what_was_measured():
    """The level that its help page calls the best is the most realistic one of the table; distance grows with t0."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").partition("**SDEdit** of flat guides")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")][:3]
    levels, distance, realism = ([float(cell) for cell in cells] for _, *cells in rows)
    assert [name for name, *_ in rows] == ["t0", "distance to the guide (rms)", "KID to real scenes"]
    assert distance == sorted(distance)
    best = levels[realism.index(min(realism))]
    words = (ROOT / "web" / "docs" / "NullText_SDEdit.md").read_text(encoding="utf-8")
    assert f"on the demo model, where {best} looks best" in words and f"The most realistic level is {best}" in page
