"""The command: what it refuses before any work, and how many servers fit."""

import json

import pytest
from nulltext.batch import memory, run
from nulltext.batch.engines import ROOT

FLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}, "_meta": {"title": "Edited prompt"}},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(FLOW))
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "empty.csv").write_text("key\none\n")
    (tmp_path / "t.csv").write_text("key,LoadImage.image\none,a.png\ntwo,b.png\n")
    return tmp_path


def options(folder, *more, table="t.csv"):
    given = ["--workflow", folder / "w.json", "--table", folder / table, "--out", folder / "out", *more]
    return list(map(str, given))


def test_wrong_columns_stop_the_command_all_told_at_once(folder, capsys):
    (folder / "bad.csv").write_text("Nobody.text,LoadImage.mask\n1,2\n")
    assert run.main(options(folder, table="bad.csv")) == 2
    said = capsys.readouterr().err
    assert "Nobody.text" in said and "'mask'" in said and not (folder / "out").exists()
    assert run.main(options(folder, table="none.csv")) == 2
    assert run.main(options(folder, "--set", "Edited prompt.text")) == 2


def test_a_bad_row_stops_a_strict_command_alone(folder, capsys):
    assert run.main(options(folder, "--strict")) == 2
    assert "row 2 (two): There is no picture 'b.png'" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_constants_and_a_folder_of_pictures(folder):
    parsed = run.parse(options(folder, "--edit", "a dog", "--set", "Edited prompt.text=a fox"))
    assert json.loads(run.planned(parsed).rows[0])["set"][0] == ["2", "text", "a fox"]
    parsed = run.parse(options(folder, "--edit", "a dog", table="."))
    (row,) = map(json.loads, run.planned(parsed).rows)
    assert row["key"] == "a.png" and row["set"][0] == ["2", "text", "a dog"]


def test_the_shipped_edit_photo_takes_a_folder_and_two_prompts(folder):
    flow = ROOT / "workflows" / "api" / "edit_photo.api.json"
    said = ["--workflow", flow, "--table", folder, "--out", folder / "out", "--prompt", "a cat", "--edit", "a dog"]
    made = run.planned(run.parse(list(map(str, said))))
    (row,) = map(json.loads, made.rows)
    assert {name: value for _, name, value in row["set"] if "prompt" in name} == {
        "source_prompt": "a cat",
        "edited_prompt": "a dog",
    }
    assert [name for _, name, _ in row["files"]] == [value for _, name, value in row["set"] if name == "image"]
    assert run.planned(run.parse(options(folder, "--workflow", str(flow), table="empty.csv"))).files == []


@pytest.mark.parametrize(
    "more",
    [["--workers", "0"], ["--servers", "host:8188"], ["--servers", "http://a:1", "--workers", "2"], ["--tries", "0"]],
)
def test_options_that_make_no_sense_are_refused(folder, more):
    with pytest.raises(SystemExit):
        run.parse(options(folder, *more))


def test_the_sentence_at_the_end_of_a_workers_traceback_is_told():
    text = "Traceback\n  File x\nnulltext.batch.engines.EngineError: The server ended. The end of its log:\nno memory\n"
    assert run._sentence(RuntimeError(text)) == "The server ended. The end of its log:\nno memory"
    assert run._sentence(ValueError("first\nsecond")) == "ValueError: first"


@pytest.mark.parametrize(
    "base, most, whole, servers", [(1000, 9000, 80_000, 8), (0, 79_000, 80_000, 1), (0, 0, 24_000, 43)]
)
def test_servers_are_as_many_as_nine_tenths_of_the_memory_hold(base, most, whole, servers):
    assert memory.fits(base, most, whole) == servers


def test_memory_is_read_from_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "1234, 81559"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory.used() == (1234.0, 81559.0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert memory.used() is None
