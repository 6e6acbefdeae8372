"""DiffEdit's map of a known disagreement, its mask, and its decoding."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.diffedit import difference_map, edit_mask, hold_trajectory, normalised, sample_diffedit
from nulltext.samplers.picture.repaint import karras_sigmas
from nulltext.samplers.walk import sample_walk

SIGMAS = karras_sigmas(12, 0.03, 10.0)


@pytest.mark.parametrize("process", [VE, FLOW])
def test_the_map_is_the_mean_absolute_difference_of_noise(process):
    x0, sigma = torch.zeros(2, 2, 3, 3, dtype=torch.float64), 0.5
    apart = torch.zeros_like(x0)
    apart[:, 0, 1, 1], apart[:, 1, 1, 1] = 3.0, -1.0  # opposite signs in the two channels
    h = difference_map(lambda x, s: (x, x + apart), x0, sigma, process=process, noise=gaussian(x0, 0), maps=3)
    want = torch.zeros(2, 3, 3, dtype=torch.float64)
    want[:, 1, 1] = (3 + 1) / 2 / sigma
    torch.testing.assert_close(h, want)


def test_decoding_is_ddim_where_everything_may_change_and_draws_nothing():
    mixture, sigmas = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], 0.5), torch.tensor([5.0, 1.0, 0.2, 0.0]).double()
    clean = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    trajectory = torch.stack([clean + s for s in sigmas])

    def never():
        raise AssertionError("DiffEdit's decoding is deterministic")

    def decode(edit):
        return sample_diffedit(
            mixture.denoise, trajectory[0], sigmas, trajectory=trajectory, edit=edit, process=VE, noise=never
        )

    torch.testing.assert_close(decode(torch.ones(1, 2)), sample_euler(mixture.denoise, trajectory[0], sigmas))
    assert torch.equal(decode(torch.zeros(1, 2)), clean)


def test_mask_finds_the_box_where_the_prompts_disagree():
    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    box = torch.zeros(1, 1, 16, 16)
    box[..., 4:9, 6:12] = 1
    pair = lambda x, s: (x * 0.9, x * 0.9 + 0.4 * box)
    h = difference_map(pair, x0, 0.8, process=VE, noise=gaussian(x0, 0), maps=3)
    torch.testing.assert_close(h, (0.4 / 0.8 * box[:, 0]).expand(2, 16, 16))
    assert torch.equal(edit_mask(h), box[:, 0].expand(2, 16, 16))
    assert normalised(h).max() == 1 and normalised(h).min() == 0


def test_every_map_has_a_noise_of_its_own():
    """Prompts whose answers differ by the noise itself: the map is the mean of |noise| over the draws."""
    x0, drawn = torch.full((2, 3, 4, 4), 0.7), []

    def noise():
        drawn.append(torch.randn(x0.shape, generator=torch.Generator().manual_seed(len(drawn))))
        return drawn[-1]

    h = difference_map(lambda x, s: (x0, x), x0, 0.8, process=VE, noise=noise, maps=4)
    assert len(drawn) == 4
    torch.testing.assert_close(h, torch.stack(drawn).abs().mean((0, 2)))


def test_equal_prompts_give_an_empty_mask():
    h = torch.zeros(2, 8, 8)
    assert edit_mask(h).sum() == 0 and torch.isfinite(normalised(h)).all()


def test_threshold_is_the_papers():
    """Half of the scale, which ends at 3 times the mean: what is hotter is clamped to it."""
    h = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 4
    assert h.max() > 3 * h.mean() and torch.equal(edit_mask(h), (h > 1.5 * h.mean()).double())
    torch.testing.assert_close(normalised(h), (h / (3 * h.mean())).clamp(max=1))
    assert torch.equal(edit_mask(h, 0.3, 2.0), (h > 0.6 * h.mean()).double())


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_a_region_is_found_however_large_it_is(share):
    """Each picture of a batch on its own scale; where no heat is 3 times the mean, the largest is 1."""
    h = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.2
    rows = round(share * 32)
    h[0, :rows] += 0.8
    h[1, :2] += 80
    assert torch.equal(edit_mask(h)[0, :rows], torch.ones(rows, 32).double()) and edit_mask(h)[0, rows:].sum() == 0
    assert torch.equal(edit_mask(h)[1], edit_mask(h[1:])[0]) and normalised(h).amax((1, 2)).tolist() == [1, 1]


def test_masked_decode_keeps_the_trajectory_outside():
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], 0.5)
    clean = torch.randn(3, 2, dtype=torch.float64)
    trajectory = torch.stack([clean + s * 0.3 for s in SIGMAS])
    mask = torch.tensor([[0.0, 1.0]], dtype=torch.float64)

    def decode(mask):
        more = {"process": VE, "noise": None, "eta": 0.0, "after": hold_trajectory(trajectory, mask)}
        return sample_walk(mixture.denoise, trajectory[0], SIGMAS, **more)

    out = decode(mask)
    assert torch.equal(out[:, 0], clean[:, 0]) and (out[:, 1] - clean[:, 1]).abs().max() > 1e-3
    assert torch.equal(decode(torch.zeros(1, 2, dtype=torch.float64)), clean)
    full = decode(torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(full, sample_euler(mixture.denoise, trajectory[0], SIGMAS))
