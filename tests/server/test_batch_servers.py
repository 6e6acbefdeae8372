"""A batch's own servers: one that hangs is replaced, two share a folder of inversions, Ctrl-C leaves what is done."""

import json
import os
import signal
import threading
import time

import pytest

pytest.importorskip("ray")

from nulltext.batch import index, places, store, worker
from nulltext.benchmarks.batch import chaos
from nulltext.tests.workflows import short
from nulltext.tools import workflows


@pytest.fixture
def own(tmp_path):
    """Makes servers that share the folder tmp_path/cache."""
    made = []

    def one() -> places.OwnServer:
        made.append(places.OwnServer("embedded", None, None, str(tmp_path / "cache"), []))
        return made[-1]

    yield one
    for each in made:
        each.close()


def test_a_server_that_hangs_is_replaced_and_its_row_done(own, tmp_path):
    # a second long: on a busy machine the limit must end the deaf server's row alone
    desk = chaos.Desk(tmp_path / "desk", 1, chaos.workflow(128, 40))
    made, place = desk.planned(), own()
    hung, ended = place.server.process, []

    def hang() -> None:
        while not place.client.get("/queue").json()["queue_running"]:
            time.sleep(0.05)
        os.kill(hung.pid, signal.SIGSTOP)  # alive, and deaf
        began = time.monotonic()
        hung.wait()
        ended.append(time.monotonic() - began)

    watch = threading.Thread(target=hang)
    watch.start()
    one = worker.Worker(worker.Settings(str(tmp_path / "out"), made.workflow, lambda: place))
    record = one.done(json.loads(made.rows[0]) | {"timeout": 15})
    assert record["error"] is None and record["tries"] == 2 and place.server.process.pid != hung.pid
    watch.join(10)
    assert ended and ended[0] < 15 + 2 * 5 + 20, "the time limit counts for a deaf server too"


def test_two_servers_share_one_folder_of_inversions(own, tmp_path):
    """Both invert one picture at the same time; each ends well, one whole file is left, and later runs read it."""
    flow = short(workflows.load("invert_image"), 4)
    two, found = (own(), own()), {}

    def run(place: places.OwnServer) -> None:
        found[place] = place.run(flow, [], 240)

    threads = [threading.Thread(target=run, args=(place,)) for place in two]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [outcome.error for outcome in found.values()] == [None, None]
    pictures = [[content for _, files in sorted(o.files.items()) for _, content in files] for o in found.values()]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3
    kept = [path.name for path in (tmp_path / "cache" / "inversions").iterdir()]
    assert len(kept) == 1 and kept[0].endswith(".safetensors")
    two[0].restart()  # it remembers nothing itself
    again = two[0].run(flow, [], 240)
    assert any("cache" in text for shown in again.shown.values() for text in shown.get("text", ())), again.shown


def test_ctrl_c_writes_the_index_of_what_is_done(comfy, tmp_path):
    desk = chaos.Desk(tmp_path, 60, chaos.workflow(128, 12))
    command = desk.command("--servers", comfy.address)
    desk.until(lambda: desk.done() >= 3, command)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130 and "The same command goes on" in desk.log.read_text()
    lines = index.read(store.Store(str(tmp_path / "out")))
    assert 3 <= len(lines) == desk.done() < 60 and not any(line["error"] for line in lines)
