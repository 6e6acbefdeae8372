import pytest
import torch
from nulltext.samplers.measure.kid import _draws, kernel, kid, kid_gain


def draws(n, shift=0.0, seed=0, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_it_is_the_unbiased_estimator_written_out():
    x, y = draws(5, seed=1), draws(4, 0.5, seed=2)
    k = lambda a, b: float((a @ b / 4 + 1) ** 3)  # noqa: E731
    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    xy = sum(k(a, b) for a in x for b in y) / 20
    assert kid(x, y)[0] == pytest.approx(xx + yy - 2 * xy)


def test_equal_laws_give_zero_within_error_on_average():
    values = [kid(draws(60, seed=2 * i), draws(80, seed=2 * i + 1), bootstrap=1)[0] for i in range(60)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 60**0.5
    assert abs(mean) < 3.5 * error


def test_the_bootstrap_error_is_the_spread_over_fresh_draws():
    values, errors = zip(*(kid(draws(80, 0.7, seed=2 * i), draws(80, seed=2 * i + 1)) for i in range(40)))
    spread = torch.tensor(values).std()
    assert 0.7 < float(torch.tensor(errors).mean() / spread) < 1.4
    assert torch.tensor(values).mean() > 5 * spread / 40**0.5


def test_repeatable_and_refusing():
    x, y = draws(10), draws(12, seed=5)
    assert kid(x, y) == kid(x, y)
    with pytest.raises(ValueError, match="two items"):
        kid(x[:1], y)
    with pytest.raises(ValueError, match="equal length"):
        kid(x, y[:, :2])
    assert kernel(x, y).shape == (10, 12)


def test_a_paired_gain_is_the_difference_with_the_error_of_paired_draws():
    gains, errors, alone = [], [], []
    for i in range(40):
        x, y = draws(80, 0.5, seed=2 * i), draws(80, seed=2 * i + 1)
        gain, error = kid_gain(x, x - 0.15, y)
        assert gain == pytest.approx(kid(x, y)[0] - kid(x - 0.15, y)[0])
        gains.append(gain), errors.append(error), alone.append(kid(x, y)[1])
    spread = torch.tensor(gains).std()
    assert 0.7 < float(torch.tensor(errors).mean() / spread) < 1.4
    assert all(e < 0.75 * a for e, a in zip(errors, alone))  # what both share cancels
    assert kid_gain(x, x, y) == (0.0, 0.0)
    with pytest.raises(ValueError, match="alike"):
        kid_gain(x, x[:40], y)


def test_the_bootstrap_draws_each_set_anew_with_replacement():
    (a, b), (n, m) = _draws((50, 30), 4000, seed=0), (50, 30)
    for counts, size in ((a, n), (b, m)):
        assert counts.shape == (4001, size) and bool((counts.sum(1) == size).all())
        assert bool((counts[0] == 1).all())  # first the set as it is
        drawn = counts[1:]
        torch.testing.assert_close(drawn.mean(0), torch.ones(size).double(), rtol=0, atol=0.1)
        torch.testing.assert_close(drawn.var(0), torch.full((size,), 1 - 1 / size).double(), rtol=0, atol=0.15)
