"""The one rule for a window's edges, and everything in samplers/ that has a window in sigma."""

import math

import pytest
import torch
from nulltext.samplers.attention.controllers import Reweight
from nulltext.samplers.attention.maps import MapRecorder
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.guidance.cfg import ScheduleOfW
from nulltext.samplers.guidance.terms import Guidance
from nulltext.samplers.picture.disturbance import Disturbance
from nulltext.samplers.picture.disturbance_schedules import gains
from nulltext.samplers.picture.repaint import ranged_path
from nulltext.samplers.window import ALWAYS, Moment, SigmaWindow

START, END = 3.0, 0.7
AT_EDGES = {START: True, END: True, 1.0: True, START * 1.001: False, END * 0.999: False}


def test_both_edges_are_inside_and_rounding_does_not_decide():
    window = SigmaWindow(START, END)
    assert {s: s in window for s in AT_EDGES} == AT_EDGES
    for edge in (START, END):
        exact = torch.tensor(edge, dtype=torch.float64)
        assert all(
            s in window
            for s in (
                exact.float(),
                exact.float() * (1 + 1e-7),
                torch.tensor([edge, 0.1]),
                Moment(edge),
                (exact * 1000).float() / 1000,
            )
        )
    assert 1e9 in ALWAYS and 1e-9 in ALWAYS and math.inf in ALWAYS
    assert not any(s in SigmaWindow(1.0, 1.0) for s in (1.0, 2.0, 0.5))  # an empty span is empty
    assert not any(s in SigmaWindow(0.5, 1.0) for s in (0.5, 0.7, 1.0))


def resampled(process):
    def acts(sigma):
        at = lambda ratio: ratio if process is VE else ratio / (1 + ratio)  # the range is in noise to signal
        sigmas = torch.tensor([at(8.0), at(sigma), 0.0], dtype=torch.float64)
        return len(ranged_path(sigmas, 1, 2, END, START, process)) > len(sigmas)

    return acts


ACTS = {
    "disturbance": Disturbance(VE, START, END, itself=True).active,
    "gain of the disturbance": lambda s: gains([s, s / 2], 4.0, START, END)[0] > 0,
    "schedule of w": lambda s: ScheduleOfW(2.0, 2.0, START, END)(s) != 0,
    "guidance": lambda s: Guidance(lambda *_: None, window=(START, END)).scale_at(s) != 0,
    "RePaint's range": resampled(VE),
    "RePaint's range, flow": resampled(FLOW),
    "attention re-weighting": lambda s: Moment(s) in Reweight([], SigmaWindow(START, END)).window,
    "attention record": lambda s: Moment(s) in MapRecorder([], window=SigmaWindow(START, END)).window,
}


@pytest.mark.parametrize("technique", ACTS)
def test_every_window_has_the_same_edges(technique):
    assert {s: bool(ACTS[technique](s)) for s in AT_EDGES} == AT_EDGES
