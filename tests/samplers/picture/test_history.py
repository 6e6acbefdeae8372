"""What a run had reached at a level: kept, interpolated, begun anew."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.picture.history import History


def test_history_interpolates_overwrites_and_starts_anew():
    history = History()
    for s in (4.0, 2.0, 2.0, 1.0):  # Heun asks 2.0 twice; the later latent counts
        history.record(s, torch.full((1, 1), s if len(history.entries) != 2 else 9.0))
    assert [e[0] for e in history.entries] == [4.0, 2.0, 1.0]
    assert history.at(2.0, None, VE)[1].item() == 9.0
    assert history.at(3.0, None, VE)[1].item() == pytest.approx((4.0 + 9.0) / 2)
    assert history.at(7.0, None, VE) == (4.0, history.entries[0][1])
    history.record(5.0, torch.ones(1, 1))
    assert [e[0] for e in history.entries] == [5.0]


@pytest.mark.parametrize("process", [VE, FLOW])
def test_above_the_first_sigma_the_latent_is_the_picture_with_the_runs_noise(process):
    z, n = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    history = History()
    history.record(0.5, process.noised(z, 0.5, n))
    reached, x = history.at(0.8, z, process)
    assert reached == 0.8
    torch.testing.assert_close(x, process.noised(z, 0.8, n))


def test_a_climb_keeps_what_lies_above_and_a_restart_keeps_nothing():
    history, x = History(), torch.zeros(1, 1, 2, 2)
    for sigma in (10.0, 5.0, 3.0, 7.0):  # RePaint jumps back up from 3 to 7
        history.record(sigma, x + sigma)
    assert [s for s, _ in history.entries] == [10.0, 7.0]
    assert history.at(8.5, None, VE)[1].unique().item() == pytest.approx(8.5)
    history.restart()
    history.record(7.0, x)  # another run, which begins lower
    assert history.at(9.0, None, VE)[0] == 7.0


def test_a_loop_that_asks_for_its_batch_twice_in_one_call_keeps_its_history():
    history, batch = History(), torch.arange(2.0).view(2, 1, 1, 1)
    history.record(9.0, batch + 9)
    history.record(5.0, (batch + 5).repeat(2, 1, 1, 1))
    assert torch.equal(history.at(7.0, None, VE)[1], (batch + 7).repeat(2, 1, 1, 1))
    history.record(3.0, batch + 3)
    assert [s for s, _ in history.entries] == [9.0, 5.0, 3.0]
    assert torch.equal(history.at(4.0, None, VE)[1], batch + 4)
    for other in (torch.zeros(3, 1, 1, 1), torch.zeros(3, 1, 2, 2)):  # other pictures
        history.record(2.0, other)
        assert [s for s, _ in history.entries] == [2.0]
