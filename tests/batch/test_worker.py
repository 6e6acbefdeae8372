"""A worker on a place that does what the test says: tries, records, files, and the index that is made of them."""

import copy
import json
import uuid

import pytest
from nulltext.batch import engines, index, plan, store, worker
from nulltext.batch.pictures import Pictures
from nulltext.batch.places import Outcome, Turns
from nulltext.batch.table import Line

FLOW = {
    "1": {"class_type": "Draw", "inputs": {"seed": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "The result"}},
}


def drawn(workflow):
    seed = workflow["1"]["inputs"]["seed"]
    shown = {"2": {"text": [f"seed {seed}"], "nulltext_psnr": ["30.5"], "images": [{}]}}
    return Outcome(files={"2": [("x_0001_.PNG", b"picture %d" % seed)]}, shown=shown, seconds=0.1)


class Scripted:
    """Gives the outcomes of a list, then draws."""

    name = "scripted"

    def __init__(self, *script):
        self.script, self.runs, self.restarts = list(script), 0, 0

    def run(self, workflow, files, timeout):
        self.runs += 1
        return self.script.pop(0) if self.script else drawn(workflow)

    def restart(self):
        self.restarts += 1

    def close(self):
        pass


@pytest.fixture(params=["disk", "memory"])
def out(request, tmp_path):
    return str(tmp_path / "out") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


def begin(out, place, **settings):
    return worker.Worker(worker.Settings(out, FLOW, lambda: place, **settings))


def planned(*seeds, problems=()):
    lines = [Line(i, {"key": f"row {seed}", "Draw.seed": seed}) for i, seed in enumerate(seeds, 1)]
    lines += [Line(len(lines) + i, problem=why) for i, why in enumerate(problems, 1)]
    return plan.make(FLOW, lines, Pictures("/nowhere"), [])


def do(made, worker):
    return [json.loads(worker({"row": row})["record"]) for row in made.rows]


DIED = Outcome("The server process ended while the workflow ran.", "server")


def test_a_row_leaves_its_pictures_its_report_and_one_record(out):
    made, place = planned(5), Scripted()
    (record,) = do(made, begin(out, place))
    there = store.Store(out)
    assert there.read(record["outputs"]["The_result"][0]) == b"picture 5"
    assert record["outputs"]["The_result"][0].endswith("/The_result.png")
    assert record["figures"] == {"The_result.psnr": 30.5} and record["tries"] == 1 and record["error"] is None
    assert index.write(there, made) == (1, 0)
    (line,) = index.read(there)
    assert line["key"] == "row 5" and line["inputs"] == record["id"] and json.loads(line["figures"])
    assert there.names(worker.BEGUN) == set()
    assert do(made, begin(out, place))[0] == record and place.runs == 1, "a row that is there does not run again"


def test_a_dead_server_is_restarted_and_the_row_tried_again(out):
    place = Scripted(DIED, Outcome("too long", "timeout"))
    (record,) = do(planned(5), begin(out, place))
    assert record["tries"] == 3 and place.restarts == 2 and record["error"] is None


def test_a_row_that_always_kills_the_server_fails_and_the_rest_goes_on(out):
    made, place = planned(5, 6), Scripted(DIED, DIED, DIED)
    bad, good = do(made, begin(out, place, tries=3))
    assert "3 tries" in bad["error"] and good["error"] is None
    assert index.write(store.Store(out), made) == (2, 1)


def test_a_row_that_kills_its_worker_is_not_begun_for_ever(out):
    class Deadly(Scripted):
        def run(self, *_):
            raise KeyboardInterrupt

    made = planned(5)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            do(made, begin(out, Deadly(), tries=3, run="a"))
    (record,) = do(made, begin(out, Scripted(), tries=3, run="a"))
    assert "worker" in record["error"]
    (record,) = do(made, begin(out, Scripted(), tries=3, run="b"))
    assert record["error"] is None, "the next command counts anew"


def test_an_error_that_nobody_foresaw_fails_its_row_alone(out):
    class Odd(Scripted):
        def run(self, *_):
            if self.runs:
                return super().run(*_)
            self.runs += 1
            raise AttributeError("'list' object has no attribute 'get'")

    class Broken(Scripted):
        def restart(self):
            if not self.restarts:
                self.restarts += 1
                raise engines.EngineError("The server did not start. The end of its log: no memory")

    for place, words in ((Odd(), "no attribute 'get'"), (Broken(DIED), "no memory")):
        made = planned(5, 6)
        bad, good = do(made, begin(f"{out}/{place.__class__.__name__}", place))
        assert words in bad["error"] and bad["tries"] == 1 and bad["outputs"] == {} and good["error"] is None


