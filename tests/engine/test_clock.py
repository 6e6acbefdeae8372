"""Which run is this, and where in it: the rule that every hook asks."""

import pytest
import torch
from nulltext.engine.clock import Clock

SIGMAS = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])


def news(clock, *calls):
    return [clock.tick(sigma, sigmas) for sigma, sigmas in calls]


def test_a_run_begins_once_however_often_a_level_is_asked():
    assert news(Clock(), *[(s, SIGMAS) for s in (8.0, 8.0, 4.0, 4.0 * (1 + 1e-8), 2.0)]) == [True] + 4 * [False]


def test_a_climb_inside_a_run_is_no_new_run_and_a_return_to_the_top_is():
    clock = Clock()
    assert news(clock, *[(s, SIGMAS) for s in (8.0, 4.0, 2.0, 4.0, 2.0, 8.0)]) == [True] + 4 * [False] + [True]
    assert clock.levels == [8.0]


def test_another_schedule_is_another_run_even_where_it_starts_lower():
    clock = Clock()
    assert news(clock, (8.0, SIGMAS), (2.0, SIGMAS), (1.0, SIGMAS[3:].clone())) == [True, False, True]


def test_an_engine_that_tells_no_schedule_begins_a_run_with_every_rise():
    clock = Clock()
    assert news(clock, (8.0, None), (2.0, None), (4.0, None), (4.0, None)) == [True, False, True, False]
    assert clock.schedule is None and clock.seen == [4.0, 0.0]


def test_a_schedule_known_beforehand_stands_in():
    clock = Clock(SIGMAS)
    assert news(clock, (8.0, None), (2.0, None), (4.0, None), (8.0, None)) == [True, False, False, True]
    assert clock.schedule is SIGMAS and clock.seen is SIGMAS


def test_after_a_climb_the_levels_below_are_forgotten():
    clock = Clock()
    news(clock, *[(s, SIGMAS) for s in (8.0, 4.0, 2.0, 1.0, 2.0)])
    assert clock.levels == pytest.approx([8.0, 4.0, 2.0])


def test_a_restart_makes_the_next_call_the_first():
    clock = Clock()
    news(clock, (8.0, SIGMAS), (4.0, SIGMAS))
    clock.restart()
    assert clock.tick(4.0, SIGMAS)


class Condition:
    """What the engine makes of a prompt, anew for every run."""

    def met_by(self, clock):
        return clock.meet([{"model_conds": {"c_crossattn": self}}])


def test_where_no_schedule_is_told_a_run_is_over_once_its_conditions_are_gone():
    clock, source, edit = Clock(), Condition(), Condition()
    assert news(clock, (8.0, None)) == [True] and not source.met_by(clock) and not edit.met_by(clock)
    assert news(clock, (4.0, None)) == [False] and not source.met_by(clock) and not edit.met_by(clock)
    del source
    assert news(clock, (2.0, None)) == [False]  # the edit's is still there
    del edit
    assert news(clock, (1.0, None), (0.5, None)) == [True, False]


def test_a_condition_that_is_first_met_further_down_is_another_runs():
    """The last run was interrupted, and what it ran in is still held."""
    clock, first, second = Clock(), Condition(), Condition()
    news(clock, (8.0, None))
    first.met_by(clock)
    assert news(clock, (4.0, None)) == [False] and second.met_by(clock) and clock.levels == [4.0]
    assert news(clock, (2.0, None)) == [False] and not second.met_by(clock) and first.met_by(clock)


def test_where_the_schedule_is_told_conditions_say_nothing():
    clock, first = Clock(), Condition()
    assert news(clock, (8.0, SIGMAS), (4.0, SIGMAS)) == [True, False]
    assert not first.met_by(clock) and not clock.meet(None)
    del first
    assert news(clock, (2.0, SIGMAS)) == [False]
