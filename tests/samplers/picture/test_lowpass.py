"""The low-pass filters: what each keeps, and which of them are projectors."""

import pytest
import torch
import torch.nn.functional as F
from nulltext.samplers.picture.lowpass import bicubic_low_pass, dct_low_pass, kept

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 1.5])
@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 3, 12, 20), (2, 1, 3, 8, 8)])
def test_dct_is_an_idempotent_symmetric_smooth_projector(factor, shape):
    phi, x = dct_low_pass(factor), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(phi(phi(x)), phi(x), rtol=0, atol=1e-12)
    y = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close((phi(x) * y).sum(), (x * phi(y)).sum())
    flat = torch.full(shape, 2.5, dtype=torch.float64)
    torch.testing.assert_close(phi(flat), flat, rtol=0, atol=1e-12)
    assert phi(x).square().sum() <= x.square().sum()


def test_factor_1_is_the_identity_and_larger_factors_keep_less():
    x = torch.randn(1, 1, 16, 16)
    assert dct_low_pass(1)(x) is x
    energy = [dct_low_pass(n)(x).square().sum().item() for n in (1, 2, 4, 8, 16)]
    assert energy == sorted(energy, reverse=True) and energy[-1] < 0.1 * energy[0]
    with pytest.raises(ValueError, match="1 or more"):
        dct_low_pass(0.5)


def written_out(x, size, new):
    """Bicubic interpolation of one row, cell by cell, with the row mirrored and repeated far beyond both ends."""
    row = torch.cat([x, x.flip(0)]).repeat(9)  # cell 0 stands at 8 * size, which is a whole number of repeats
    first, ratio, out = 8 * size, new / size, []
    for i in range(new):
        centre, stretch, total, weights = (i + 0.5) / ratio - 0.5, min(ratio, 1.0), 0.0, 0.0
        for cell in range(-4 * size, 5 * size):
            d = abs(centre - cell) * stretch
            w = (1.5 * d**3 - 2.5 * d**2 + 1) if d <= 1 else (-0.5 * d**3 + 2.5 * d**2 - 4 * d + 2) if d < 2 else 0.0
            total, weights = total + w * float(row[first + cell]), weights + w
        out.append(total / weights)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("size, factor", [(16, 4), (16, 2), (12, 4), (10, 4), (8, 8)])
def test_the_authors_filter_is_bicubic_down_and_up_with_a_mirrored_border(size, factor):
    x = torch.randn(size, generator=GENERATOR, dtype=torch.float64)
    small = kept(size, factor)
    expected = written_out(written_out(x, size, small), small, size)
    column = bicubic_low_pass(factor)(x[:, None].expand(size, size))
    torch.testing.assert_close(column, expected[:, None].expand(size, size), rtol=0, atol=1e-12)


def test_the_authors_filter_is_torchs_antialiased_one_away_from_the_border():
    x = torch.randn(1, 1, 64, 64, generator=GENERATOR, dtype=torch.float64)
    options = {"mode": "bicubic", "antialias": True}
    torchs = F.interpolate(F.interpolate(x, (16, 16), **options), (64, 64), **options)
    gap = (torchs - bicubic_low_pass(4)(x)).abs()[0, 0]
    assert gap[16:-16, 16:-16].max() < 1e-12 and gap.max() > 0.01


@pytest.mark.parametrize("factor", [2, 4, 8, 1.5])
def test_the_authors_filter_keeps_flat_pictures_and_mirrors_but_is_no_projector(factor):
    phi, x = bicubic_low_pass(factor), torch.randn(2, 3, 16, 24, generator=GENERATOR, dtype=torch.float64)
    flat = torch.full_like(x, 2.5)
    torch.testing.assert_close(phi(flat), flat, rtol=0, atol=1e-12)
    torch.testing.assert_close(phi(x.flip(-1, -2)), phi(x).flip(-1, -2), rtol=0, atol=1e-12)
    gap = (phi(phi(x)) - phi(x)).square().sum().sqrt()
    # phi's eigenvalues lie between 0 and 1, so those of phi - phi phi reach 1/4 at most
    assert 1e-3 < gap / x.square().sum().sqrt() < 0.25


def overshoot(low_pass, factor):
    """Largest value above 1 that the filter makes of a square of 16 cells, over its places against the coarse cells."""
    worst = []
    for shift in range(factor):
        x = torch.zeros(64, 64, dtype=torch.float64)
        x[24 + shift : 40 + shift, 24 + shift : 40 + shift] = 1
        worst.append(float(low_pass(factor)(x).max()) - 1)
    return min(worst), max(worst)


def test_the_overshoot_that_the_help_page_tells():
    assert overshoot(bicubic_low_pass, 4) == pytest.approx((0.047, 0.141), abs=5e-4)
    assert overshoot(dct_low_pass, 4) == pytest.approx((0.233, 0.251), abs=5e-4)
