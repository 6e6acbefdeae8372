"""SDEdit's levels, and what it keeps of a guide."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.picture.sdedit import meaning, sdedit_sigmas
from nulltext.samplers.walk import sample_walk


def sigma_at(t):
    return 14.6 * t**3


def test_levels_start_at_t0_and_are_even_in_time():
    sigmas = sdedit_sigmas(sigma_at, 0.5, 10)
    assert len(sigmas) == 11 and sigmas[0].item() == pytest.approx(sigma_at(0.5)) and sigmas[-1] == 0
    assert sigmas[5].item() == pytest.approx(sigma_at(0.25))
    assert sdedit_sigmas(sigma_at, 0.0, 10).tolist() == [0.0]
    assert len(sdedit_sigmas(lambda t: round(t * 4) + 0.5, 1.0, 50)) == 6  # repeated levels are dropped
    with pytest.raises(ValueError, match="between 0"):
        sdedit_sigmas(sigma_at, 1.2, 10)
    assert "background kept" in meaning(0.1) and "layout" in meaning(0.5) and meaning(1.0) == "hardly anything kept"


def test_a_level_of_0_is_no_step_even_where_the_models_table_starts_above_0():
    assert sdedit_sigmas(lambda t: 0.03 + t, 0.0, 5).tolist() == [0.0]


@pytest.mark.parametrize("process", [VE, FLOW])
def test_small_t0_is_faithful_and_large_t0_realistic(process):
    """A guide off the data: distance to it grows with t0, likelihood under the data too."""
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.3)
    guide = torch.tensor([[1.0, 1.5]], dtype=torch.float64).expand(2000, 2)
    level = sigma_at if process is VE else (lambda t: 0.999 * t)
    far, likely = [], []
    for t0 in (0.15, 0.4, 0.9):
        sigmas, noise = sdedit_sigmas(level, t0, 40), gaussian(guide, 0)
        x = process.noised(guide, sigmas[0], noise())
        x = sample_walk(mixture.denoiser(process), x, sigmas, process=process, noise=noise)
        far.append((x - guide).norm(dim=1).mean().item())
        likely.append(mixture.log_prob(x).mean().item())
    assert far == sorted(far) and likely == sorted(likely) and far[-1] > 1.3 * far[0]
