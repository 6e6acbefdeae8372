"""DiffEdit's map of a known disagreement, and its decoding."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.diffedit import difference_map, sample_diffedit


@pytest.mark.parametrize("process", [VE, FLOW])
def test_the_map_is_the_mean_absolute_difference_of_noise(process):
    x0, sigma = torch.zeros(2, 2, 3, 3, dtype=torch.float64), 0.5
    apart = torch.zeros_like(x0)
    apart[:, 0, 1, 1], apart[:, 1, 1, 1] = 3.0, -1.0  # opposite signs in the two channels
    h = difference_map(lambda x, s: (x, x + apart), x0, sigma, process=process, noise=gaussian(x0, 0), maps=3)
    want = torch.zeros(2, 3, 3, dtype=torch.float64)
    want[:, 1, 1] = (3 + 1) / 2 / sigma
    torch.testing.assert_close(h, want)


def test_decoding_is_ddim_where_everything_may_change_and_draws_nothing():
    mixture, sigmas = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], 0.5), torch.tensor([5.0, 1.0, 0.2, 0.0]).double()
    clean = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    trajectory = torch.stack([clean + s for s in sigmas])

    def never():
        raise AssertionError("DiffEdit's decoding is deterministic")

    def decode(edit):
        return sample_diffedit(
            mixture.denoise, trajectory[0], sigmas, trajectory=trajectory, edit=edit, process=VE, noise=never
        )

    torch.testing.assert_close(decode(torch.ones(1, 2)), sample_euler(mixture.denoise, trajectory[0], sigmas))
    assert torch.equal(decode(torch.zeros(1, 2)), clean)
