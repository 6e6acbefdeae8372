"""The laws of `make families` fail where the technique does nothing: what a cell's check mark rests on."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from nulltext.benchmarks.families.run import FAILS, LAW, REFUSED, WORKS, Outcome, figures
from nulltext.engine.training_store import Store
from nulltext.nodes import h_space, start_noise
from nulltext.samplers.tuning.h_direction import Direction
from nulltext.tests.stand_ins import LEAST

if importlib.util.find_spec("comfy.nodes") is None:
    pytest.skip("these cells call the embedded engine's nodes", allow_module_level=True)


def no_step(patch):
    for optimiser in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        patch.setattr(optimiser, "step", lambda self, *_, **__: None)


def no_direction(patch):
    found = h_space.mean_difference
    patch.setattr(h_space, "mean_difference", lambda *sets: 0 * found(*sets))


def nothing_read(patch):
    read = Direction.from_tensors
    patch.setattr(Direction, "from_tensors", lambda *file: replace(made := read(*file), shifts=0 * made.shifts))


def another_read(patch):
    read = Direction.from_tensors
    patch.setattr(Direction, "from_tensors", lambda *file: replace(made := read(*file), shifts=2 * made.shifts))


def another_result(patch):
    found = start_noise.optimise_start_noise
    patch.setattr(start_noise, "optimise_start_noise", lambda *a, **k: replace(made := found(*a, **k), x=made.x + 1))


VOID = [
    *((node, no_step) for node in ("TrainLora", "TrainEmbedding", "TrainControlNet", "ImagicOptimise", "HSpaceTrain")),
    *((node, no_step) for node in ("DiffusionCLIPTune", "TrainLatentClassifier", "OptimiseStartNoise")),
    ("HSpaceDirection", no_direction),
    ("LoadDirection", nothing_read),
    ("LoadDirection", another_read),
    ("OptimiseStartNoise", another_result),
]


@pytest.fixture
def lab(family_lab, narrow, monkeypatch):
    """lab(): a `Lab` of the smallest SD1.5, in this process; no training is found again."""
    narrow(LEAST)
    monkeypatch.setattr(Store, "steps", lambda store: [])
    return lambda: family_lab("SD1.5")


@pytest.mark.parametrize("node, void", VOID)
def test_a_law_fails_where_nothing_was_done(lab, monkeypatch, node, void):
    sound = lab().run(f"NullText_{node}")
    void(monkeypatch)
    outcome = lab().run(f"NullText_{node}")
    assert (sound.kind, outcome.kind) == (WORKS, LAW), f"{sound.says}; {outcome.says}"


def test_the_figures_count_every_kind():
    kinds = (WORKS, WORKS, WORKS, REFUSED, REFUSED, FAILS, LAW, LAW, LAW, LAW)
    found = {("node", str(i)): Outcome(kind, "") for i, kind in enumerate(kinds)}
    assert figures(found) == {"cells": 10, "works": 3, "refused": 2, "fails": 1, "law_failures": 4}
