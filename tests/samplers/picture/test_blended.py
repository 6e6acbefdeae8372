"""Blended diffusion: where its loop starts, whose noise the background has, which eta it walks with; its parts."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.masks import dilate
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.blended import (
    background_guided,
    background_loss,
    fixed,
    mask_by_sigma,
    sample_blended,
    shrinking_masks,
)
from nulltext.samplers.picture.repaint import hold_known, karras_sigmas
from nulltext.samplers.walk import sample_walk

MIXTURE = GaussianMixture(torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0)), 0.5)
SOURCE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
SIGMAS = torch.tensor([0.9, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
LEVELS = karras_sigmas(12, 0.03, 10.0)
MASK = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
MASK[..., 3, 3] = 1


def walk(process, mask=MASK, noise=None, **options):
    """(result, x at each step) from the source noised to the first level."""
    steps = []
    x, noise = process.noised(SOURCE, SIGMAS[0], NOISE), noise or gaussian(SOURCE, 3)
    options |= {"source": SOURCE, "mask": mask, "process": process, "noise": noise, "callback": steps.append}
    out = sample_blended(MIXTURE.denoiser(process), x, SIGMAS, **options)
    return out, [step["x"] for step in steps]


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("shrink", [0, 1])
def test_from_noise_the_first_call_sees_the_background_and_nothing_under_the_mask(process, shrink):
    start, noised = walk(process, from_noise=True, shrink=shrink)[1][0], process.noised(SOURCE, SIGMAS[0], NOISE)
    under = dilate(MASK, shrink).bool().expand_as(start)
    torch.testing.assert_close(start[under], (SIGMAS[0] * NOISE)[under])
    assert torch.equal(start[~under], noised[~under])
    torch.testing.assert_close(walk(process, from_noise=True, mask=None)[1][0], SIGMAS[0] * NOISE)
    torch.testing.assert_close(walk(process)[1][0], noised)


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("fresh", [True, False])
def test_the_backgrounds_noise_is_drawn_anew_or_once(process, fresh):
    out, steps = walk(process, fresh=fresh)
    noises = [((x - process.signal(s) * SOURCE) / s)[..., :2, :] for x, s in zip(steps[1:], SIGMAS[1:])]
    assert all(((a - b).abs().max() < 1e-9) != fresh for a, b in zip(noises, noises[1:]))
    assert torch.equal(out[..., :2, :], SOURCE[..., :2, :])


@pytest.mark.parametrize("process", [VE, FLOW])
def test_where_everything_may_change_eta_0_is_ddim_and_eta_1_is_not(process):
    ddim = sample_euler(MIXTURE.denoiser(process), process.noised(SOURCE, SIGMAS[0], NOISE), SIGMAS)
    torch.testing.assert_close(walk(process, mask=None, eta=0.0)[0], ddim)
    assert (walk(process, mask=None, eta=1.0)[0] - ddim).abs().max() > 0.1


@pytest.mark.parametrize("process", [VE, FLOW])
def test_a_mask_that_shrinks_frees_its_neighbours_at_first_and_gives_them_back(process):
    grown, plain = walk(process, shrink=2), walk(process)
    around = (slice(None), slice(None), 3, 1)  # two cells beside the mask
    assert torch.equal(grown[0][around], SOURCE[around])
    silent = lambda: torch.zeros_like(SOURCE)  # noqa: E731 - a held cell is then the scaled source
    held = [
        torch.equal(x[around], (process.signal(s) * SOURCE)[around])
        for x, s in zip(walk(process, noise=silent, shrink=2)[1][1:], SIGMAS[1:])
    ]
    assert held == [False, False, True]
    assert (grown[0] - plain[0]).abs().max() > 1e-6


@pytest.mark.parametrize("cells, steps", [(2, 2), (5, 2), (8, 6), (2, 1), (2, 3), (2, 40), (0, 4)])
def test_the_last_mask_is_the_users_own_however_few_the_steps(cells, steps):
    mask = torch.zeros(1, 1, 21, 21)
    mask[..., 10, 10] = 1
    sizes = [int(m.sum()) for m in shrinking_masks(mask, cells, steps)]
    assert sizes[-1] == 1 and len(sizes) == steps and sizes == sorted(sizes, reverse=True)
    assert steps == 1 or sizes[0] == (2 * cells + 1) ** 2


def test_masks_shrink_from_dilated_to_the_users():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8, 8] = 1
    masks = shrinking_masks(mask, 3, 12)
    areas = [int(m.sum()) for m in masks]
    assert areas[0] == 49 and areas[-1] == 1 and areas == sorted(areas, reverse=True) and set(areas) == {49, 25, 9, 1}
    assert torch.equal(masks[-1], mask) and all(torch.equal(m, mask) for m in shrinking_masks(mask, 0, 5))
    assert dilate(mask, 0) is mask
    at = mask_by_sigma(masks, LEVELS)
    assert at(LEVELS[1]) is masks[0] and at(0.0) is masks[-1] and at(LEVELS[7].float()) is masks[6]


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
    out = sample_walk(mixture.denoise, LEVELS[0] * noise(), LEVELS, callback=watch, **more)
    assert torch.equal(out[:, 0], source[:, 0])
    for i in (3, 8):
        assert seen[i].std().item() == pytest.approx(float(LEVELS[i]), rel=0.05)
    gap = ((seen[4] - 0.7) / LEVELS[4] - (seen[3] - 0.7) / LEVELS[3]).abs().max()
    assert gap < 1e-9 if not fresh else gap > 1


@pytest.mark.parametrize("process", [VE, FLOW])
def test_first_variant_pulls_the_background_but_does_not_hold_it(process):
    mixture = GaussianMixture(torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2, 0.5)
    source = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    mask[..., 2:4, 2:4] = 1
    sigmas = LEVELS if process is VE else torch.cat([torch.ones(1, dtype=torch.float64), (LEVELS / (1 + LEVELS))[1:]])
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
