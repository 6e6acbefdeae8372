"""The proximal bench's control."""

import torch
from nulltext.benchmarks.proximal import __main__ as proximal


def test_the_random_control_keeps_other_numbers_at_every_step_and_the_same_in_every_run():
    cond, uncond = torch.ones(2, 4, 16, 16), torch.zeros(2, 4, 16, 16)

    def run():
        draws = torch.Generator().manual_seed(7)
        return [proximal.WAYS["random"](cond, uncond, draws) for _ in range(3)]

    first, again = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert all(0.25 < float(step.mean()) < 0.35 for step in first)  # a quantile of 0.7 is set to 0
