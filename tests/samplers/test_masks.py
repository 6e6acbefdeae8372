"""Masks between pixels and latents."""

import pytest
import torch
from nulltext.samplers.masks import composite, dilate, feather, frame_of, put_back, to_frames, to_grid, to_pixels


def test_a_cell_takes_its_largest_pixel():
    mask = torch.zeros(1, 16, 16)
    mask[0, 3, 5] = 1.0
    mask[0, 12, 12] = 0.4
    grid = to_grid(mask, (2, 2))
    assert torch.equal(grid, torch.tensor([[[[1.0, 0.0], [0.0, 0.4]]]]))
    assert to_grid(mask[0], (2, 2), grow=1).min() == 1.0
    assert torch.equal(
        to_grid(torch.eye(2)[None], (4, 4))[0, 0], torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )


def test_a_latent_cell_becomes_a_square_of_pixels():
    assert to_pixels(torch.tensor([[[0.0, 0.25]]]), (2, 4)).tolist() == [[[0, 0, 0.25, 0.25], [0, 0, 0.25, 0.25]]]


def test_there_and_back():
    grid = (torch.rand(2, 4, 4) > 0.5).float()
    assert torch.equal(to_grid(to_pixels(grid, (32, 32)), (4, 4))[:, 0], grid)


def test_feather_falls_outside_only():
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 1
    soft = feather(mask, 3)
    assert [round(v, 2) for v in soft[0, 4, 4:].tolist()] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(feather(mask, 0), mask) and torch.equal(soft, soft.transpose(1, 2))
    assert int(dilate(mask[:, None], 2).sum()) == 25


def test_composite_keeps_the_original_to_the_bit():
    original, edited = torch.rand(2, 4, 4, 3), torch.rand(2, 4, 4, 3)
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0], mask[0, 1, 1] = 1.0, 0.5
    out = composite(original, edited, mask)
    assert torch.equal(out[:, 2:], original[:, 2:]) and torch.equal(out[:, 0, 0], edited[:, 0, 0])
    torch.testing.assert_close(out[:, 1, 1], (original[:, 1, 1] + edited[:, 1, 1]) / 2)


def test_the_source_is_put_back_to_the_bit_for_pictures_and_for_frames():
    for shape in ((2, 3, 1, 2), (2, 3, 5, 1, 2)):
        known = torch.tensor([True, False]).reshape(1, 1, *(1,) * (len(shape) - 3), 2)
        source, edited = torch.randn(shape), torch.randn(shape, dtype=torch.float64)
        out = put_back(source, edited, known)
        assert torch.equal(out[..., 0], source[..., 0]) and torch.equal(out[..., 1], edited[..., 1].float())
    each = torch.tensor([True, False]).reshape(2, 1, 1, 1, 1)  # a mask for each picture
    out = put_back(torch.zeros(2, 4, 3, 1, 1), torch.ones(2, 4, 3, 1, 1), each)
    assert out.flatten(1).mean(1).tolist() == [0.0, 1.0]


def test_the_pictures_of_a_video_are_in_the_frames_that_a_video_vae_packs():
    assert frame_of(9, 3).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2] and frame_of(3, 3).tolist() == [0, 1, 2]
    assert frame_of(5, 1).tolist() == [0] * 5 and frame_of(1, 1).tolist() == [0]
    masks = torch.zeros(1, 9, 1, 2)
    masks[0, 4, 0, 0], masks[0, 5, 0, 1] = 0.5, 1
    assert to_frames(masks, 3)[0, :, 0].tolist() == [[0, 0], [0.5, 0], [0, 1]]
    with pytest.raises(ValueError, match="2 masks for 3 frames"):
        to_frames(masks[:, :2], 3)


@pytest.mark.parametrize("cells", [0, 1, 3, 20])
def test_growing_by_rows_and_columns_is_growing_by_squares(cells):
    mask = torch.rand(2, 1, 9, 14, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.max_pool2d(mask, 2 * cells + 1, stride=1, padding=cells)
    assert torch.equal(dilate(mask, cells), whole)


def test_a_feather_may_be_stopped():
    asked = []
    feather(torch.zeros(1, 8, 8), 5, lambda: asked.append(1))
    assert len(asked) == 5
