from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nulltext.samplers.guidance import cutouts
from nulltext.samplers.guidance.cutouts import Cutouts, resize

ALL = Cutouts(count=6, size=16, flip=0.5, degrees=15, translate=0.1, noise=0.01, grey=0.2, smallest=0.4)


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def picture(batch=3, h=40, w=48):
    return torch.rand(batch, 3, h, w, generator=seeded(9))


def test_shape_and_the_first_is_the_whole_picture():
    image = picture()
    out = ALL(image, seeded())
    assert out.shape == (6, 3, 3, 16, 16)
    torch.testing.assert_close(out[0], resize(image, 16))


def test_boxes_lie_inside_and_keep_their_least_size():
    boxes = Cutouts(count=200, smallest=0.4, power=2.0).boxes(40, 48, seeded())
    sides = [h for _, _, h, _ in boxes[1:]]
    assert all(t >= 0 and left >= 0 and t + h <= 40 and left + w <= 48 for t, left, h, w in boxes)
    assert min(sides) == 16 and max(sides) > 36
    even = [h for _, _, h, _ in Cutouts(count=200, smallest=0.4).boxes(40, 48, seeded())[1:]]
    assert sum(sides) < sum(even)


def test_a_batch_sees_the_crops_of_its_single_runs():
    image = picture()
    whole = ALL(image, seeded(4))
    torch.testing.assert_close(whole[:, 1:2], ALL(image[1:2], seeded(4)))


def test_own_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = ALL(picture(), seeded(1)), ALL(picture(), seeded(1)), ALL(picture(), seeded(2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_flow_through_every_cutout():
    image = picture(1).requires_grad_()
    out = ALL(image, seeded())
    for i in range(6):
        assert torch.autograd.grad(out[i].sum(), image, retain_graph=True)[0].abs().sum() > 0


@pytest.mark.parametrize("height,width,size", [(40, 48, 16), (512, 377, 224), (16, 31, 16)])
def test_smaller_is_the_area_average(height, width, size):
    image = picture(2, height, width)
    torch.testing.assert_close(resize(image, size), F.adaptive_avg_pool2d(image, size))


def test_edges_are_repeated_beyond_the_picture():
    """By border padding in torch, on a picture that is not square."""
    image, cut = picture(1, 24, 36), Cutouts(count=2, size=24, smallest=1.0, degrees=40, translate=0.5)
    grids = []

    def border(crop, grid, **more):
        grids.append(grid)
        return F.grid_sample(crop, grid, padding_mode="border", **more)

    made = cut._augment(image, seeded(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutouts, "F", SimpleNamespace(affine_grid=F.affine_grid, grid_sample=border))
        patch.setattr(torch.Tensor, "clamp", lambda axis, *_: axis)
        expected = cut._augment(image, seeded(3))
    assert grids[0].abs().max() > 1.2
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_bad_settings():
    for bad in ({"count": 0}, {"size": 0}, {"smallest": 0.0}):
        with pytest.raises(ValueError):
            Cutouts(**bad)


def whole(**augmentation):
    """Crops that are the whole picture, all but the first augmented."""
    return Cutouts(count=200, size=32, smallest=1.0, **augmentation)


def blob(width):
    axis = torch.arange(32.0) - 15.5
    return torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * width**2)).expand(1, 3, 32, 32)


def test_crops_lie_anywhere_in_the_picture():
    boxes = [box for box in Cutouts(count=400, smallest=0.5).boxes(40, 60, seeded())[1:] if box[2] < 40]
    for shares in ([t / (40 - h) for t, _, h, _ in boxes], [left / (60 - w) for _, left, _, w in boxes]):
        assert 0.4 < sum(shares) / len(shares) < 0.6 and min(shares) < 0.1 and max(shares) > 0.9


def test_flips_and_grey_crops_come_as_often_as_asked():
    image = torch.rand(2, 3, 32, 32, generator=seeded(9))
    flipped = [torch.equal(crop, image.flip(-1)) for crop in whole(flip=0.3)(image, seeded())[1:]]
    assert 0.2 < sum(flipped) / len(flipped) < 0.4
    grey = image.mean(1, keepdim=True).expand_as(image)
    made = [torch.equal(crop, grey) for crop in whole(grey=0.3)(image, seeded())[1:]]
    assert 0.2 < sum(made) / len(made) < 0.4


def test_the_noise_has_the_std_that_was_asked():
    image = torch.rand(2, 3, 32, 32, generator=seeded(9))
    noise = whole(noise=0.1)(image, seeded())[1:] - image
    assert noise.std().item() == pytest.approx(0.1, rel=0.02) and noise.mean().abs() < 1e-3


def test_noise_leaves_the_flips_as_they_were():
    image = torch.rand(1, 3, 32, 32, generator=seeded(9))
    plain, noisy = (whole(flip=0.5, noise=noise)(image, seeded()) for noise in (0.0, 1e-4))
    torch.testing.assert_close(noisy, plain, rtol=0, atol=1e-3)


def test_a_turn_keeps_what_is_round_and_a_shift_reaches_its_share_of_the_side():
    turned = whole(degrees=60.0)(blob(4.0), seeded())[1:]
    assert (turned - blob(4.0)).abs().max() < 0.03
    corner = blob(2.0).roll((6, 6), (-2, -1))
    moved = (whole(degrees=60.0)(corner, seeded())[1:] - corner).flatten(1).abs().amax(1)
    assert moved.median() > 0.3  # what is not at the middle moves
    shifted = whole(translate=0.25)(blob(2.0), seeded())[1:, 0, 0]
    axis, mass = torch.arange(32.0) - 15.5, shifted.sum((1, 2))
    for centre in ((shifted.sum(2) * axis).sum(1) / mass, (shifted.sum(1) * axis).sum(1) / mass):
        assert 7.2 < centre.abs().max() < 8.1  # a quarter of 32 cells
