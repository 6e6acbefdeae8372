"""Places: which files belong to a row, which stay for the server, and whose trees are swept."""

import os
import subprocess
import sys

import pytest
from nulltext.batch import engines, places
from nulltext.batch.client import Result
from nulltext.batch.places import Outcome


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "shelf", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def own(shelf):
    """An own server's tree without the server."""
    made = places.OwnServer.__new__(places.OwnServer)
    made.tree, made.sent, made.common, made._shown = engines.plant(shelf / "tree"), set(), set(), set()
    return made


def put(own, *names):
    for name in names:
        (own.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (own.tree / name).write_bytes(name.encode())


def shown(*names):
    return Outcome(shown={"1": {"images": [{"filename": name, "type": "output"} for name in names], "text": ["x"]}})


def test_a_row_gets_what_its_nodes_wrote_and_nothing_of_another_row(own):
    put(own, "output/a.png", "models/loras/nulltext/a.safetensors", "temp/p.png")
    first = shown("a.png")
    own._tidy(first, [])
    assert first.more == [("models/loras/nulltext/a.safetensors", b"models/loras/nulltext/a.safetensors")]
    assert (own.tree / "output/a.png").exists(), "a node that need not run again answers with it"
    assert not (own.tree / "temp/p.png").exists()
    failed = Outcome("it failed", "ValueError")
    put(own, "output/half.png")
    own._tidy(failed, [])
    assert failed.more == [] and (own.tree / "output/a.png").exists() and not (own.tree / "output/half.png").exists()
    put(own, "output/b.png")
    second = shown("b.png")
    own._tidy(second, [])
    assert second.more == [] and [p.name for p in own._made()] == ["b.png"]


def test_uploads_of_a_row_are_cleared_and_those_of_all_rows_stay(own):
    put(own, "input/row.png", "input/all.png", "input/dog-1/1.png")
    own.common = {("all.png", "")}
    own.sent = {("row.png", ""), ("all.png", ""), ("1.png", "dog-1")}
    own._tidy(Outcome(), [("u", "row.png", ""), ("u", "all.png", ""), ("u", "1.png", "dog-1")])
    assert own.sent == {("all.png", "")}
    assert [p.name for p in (own.tree / "input").rglob("*") if p.is_file()] == ["all.png"]


def test_files_that_are_no_pictures_come_with_the_row_and_previews_do_not():
    remote = places.Remote("http://nowhere")
    remote.client.view = lambda record: record["filename"].encode()
    latents = [{"filename": "a.latent", "type": "output", "subfolder": "latents"}]
    outputs = {"1": {"latents": latents, "a_images": [{"filename": "p.png", "type": "temp"}], "text": ["x"]}}
    outputs["2"] = {"images": [{"filename": "b.png", "type": "output"}]}
    found = remote._outcome(Result(outputs=outputs, files={"2": [b"picture"]}))
    assert found.files == {"1": [("a.latent", b"a.latent")], "2": [("b.png", b"picture")]}


def test_an_address_that_does_not_answer_is_the_servers_failure():
    remote = places.Remote(f"http://127.0.0.1:{engines.free_port()}", patience=0.1)
    assert remote.run({}, [], 5).error_type == "server"
    assert remote.run({}, [("file:///nowhere.png", "a.png", "")], 5).error_type == "file"
    remote.restart()


def test_trees_of_the_dead_are_swept_and_those_of_the_living_and_of_other_machines_stay(shelf):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = places.socket.gethostname()
    names = [f"{host}-{ended.pid}-a", f"{host}-{os.getpid()}-b", f"elsewhere-{ended.pid}-c", "something"]
    for name in names:
        (shelf / name / "inner").mkdir(parents=True)
    places.sweep()
    assert sorted(p.name for p in shelf.iterdir()) == sorted(names[1:])
