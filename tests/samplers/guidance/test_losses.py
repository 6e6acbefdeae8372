"""Losses against what they must be at known places, one number per sample."""

import math

import pytest
import torch
from nulltext.samplers.guidance import losses

G = torch.Generator().manual_seed(0)


def rows(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def test_spherical_is_half_the_squared_angle():
    u, v = rows(7, 5), rows(7, 5)
    angle = torch.acos(torch.cosine_similarity(u, v, dim=-1))
    torch.testing.assert_close(losses.spherical(u, v), angle**2 / 2, rtol=1e-9, atol=1e-12)
    near = u + 1e-3 * v
    torch.testing.assert_close(
        losses.spherical(u, near), torch.acos(torch.cosine_similarity(u, near, dim=-1)) ** 2 / 2, rtol=1e-6, atol=1e-12
    )


def test_spherical_ends():
    u = rows(3, 5).requires_grad_()
    same, opposite = losses.spherical(u, u.detach()), losses.spherical(u, -u.detach())
    assert same.abs().max() < 1e-12
    torch.testing.assert_close(opposite, torch.full_like(opposite, math.pi**2 / 2), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(same.sum() + opposite.sum(), u)
    assert bool(torch.isfinite(gradient).all())


def test_spherical_gradient_by_finite_differences():
    u, v = rows(2, 4).requires_grad_(), rows(2, 4)
    assert torch.autograd.gradcheck(lambda z: losses.spherical(z, v), (u,))
    near = (v + 1e-2 * u.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: losses.spherical(z, v), (near,))


def test_contrastive_needs_a_distractor_and_lets_go_when_sure():
    target, others = rows(6), rows(3, 6)
    with pytest.raises(ValueError, match="distractor"):
        losses.contrastive(rows(2, 6), target, others[:0])
    u = torch.stack([target, target + others[0]]).requires_grad_()
    loss = losses.contrastive(u, target, others)
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    assert loss[0] < 1e-3 and gradient[0].norm() < 1e-2 * gradient[1].norm()
    logits = 100 * torch.cosine_similarity(u[:, None], torch.cat([target[None], others]), dim=-1)
    torch.testing.assert_close(loss, -torch.log_softmax(logits, 1)[:, 0])


def test_weighted_targets():
    a, b = rows(3), rows(3)
    torch.testing.assert_close(losses.weighted([a, b], [1.0, 3.0]), (a + 3 * b) / 4)
    torch.testing.assert_close(losses.weighted([a, b], [1.0, -0.5]), (a - 0.5 * b) / 0.5)
    with pytest.raises(ValueError, match="zero"):
        losses.weighted([a, b], [1.0, -1.0])


def test_class_log_prob_per_sample():
    logits = rows(4, 3)
    want = torch.log_softmax(logits, 1)
    torch.testing.assert_close(losses.class_log_prob(logits, 2), want[:, 2])
    torch.testing.assert_close(losses.class_log_prob(logits, torch.tensor([0, 1, 2, 0])), want[range(4), [0, 1, 2, 0]])


def test_gram_ignores_places_and_other_samples():
    f = rows(2, 3, 4, 5)
    order = torch.randperm(20, generator=G)
    shuffled = f.flatten(2)[:, :, order].reshape(f.shape)
    torch.testing.assert_close(losses.gram(shuffled), losses.gram(f))
    torch.testing.assert_close(losses.gram(f)[1:], losses.gram(f[1:]))


def test_style_is_zero_at_the_reference_whatever_the_layout_and_content_is_not():
    f, r = rows(2, 3, 4, 4), rows(1, 3, 4, 4)
    moved = r.flip(-1).expand(2, -1, -1, -1)
    assert losses.style([moved], [r]).max() < 1e-20
    assert losses.content([moved], [r]).min() > 0.1
    assert losses.content([r.expand(2, -1, -1, -1)], [r]).max() == 0
    torch.testing.assert_close(losses.style([f], [r])[1:], losses.style([f[1:]], [r]))


def test_total_variation_and_range():
    flat = torch.full((2, 3, 5, 5), 0.4)
    assert losses.total_variation(flat).max() == 0
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    torch.testing.assert_close(losses.total_variation(ramp), torch.tensor([4 / 5]))
    image = torch.tensor([-0.5, 0.2, 1.5, 1.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(losses.out_of_range(image), torch.tensor([(0.25 + 0.25) / 4]))


def test_total_variation_counts_rows_and_columns_alike():
    image = rows(2, 3, 6, 6)
    torch.testing.assert_close(losses.total_variation(image), losses.total_variation(image.transpose(-1, -2)))
    step = torch.zeros(1, 1, 4, 4)
    step[..., 2:, :] = 1.0  # four pairs of neighbours, sixteen places
    torch.testing.assert_close(losses.total_variation(step), torch.tensor([4 / 16]))


def test_gram_is_divided_by_channels_and_places():
    torch.testing.assert_close(losses.gram(torch.ones(1, 3, 4, 5)), torch.full((1, 3, 3), 1 / 3))


def test_style_and_content_are_relative_to_the_reference():
    f, r = rows(2, 3, 4, 4), rows(1, 3, 4, 4)
    for loss in (losses.style, losses.content):
        torch.testing.assert_close(loss([10 * f], [10 * r]), loss([f], [r]))
        torch.testing.assert_close(loss([0 * f], [r]), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.0199, 0.0201, 0.5])
def test_spherical_is_exact_at_known_angles_on_both_sides_of_its_series(angle):
    u, v = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert float(losses.spherical(u, v)) == pytest.approx(angle**2 / 2, rel=1e-9)
