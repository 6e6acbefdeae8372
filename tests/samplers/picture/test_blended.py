"""Blended diffusion's own loop: where it starts, whose noise the background has, which eta it walks with."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.masks import dilate
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.blended import sample_blended, shrinking_masks

MIXTURE = GaussianMixture(torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0)), 0.5)
SOURCE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
SIGMAS = torch.tensor([0.9, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
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
