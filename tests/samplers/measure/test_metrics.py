"""Image metrics against values worked out by hand."""

import math

import pytest
import torch
from nulltext.samplers.measure import metrics


def test_psnr_of_a_constant_error():
    a = torch.full((2, 3, 16, 16), 0.5)
    torch.testing.assert_close(metrics.psnr(a, a + 0.1), torch.full((2,), 20.0, dtype=torch.float64), atol=1e-5, rtol=0)
    assert metrics.psnr(a, a).tolist() == [math.inf] * 2


def test_the_bench_mask_counts_zeros_and_ours_does_not():
    a, b = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :12, :] = 1  # a quarter is background
    assert float(metrics.mse(a, b, mask)) == pytest.approx(0.01 / 4)
    assert float(metrics.masked_mse(a, b, mask)) == pytest.approx(0.01)
    b[..., :12, :] = 9.0
    assert float(metrics.mse(a, b, mask)) == pytest.approx(0.01 / 4)
    assert math.isnan(float(metrics.masked_mse(a, b, torch.ones_like(mask))))


def test_ssim():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 32, 32, generator=g)
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones(2, dtype=torch.float64))
    flat, other = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.25)
    luminance = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)  # without structure only the means are left
    assert float(metrics.ssim(flat, other)) == pytest.approx(luminance, abs=1e-6)
    assert float(metrics.ssim(a, 1 - a)[0]) < -0.5  # opposite structure
    noisy = [float(metrics.ssim(a, (a + s * torch.randn(a.shape, generator=g)).clamp(0, 1))[0]) for s in (0.05, 0.2)]
    assert 1 > noisy[0] > noisy[1] > 0
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(a[..., :8, :8], a[..., :8, :8])


def test_structure_distance():
    g = torch.Generator().manual_seed(0)
    f = torch.randn(2, 9, 5, generator=g)
    assert metrics.structure_distance(f, 3 * f).max() < 1e-12  # cosines: the scale of features does not count
    orthogonal, equal = torch.eye(2).unsqueeze(0), torch.ones(1, 2, 2)
    assert float(metrics.structure_distance(orthogonal, equal)) == pytest.approx(
        0.5
    )  # two of four entries differ by one
    image = torch.rand(1, 3, 32, 32, generator=g)
    assert float(metrics.structure_distance(*(metrics.patch_features(i) for i in (image, image)))) == 0
    recoloured, moved = image * 0.9, image.flip(-1)
    near, far = (
        float(metrics.structure_distance(metrics.patch_features(image), metrics.patch_features(i)))
        for i in (recoloured, moved)
    )
    assert near < far / 10


def test_clip_similarity_is_never_negative():
    text = torch.tensor([[1.0, 0.0]])
    image = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    assert metrics.clip_similarity(image, text).tolist() == pytest.approx([100, 0, 0, 100 / 2**0.5])


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="one shape"):
        metrics.structure_distance(torch.zeros(1, 3, 8), torch.zeros(1, 4, 8))


def test_ssim_of_one_window_is_its_formula_written_out():
    g = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 1, 1, 11, 11, generator=g, dtype=torch.float64)
    axis = torch.exp(-(torch.arange(-5.0, 6.0, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    weight = axis[:, None] * axis / (axis[:, None] * axis).sum()
    mean = lambda t: float((weight * t).sum())  # noqa: E731
    va, vb = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    cov = mean(a * b) - mean(a) * mean(b)
    want = (2 * mean(a) * mean(b) + 1e-4) * (2 * cov + 9e-4) / ((mean(a) ** 2 + mean(b) ** 2 + 1e-4) * (va + vb + 9e-4))
    assert float(metrics.ssim(a, b)) == pytest.approx(want)


def test_patch_features_forget_the_mean_patch():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(metrics.patch_features(image + 0.3), metrics.patch_features(image), rtol=0, atol=1e-6)


def test_a_region_without_background_is_refused_and_others_are_brought_to_the_pictures_size():
    image, half = torch.zeros(2, 3, 16, 16), torch.zeros(8, 8)
    half[:4] = 1
    made = metrics.region(half, image)
    assert made.shape == (1, 1, 16, 16) and made[..., :8, :].min() == 1 and made[..., 8:, :].max() == 0
    assert metrics.region(torch.zeros(8, 8), image).max() == 0
    with pytest.raises(ValueError, match="whole picture"):
        metrics.region(torch.ones(8, 8), image)
    kept = metrics.preservation(image, image + 0.1, made)
    assert list(kept) == ["psnr", "ssim", "mse"] and kept["mse"].tolist() == pytest.approx([0.005] * 2)
