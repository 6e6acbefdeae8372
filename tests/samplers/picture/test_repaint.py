"""RePaint: its schedule, the known region, soft masks, and its error against the true conditional of a mixture."""

from itertools import pairwise

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.picture.repaint import (
    blend,
    describe,
    hold_known,
    jump_path,
    karras_sigmas,
    official_path,
    path_length,
    ranged_path,
    sample_repaint,
)
from nulltext.samplers.picture.repaint_schedules import OURS, Schedule, sample_repaint_scheduled
from nulltext.samplers.walk import Step, network_calls, sample_walk

# Two tilted modes; knowing the first coordinate (0.5) makes the upper one by far the likelier.
BIMODAL = GaussianMixture([[-1.0, -1.5], [1.0, 1.5]], 0.5)
MASK = torch.tensor([[0.0, 1.0]], dtype=torch.float64)


def fill(sigmas, path, n=3000, process=VE, seed=0, eta=1.0):
    source = torch.tensor([[0.5, 0.0]], dtype=torch.float64).expand(n, 2)
    noise = gaussian(torch.empty(n, 2, dtype=torch.float64), seed)
    x = process.noised(torch.zeros(n, 2, dtype=torch.float64), sigmas[0], noise())
    more = {"source": source, "mask": MASK, "process": process, "noise": noise, "path": path, "eta": eta}
    return sample_repaint(BIMODAL.denoiser(process), x, sigmas, **more)


@pytest.mark.parametrize(
    "steps, jump, resamples, calls",
    [
        *((250, 10, 10, 2410), (20, 5, 2, 35), (25, 5, 5, 105), (250, 10, 5, 1210)),
        *((50, 5, 5, 230), (30, 5, 3, 80), (40, 1, 1, 40)),
    ],
)
def test_official_schedule_costs_what_the_authors_schedule_costs(steps, jump, resamples, calls):
    path = official_path(steps, jump, resamples)
    assert network_calls(path) == calls
    assert path[0] == 0 and path[-1] == steps
    assert all(b - a == 1 or a - b == jump for a, b in pairwise(path))
    assert sum(b < a for a, b in pairwise(path)) == len(range(0, steps - jump, jump)) * (resamples - 1)


def test_range_limits_where_the_walk_jumps():
    sigmas = karras_sigmas(16, 0.03, 14.6)
    path = ranged_path(sigmas, 1, 4, 0.2, 5.0)
    ups = [float(sigmas[a]) for a, b in pairwise(path) if b < a]
    assert ups and all(0.2 <= low <= 5.0 for low in ups)
    assert network_calls(path) == 16 + len(ups)
    assert describe(sigmas, path).startswith(
        f"{16 + len(ups)} network calls over 16 levels, {len(ups)} jumps up between"
    )
    assert ranged_path(sigmas, 1, 4, 90.0, 99.0) == list(range(17))


def test_schedule_refuses_what_is_not_one():
    for bad in ((0, 1, 1), (5, 0, 2), (5, 1, 0)):
        with pytest.raises(ValueError, match="at least one step"):
            jump_path(*bad, lambda level: True)
    with pytest.raises(ValueError, match="must start at 0"):
        fill(karras_sigmas(4, 0.1, 5.0), [0, 1, 2, 3])


@pytest.mark.parametrize(
    "process, sigmas", [(VE, karras_sigmas(10, 0.03, 14.6)), (FLOW, torch.linspace(1, 0, 11, dtype=torch.float64))]
)
def test_known_part_is_the_source_to_the_bit_and_the_fill_is_finite(process, sigmas):
    out = fill(sigmas, ranged_path(sigmas, 2, 3), n=200, process=process)
    assert torch.equal(out[:, 0], torch.full((200,), 0.5, dtype=torch.float64))
    assert torch.isfinite(out).all() and out[:, 1].std() > 0.1


def test_empty_and_full_mask():
    sigmas = karras_sigmas(8, 0.03, 14.6)
    source = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def run(mask):
        noise = gaussian(source, 5)
        return sample_repaint(BIMODAL.denoise, 14.6 * source, sigmas, source=source, mask=mask, process=VE, noise=noise)

    assert torch.equal(run(torch.zeros(1, 2, dtype=torch.float64)), source)
    noise = gaussian(source, 5)
    draws = [noise() for _ in range(20)]
    plain = sample_walk(BIMODAL.denoise, 14.6 * source, sigmas, process=VE, noise=iter(draws[1::2]).__next__)
    # every second draw is the (unused) known part's
    assert torch.equal(run(torch.ones(1, 2, dtype=torch.float64)), plain)


