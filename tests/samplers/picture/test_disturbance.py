"""Null-text disturbance against an eps-space DDIM loop in VP form, its history, its identities and its stability."""

import math

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, guided
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.disturbance import (
    MATCH_PICTURE,
    MATCH_ROLLBACK,
    MATCHED_FROM,
    MATCHED_TO,
    Disturbance,
    at_other_level,
    disturbed,
    disturbed_input,
    effective_uncond,
    match_bound,
    matched_uncond,
)

MIXTURE = GaussianMixture([[-2.0, 0.5], [1.0, -1.0], [0.5, 2.0]], 0.5, labels=[0, 1, 0])
COND, UNCOND = MIXTURE.of(1), MIXTURE
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = (1 - BETAS).cumprod(0)
SIGMA = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
TIMES = list(range(991, -1, -10))  # the authors' 100 steps
ZERO = torch.zeros(1, dtype=torch.float64)
LEVELS = torch.cat([SIGMA[TIMES], ZERO])
PICTURE = torch.tensor([[0.8, -0.6]], dtype=torch.float64)


def eps_of(mixture, z, t):
    """eps(z_t, t) of the VP process, from the exact denoiser."""
    root = ALPHA_BAR[t].sqrt()
    return (z - root * mixture.denoise(z / root, float(SIGMA[t]))) / (1 - ALPHA_BAR[t]).sqrt()


def vp_loop(z, cfg, window, signal):
    """The paper's loop in its own variables: DDIM on z_t, the null branch fed `signal(i, latents)` where t <=
    window."""
    latents = []
    for i, t in enumerate(TIMES):
        latents.append(z)
        null_input = z if t > window else signal(i, latents)
        null = eps_of(UNCOND, z if null_input is None else null_input, t)
        eps = null + cfg * (eps_of(COND, z, t) - null)
        a = ALPHA_BAR[t]
        clean = (z - (1 - a).sqrt() * eps) / a.sqrt()
        a_next = ALPHA_BAR[TIMES[i + 1]] if i + 1 < len(TIMES) else torch.tensor(1.0, dtype=torch.float64)
        z = a_next.sqrt() * clean + (1 - a_next).sqrt() * eps
    return z


def run(disturbance, x, cfg=4.0, sigmas=None, **options):
    denoise = disturbed(COND.denoise, UNCOND.denoise, cfg, disturbance, **options)
    return sample_euler(denoise, x, LEVELS if sigmas is None else sigmas)


def ordinary(x, sigmas=LEVELS):
    return sample_euler(guided(COND.denoise, UNCOND.denoise, 4.0), x, sigmas)


@pytest.fixture
def x_t():
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def older(b):
    return lambda s: float(SIGMA[min(999, int((SIGMA - s).abs().argmin()) + b)])


