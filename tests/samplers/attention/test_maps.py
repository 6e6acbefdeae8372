"""Heat maps, the layers they come from, masks and local blend."""

import pytest
import torch
from nulltext.samplers.attention.layers import Layer, Moment, Needs, Rows
from nulltext.samplers.attention.maps import LayerChoice, LocalBlend, MapRecorder, MapSum, MaskBlend, binary, map_scale

SD, SDXL = (1, 2, 4, 8), (2, 4)


def layer(grid=(16, 16), sigma=1.0, step=5.0, **changes):
    values = {"block": "output", "number": 3, "depth": 0, "index": 0, "count": 16, "cross": True, "heads": 1}
    values |= {"grid": grid, "latent": (64, 64), "moment": Moment(sigma, step, 10), "scales": SD}
    return Layer(**{**values, **changes})


@pytest.mark.parametrize(
    "latent, scales, factor",
    [
        ((64, 64), SD, 4),
        ((128, 128), SD, 4),
        ((32, 32), SD, 2),
        ((16, 16), (1, 2), 1),
        ((128, 128), SDXL, 4),
        ((64, 64), SDXL, 4),
        ((64, 48), SD, 4),
        ((65, 65), SD, 4),
        ((8, 8), SD, 1),
        ((8, 8), SDXL, 2),
    ],
)
def test_the_default_grid_follows_the_latent(latent, scales, factor):
    assert map_scale(latent, scales) == factor


def test_layer_choice():
    assert layer() in LayerChoice()
    assert layer(grid=(32, 32)) not in LayerChoice()
    assert layer(grid=(17, 17), latent=(65, 65)) in LayerChoice("auto")
    assert layer(cross=False) not in LayerChoice("all")
    assert layer(block="input") not in LayerChoice("up")
    assert layer(block="input") not in LayerChoice("auto")
    assert layer(block="input") in LayerChoice("up", "down")
    assert layer(block="middle", grid=(8, 8)) in LayerChoice("mid")
    assert layer(grid=(64, 64)) in LayerChoice("all")
    assert layer(grid=(64, 64)) in LayerChoice("output.3")
    assert layer(number=4) not in LayerChoice("output.3")
    assert layer(depth=1) in LayerChoice("output.3.1", "input.2")
    assert layer(depth=0) not in LayerChoice("output.3.1")
    for bad in ("output", "front", "output.x", "input.1.2.3"):
        with pytest.raises(ValueError, match="names no layers"):
            LayerChoice(bad)


def test_maps_are_means_over_layers_and_steps():
    maps = MapSum()
    for value, sigma in ((1.0, 2.0), (3.0, 2.0), (5.0, 1.0)):
        for pixels in (slice(0, 100), slice(100, 256)):
            maps.add(0, layer(sigma=sigma), pixels, torch.full((1, pixels.stop - pixels.start), value))
    assert maps.sigmas() == [2.0, 1.0]
    assert maps.maps(sigma=2.0).unique().item() == 2.0
    assert maps.maps().unique().item() == 3.0
    assert maps.maps().shape == (1, 16, 16)
    maps.add(0, layer(grid=(8, 8), sigma=1.0), slice(0, 64), torch.full((1, 64), 7.0))
    assert maps.maps(sigma=1.0).shape == (1, 16, 16)
    torch.testing.assert_close(maps.maps(sigma=1.0), torch.full((1, 16, 16), 6.0))
    with pytest.raises(ValueError, match="No attention map was recorded"):
        maps.maps(image=4)
    maps.clear()
    assert maps.images() == []


@pytest.mark.parametrize("read", [False, True], ids=["in one go", "read in between"])
def test_a_level_that_a_run_comes_back_to_goes_on_adding_up(read):
    maps = MapSum()
    for value, sigma in ((1.0, 1.0), (5.0, 2.0), (3.0, 1.0)):
        maps.add(0, layer(sigma=sigma), slice(0, 256), torch.full((1, 256), value))
        if read:
            maps.maps()
    assert maps.maps(sigma=1.0).unique().item() == 2.0
    assert maps.maps().unique().item() == 3.0


