"""Batches on Ray with real servers: killed wherever they can be, and every row comes out once, to the bit."""

import csv
import json

import pytest

pytest.importorskip("ray")

from nulltext.batch import index, worker
from nulltext.benchmarks.batch import chaos

ROWS = 40


def test_nothing_is_lost_or_done_twice_whatever_is_killed(tmp_path):
    desk = chaos.Desk(tmp_path, ROWS)
    chaos.disturbed(desk, ROWS, (4, 10, 18))
    found = chaos.judged(desk, ROWS)
    assert found.pop("tries") >= 2, "the killed server's row was begun again"
    assert found == {"rows_lost": 0, "rows_twice": 0, "pixels_equal": 1}
    assert [line["row"] for line in desk.lines()] == list(range(1, ROWS + 1))
    assert {tuple(json.loads(line["outputs"])) for line in desk.lines()} == {("Edit",)}, "nothing of another row"


def test_hostile_rows_are_told_and_the_rest_is_done(comfy, tmp_path):
    """On a server that already runs, with one worker: --servers. Then the same command, and one with a new row."""
    desk = chaos.Desk(tmp_path, 0)
    rows = [
        ["good 1", "demo_scene.png", "a star", 1],
        ["outside", "../../etc/passwd.png", "a star", 1],
        ["empty", "empty.png", "a star", 1],
        ["huge", "demo_scene.png", "x" * 5_000_000, 1],
        ["good 1", "demo_scene.png", "a ring", 1],
        ["no picture", "text.png", "a star", 1],
        ["refused", "demo_scene.png", "a star", -5],
        ["good 2", "demo_scene.png", "a star", 2],
    ]
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"no picture at all")
    desk.write(rows)
    assert desk.command("--servers", comfy.address).wait(200) == 3
    log = desk.log.read_text()
    with open(tmp_path / "out" / index.ERRORS, newline="") as file:
        errors = {line["row"]: line["error"] for line in csv.DictReader(file)}
    told = {"2": "outside", "3": "0 bytes", "4": "1 MB", "5": "row 1", "6": "LoadImage", "7": "-5"}
    assert set(errors) == set(told), errors
    for row, sentence in errors.items():
        assert told[row] in sentence and len(sentence) > 20, sentence
        assert row in "67" or f"row {row}" in log, "told before any work"
    assert [line["row"] for line in desk.lines()] == list(range(1, 9))
    assert [line["key"] for line in desk.lines() if not line["error"]] == ["good 1", "good 2"]

    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / worker.DONE).iterdir()}
    desk.write([rows[0], rows[-1], ["new", "demo_drawing.png", "a star", 3]])
    assert desk.command("--servers", comfy.address).wait(200) == 0
    assert "1 of 3 rows to do" in desk.log.read_text()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / worker.DONE).iterdir()}
    assert len(after) == 3 and times.items() <= after.items()
    assert [line["key"] for line in desk.lines()] == ["good 1", "good 2", "new"]
