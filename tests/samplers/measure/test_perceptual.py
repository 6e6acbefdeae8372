"""The distance of pictures in LPIPS's form: 0 between equal ones, more with noise and blur, on LPIPS's scale."""

import pytest
import torch
import torch.nn.functional as F
from nulltext.demo import scenes
from nulltext.samplers.measure.perceptual import WEIGHTS, perceptual_distance


@pytest.fixture(scope="module")
def pictures():
    return scenes.draw(scenes.sample(4, torch.Generator().manual_seed(1), "held_out", two=0.0))[0]


def noised(pictures, sigma):
    """At the variance of pictures, as a net sees x_s."""
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(2))
    return (((2 * pictures - 1) + sigma * noise) / (1 + sigma**2) ** 0.5 + 1) / 2


def test_equal_pictures_are_0_apart_and_rows_do_not_touch(pictures):
    other = noised(pictures, 0.5)
    assert torch.equal(perceptual_distance(pictures, pictures), torch.zeros(4))
    assert torch.allclose(perceptual_distance(pictures, other), perceptual_distance(other, pictures))
    one = perceptual_distance(pictures[1:2], other[1:2])
    assert torch.allclose(perceptual_distance(pictures, other)[1:2], one) and float(one) > 0.5


def test_noise_and_blur_raise_it_and_noise_alone_stands_as_far_as_in_lpips(pictures):
    levels = [float(perceptual_distance(pictures, noised(pictures, s)).mean()) for s in (0.05, 0.2, 0.6, 2.0, 50.0)]
    assert levels == sorted(levels) and levels[0] < 0.6 and 1.2 <= levels[-1] <= 1.7
    blurs = [F.interpolate(F.avg_pool2d(pictures, k), scale_factor=k, mode="bilinear") for k in (2, 4, 8)]
    soft = [float(perceptual_distance(pictures, b).mean()) for b in blurs]
    assert 0 < soft[0] < soft[1] < soft[2] < levels[-1]


def test_nothing_in_common_is_2_at_every_scale_where_it_is_seen():
    """A flat picture against stripes: one pixel wide they are gone in the halved picture."""
    flat, stripes = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 3, 16, 16)
    stripes[..., ::4], stripes[..., 1::4] = 1, 1
    assert float(perceptual_distance(flat, stripes)) == pytest.approx(2 * sum(WEIGHTS), rel=0.06)
    fine = torch.zeros(1, 3, 16, 16)
    fine[..., ::2] = 1
    assert float(perceptual_distance(flat, fine)) == pytest.approx(2 * WEIGHTS[0], rel=0.06)


def test_brightness_alone_does_not_count(pictures):
    assert torch.allclose(perceptual_distance(pictures, pictures + 0.2), torch.zeros(4), atol=1e-4)


def test_what_can_not_be_compared_is_refused():
    for a, b in (((1, 3, 16, 16), (1, 3, 16, 8)), ((1, 3, 4, 16), (1, 3, 4, 16)), ((3, 16, 16), (3, 16, 16))):
        with pytest.raises(ValueError, match="one shape"):
            perceptual_distance(torch.zeros(a), torch.zeros(b))
    assert float(perceptual_distance(torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8))) > 0.5  # one scale fits
