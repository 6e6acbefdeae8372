"""A training step that goes along a walk: one level a call, and where it may be taken up again."""

import torch
from nulltext.samplers.tuning.walks import Walks


def test_a_step_is_one_level_and_a_new_walk_begins_after_the_last():
    begun, seen = [], []

    def begin(generator):
        begun.append(float(torch.rand((), generator=generator)))
        return begun[-1]

    def advance(state, i):
        seen.append((state, i))
        return {"loss": torch.tensor(float(i))}, state + 1

    step, generator = Walks(3, begin, advance), torch.Generator().manual_seed(0)
    between, losses = [], []
    for _ in range(7):
        between.append(step.between)
        losses.append(float(step(generator)["loss"]))
    assert losses == [0, 1, 2, 0, 1, 2, 0] and between == [True, False, False, True, False, False, True]
    assert len(begun) == 3 and len(set(begun)) == 3, "each walk draws its own start"
    assert seen[:3] == [(begun[0] + i, i) for i in range(3)] and seen[3] == (begun[1], 0)
