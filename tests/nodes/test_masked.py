"""What masked edits share: the mask on the grid, and the picture put back outside of it to the bit."""

import pytest
import torch
from nulltext.nodes.masked import MaskedEdit, by_frame, check_picture, own_mask


@pytest.fixture
def half():
    """[2, 4, 4, 4] samples, their edit, and a MASK in pixels whose left half may change, softly in column 1."""
    mask = torch.zeros(1, 32, 32)
    mask[..., :8], mask[..., 8:16] = 1.0, 0.4
    return torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), mask


def test_the_given_latent_is_put_back_where_the_mask_is_zero(half):
    samples, edited, mask = half
    out = MaskedEdit(samples, mask).put_back(edited)
    assert torch.equal(out[..., 2:], samples[..., 2:]) and torch.equal(out[..., :2], edited[..., :2])
    hard = MaskedEdit(samples, mask).put_back(edited, below=0.5)
    assert torch.equal(hard[..., 1:], samples[..., 1:]) and torch.equal(hard[..., :1], edited[..., :1])
    assert MaskedEdit(samples, None).put_back(edited) is edited
    grown = MaskedEdit(samples, mask, 1).put_back(edited)
    assert torch.equal(grown[..., 3:], samples[..., 3:]) and torch.equal(grown[..., :3], edited[..., :3])


def test_a_video_latent_and_a_mask_for_each_item(half):
    samples, edited, mask = (t[:, :, None].expand(-1, -1, 3, -1, -1) if t.ndim == 4 else t for t in half)
    out = MaskedEdit(samples, torch.cat([mask, 0 * mask])).put_back(edited.half())
    assert out.dtype == samples.dtype and torch.equal(out[1], samples[1])
    assert torch.equal(out[0, ..., :2], edited[0, ..., :2].half().float())


@pytest.mark.parametrize("form", ["masks of frames", "masks of pictures", "noise masks", "in a row", "noise mask"])
def test_a_video_has_a_mask_for_each_frame(form):
    """A held first frame, and masks that move: of three frames, or of the nine pictures that a video VAE packs into
    them (the first alone, then four each)."""
    samples, moving = torch.randn(1, 4, 3, 4, 4), torch.zeros(3, 32, 32)
    moving[1, :, :8], moving[2, :, 24:] = 1, 1
    if form == "masks of pictures":
        masks = torch.zeros(9, 32, 32)
        masks[3], masks[8] = moving[1], moving[2]
    elif form == "masks of frames":
        masks = moving
    else:
        noise_mask = {"noise masks": moving[:, None], "in a row": moving[None], "noise mask": moving[None, None]}[form]
        masks = own_mask({"samples": samples, "noise_mask": noise_mask})
    edit = MaskedEdit(samples, masks)
    changed = (edit.put_back(samples + 1) != samples).any(1)[0]
    assert torch.equal(changed, moving[:, ::8, ::8] > 0) and edit.grid.shape == (1, 1, 3, 4, 4)
    assert not edit.everything and not edit.empty


def test_which_pictures_a_mask_of_frames_is_for():
    samples = torch.randn(2, 4, 3, 4, 4)
    assert by_frame(torch.ones(2, 8, 8), samples).shape == (2, 1, 8, 8), "one for each item of the batch"
    assert by_frame(torch.ones(2, 3, 8, 8), samples).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="3 masks for 2 latents"):
        MaskedEdit(samples, torch.ones(3, 8, 8))
    with pytest.raises(ValueError, match="2 masks for 3 frames: give one, or one for each frame"):
        MaskedEdit(samples[:1], torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match="3 masks for 1 latent:"):
        MaskedEdit(samples[:1, :, :1], torch.ones(3, 8, 8))


def test_what_a_mask_leaves(half):
    samples, _, mask = half
    some, none, full, no = (MaskedEdit(samples, m) for m in (mask, 0 * mask, 0 * mask + 1, None))
    assert [e.empty for e in (some, none, full, no)] == [False, True, False, False]
    assert [e.everything for e in (some, none, full, no)] == [False, False, True, True]
    assert "covers everything" in full.notice() and some.notice() == ""


def test_an_empty_latent_is_refused_in_the_words_of_the_node():
    check_picture({"samples": torch.ones(1, 4, 2, 2)}, "SDEdit starts from a picture")
    with pytest.raises(ValueError, match=r"^SDEdit starts from a picture, but the latent is empty: encode an image\.$"):
        check_picture({"samples": torch.zeros(1, 4, 2, 2)}, "SDEdit starts from a picture")
