"""SDEdit's levels, DiffEdit's mask and masked decode, blended diffusion's parts."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.masks import dilate
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.blended import background_guided, background_loss, fixed, mask_by_sigma, shrinking_masks
from nulltext.samplers.picture.diffedit import difference_map, edit_mask, hold_trajectory, normalised
from nulltext.samplers.picture.repaint import hold_known, karras_sigmas
from nulltext.samplers.picture.sdedit import meaning, sdedit_sigmas
from nulltext.samplers.walk import sample_walk

SIGMAS = karras_sigmas(12, 0.03, 10.0)


# --- SDEdit


def sigma_at(t):
    return 14.6 * t**3


def test_levels_start_at_t0_and_are_even_in_time():
    sigmas = sdedit_sigmas(sigma_at, 0.5, 10)
    assert len(sigmas) == 11 and sigmas[0].item() == pytest.approx(sigma_at(0.5)) and sigmas[-1] == 0
    assert sigmas[5].item() == pytest.approx(sigma_at(0.25))
    assert sdedit_sigmas(sigma_at, 0.0, 10).tolist() == [0.0]
    assert len(sdedit_sigmas(lambda t: round(t * 4) + 0.5, 1.0, 50)) == 6  # repeated levels are dropped
    with pytest.raises(ValueError, match="between 0"):
        sdedit_sigmas(sigma_at, 1.2, 10)
    assert meaning(0.1) == "almost untouched" and "layout" in meaning(0.5) and meaning(1.0) == "hardly anything kept"


def test_a_level_of_0_is_no_step_even_where_the_models_table_starts_above_0():
    assert sdedit_sigmas(lambda t: 0.03 + t, 0.0, 5).tolist() == [0.0]


@pytest.mark.parametrize("process", [VE, FLOW])
def test_small_t0_is_faithful_and_large_t0_realistic(process):
    """A guide off the data: distance to it grows with t0, likelihood under the data too."""
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.3)
    guide = torch.tensor([[1.0, 1.5]], dtype=torch.float64).expand(2000, 2)
    level = sigma_at if process is VE else (lambda t: 0.999 * t)
    far, likely = [], []
    for t0 in (0.15, 0.4, 0.9):
        sigmas, noise = sdedit_sigmas(level, t0, 40), gaussian(guide, 0)
        x = process.noised(guide, sigmas[0], noise())
        x = sample_walk(mixture.denoiser(process), x, sigmas, process=process, noise=noise)
        far.append((x - guide).norm(dim=1).mean().item())
        likely.append(mixture.log_prob(x).mean().item())
    assert far == sorted(far) and likely == sorted(likely) and far[-1] > 1.3 * far[0]


# --- DiffEdit


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


# --- blended diffusion


def test_masks_shrink_from_dilated_to_the_users():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8, 8] = 1
    masks = shrinking_masks(mask, 3, 12)
    areas = [int(m.sum()) for m in masks]
    assert areas[0] == 49 and areas[-1] == 1 and areas == sorted(areas, reverse=True) and set(areas) == {49, 25, 9, 1}
    assert torch.equal(masks[-1], mask) and all(torch.equal(m, mask) for m in shrinking_masks(mask, 0, 5))
    assert dilate(mask, 0) is mask
    at = mask_by_sigma(masks, SIGMAS)
    assert at(SIGMAS[1]) is masks[0] and at(0.0) is masks[-1] and at(SIGMAS[7].float()) is masks[6]


def test_fixed_noise_is_one_draw():
    draw = fixed(gaussian(torch.zeros(4), 0))
    assert draw() is draw()


@pytest.mark.parametrize("fresh", [True, False])
def test_background_stands_at_the_noise_level_of_each_step(fresh):
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], 0.5)
    source = torch.tensor([[0.7, 0.0]], dtype=torch.float64).expand(4000, 2)
    noise = gaussian(source, 0)
    known = noise if fresh else fixed(noise)
    seen, hold = {}, hold_known(source, torch.tensor([[0.0, 1.0]], dtype=torch.float64), VE, known)
    more = {"process": VE, "noise": noise, "eta": 1.0, "after": hold}
    watch = lambda d: seen.update({d["i"]: d["x"][:, 0]})
    out = sample_walk(mixture.denoise, SIGMAS[0] * noise(), SIGMAS, callback=watch, **more)
    assert torch.equal(out[:, 0], source[:, 0])
    for i in (3, 8):
        assert seen[i].std().item() == pytest.approx(float(SIGMAS[i]), rel=0.05)
    gap = ((seen[4] - 0.7) / SIGMAS[4] - (seen[3] - 0.7) / SIGMAS[3]).abs().max()
    assert gap < 1e-9 if not fresh else gap > 1


@pytest.mark.parametrize("process", [VE, FLOW])
def test_first_variant_pulls_the_background_but_does_not_hold_it(process):
    mixture = GaussianMixture(torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2, 0.5)
    source = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    mask[..., 2:4, 2:4] = 1
    sigmas = SIGMAS if process is VE else torch.cat([torch.ones(1, dtype=torch.float64), (SIGMAS / (1 + SIGMAS))[1:]])
    x = process.noised(source * 0, sigmas[0], gaussian(source, 0)())

    def drift(weight):
        denoise = background_guided(mixture.denoiser(process), source, mask, weight, process)
        out = sample_euler(denoise, x, sigmas)
        assert torch.isfinite(out).all()
        return ((out - source) * (1 - mask)).square().mean().item()

    assert 0 < drift(5.0) < 0.9 * drift(0.0)
    more = {"noise": gaussian(source, 3), "after": hold_known(source, mask, process, gaussian(source, 4))}
    held = sample_walk(mixture.denoiser(process), x, sigmas, process=process, **more)
    assert ((held - source) * (1 - mask)).abs().max() == 0


def test_background_loss_and_weight_0():
    source, mask = torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    assert background_loss(torch.ones(2, 1, 4, 4), source, mask).tolist() == [16.0, 16.0]  # flat: no detail term
    assert background_loss(torch.ones(2, 1, 4, 4), source, mask + 1).tolist() == [0.0, 0.0]
    denoise = lambda x, s: x
    assert background_guided(denoise, source, mask, 0.0, VE) is denoise
