"""Proximal guidance: the two thresholds worked out by hand, and as the minimisers that they are."""

import pytest
import torch
from nulltext.samplers.guidance.proximal import NORMS, proximal, proximal_cond


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_thresholds_by_hand():
    change = torch.tensor([[[1.0, -2.0, 3.0, -4.0, 5.0]]])  # the median of the sizes is 3
    assert proximal(change, 0.5, "l0").tolist() == [[[0.0, 0.0, 3.0, -4.0, 5.0]]]
    assert proximal(change, 0.5, "l1").tolist() == [[[0.0, 0.0, 0.0, -1.0, 2.0]]]


@pytest.mark.parametrize("norm", NORMS)
def test_it_minimises_half_the_squared_distance_plus_the_norm(norm):
    """prox(d) = argmin_y (y - d)^2 / 2 + penalty(y): t |y| for l1, t^2 / 2 where y is not 0 for l0."""
    change, quantile = draws(1, 1, 41), 0.6
    t = torch.quantile(change.abs().flatten(), quantile)
    y = torch.cat([torch.zeros(1, dtype=torch.float64), torch.linspace(-4, 4, 80001, dtype=torch.float64)])
    penalty = t * y.abs() if norm == "l1" else t * t / 2 * (y != 0)
    best = torch.stack([y[((y - d) ** 2 / 2 + penalty).argmin()] for d in change.flatten()])
    found = proximal(change, quantile, norm).flatten()
    edge = (change.flatten().abs() - t).abs() < 2e-4  # at the threshold itself both answers are as good
    torch.testing.assert_close(found[~edge], best[~edge], rtol=0, atol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_the_same_for_every_multiple_and_every_picture_by_itself(norm):
    change = draws(3, 4, 8, 8) * torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64).view(3, 1, 1, 1)
    whole = proximal(change, 0.7, norm)
    for scale in (2.0, -0.25):
        torch.testing.assert_close(proximal(scale * change, 0.7, norm), scale * whole)
    for i in range(3):
        torch.testing.assert_close(proximal(change[i : i + 1], 0.7, norm), whole[i : i + 1])
        assert float((whole[i] == 0).double().mean()) == pytest.approx(0.7, abs=0.005)


@pytest.mark.parametrize("norm", NORMS)
def test_quantile_0_is_plain_guidance_and_equal_branches_stay_equal(norm):
    cond, uncond = draws(2, 4, 4, 4), draws(2, 4, 4, 4, seed=1)
    assert proximal_cond(cond, uncond, 0.0, norm) is cond
    assert torch.equal(proximal_cond(uncond, uncond, 0.7, norm), uncond)
    torch.testing.assert_close(proximal_cond(cond, uncond, 0.7, norm) - uncond, proximal(cond - uncond, 0.7, norm))


@pytest.mark.parametrize("wrong", [{"quantile": 1.0}, {"quantile": -0.1}, {"quantile": 0.5, "norm": "l2"}])
def test_what_has_no_meaning_is_refused(wrong):
    with pytest.raises(ValueError, match="quantile of|norm is one of"):
        proximal(draws(1, 1, 4), **wrong)
