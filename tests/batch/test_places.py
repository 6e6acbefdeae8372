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
    made.tree, made.sent, made.common = engines.plant(shelf / "tree"), set(), set()
    made._cleared()
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
    own._tidy(first, [], {})
    assert first.more == [("models/loras/nulltext/a.safetensors", b"models/loras/nulltext/a.safetensors")]
    assert (own.tree / "output/a.png").exists(), "a node that need not run again answers with it"
    assert not (own.tree / "temp/p.png").exists()
    failed = Outcome("it failed", "ValueError")
    put(own, "output/half.png")
    own._tidy(failed, [], {})
    assert failed.more == [] and (own.tree / "output/a.png").exists() and not (own.tree / "output/half.png").exists()
    put(own, "output/b.png")
    second = shown("b.png")
    own._tidy(second, [], {})
    assert second.more == [] and [p.name for p in own._made()] == ["b.png"]


def saving(picture="a", prompt="x"):
    """An inversion saved and loaded, then an edit by a prompt."""
    return {
        "1": {"class_type": "Invert", "inputs": {"picture": picture}},
        "2": {"class_type": "Save", "inputs": {"inversion": ["1", 0], "name": "inversions/scene"}},
        "3": {"class_type": "Load", "inputs": {"name": ["2", 0], "text": prompt}},
    }


def row(own, monkeypatch, workflow, *ran, writes=(), error=None, reads=()):
    """The files beside the pictures of a row whose nodes `ran`, wrote these files and read those."""

    def work(self, workflow, files, timeout):
        assert all((own.tree / name).exists() for name in reads)
        put(own, *writes)
        return Outcome(error, ran=set(ran))

    monkeypatch.setattr(places.Served, "run", work)
    return [name for name, _ in own.run(workflow, [], 5).more]


SCENE = "output/inversions/scene.safetensors"


def test_a_file_of_a_node_that_need_not_run_again_belongs_to_the_later_rows_too(own, monkeypatch):
    assert row(own, monkeypatch, saving(), *"123", writes=[SCENE]) == [SCENE]
    assert row(own, monkeypatch, saving(prompt="y"), "3", reads=[SCENE]) == [SCENE]
    assert row(own, monkeypatch, saving(prompt="z"), "3", reads=[SCENE], error="failed") == []
    assert row(own, monkeypatch, saving(prompt="y"), "3", reads=[SCENE]) == [SCENE]


def test_a_file_that_a_failed_row_wrote_belongs_to_the_next_one_that_need_not_write_it(own, monkeypatch):
    assert row(own, monkeypatch, saving(), *"123", writes=[SCENE], error="failed") == []
    assert row(own, monkeypatch, saving(prompt="y"), "3", reads=[SCENE]) == [SCENE]


def test_a_file_of_another_row_makes_room_before_its_node_writes_anew(own, monkeypatch):
    assert row(own, monkeypatch, saving(), *"123", writes=[SCENE]) == [SCENE]
    own._forget(saving("b"))
    assert own._made() == []
    assert row(own, monkeypatch, saving("b"), *"123") == []
    assert row(own, monkeypatch, saving("c"), *"123", writes=[SCENE]) == [SCENE]
    more = "output/inversions/scene_001.safetensors"  # the node ran again though nothing of it had changed
    assert row(own, monkeypatch, saving("c"), *"123", writes=[more]) == [more]


def test_a_fresh_server_finds_no_file_of_an_earlier_try(own, monkeypatch):
    class Started:
        client = None

        def __init__(self, *_, **__):
            assert own._made() == []

        def wait(self):
            return self

    monkeypatch.setattr(engines, "Server", Started)
    own.server = own.engine = None
    own.extra = []
    put(own, SCENE)  # half of it
    own.restart()
    assert row(own, monkeypatch, saving(), *"123", writes=[SCENE]) == [SCENE]


def test_a_folder_of_models_that_is_not_there_is_told(shelf):
    with pytest.raises(engines.EngineError, match="mistyped"):
        places.OwnServer("embedded", None, str(shelf / "mistyped"), None, [])
    assert list(shelf.iterdir()) == []


def test_workers_on_servers_of_others_save_under_names_of_their_own(monkeypatch):
    flow = {"1": {"class_type": "Save", "inputs": {"filename_prefix": "a/b", "n": 1}}}
    flow |= {"2": {"class_type": "Save", "inputs": {"filename_prefix": ["1", 0]}}}
    sent = []
    for remote in (places.Remote("http://a"), places.Remote("http://a")):
        monkeypatch.setattr(remote.client, "run", lambda workflow, timeout: sent.append(workflow) or Result())
        remote.run(flow, [], 5)
        remote.run(flow, [], 5)
    names = [each["1"]["inputs"]["filename_prefix"] for each in sent]
    assert names[0] == names[1] != names[2] == names[3], "what is equal in two rows need not run again"
    assert all(name.startswith("a/b_") for name in names)
    assert all(each["2"] == flow["2"] and each["1"]["inputs"]["n"] == 1 for each in sent)
    assert flow["1"]["inputs"]["filename_prefix"] == "a/b"


def test_uploads_of_a_row_are_cleared_and_those_of_all_rows_stay(own):
    put(own, "input/row.png", "input/all.png", "input/dog-1/1.png")
    own.common = {("all.png", "")}
    own.sent = {("row.png", ""), ("all.png", ""), ("1.png", "dog-1")}
    own._tidy(Outcome(), [("u", "row.png", ""), ("u", "all.png", ""), ("u", "1.png", "dog-1")], {})
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


def test_windows_is_not_asked_by_a_signal(monkeypatch):
    """There os.kill(process, 0) is Ctrl-C."""
    monkeypatch.setattr(places.sys, "platform", "win32")
    monkeypatch.setattr(places.os, "kill", lambda *_: pytest.fail("it was interrupted"))
    assert places._lives(1)
