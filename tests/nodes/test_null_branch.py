"""The null branch's wrapper on a network of one line: what is matched, and what the log says."""

import pytest
import torch
from nulltext.nodes.bridge.null_branch import NullBranch
from nulltext.samplers.core import VE
from nulltext.samplers.disturbance import Disturbance as Looks


@pytest.mark.parametrize("match", [True, False])
def test_matching_bounds_the_null_branchs_noise_by_the_conditionals(match, caplog):
    picture = torch.full((1, 1, 2, 2), 9.0)
    branch = NullBranch(Looks(VE, start=1.0, reference=picture), 1.0, 2.0, match=match)
    x = torch.ones(1, 1, 2, 2)
    network = lambda given, sigma: given * 0.5  # sees half of what it is given as noise

    def ask(kinds):
        args = {"input": torch.cat([x] * len(kinds)), "timestep": torch.tensor([0.5]), "c": {}, "cond_or_uncond": kinds}
        return branch(network, args).chunk(len(kinds))

    uncond, cond = ask([1, 0])
    torch.testing.assert_close(cond, x * 0.5)
    seen = 0.5 * 9 * (1 + 0.5**2) ** 0.5  # X' - D_u'
    torch.testing.assert_close(x - uncond, x * (0.5 if match else seen))
    (alone,) = ask([1])  # the branches one by one: nothing to match with, and the log says so
    torch.testing.assert_close(x - alone, x * seen)
    assert ("one by one" in caplog.text) == match