@pytest.mark.parametrize("process", [VE, FLOW])
def test_soft_mask_keeps_the_variance_of_the_noise(process):
    n, sigma = 40000, torch.tensor(0.6, dtype=torch.float64)
    source, clean, m = 2.0, -1.0, torch.tensor(0.5, dtype=torch.float64)
    like = torch.empty(n, 1, dtype=torch.float64)
    noise = gaussian(like, 0)
    denoised = torch.full_like(like, clean)
    x = process.noised(denoised, sigma, noise())
    hold = hold_known(torch.full_like(like, source), m.reshape(1, 1), process, noise)
    out = hold(x, Step(0, sigma * 1.5, sigma, denoised))
    a = float(process.signal(sigma))
    assert out.std().item() == pytest.approx(0.6, rel=0.02)
    assert out.mean().item() == pytest.approx(a * (0.5 * clean + 0.5 * source), abs=0.02)
    plain = blend(m, x, process.noised(torch.full_like(like, source), sigma, noise()))
    assert plain.std().item() < 0.5  # what a linear mix would do


def test_a_range_is_told_in_noise_to_signal_in_both_families():
    ratios = karras_sigmas(16, 0.03, 14.6)
    path = ranged_path(ratios, 1, 4, 0.2, 5.0)
    assert ranged_path(ratios / (1 + ratios), 1, 4, 0.2, 5.0, FLOW) == path
    assert ranged_path(ratios / (1 + ratios), 1, 4, 0.2, 5.0, VE) != path


@pytest.mark.parametrize("process", [VE, FLOW])
def test_the_walk_starts_with_the_known_part_at_the_first_level(process):
    sigmas = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    source = torch.tensor([[0.5, 0.0]], dtype=torch.float64).expand(4, 2)
    steps, draws = [], gaussian(source, 7)
    more = {"source": source, "mask": MASK, "process": process, "noise": gaussian(source, 7), "callback": steps.append}
    sample_repaint(BIMODAL.denoiser(process), torch.full_like(source, 3.0), sigmas, **more)
    known = process.noised(source, sigmas[0], draws())
    assert torch.equal(steps[0]["x"][:, 0], known[:, 0]) and bool((steps[0]["x"][:, 1] == 3.0).all())


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_soft_mask_takes_its_share_of_either_side(process, share):
    sigma, like = torch.tensor(0.6, dtype=torch.float64), torch.empty(1, 1, dtype=torch.float64)
    m, silent = torch.full((1, 1), share, dtype=torch.float64), lambda: torch.zeros_like(like)
    denoised, source = torch.full_like(like, -1.0), torch.full_like(like, 2.0)
    out = hold_known(source, m, process, silent)(
        process.noised(denoised, sigma, silent()), Step(0, sigma * 1.5, sigma, denoised)
    )
    mean = float(process.signal(sigma)) * (share * -1.0 + (1 - share) * 2.0)
    assert out.item() == pytest.approx(mean)
    assert blend(m, denoised, source).item() == pytest.approx(share * -1.0 + (1 - share) * 2.0)


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("of_source", [False, True])
def test_a_soft_mask_starts_at_full_noise_around_the_mix_too(process, of_source):
    sigmas = torch.tensor([0.6, 0.0], dtype=torch.float64)
    source = torch.full((40000, 1), 2.0, dtype=torch.float64)
    noise, steps = gaussian(source, 3), []
    x = process.noised(source, sigmas[0], noise()) if of_source else 0.6 * noise()
    more = {"mask": torch.full((1, 1), 0.5, dtype=torch.float64), "process": process, "noise": noise}
    more |= {"of_source": of_source, "callback": steps.append}
    sample_repaint(lambda x, sigma: x, x, sigmas, source=source, **more)
    first = steps[0]["x"]
    assert first.std().item() == pytest.approx(0.6, rel=0.02)
    share = 1.0 if of_source else 0.5
    assert first.mean().item() == pytest.approx(float(process.signal(sigmas[0])) * share * 2.0, abs=0.02)


def wasserstein(fill, conditional):
    """W1 between the drawn second coordinates and the true conditional, by its exact quantiles."""
    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    cdf = sum(
        w * torch.distributions.Normal(m, v.sqrt()).cdf(grid)
        for w, m, v in zip(conditional.shares, conditional.mode_means[:, 1], conditional.mode_variances[:, 1])
    )
    share = (torch.arange(len(fill), dtype=torch.float64) + 0.5) / len(fill)
    exact = grid[torch.searchsorted(cdf, share).clamp(max=20000)]
    return (fill.sort().values - exact).abs().mean().item()