def test_nodes_that_others_made_on_the_server_are_kept_under_their_ids(out):
    shown = {"5.0.0.7": {"text": ["from inside"], "psnr": [3.0]}}
    (record,) = do(planned(5), begin(out, Scripted(Outcome(files={"5.0.0.7": [("b.png", b"b")]}, shown=shown))))
    (path,) = record["outputs"]["node_5.0.0.7"]
    assert record["error"] is None and store.Store(out).read(path) == b"b"
    assert record["report"] == ["node_5.0.0.7: from inside"] and record["figures"] == {"node_5.0.0.7.psnr": 3.0}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"run": "a"}', b'{"run": "a", "tries": '])
def test_a_count_of_tries_that_lost_its_content_counts_for_nothing(out, content):
    made = planned(5)
    one = begin(out, Scripted(), run="a")
    one.store.write(f"{worker.BEGUN}/{json.loads(made.rows[0])['id']}.json", content)
    (record,) = do(made, one)
    assert record["error"] is None and record["tries"] == 1


def test_no_picture_of_a_row_takes_anothers_place(out):
    flow = copy.deepcopy(FLOW)
    flow["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "The result 1"}}
    files = {"2": [("a.png", b"1"), ("b.png", b"2")], "3": [("c.png", b"3")]}
    one = worker.Worker(worker.Settings(out, flow, lambda: Scripted(Outcome(files=files))))
    (record,) = do(planned(5), one)
    there = store.Store(out)
    found = {name: [there.read(path) for path in paths] for name, paths in record["outputs"].items()}
    assert found == {"The_result": [b"1", b"2"], "The_result_1": [b"3"]}


def test_a_refusal_is_kept_with_its_sentence_and_a_later_success_takes_its_place(out):
    made = planned(5)
    (record,) = do(made, begin(out, Scripted(Outcome("KSampler: the seed is wrong", "validation"))))
    assert record["error"] == "KSampler: the seed is wrong" and record["tries"] == 1
    there = store.Store(out)
    assert index.write(there, made) == (1, 1)
    assert b"the seed is wrong" in there.read(index.ERRORS)
    do(made, begin(out, Scripted()))
    assert index.write(there, made) == (1, 0)


def test_the_index_has_each_row_once_in_the_tables_order_problems_too(out):
    made = planned(*range(40), problems=["unreadable"])
    at = begin(out, Scripted())
    there = store.Store(out)
    for text in [*reversed(made.rows[:25]), *made.rows[10:20]]:
        at({"row": text})
    assert index.write(there, made) == (26, 1)
    do(made, at)
    assert index.write(there, made) == (41, 1)
    assert [line["row"] for line in index.read(there)] == list(range(1, 42))
    table = there.read(index.CSV).decode().splitlines()
    assert len(table) == 42 and "unreadable" in table[-1]


def test_a_text_that_no_file_can_hold_costs_the_index_nothing(out):
    made = planned(5)
    (record,) = do(made, begin(out, Scripted(Outcome("half an emoji: \ud83d", "ValueError"))))
    there = store.Store(out)
    assert record["error"] and index.write(there, made) == (1, 1)
    assert index.read(there)[0]["error"] == "half an emoji: ?"


def test_a_changed_table_lists_its_own_rows_alone(out):
    at, there = begin(out, Scripted()), store.Store(out)
    do(planned(1, 2), at)
    made = planned(2, 3)
    record = do(made, at)[1]
    assert at.place.runs == 3 and record["key"] == "row 3"
    index.write(there, made)
    assert [line["key"] for line in index.read(there)] == ["row 2", "row 3"]


def test_every_worker_gets_a_server_of_its_own_and_keeps_it():
    turns = Turns(["a", "b", "c"])
    assert sorted(turns.take(worker) for worker in "xyz") == ["a", "b", "c"]
    assert [turns.take(worker) for worker in "xyz"] == list(turns.given.values())
    assert turns.take("a new worker in the place of a lost one") in "abc"
