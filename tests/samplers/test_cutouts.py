import pytest
import torch
from nulltext.samplers.cutouts import Cutouts, resize

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


def test_bad_settings():
    for bad in ({"count": 0}, {"size": 0}, {"smallest": 0.0}):
        with pytest.raises(ValueError):
            Cutouts(**bad)
