"""Which outputs of a node are wired in the prompt that the engine runs."""

from types import SimpleNamespace

import pytest
from nulltext.engine import readers as module
from nulltext.engine.readers import readers, running_job

PROMPT = {
    "1": {"class_type": "A", "inputs": {"text": "a", "size": [64, 64]}},
    "2": {"class_type": "B", "inputs": {"first": ["1", 0], "again": ["1", 2], "number": 3}},
    "7:1": {"class_type": "C", "inputs": {"x": ["2", 1]}},
}


@pytest.fixture
def running(monkeypatch):
    """running(*items): the engine's queue runs these."""

    def run(*items):
        queue = SimpleNamespace(currently_running=dict(enumerate(items)))
        server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue)))
        monkeypatch.setattr(module, "get", lambda name: server)

    return run


@pytest.mark.parametrize(
    "item",
    [(1, "id", PROMPT, {}, ["2"]), SimpleNamespace(queue_tuple=(1, "id", PROMPT, {}, ["2"]))],
    ids=["upstream", "pip engine"],
)
def test_it_tells_the_wired_outputs_by_number(running, item):
    running((0, "other", {}, {}, []), item)
    assert readers("1") == {0, 2} and readers("2") == {1} and readers("7:1") == set()


def test_the_job_that_runs(running):
    for items, job in (((1, "id", PROMPT),), "id"), ((), None), (((1, "a", PROMPT), (2, "b", PROMPT)), None):
        running(*items)
        assert running_job() == job


def test_what_is_not_in_the_prompt_is_not_told(running):
    running((1, "id", PROMPT, {}, []))
    assert readers("3") is None and readers(None) is None


@pytest.mark.parametrize("item", [(1, "id"), None, (1, "id", None)], ids=str)
def test_a_queue_of_another_form_tells_nothing(running, item):
    running(item)
    assert readers("1") is None


def test_without_a_server_nothing_is_told(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(module, "get", missing)
    assert readers("1") is None
