"""Maps as pictures, by hand."""

import torch
from nulltext.samplers.attention.heat import colours, heat, overlay, soft_mask, spread, strip


def test_each_word_runs_from_0_to_1_by_itself():
    maps = torch.stack([torch.arange(16.0).view(4, 4), 5 + 100 * torch.arange(16.0).view(4, 4)])
    big = heat(maps, (12, 20))
    assert big.shape == (2, 12, 20)
    assert torch.equal(big.amin((-2, -1)), torch.zeros(2)) and torch.equal(big.amax((-2, -1)), torch.ones(2))
    torch.testing.assert_close(big[0], big[1])
    same = heat(maps[:1], (4, 4))[0]
    torch.testing.assert_close(same, torch.arange(16.0).view(4, 4) / 15)
    assert torch.equal(heat(torch.full((1, 4, 4), 3.0), (8, 8)), torch.zeros(1, 8, 8))  # nothing stands out


def test_colours_meet_their_stops_and_are_straight_between():
    seen = colours(torch.tensor([0.0, 1 / 3, 2 / 3, 1.0, 1 / 6, -5.0, 9.0]))
    violet = torch.tensor([0.35, 0.05, 0.5])
    torch.testing.assert_close(
        seen[:4], torch.tensor([[0, 0, 0.05], violet.tolist(), [0.95, 0.45, 0.15], [1, 0.98, 0.7]])
    )
    torch.testing.assert_close(seen[4], (seen[0] + violet) / 2)
    assert torch.equal(seen[5], seen[0]) and torch.equal(seen[6], seen[3])
    light = colours(torch.linspace(0, 1, 50)) @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((light.diff() > 0).all())


def test_an_overlay_is_a_blend_of_picture_and_colours():
    picture, hot = torch.rand(5, 6, 3), torch.rand(5, 6)
    assert torch.equal(overlay(picture, hot, 0.0), picture)
    torch.testing.assert_close(overlay(picture, hot, 1.0), colours(hot))
    torch.testing.assert_close(overlay(picture, hot, 0.25), 0.75 * picture + 0.25 * colours(hot))


def test_a_mask_is_what_lies_above_the_threshold():
    hot = torch.tensor([[0.1, 0.3], [0.30001, 0.9]])
    assert soft_mask(hot, 0.3, 0.0).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_its_edge_is_a_gaussian_of_the_given_width():
    point = torch.zeros(41, 41)
    point[20, 20] = 1.0
    soft = soft_mask(point, 0.5, 2.0)
    torch.testing.assert_close(soft.sum(), torch.tensor(1.0))
    place = torch.arange(41.0) - 20
    for along in (soft.sum(0), soft.sum(1)):
        assert abs(float((along * place).sum())) < 1e-5
        assert 3.7 < float((along * place**2).sum()) <= 4.0  # the variance, cut off at 3 widths
    half = torch.zeros(9, 40)
    half[:, 20:] = 1.0
    soft = soft_mask(half, 0.5, 2.0)
    torch.testing.assert_close(soft[:, 19] + soft[:, 20], torch.ones(9))  # symmetric about the edge
    torch.testing.assert_close(soft[:, :3], torch.zeros(9, 3))
    torch.testing.assert_close(soft[:, -3:], torch.ones(9, 3))  # the picture's border does not darken


def test_a_strip_shows_the_steps_of_each_word_side_by_side():
    picture = torch.zeros(16, 32, 3)
    steps = [torch.stack([torch.eye(4), 1 - torch.eye(4)]), torch.stack([1 - torch.eye(4), torch.eye(4)])]
    made = strip(picture, steps, 1.0, height=64)
    assert made.shape == (2, 32, 2 * 64, 3)
    torch.testing.assert_close(made[0, :, :64], made[1, :, 64:])
    assert (made[0, :, :64] - made[0, :, 64:]).abs().max() > 0.5


def test_spread_keeps_both_ends_and_even_steps():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(list(range(11)), 3) == [0, 5, 10] and spread(list(range(9)), 5) == [0, 2, 4, 6, 8]