def test_record_takes_the_mean_over_heads_and_the_sum_over_a_words_tokens():
    p = torch.rand(2, 3, 256, 6)
    record = MapRecorder([[[1, 2], [4]]])
    record.watch(p, None, Rows((0, 1), (0, 0), (0, 1)), layer(), slice(0, 256))
    torch.testing.assert_close(
        record.maps.maps(1), torch.stack([p[1].mean(0)[:, 1:3].sum(-1), p[1].mean(0)[:, 4]]).view(2, 16, 16)
    )


def blend_with(box_source, box_target, **options):
    """LocalBlend that has seen the words look at two boxes (rows, columns as slices) of a 16x16 grid."""
    blend = LocalBlend([[1]], [[2]], **options)
    p_source, p_target = torch.full((1, 1, 16, 16, 3), 0.01), torch.full((1, 1, 16, 16, 3), 0.01)
    if box_source:
        p_source[0, 0, box_source[0], box_source[1], 1] = 0.9
    if box_target:
        p_target[0, 0, box_target[0], box_target[1], 2] = 0.9
    blend.watch(
        p_target.flatten(2, 3), p_source.flatten(2, 3), Rows((0,), (0,), (0,), source=(0,)), layer(), slice(0, 256)
    )
    return blend


def test_local_blend_keeps_the_source_outside_the_words():
    blend = blend_with((slice(2, 4), slice(2, 4)), (slice(10, 12), slice(10, 12)))
    mask = blend.mask(0, 0, (64, 64))
    expected = torch.zeros(64, 64)
    expected[4:20, 4:20] = 1  # rows 1 to 4 after the 3x3 maximum, four latent pixels each
    expected[36:52, 36:52] = 1
    assert torch.equal(mask, expected)
    x, source = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64)
    out = blend.between_steps(x, source, Moment(1.0, 5.0, 10), (0,), (0,))
    assert torch.equal(out * mask, x * mask)
    assert torch.equal(out * (1 - mask), source * (1 - mask))


def test_local_blend_adds_up_the_steps_so_far():
    """The mask is of the mean map over all steps: what the word looked at before counts, in proportion."""
    blend = LocalBlend([[]], [[1]])
    rows = Rows((0,), (0,), (0,), source=(0,))
    for step, (row, value) in enumerate(((1, 0.9), (7, 0.5), (13, 0.2))):
        p = torch.zeros(1, 1, 16, 16, 3)
        p[0, 0, row, :, 1] = value
        p = p.flatten(2, 3)
        blend.watch(p, p, rows, layer(sigma=3.0 - step, step=step), slice(0, 256))
    expected = torch.zeros(16, 16)
    expected[0:3] = 1  # 0.9 of the largest 0.9, and its neighbours by the 3x3 maximum
    expected[6:9] = 1  # 0.5 of 0.9: above the threshold of 0.3; 0.2 of 0.9 is below it
    assert torch.equal(blend.mask(0, 0, (16, 16)), expected)


@pytest.mark.parametrize("again", [False, True])
def test_a_step_enlarges_as_many_maps_as_there_are_grids_however_many_steps_there_were(monkeypatch, again):
    """And the mean over the steps is that of each step's own; also where a sampler comes back to a level."""
    maps, calls, enlarge = MapSum(), [], torch.nn.functional.interpolate
    levels = [9.0, 8.0, 7.0] + [8.0, 7.0] * again
    drawn = torch.rand(len(levels), 2, 2, 256, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.nn.functional, "interpolate", lambda *a, **k: calls.append(a) or enlarge(*a, **k))
    for i, sigma in enumerate(levels):
        calls.clear()
        maps.add(0, layer(sigma=sigma, step=i), slice(0, 256), drawn[i, 0])
        maps.add(0, layer((8, 8), sigma=sigma, step=i), slice(0, 64), drawn[i, 1, :, :64])
        found = maps.maps()
        assert len(calls) == 2
    coarse = enlarge(drawn[:, 1, :, :64].view(-1, 2, 8, 8), size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, (drawn[:, 0].view(-1, 2, 16, 16) + coarse).sum(0) / (2 * len(levels)))