@pytest.mark.parametrize("process", [VE, FLOW])
def test_error_against_the_true_conditional_falls_with_resampling(process):
    sigmas = karras_sigmas(16, 0.03, 14.6)
    sigmas = sigmas if process is VE else sigmas / (1 + sigmas)
    truth = BIMODAL.conditional(torch.tensor([0.5, 0.0]), MASK[0])
    errors = [wasserstein(fill(sigmas, ranged_path(sigmas, 1, r), process=process)[:, 1], truth) for r in (1, 3, 10)]
    assert errors[0] > 1.15 * errors[1] > 1.15**2 * errors[2], errors
    assert errors[2] < 0.6 * errors[0]


@pytest.mark.parametrize("factor", [1 / 3, 3])
def test_our_schedule_does_the_same_to_data_of_another_scale(factor):
    """Levels, path and steps follow the scale: the fill of scaled data is the scaled fill."""
    sigmas = OURS.sigmas(0.0292, 14.61, scale=1.0)
    scaled = OURS.sigmas(0.0292 * factor, 14.61 * factor, scale=factor)
    torch.testing.assert_close(scaled, factor * sigmas)
    wide = GaussianMixture(BIMODAL.means * factor, 0.5 * factor)
    source = torch.tensor([[0.5, 0.0]], dtype=torch.float64).expand(50, 2)

    def fills(mixture, sigmas, scale):
        noise = gaussian(source, 3)
        more = {"source": scale * source, "mask": MASK, "process": VE, "noise": noise, "scale": scale}
        more["schedule"] = Schedule(30, 1, 3, 0.1, 0.4, renew=True)
        return sample_repaint_scheduled(mixture.denoise, sigmas[0] * noise(), sigmas, **more)

    torch.testing.assert_close(fills(wide, scaled, factor), factor * fills(BIMODAL, sigmas, 1.0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("process", [VE, FLOW], ids=lambda p: p.name)
def test_inside_a_walk_every_level_has_its_full_noise_after_steps_and_jumps(process):
    """Data that is one point: x at every call is that point with the noise of its level, also after a jump up."""
    sigmas = karras_sigmas(8, 0.1, 10.0)
    sigmas = sigmas if process is VE else sigmas / (1 + sigmas)
    like, point, seen = torch.empty(30000, 2, dtype=torch.float64), 0.7, []
    noise = gaussian(like, 1)
    source = torch.full_like(like, point)
    x = process.noised(source, sigmas[0], noise())
    more = {"source": source, "mask": MASK, "process": process, "noise": noise, "path": official_path(8, 3, 3)}
    watch = lambda d: seen.append((float(d["sigma"]), d["x"]))
    sample_repaint(lambda x, sigma: source, x, sigmas, callback=watch, **more)
    assert len(seen) == 20 and sum(a[0] < b[0] for a, b in pairwise(seen)) == 4  # jumps
    for sigma, x in seen:
        signal = float(process.signal(torch.tensor(sigma, dtype=torch.float64)))
        assert x.std(0).tolist() == pytest.approx([sigma, sigma], rel=0.02)
        assert (x.mean(0) - signal * point).abs().max() < 4 * sigma / 30000**0.5


def test_more_of_the_papers_calls_come_nearer_and_renewed_noise_makes_few_levels_do():
    truth = BIMODAL.conditional(torch.tensor([0.5, 0.0]), MASK[0])
    error = lambda sigmas, path, eta=1.0: wasserstein(fill(sigmas, path, eta=eta)[:, 1], truth)
    large, small = (
        error(karras_sigmas(n, 0.0292, 14.61), official_path(n, *more)) for n, *more in ((100, 5, 10), (25, 5, 5))
    )
    assert large < 0.9 * small
    sigmas = OURS.sigmas(0.0292, 14.61, scale=1.37)
    path = OURS.path(sigmas, scale=1.37)
    assert error(sigmas, path, OURS.eta(scale=1.37)) < 0.5 * large
    assert error(sigmas, path) > 1.5 * error(sigmas, path, OURS.eta(scale=1.37))  # the same levels, posterior noise


@pytest.mark.parametrize("steps, jump, resamples", [(250, 10, 10), (20, 5, 2), (7, 3, 4), (3, 5, 9), (12, 1, 1)])
def test_the_length_of_a_path_is_told_without_making_it(steps, jump, resamples):
    for allowed in (lambda level: True, lambda level: level % 2 == 1):
        assert path_length(steps, jump, resamples, allowed) == len(jump_path(steps, jump, resamples, allowed))
