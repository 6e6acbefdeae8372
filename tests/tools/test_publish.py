"""`make publish` changes nothing: what is generated and committed is up to date."""

from __future__ import annotations

import copy
import io
import json
import re

import pytest
from nulltext.batch import client
from nulltext.tools import gallery, help_pages, judge, locales, pictures, workflows
from PIL import Image

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


@pytest.mark.parametrize("name", workflows.names())
def test_a_workflows_pictures_are_there_and_carry_it(name):
    with Image.open(pictures.tile_path(name)) as tile:
        assert tile.format == "JPEG" and tile.size == (256, 256)
    graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert pictures.workflow_in(pictures.strip_path(name).read_bytes()) == graph, CURRENT


@pytest.mark.parametrize("name", workflows.names())
def test_a_picture_has_a_judge_or_a_sentence_under_it(name):
    flow = workflows.load(name)
    said = [node["_meta"] for node in flow.values() if "_meta" in node]
    shown = [meta.get("shows", "") for meta in said]
    judged = [text for each in shown for text in ([each] if isinstance(each, str) else each) if text]
    assert judged or any(meta.get("under") for meta in said), (
        "say what it must show, or what one sees (CONTRIBUTING.md)"
    )
    assert all(judge.wanted(text) for text in judged)


def frames(name):
    """The pictures of a strip, a list each: the four of a batch stand two by two around a white cross."""
    with Image.open(pictures.strip_path(name)) as strip:
        page = strip.convert("RGB")
    found, side = [], pictures.SIDE
    for x in range(0, page.width, side + 4):
        frame, half = page.crop((x, 0, x + side, side)), side // 2 - 1
        corners = [(i, j, i + half, j + half) for j in (0, half + 2) for i in (0, half + 2)]
        cross = frame.convert("L").crop((half, 0, half + 2, side))
        batch = sum(value > 225 for value in cross.tobytes()) > 0.9 * 2 * side
        parts = [frame.crop(corner) for corner in corners] if batch else [frame]
        found.append([part for part in parts if part.convert("L").getextrema()[0] < 250])
    return list(filter(None, found))


JUDGED = [
    (name, meta)
    for name in workflows.names()
    for meta in (node.get("_meta", {}) for node in workflows.load(name).values())
    if meta.get("shows") and name != "edit_grid"  # whose strip has no room for all that is judged
]


@pytest.mark.parametrize(("name", "meta"), JUDGED, ids=lambda each: each if isinstance(each, str) else each["title"])
def test_the_shipped_picture_passes_its_judge(name, meta):
    said = [judge.verdict({"shows": meta["shows"]}, frame, "", None) for frame in frames(name)]
    assert "" in said, said


FLOW = {
    "1": {"class_type": "NullText_LoadPicture", "inputs": {"image": "demo_scene.png [sample]"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Edit", "shows": "red circle"}},
}


@pytest.fixture
def result():
    data = (workflows.FOLDER / "inputs" / "demo_scene.png").read_bytes()
    return client.Result(files={"2": [data]})


def test_a_picture_that_fails_its_judge_is_not_written(result, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STRIPS", tmp_path)
    monkeypatch.setattr(pictures, "tile_path", lambda name: tmp_path / f"{name}.jpg")
    wrong = copy.deepcopy(FLOW)
    wrong["2"]["_meta"]["shows"] = "green circle"
    with pytest.raises(ValueError, match="not shipped: Edit: 0 of 1 pictures show 'green circle'"):
        pictures.save("x", wrong, result, {})
    assert not list(tmp_path.iterdir())
    pictures.save("x", FLOW, result, {"nodes": []})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jpg", "x.webp"]
    with Image.open(tmp_path / "x.webp") as strip:
        signature = strip.convert("L").crop((0, pictures.SIDE + 2, strip.width, strip.height))
        assert min(signature.getdata()) < 160, "no line says which model drew it"


def test_a_strip_takes_another_workflow_and_keeps_its_picture(result, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STRIPS", tmp_path)
    monkeypatch.setattr(pictures, "tile_path", lambda name: tmp_path / f"{name}.jpg")
    name = "sdedit"
    pictures.save(name, FLOW, result, {"nodes": ["old"]})
    old = pictures.strip_path(name).read_bytes()
    assert pictures.workflow_in(old) == {"nodes": ["old"]}
    pictures.renew(name)
    new = pictures.strip_path(name).read_bytes()
    graph = json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert pictures.workflow_in(new) == graph
    with Image.open(io.BytesIO(old)) as a, Image.open(io.BytesIO(new)) as b:
        assert a.tobytes() == b.tobytes()


def test_a_tile_shows_before_on_the_left_and_after_on_the_right():
    red, green = (Image.new("RGB", (64, 64), colour) for colour in ("red", "green"))
    tile = pictures.tile([red], [green])
    assert tile.getpixel((60, 128)) == (255, 0, 0) and tile.getpixel((200, 128)) == (0, 128, 0)
    batches = pictures.tile([red, green], [green, red])
    assert [batches.getpixel(at) for at in ((64, 64), (64, 192))] == [(255, 0, 0), (0, 128, 0)]
    assert [batches.getpixel(at) for at in ((192, 64), (192, 192))] == [(0, 128, 0), (255, 0, 0)]
    assert pictures.tile([], [green]).getpixel((128, 128)) == (0, 128, 0)
    of_one = pictures.tile([red], [green, red])
    assert [of_one.getpixel(at) for at in ((64, 192), (192, 64), (192, 192))] == [(255, 0, 0), (0, 128, 0), (255, 0, 0)]
    two = pictures.tile([], [red, green])
    assert two.getpixel((64, 192)) == (255, 0, 0) and two.getpixel((192, 192)) == (0, 128, 0), "no part is blank"


@pytest.mark.parametrize(("where", "seen"), [("left", "red"), ("right", "lime"), ("middle", "both"), ("", "both")])
def test_a_tile_shows_of_both_the_part_with_the_object(where, seen):
    halves = Image.new("RGB", (64, 64), "red")
    halves.paste("lime", (32, 0, 64, 64))
    tile = pictures.tile([halves], [halves], where)
    for at in (30, 158):  # in the tile's left half and in its right one
        edges = [tile.getpixel((x, 128)) for x in (at, at + 74)]
        assert edges == [(255, 0, 0) if seen != "lime" else (0, 255, 0), (255, 0, 0) if seen == "red" else (0, 255, 0)]


def test_where_the_object_is_is_read_before_else_after():
    square, nothing = Image.open(workflows.FOLDER / "inputs" / "demo_scene_square.png"), Image.new("RGB", (128, 128))
    assert pictures.place([square], [nothing]) == pictures.place([], [square]) == "left"


def test_a_chart_comes_last_in_a_strip():
    """One more picture stands before the result; what has another shape than the result, a chart for one, behind it."""
    flow = {key: {"class_type": "SaveImage", "inputs": {}} for key in ("1", "2", "3")}
    flow["1"]["_meta"], flow["2"]["_meta"] = {"before": True}, {"shows": "red circle"}
    result = client.Result()
    for shape, order in (((90, 60), "red green blue"), ((64, 64), "red blue green")):
        result._read = {
            key: [Image.new("RGB", size, colour)]
            for key, size, colour in zip("123", ((64, 64), (64, 64), shape), ("red", "green", "blue"), strict=True)
        }
        result.files = {key: [] for key in result._read}
        strip = pictures.strip(flow, result)
        wanted = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in order.split()]
        assert [strip.getpixel((x, 128)) for x in (128, 388, 648)] == wanted


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
