"""A training that is stopped goes on from where it stood with the same bits, and costs nothing while it runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from nulltext.engine import training, training_store
from nulltext.engine.training_store import run_resumable
from nulltext.samplers import record_file
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.walks import Walks
from safetensors.torch import load_file

START = Settings(steps=6, lr=0.1)


@pytest.fixture(autouse=True)
def place(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(training_store, "cache_folder", lambda kind: tmp_path)
    return tmp_path


def a_loop(settings=START):
    return Loop({"a": torch.zeros(2)}, settings, 3)


def run(stop_at=None, settings=START, key="key", loop=None):
    loop = loop or a_loop(settings)

    def step(generator):
        if loop.step == stop_at:
            raise KeyboardInterrupt
        return {"loss": (loop.parameters["a"] - torch.randn(2, generator=generator)).square().sum()}

    begun = run_resumable(loop, step, key)
    return loop.result()["a"], begun


def run_walks(stop_at=None, loop=None, key="key"):
    """Walks of three steps each."""
    loop = loop or a_loop()

    def advance(state, i):
        if loop.step == stop_at:
            raise KeyboardInterrupt
        return {"loss": (loop.parameters["a"] - state).square().sum()}, state + 1

    begun = run_resumable(loop, Walks(3, lambda generator: torch.randn(2, generator=generator), advance), key)
    return loop.result()["a"], begun


def test_a_stopped_run_goes_on_and_takes_no_room_at_its_end(tmp_path):
    whole, _ = run(key="another")
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4)
    assert len(list(tmp_path.rglob("key_4.safetensors"))) == 1
    again, begun = run()
    assert begun == 4 and torch.equal(again, whole)
    assert [path.stem for path in tmp_path.glob("key_*")] == ["key_6"]
    next(tmp_path.glob("key_*")).unlink()
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=2)
    begun = run(settings=dataclasses.replace(START, optimiser="SGD"))[1]
    assert begun == 0  # a state of another kind is not taken up


@pytest.mark.parametrize("make", [run, run_walks])
def test_an_ended_run_is_found_at_its_end(tmp_path, monkeypatch, make):
    """Without the optimiser's moments, two thirds of its state, which nothing goes on from."""
    monkeypatch.setattr(training_store, "PAUSE", 0)
    whole, begun = make()
    (path,) = tmp_path.iterdir()
    assert begun == 0 and not any(name.startswith("optimiser/") for name in load_file(path))
    again, begun = make()
    assert begun == START.steps and torch.equal(again, whole)


def test_a_run_stopped_in_the_middle_of_a_walk_goes_on_from_its_beginning(tmp_path):
    whole, _ = run_walks(key="another")
    with pytest.raises(KeyboardInterrupt):
        run_walks(stop_at=2)
    assert not list(tmp_path.glob("key_*")), "in the first walk there is nothing to go on from"
    with pytest.raises(KeyboardInterrupt):
        run_walks(stop_at=5)
    again, begun = run_walks()
    assert begun == 3 and torch.equal(again, whole)


def test_the_state_is_copied_when_a_run_is_stopped_and_not_before(monkeypatch):
    loop, copied = a_loop(), []
    monkeypatch.setattr(loop, "state", lambda: copied.append(loop.step) or Loop.state(loop))
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4, loop=loop)
    assert copied == [4]


def test_the_state_between_two_walks_is_written_over_the_one_before(monkeypatch):
    """Of the weights of Stable Diffusion and Adam's moments a second copy is 10 GB."""
    monkeypatch.setattr(training_store, "PAUSE", 0)
    loop, copied = a_loop(dataclasses.replace(START, steps=9)), []
    monkeypatch.setattr(loop, "state", lambda *over: copied.append(Loop.state(loop, *over)) or copied[-1])
    run_walks(loop=loop)
    large = [{k: v for k, v in state.items() if k not in ("curve", "held")} for state, _ in copied]
    assert len(copied) == 4 and len(copied[3][0]["curve"]) == 9
    assert all(large[0][k] is v for state in large for k, v in state.items())


def test_a_state_that_takes_long_to_copy_is_copied_seldom(monkeypatch):
    monkeypatch.setattr(training_store, "PAUSE", 1e9)
    loop, copied = a_loop(dataclasses.replace(START, steps=9)), []
    monkeypatch.setattr(loop, "state", lambda *over: copied.append(loop.step) or Loop.state(loop, *over))
    run_walks(loop=loop)
    assert copied == [3, 9], "once along the way, and at the end"


def test_without_a_key_nothing_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4, key=None)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_hides_no_interrupt_and_ends_no_run(monkeypatch, caplog):
    def full(kind):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_store, "cache_folder", full)
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4)
    assert "could not be kept" in caplog.text
    assert run()[1] == 0


def test_the_longest_unused_states_make_room(tmp_path, monkeypatch):
    for key in ("first", "second"):
        with pytest.raises(KeyboardInterrupt):
            run(stop_at=4, key=key)
    size = (tmp_path / "first_4.safetensors").stat().st_size
    monkeypatch.setattr(training_store, "STORE_BYTES", 2 * size + 10)
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4, key="third")
    assert {path.stem for path in tmp_path.iterdir()} == {"second_4", "third_4"}


def test_a_saved_training_that_cannot_be_opened_now_is_kept(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4)

    def locked(*args, **options):
        raise PermissionError(5, "Access is denied")

    with monkeypatch.context() as patched:
        patched.setattr(record_file, "safe_open", locked)
        with pytest.raises(KeyboardInterrupt):
            run(stop_at=0)
    assert run()[1] == 4


def test_a_file_that_a_loader_holds_is_refused_in_a_sentence(tmp_path):
    def write():
        raise PermissionError(13, "Access is denied", "a.part", None, "taught.safetensors")

    run()
    for key, then in (("key", "is kept and is not done again"), (None, "is not kept and is done again")):
        store, loop = training_store.Store(key), a_loop(dataclasses.replace(START, steps=6 if key else 0))
        store.resume(loop)
        told = f"taught.safetensors can't be written now.*another file name: the training {then}"
        with pytest.raises(ValueError, match=told):
            training.train_to_file(write, None, loop, store=store)
