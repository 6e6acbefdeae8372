"""Plans: what columns mean, what is refused before any work, and what makes a row another one."""

import copy
import json

import pytest
from nulltext.batch import plan
from nulltext.batch.pictures import Pictures
from nulltext.batch.table import Line

FLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "own.png"}, "_meta": {"title": "Source picture"}},
    "2": {
        "class_type": "CLIPTextEncode",
        "inputs": {"clip": ["9", 1], "text": "a"},
        "_meta": {"title": "Edited prompt"},
    },
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "cfg": 5.0, "positive": ["2", 0], "on": True}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    "9": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for name in ("own.png", "a.png", "b.png"):
        (place / name).write_bytes(b"picture " + name.encode())
    (place / "empty.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (place / "link.png").symlink_to(tmp_path / "secret.png")
    return place


def made(folder, *rows, flow=FLOW, constants=None):
    lines = [row if isinstance(row, Line) else Line(i, row) for i, row in enumerate(rows, 1)]
    place = Pictures(str(folder))
    return plan.make(copy.deepcopy(flow), lines, place, [place], constants)


def rows(*args, **more):
    return [json.loads(row) for row in made(*args, **more).rows]


def test_columns_name_inputs_by_title_or_class_and_values_take_the_workflows_types(folder):
    values = {"Edited prompt.text": 7, "KSampler.seed": "12", "KSampler.cfg": "3", "KSampler.on": "no"}
    (row,) = rows(folder, {"key": "k", **values})
    assert row["set"] == [["2", "text", "7"], ["3", "cfg", 3.0], ["3", "on", False], ["3", "seed", 12]]
    (row,) = rows(folder, {"KSampler.seed": str(2**63 + 1)})
    assert row["set"] == [["3", "seed", 2**63 + 1]], "a large seed keeps its last digit"


def test_all_that_is_wrong_with_columns_is_told_at_once(folder):
    bad = {"Nobody.text": 1, "KSampler.positive": 1, "KSampler.steps": 1, "PreviewImage.images": 1, "text": 1}
    with pytest.raises(plan.PlanError) as told:
        made(folder, bad)
    said = str(told.value)
    assert len(said.splitlines()) == 5
    for words in ("'Nobody.text' names no node", "no input 'positive'", "no input 'steps'", "names 2 nodes", "'text'"):
        assert words in said


def test_a_picture_of_the_workflow_that_is_missing_stops_all(folder):
    (folder / "own.png").unlink()
    with pytest.raises(plan.PlanError, match=r"own\.png"):
        made(folder, {"key": "k"})
    assert rows(folder, {"Source picture.image": "a.png"}), "a column takes its place"


@pytest.mark.parametrize(
    "values, words",
    [
        ({"Source picture.image": "../secret.png"}, "outside"),
        ({"Source picture.image": "/etc/passwd"}, "outside"),
        ({"Source picture.image": "file:///etc/passwd"}, "outside"),
        ({"Source picture.image": "link.png"}, "link that leaves"),
        ({"Source picture.image": "empty.png"}, "0 bytes"),
        ({"Source picture.image": "none.png"}, "no picture"),
        ({"Source picture.image": ""}, "empty"),
        ({"KSampler.seed": "many"}, "whole number"),
        ({"KSampler.cfg": "nan"}, "number"),
        ({"KSampler.seed": "1.5"}, "whole number"),
        ({"KSampler.on": "perhaps"}, "true or false"),
        ({"timeout": "-1"}, "positive"),
        ({"timeout": "soon"}, "seconds"),
        ({"key": "k" * 201}, "201 letters"),
        ({"Edited prompt.text": "a cat \ud83d"}, "half an emoji"),
        ({"key": "cat \udcff"}, "half an emoji"),
    ],
)
def test_a_bad_row_is_a_problem_and_the_others_stay(folder, values, words):
    found = made(folder, {**dict.fromkeys(values), "key": "good 1"}, {"key": "bad", **values}, {"key": "good 2"})
    assert [json.loads(row)["key"] for row in found.rows] == ["good 1", "good 2"]
    ((row, error),) = [(p.row, p.error) for p in found.problems]
    assert row == 2 and words in error


def test_a_key_twice_and_a_row_twice(folder):
    found = made(folder, {"key": "a"}, {"key": "a", "KSampler.seed": 2})
    assert len(found.rows) == 1 and "row 1" in found.problems[0].error
    found = made(folder, {"KSampler.seed": 1}, {"KSampler.seed": 2}, {"KSampler.seed": 1})
    assert len(found.rows) == 2 and "the same as row 1" in found.problems[0].error


def test_a_key_of_0_is_a_key(folder):
    found = made(folder, {"key": 0}, {"key": 0, "KSampler.seed": 2})
    assert json.loads(found.rows[0])["key"] == "0" and "has the key" in found.problems[0].error


def test_a_link_in_a_folder_that_leads_out_is_refused(folder):
    flow = {"1": {"class_type": "NullText_TuningPictures", "inputs": {"folder": "x"}}}
    (folder / "dog").mkdir()
    (folder / "dog" / "1.png").write_bytes(b"x")
    (folder / "dog" / "1.txt").symlink_to(folder.parent / "secret.png")
    found = made(folder, {"NullText_TuningPictures.folder": "dog"}, flow=flow)
    assert found.rows == [] and "dog/1.txt' is a link that leaves" in found.problems[0].error


def test_a_rows_name_follows_from_all_that_enters_it_and_from_nothing_else(folder):
    def name(flow=FLOW, **values):
        return rows(folder, {"key": "k", **values}, flow=flow)[0]["id"]

    first = name(**{"Source picture.image": "a.png"})
    assert first == name(**{"Source picture.image": "a.png"})
    assert first == name(**{"Source picture.image": "a.png", "timeout": 5})
    assert first != name(**{"Source picture.image": "b.png"})
    assert first != name(**{"Source picture.image": "a.png", "KSampler.seed": 2})
    other = copy.deepcopy(FLOW)
    other["3"]["inputs"]["cfg"] = 6.0
    assert first != name(other, **{"Source picture.image": "a.png"})
    (folder / "a.png").write_bytes(b"another picture")
    assert first != name(**{"Source picture.image": "a.png"}), "the content counts, not the name"
    assert name() == name()
    before = name()
    (folder / "own.png").write_bytes(b"another picture of the workflow's own")
    assert before != name()


def test_a_folder_of_pictures_goes_with_its_captions_and_its_folders(folder):
    flow = {"1": {"class_type": "NullText_TuningPictures", "inputs": {"folder": "x", "size": 1}}}
    (folder / "dog" / "more").mkdir(parents=True)
    for name in ("dog/1.png", "dog/1.txt", "dog/more/2.png", "dog/notes.md"):
        (folder / name).write_bytes(b"x")
    (row,) = rows(folder, {"NullText_TuningPictures.folder": "dog"}, flow=flow)
    ((_, _, name),) = row["set"]
    assert [(n, place) for _, n, place in row["files"]] == [("1.png", name), ("1.txt", name), ("2.png", f"{name}/more")]
    (folder / "dog" / "1.txt").write_bytes(b"another caption")
    assert rows(folder, {"NullText_TuningPictures.folder": "dog"}, flow=flow)[0]["id"] != row["id"]


def test_constants_stand_in_every_row_and_a_column_goes_before_them(folder):
    found = rows(folder, {}, {"Edited prompt.text": "own"}, constants={"Edited prompt.text": "all"})
    assert [row["set"][0][2] for row in found] == ["all", "own"]


def test_what_is_no_workflow_is_refused(tmp_path):
    for text in ("no", "[1]", '{"nodes": []}'):
        (tmp_path / "w.json").write_text(text)
        with pytest.raises(plan.PlanError):
            plan.load(str(tmp_path / "w.json"))
