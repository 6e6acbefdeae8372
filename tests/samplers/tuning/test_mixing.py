"""Predictions mixed by weights and windows."""

import pytest
import torch
from nulltext.samplers.tuning.mixing import Share, degrees, mixed
from nulltext.samplers.window import SigmaWindow


def models():
    """Three denoisers that differ by a constant."""
    return [lambda x, s, b=b: x / (1 + s**2) + b for b in (0.0, 1.0, -2.0)]


def test_weights_of_one_and_nought_are_the_first_model_to_the_bit():
    x, s = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), torch.tensor(1.3)
    first, second, third = (m(x, s) for m in models())

    def broken(x, s):
        raise AssertionError("a model of weight 0 is not asked")

    assert torch.equal(mixed([models()[0], broken], degrees(Share(0.0)))(x, s), first)
    assert torch.equal(mixed([broken, models()[1]], degrees(Share(1.0)))(x, s), second)
    assert torch.allclose(mixed(models()[:2], degrees(Share(0.25)))(x, s), 0.75 * first + 0.25 * second)
    assert torch.allclose(mixed(models()[:2], degrees(Share(1.5)))(x, s), -0.5 * first + 1.5 * second, atol=1e-6)
    several = mixed(models(), [Share(0.0), Share(2.0), Share(1.0)])(x, s)
    assert torch.allclose(several, (2 * second + third) / 3)


def test_mixing_is_affine_in_the_weights_and_windows_switch_it():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    shares = [Share(1.0, SigmaWindow(float("inf"), 2.0)), Share(1.0, SigmaWindow(2.0, 0.5))]
    denoise = mixed(models()[1:], shares)
    second, third = models()[1:]
    assert torch.equal(denoise(x, torch.tensor(4.0)), second(x, torch.tensor(4.0)))
    assert torch.equal(denoise(x, torch.tensor(1.0)), third(x, torch.tensor(1.0)))
    seam = torch.tensor(2.0)
    assert torch.allclose(denoise(x, seam), (second(x, seam) + third(x, seam)) / 2)
    assert torch.equal(denoise(x, torch.tensor(0.1)), second(x, torch.tensor(0.1)))  # nobody's level: the first model's


def test_the_original_gets_what_the_tuned_models_leave():
    early, late = SigmaWindow(float("inf"), 2.0), SigmaWindow(1.9, 0.0)
    found = degrees(Share(0.3), Share(0.4, early), Share(1.0, late))
    assert [s.at(4.0) for s in found] == pytest.approx([0.3, 0.3, 0.4, 0.0])
    assert [s.at(1.0) for s in found] == pytest.approx([0.0, 0.3, 0.0, 1.0])  # 1.3: nothing is left
    assert [s.at(1.0) for s in degrees(Share(1.5))] == [-0.5, 1.5]


def test_weights_that_cannot_be_normalised_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        mixed(models()[:2], [Share(1.0), Share(-1.0)])
    with pytest.raises(ValueError, match="as many weights"):
        mixed(models(), degrees(Share(0.5)))


def test_weights_that_sum_to_one_but_for_rounding_leave_the_original_nothing():
    for weights in ((0.7, 0.2, 0.1), (0.6, 0.3, 0.1)):
        assert sum(weights) != 1 and degrees(*map(Share, weights))[0].at(torch.tensor(1.0)) == 0