@pytest.mark.parametrize("b, window", [(300, 300), (100, 400), (50, 200)])
def test_rollback_equals_the_paper_in_eps_space(x_t, b, window):
    z = x_t * (1 + 0 * ALPHA_BAR[TIMES[0]])
    expected = vp_loop(z, 4.0, window, lambda i, latents: latents[i - b // 10])
    out = run(Disturbance(VE, float(SIGMA[window]), older=older(b)), z / ALPHA_BAR[TIMES[0]].sqrt())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    plain = vp_loop(z, 4.0, -1, None)
    assert (expected - plain).abs().max() > 0.05  # the disturbance does something here


def test_image_disturbance_equals_the_paper_in_eps_space(x_t):
    expected = vp_loop(x_t, 4.0, 300, lambda i, latents: PICTURE.expand_as(x_t))
    out = run(Disturbance(VE, float(SIGMA[300]), reference=PICTURE), x_t / ALPHA_BAR[TIMES[0]].sqrt())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_feeding_the_null_answer_itself_would_be_wrong(x_t):
    """The easy mistake differs by far more than the tolerance above."""
    picture = PICTURE.expand_as(x_t)

    def wrong(x, s):
        given = at_other_level(picture, 0.0, s, VE) if s <= SIGMA[300] else x
        u = UNCOND.denoise(given, s)
        return u + 4.0 * (COND.denoise(x, s) - u)

    x = x_t / ALPHA_BAR[TIMES[0]].sqrt()
    right = run(Disturbance(VE, float(SIGMA[300]), reference=picture), x)
    assert (sample_euler(wrong, x, LEVELS) - right).abs().max() > 0.05


def test_network_input_is_the_other_latent():
    s, picture = 0.7, torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(at_other_level(picture, 0.0, s, VE) * VE.input_scale(s), picture)
    old = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(at_other_level(old, 2.0, s, VE) * VE.input_scale(s), old * VE.input_scale(2.0))
    assert torch.equal(at_other_level(picture, 0.0, s, FLOW), picture)


@pytest.mark.parametrize("case", ["strength 0", "empty window", "b = 0", "window below the run"])
def test_identities_to_the_bit(x_t, case):
    x = x_t / ALPHA_BAR[TIMES[0]].sqrt()
    window = float(SIGMA[300])
    disturbance = {
        "strength 0": Disturbance(VE, window, older=older(300)),
        "empty window": Disturbance(VE, window, end=window, older=older(300)),
        "b = 0": Disturbance(VE, window, older=lambda s: s),
        "window below the run": Disturbance(VE, 1e-4, reference=x_t),
    }[case]
    strength = (lambda s: 0.0) if case == "strength 0" else (lambda s: 1.0)
    plain = ordinary(x)
    assert torch.equal(run(disturbance, x, strength=strength), plain)


def test_before_the_window_nothing_changes_and_a_second_run_repeats_the_first(x_t):
    x, disturbance = x_t / ALPHA_BAR[TIMES[0]].sqrt(), Disturbance(VE, float(SIGMA[300]), older=older(200))
    border = SIGMA[300] * 1.001
    upper = LEVELS[border < LEVELS]
    plain = ordinary(x, upper)
    assert torch.equal(run(disturbance, x, sigmas=upper), plain)
    first = run(disturbance, x)
    assert torch.equal(run(disturbance, x), first)  # the history of the first run is gone


def test_no_extra_network_calls(x_t):
    calls = []
    disturbance = Disturbance(VE, float(SIGMA[400]), older=older(300))

    def counted(mixture):
        def denoise(x, s):
            calls.append(float(s))
            return mixture.denoise(x, s)

        return denoise

    sample_euler(disturbed(counted(COND), counted(UNCOND), 4.0, disturbance), x_t, LEVELS)
    assert len(calls) == 200


def test_correlated_signals_disturb_less():
    """The paper's ordering of what the null branch sees: unrelated noise, another draw of the same class (like
    structure), the run's own latent of b = 300 ago, the picture being made. Each is clearly nearer to the plain run."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64) * SIGMA[TIMES[0]]
    plain = ordinary(x)
    window = float(SIGMA[300])
    ways = {
        "unrelated": Disturbance(VE, window, reference=torch.randn(200, 2, generator=generator, dtype=torch.float64)),
        "like structure": Disturbance(VE, window, reference=COND.sample(200, generator).double()),
        "rollback": Disturbance(VE, window, older=older(300)),
        "reference": Disturbance(VE, window, reference=plain),
    }
    far = [(run(d, x) - plain).square().mean().item() for d in ways.values()]
    assert all(nearer < 0.85 * farther for farther, nearer in zip(far, far[1:])), dict(zip(ways, far))


def test_strength_is_how_far_the_null_branch_looks_the_other_way():
    x, other = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 4.0)
    assert torch.equal(disturbed_input(x, other, 0.25), x + 1) and disturbed_input(x, other, 1) is other


def test_effective_uncond_and_refusal():
    x, given, d = torch.randn(3, 1, 2), torch.randn(1, 2), torch.randn(1, 2)
    torch.testing.assert_close(effective_uncond(x[0], given, d), x[0] - given + d)
    with pytest.raises(ValueError, match="rollback or a latent"):
        Disturbance(VE, 1.0)


def test_matching_bounds_the_null_branchs_noise_per_sample_and_leaves_smaller_noise_to_the_bit(x_t):
    x, cond = x_t, x_t - 1.0
    uncond = torch.cat([x_t[:2] - 3.0, x_t[2:] - 0.5])
    out = matched_uncond(x, uncond, cond)
    torch.testing.assert_close(out[:2], x[:2] - 1.0)  # 3 was larger than 1
    assert torch.equal(out[2:], uncond[2:])
    assert torch.equal(matched_uncond(x, x, x), x)  # no noise at all
    torch.testing.assert_close(matched_uncond(x, uncond, cond, 0.4), x - 0.4)


def test_the_bound_falls_evenly_in_the_log_from_the_windows_start():
    bounds, start = (1.1, 0.7), 3.0
    assert match_bound(start, start, bounds) == match_bound(9.0, start, bounds) == 1.1
    assert match_bound(MATCHED_TO, start, bounds) == match_bound(0.001, start, bounds) == 0.7
    assert match_bound((start * MATCHED_TO) ** 0.5, start, bounds) == pytest.approx(0.9)
    assert match_bound(0.02, 0.02, bounds) == 0.7  # a window below the range


def test_each_looks_own_bounds():
    """A rollback's noise is larger than the conditional's, and some of that surplus may stay where the window begins;
    a clean picture has none to keep. At the end both come below half."""
    assert MATCH_ROLLBACK[0] > 1 > MATCH_PICTURE[0]
    assert max(MATCH_ROLLBACK[1], MATCH_PICTURE[1]) < 0.5


def answers(disturbance, sigmas, cfg=4.0, x=None, **options):
    """What the guided denoiser says of one x at each level in turn: [(sigma, D)]."""
    x = torch.tensor([[0.7, -1.1], [2.0, 0.3]], dtype=torch.float64) if x is None else x
    denoise = disturbed(COND.denoise, UNCOND.denoise, cfg, disturbance, **options)
    return [(s, denoise(x, s)) for s in sigmas]


def plain_and_bounded(s, bound, cfg=4.0):
    """Ordinary guidance at s, and the same with the null branch's noise at most `bound` times the conditional's."""
    x = torch.tensor([[0.7, -1.1], [2.0, 0.3]], dtype=torch.float64)
    u, c = UNCOND.denoise(x, s), COND.denoise(x, s)
    size = lambda d: (x - d).square().mean(1, keepdim=True).sqrt()
    held = x - (x - u) * (bound * size(c) / size(u)).clamp(max=1)
    return u + cfg * (c - u), held + cfg * (c - held)


def test_the_bound_acts_inside_the_window_only():
    """Without any disturbance, so that only the bound can differ: its edges are inside, the rest is untouched."""
    inside, outside = (2.0, 1.0, 0.5), (4.0, 2.1, 0.45)
    looks = Disturbance(VE, 2.0, end=0.5, itself=True)
    for s, d in answers(looks, sorted(inside + outside, reverse=True), match=(0.2, 0.2)):
        plain, bounded = plain_and_bounded(s, 0.2)
        assert (bounded - plain).abs().max() > 0.01  # it binds everywhere here
        if s in inside:
            torch.testing.assert_close(d, bounded)
        else:
            assert torch.equal(d, plain)
    for s, d in answers(looks, inside):  # nothing is bounded, nothing is disturbed
        assert torch.equal(d, plain_and_bounded(s, 1.0)[0])


def test_the_bound_falls_along_the_window():
    """From .3 at the window's start (3) to .1 at 0.03, evenly in the log: .2 at .3."""
    for s, bound in ((3.0, 0.3), (0.3, 0.2), (0.03, 0.1)):
        ((_, d),) = answers(Disturbance(VE, 3.0, itself=True), [s], match=(0.3, 0.1))
        torch.testing.assert_close(d, plain_and_bounded(s, bound)[1])
    assert match_bound(MATCHED_FROM**0.5 * MATCHED_TO**0.5, math.inf, (1.1, 0.7)) == pytest.approx(0.9)


@pytest.mark.parametrize("match", [None, (0.2, 0.2)])
@pytest.mark.parametrize("looks", ["rollback", "latent", "itself"])
def test_strength_0_is_ordinary_guidance_to_the_bit_wherever_it_is_0(looks, match):
    """Also where it has faded to 0 in some levels of a run only."""
    sigmas = [2.0, 1.5, 1.0, 0.5]
    options = {
        "rollback": {"older": lambda s: s * 2},
        "itself": {"itself": True},
        "latent": {"reference": torch.full((2, 2), 3.0, dtype=torch.float64)},
    }[looks]
    off, on = (
        answers(Disturbance(VE, 9.0, **options), sigmas, match=match, strength=strength)
        for strength in (lambda s: 0.0, lambda s: float(s == 1.0))
    )
    for (s, zero), (_, some) in zip(off, on):
        plain = plain_and_bounded(s, 1.0)[0]
        assert torch.equal(zero, plain)
        acts = s == 1.0 and not (looks == "itself" and match is None)
        assert torch.equal(some, plain) != acts


def test_half_of_the_bound_alone_is_half_of_its_change():
    ((_, half),) = answers(Disturbance(VE, 9.0, itself=True), [1.0], match=(0.2, 0.2), strength=lambda s: 0.5)
    torch.testing.assert_close(half, sum(plain_and_bounded(1.0, 0.2)) / 2)


def test_each_look_sees_its_own_latent():
    """The null branch's input, as the network scales it: the run's own earlier latent for a rollback even where a
    picture is known, the picture without one."""
    picture, seen = torch.full((1, 2), 9.0, dtype=torch.float64), []

    def null(x, s):
        seen.append(x * VE.input_scale(s))
        return UNCOND.denoise(x, s)

    x = {2.0: torch.full((1, 2), 4.0, dtype=torch.float64), 1.0: torch.full((1, 2), 1.0, dtype=torch.float64)}
    for options, expected in (
        ({"older": lambda s: 2 * s, "reference": picture}, x[2.0] * VE.input_scale(2.0)),
        ({"reference": picture}, picture),
    ):
        seen.clear()
        denoise = disturbed(COND.denoise, null, 4.0, Disturbance(VE, 1.0, **options))
        for s, here in x.items():
            denoise(here, s)
        torch.testing.assert_close(seen[1], expected)