def test_local_blend_waits_for_its_first_step():
    blend = blend_with((slice(2, 4), slice(2, 4)), None)
    x, source = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64)
    assert blend.between_steps(x, source, Moment(1.0, 1.0, 10), (0,), (0,)) is x
    assert blend.between_steps(x, source, Moment(1.0, 2.0, 10), (0,), (0,)) is not x


def test_local_blend_with_an_empty_mask_is_the_source_to_the_bit():
    blend = blend_with((slice(2, 4), slice(2, 4)), None, threshold=1.0)
    x, source = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64)
    assert torch.equal(blend.between_steps(x, source, Moment(1.0, 5.0, 10), (0,), (0,)), source)


def test_a_known_mask_holds_the_source_outside_from_the_first_step_without_reading_attention():
    masks = torch.zeros(2, 8, 8)
    masks[0, :4] = 1
    blend = MaskBlend(masks)
    x, source = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    out = blend.between_steps(x, source, Moment(1.0, 0.0, 10), (0, 0), (0, 1))
    assert torch.equal(out[0, :, :4], x[0, :, :4]) and torch.equal(out[0, :, 4:], source[0, :, 4:])
    assert torch.equal(out[1], source[1])
    assert blend.needs(layer()) is Needs.NOTHING
    one = MaskBlend(masks[:1], start=0.5)
    assert torch.equal(one.mask(0, 3, (8, 8)), masks[0])
    assert one.between_steps(x, source, Moment(1.0, 4.0, 10), (0, 0), (0, 1)) is x


@pytest.mark.parametrize("frames", [1, 3])
def test_a_blend_on_latents_with_frames_holds_each_row_by_its_own_mask(frames):
    """As on each frame alone."""
    masks = torch.zeros(2, 8, 8)
    masks[0, :4], masks[1, :, 2:] = 1, 1
    words, p = LocalBlend([[1]], [[1]]), torch.zeros(2, 1, 16, 16, 2)
    p[0, 0, :4, :, 1], p[1, 0, :, 8:, 1] = 0.9, 0.9
    p = p.flatten(2, 3)
    words.watch(p, p, Rows((0, 1), (0, 0), (0, 1), source=(0, 1)), layer(), slice(0, 256))
    x, source = torch.randn(2, 2, 16, frames, 8, 8)
    for blend in (MaskBlend(masks), words):
        at = Moment(1.0, 5.0, 10), (0, 0), (0, 1)
        alone = [blend.between_steps(a, b, *at) for a, b in zip(x.unbind(2), source.unbind(2))]
        assert torch.equal(blend.between_steps(x, source, *at), torch.stack(alone, 2))
        changed = (alone[0] != source[:, :, 0]).any(1)
        assert changed.flatten(1).any(1).all() and not torch.equal(*changed)


def test_local_blend_leaves_out_words():
    p = torch.full((1, 1, 256, 3), 0.01)
    p[..., :128, 1] = 0.9
    p[..., 64:, 2] = 0.9
    blend = LocalBlend([[1]], [[1]], ([[2]], [[2]]))
    blend.watch(p, p, Rows((0,), (0,), (0,), source=(0,)), layer(), slice(0, 256))
    mask = blend.mask(0, 0, (16, 16))
    assert mask[:4].all()  # rows 0 to 3: the word, and not the word left out
    assert not mask[4:].any()
    blend.reset()
    assert not blend.target.counts
    rest = LocalBlend([[]], [[]], ([[2]], [[2]]))
    rest.watch(p, p, Rows((0,), (0,), (0,), source=(0,)), layer(), slice(0, 256))
    assert torch.equal(rest.mask(0, 0, (16, 16)), mask)  # words left out alone: all but their region


def test_a_region_is_above_a_share_of_the_largest_value():
    maps = torch.zeros(1, 1, 16, 16)
    maps[..., 4:8, 4:8] = 2.0
    assert binary(maps, (32, 32), 0.3).sum() == 64
    assert not binary(torch.zeros(1, 1, 4, 4), (8, 8), 0.3).any()  # a map of zeros has no region
