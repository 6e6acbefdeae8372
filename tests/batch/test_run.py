"""The command: what it refuses before any work, and how many servers fit."""

import json
import os

import pytest
from nulltext.batch import memory, places, plan, run
from nulltext.batch.engines import ROOT, EngineError
from nulltext.batch.places import Outcome
from nulltext.batch.table import Line
from nulltext.batch.worker import Settings

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


@pytest.mark.parametrize(
    "more, said",
    [
        (["--prompt", " "], "PROMPT is empty"),
        (["--table", "nosuch://x.csv"], "The table nosuch://x.csv can't be read"),
        (["--out", "{folder}/t.csv"], "t.csv can't be made"),
        (["--out", "{folder}/t.csv/x"], "t.csv/x can't be made"),
        (["--workflow", "{folder}/no_inputs.json"], "no workflow in API format"),
    ],
)
def test_what_can_not_begin_is_said_in_a_sentence(folder, capsys, more, said):
    (folder / "no_inputs.json").write_text(json.dumps({"1": {"class_type": "LoadImage"}}))
    assert run.main(options(folder, *(each.format(folder=folder) for each in more))) == 2
    assert said in capsys.readouterr().err


def test_servers_that_do_not_answer_are_named_and_left_out(monkeypatch, capsys):
    there = {"http://a:1"}
    monkeypatch.setattr(places, "_answers", lambda address: address in there)
    assert places.answering(["http://b:1", "http://a:1", "http://a:1"], 0.0) == ["http://a:1", "http://a:1"]
    assert "No answer from http://b:1: the batch goes on without it" in capsys.readouterr().err
    assert places.answering([], 0.0) == []
    with pytest.raises(EngineError, match="No answer from http://b:1, http://c:1: start the server"):
        places.answering(["http://c:1", "http://b:1"], 0.0)


def test_a_command_whose_servers_do_not_answer_ends_soon(folder, capsys, monkeypatch):
    monkeypatch.setattr(places.answering, "__defaults__", (0.0,))
    assert run.main(options(folder, "--servers", "http://127.0.0.1:9")) == 1
    assert "No answer from http://127.0.0.1:9" in capsys.readouterr().err


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


def test_rows_that_failed_have_an_exit_code_of_their_own(folder, capsys):
    (folder / "bad.csv").write_text("LoadImage.image\nnone.png\n")
    assert run.main(options(folder, table="bad.csv")) == run.ROWS_FAILED == 3
    assert "0 rows done, 1 failed, 0 left" in capsys.readouterr().out


def test_ray_is_started_beside_one_that_was_started_by_hand(monkeypatch):
    ray = pytest.importorskip("ray")
    said = {}
    monkeypatch.setattr(ray, "init", lambda **more: said.update(more))
    monkeypatch.setattr(run.engines, "end_like_ctrl_c", lambda: None)
    for address, local in (("", "local"), ("head:6379", None)):
        said.clear()
        monkeypatch.setenv("RAY_ADDRESS", address)
        run.start_ray(2)
        assert said.get("address") == local and ("num_cpus" in said) == bool(local)


@pytest.fixture
def ray(monkeypatch):
    """A Ray of three CPUs in this process."""
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(run.engines, "end_like_ctrl_c", lambda: None)
    run.start_ray(2)
    yield ray
    ray.shutdown()


def test_a_workers_server_is_no_less_urgent_than_the_command(ray):
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_a_worker_whose_server_does_not_start_is_placed_anew_and_no_row_is_lost(ray, tmp_path):
    mark, out = tmp_path / "failed", str(tmp_path / "out")

    class Place:
        name = "here"

        def __init__(self):
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                return
            raise RuntimeError("no server")

        def run(self, *_):
            return Outcome()

    lines = [Line(i, {"key": str(i), "Edited prompt.text": "b"}) for i in range(4)]
    made = plan.make(FLOW, lines, None, [], own_needed=False)
    records = list(run.stream(made.rows, Settings(out, FLOW, Place), 2, []))
    assert mark.exists() and sorted(record["key"] for record in records) == ["0", "1", "2", "3"]


def test_the_sentence_at_the_end_of_a_workers_traceback_is_told():
    text = "Traceback\n  File x\nnulltext.batch.engines.EngineError: The server ended. The end of its log:\nno memory\n"
    assert run._sentence(RuntimeError(text)) == "The server ended. The end of its log:\nno memory"
    assert run._sentence(ValueError("first\nsecond")) == "ValueError: first"


@pytest.mark.parametrize(
    "base, most, whole, servers", [(1000, 9000, 80_000, 8), (0, 79_000, 80_000, 1), (0, 0, 24_000, 43)]
)
def test_servers_are_as_many_as_nine_tenths_of_the_memory_hold(base, most, whole, servers):
    assert memory.fits(base, most, whole) == servers


@pytest.mark.parametrize("workers, gpus, each", [(8, 3, 3), (8, 4, 2), (2, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_every_worker_finds_room_on_the_gpus(workers, gpus, each):
    assert memory.portion(workers, gpus) == 1 / each and gpus * each >= workers


def test_memory_is_read_from_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "1234, 81559"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory.used() == (1234.0, 81559.0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert memory.used() is None
