"""The curve of sudden convergence: a training that stops between two marks goes on from its state."""

import torch
from nulltext.benchmarks.controlnet import curve
from nulltext.benchmarks.lab import Demo


def test_the_training_goes_on_from_mark_to_mark(monkeypatch, tmp_path):
    monkeypatch.setattr(curve, "STATE", tmp_path / "curve.safetensors")
    demo, seen = Demo(), []

    def judge(control):
        seen.append([v.detach().clone() for v in control.tensors().values()])
        return 0.1 * len(seen)

    run = curve.Curve(demo, True)
    torch.manual_seed(0)  # the pool's own order draws from torch's generator
    rows = [run.at(mark, judge) for mark in (0, 1)]
    again = curve.Curve(demo, True)  # as after a stop
    rows.append(again.at(2, judge))
    assert [row["step"] for row in rows] == [0, 1, 2] and again.loop.step == 2
    moved = [any(not torch.equal(a, b) for a, b in zip(x, y)) for x, y in zip(seen, seen[1:])]
    assert moved == [True, True] and all(row["loss"] == row["loss"] for row in rows[1:])
    assert "from step 0 to 1" in curve.jump([{"step": 0, "iou": 0.1}, {"step": 1, "iou": 0.6}, {"step": 2, "iou": 0.7}])
    anew = curve.Curve(demo, True)
    anew.at(0, judge)  # the first mark forgets an older state
    assert anew.loop.step == 0 and all(torch.equal(a, b) for a, b in zip(seen[0], seen[-1]))
