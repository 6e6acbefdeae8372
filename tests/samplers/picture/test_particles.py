"""The exact-leaning fill matches the true conditional's mean, variance and mode shares within sampling error."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, VarianceExploding, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.picture.particles import effective, sample_conditional_particles, sample_particles, systematic
from nulltext.samplers.picture.repaint import karras_sigmas
from nulltext.tests.running import OnMac

BIMODAL = GaussianMixture([[-1.0, -1.5], [1.0, 1.5]], 0.5)
BALANCED = GaussianMixture([[-0.3, -1.5], [0.3, 1.5]], 0.5, weights=[0.6, 0.4])
GAUSSIAN = GaussianMixture.correlated([[0.0, 0.0]], [[[1.0, 0.9], [0.9, 1.0]]])
MASK = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
PICTURES, PARTICLES = 800, 32


def draw(mixture, known, process, pictures=PICTURES, particles=PARTICLES, levels=150):
    sigmas = karras_sigmas(levels, 0.02, 14.6 if process is not FLOW else 40.0)
    sigmas = sigmas if process is not FLOW else sigmas / (1 + sigmas)
    source = torch.tensor([[known, 0.0]], dtype=torch.float64).expand(pictures, 2)
    noise = gaussian(torch.empty(pictures * particles, 2, dtype=torch.float64), 0)
    x = process.noised(torch.zeros(pictures * particles, 2, dtype=torch.float64), sigmas[0], noise())
    more = {"source": source, "mask": MASK, "process": process, "noise": noise, "particles": particles}
    return sample_conditional_particles(mixture.denoiser(process), x, sigmas, **more)


@pytest.mark.parametrize("process", [VE, FLOW], ids=lambda p: p.name)
@pytest.mark.parametrize(
    "mixture, known", [(BIMODAL, 0.5), (BALANCED, 0.2), (GAUSSIAN, 1.5)], ids=["bimodal", "balanced", "gaussian"]
)
def test_matches_the_conditional(mixture, known, process):
    out = draw(mixture, known, process)
    truth = mixture.conditional(torch.tensor([known, 0.0]), MASK[0])
    u, mean, variance = out[:, 1], truth.mean[1], truth.variance[1]
    assert torch.equal(out[:, 0], torch.full((PICTURES,), known, dtype=torch.float64))
    # four standard errors: 800 draws, each the pick of 32 particles (correlated within a picture only)
    root = PICTURES**0.5
    assert abs(u.mean() - mean) < 4 * variance.sqrt() / root
    fourth = sum(
        w * (3 * v**2 + 6 * v * (m - mean) ** 2 + (m - mean) ** 4)
        for w, m, v in zip(truth.shares, truth.mode_means[:, 1], truth.mode_variances[:, 1])
    )
    assert abs(u.var() - variance) < 4 * (fourth - variance**2).sqrt() / root
    if mixture is not GAUSSIAN:
        share = truth.shares[1]
        assert abs((u > 0).double().mean() - share) < 4 * (share * (1 - share)).sqrt() / root


def test_one_particle_is_not_enough():
    """The check above can fail: without weights the mode share is far off."""
    lone = draw(BIMODAL, 0.5, VE, particles=1, levels=40)
    exact = BIMODAL.conditional(torch.tensor([0.5, 0.0]), MASK[0]).shares[1]
    assert abs((lone[:, 1] > 0).double().mean() - exact) > 6 * (exact * (1 - exact)).sqrt() / PICTURES**0.5


def test_a_spread_on_a_gpu_without_float64_is_brought_to_the_cpu():
    class OnGpu(VarianceExploding):
        def transition(self, *args):
            mean, std = super().transition(*args)
            return mean, std.as_subclass(OnMac)

    few = {"pictures": 2, "particles": 3, "levels": 4}
    assert torch.equal(draw(BIMODAL, 0.5, OnGpu(), **few), draw(BIMODAL, 0.5, VarianceExploding(), **few))


def test_systematic_resampling_keeps_proportions():
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    assert systematic(weights, torch.tensor([[0.3]])).tolist() == [[0, 0, 1, 2]]
    assert effective(torch.zeros(1, 8)).item() == pytest.approx(8)
    assert effective(torch.tensor([[0.0, -200.0]])).item() == pytest.approx(1)


def test_rows_must_fit():
    x, more = torch.zeros(5, 2), {"source": torch.zeros(2, 2), "mask": MASK, "process": VE, "particles": 3}
    with pytest.raises(ValueError, match="need 6 rows"):
        sample_conditional_particles(BIMODAL.denoise, x, torch.tensor([1.0, 0.0]), noise=lambda: x, **more)


@pytest.mark.parametrize("sigmas", [(2.0, 0.0), (2.0, 1.0, 0.0)], ids=["one level", "two levels"])
def test_the_weights_move_the_fill_as_far_as_the_closed_form_says(sigmas):
    """A linear network whose fill follows the noisy known part: every law is Gaussian and known.

    One level: D = (a k, b k) from k ~ N(k0, s^2). The weight N(a k; k0, s^2) / N(k; k0, s^2) makes that k ~ N(k0 / a,
    (s / a)^2). Two levels: the first step's mean is c k, and its k ~ N(k0 / (a c), (s'^2 + a^2 e^2) / (a c)^2)."""
    a, b, k0, pictures, particles = 0.8, 2.0, 1.5, 2000, 500
    sigmas = torch.tensor(sigmas, dtype=torch.float64)

    def denoise(x, sigma):
        fill = b * x[:, 0] if float(sigma) == 2.0 else x[:, 1]  # the second level passes it on
        return torch.stack([a * x[:, 0], fill], 1)

    noise = gaussian(torch.empty(pictures * particles, 2, dtype=torch.float64), 4)
    source = torch.tensor([[k0, 0.0]], dtype=torch.float64).expand(pictures, 2)
    out = sample_conditional_particles(
        denoise, 2.0 * noise(), sigmas, source=source, mask=MASK, process=VE, noise=noise, particles=particles
    )[:, 1]
    if len(sigmas) == 2:
        mean, variance = b * k0 / a, (b * 2.0 / a) ** 2
    else:
        rho, e2 = 0.25, 0.75
        c = a + rho * (1 - a)
        mean = b * (1 - rho) * k0 / (a * c)
        variance = (b * (1 - rho)) ** 2 * (1 + a**2 * e2) / (a * c) ** 2 + (rho * 2.0) ** 2 + e2
    assert abs(float(out.mean()) - mean) < 4 * (variance / pictures) ** 0.5
    assert float(out.var()) == pytest.approx(variance, rel=4 * (2 / pictures) ** 0.5)


def test_a_soft_mask_mixes_the_draw_by_its_value_and_below_a_half_nothing_is_drawn():
    """A network that always answers 2, a source of -1: the fill is 2 m - (1 - m) where m >= 1/2."""
    mask = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]], dtype=torch.float64)
    x, source = torch.zeros(3, 5, dtype=torch.float64), torch.full((1, 5), -1.0, dtype=torch.float64)
    sigmas = torch.tensor([1.0, 0.0], dtype=torch.float64)
    more = {"source": source, "mask": mask, "process": VE, "noise": lambda: x, "particles": 3}
    out = sample_conditional_particles(lambda x, sigma: torch.full_like(x, 2.0), x, sigmas, **more)
    torch.testing.assert_close(out, torch.tensor([[-1.0, -1.0, 0.5, 1.25, 2.0]], dtype=torch.float64))


def test_a_run_starts_from_the_noise_it_was_given_and_the_other_particles_from_noises_of_their_own():
    x, seen = torch.tensor([[5.0, 6.0], [7.0, 8.0]], dtype=torch.float64), []

    def denoise(x, sigma):
        seen.append(x)
        return torch.full_like(x, 2.0)

    source, sigmas = torch.zeros_like(x), torch.tensor([1.0, 0.0], dtype=torch.float64)
    out = sample_particles(denoise, x, sigmas, source=source, mask=None, process=VE, noise=gaussian(x, 0), particles=3)
    assert torch.equal(seen[0][:2], x) and len(seen[0].unique(dim=0)) == 6
    assert torch.equal(out, torch.full_like(x, 2.0))  # nothing is known: all of it is drawn


@pytest.mark.parametrize("full_noise", [False, True])
def test_at_full_noise_the_other_particles_know_nothing_of_the_source_either(full_noise):
    source, seen = torch.full((1, 2), 50.0, dtype=torch.float64), []

    def denoise(x, sigma):
        seen.append(x)
        return x

    more = {"process": VE, "noise": gaussian(source, 0), "particles": 3, "full_noise": full_noise}
    sigmas = torch.tensor([1.0, 0.0], dtype=torch.float64)
    sample_particles(denoise, torch.zeros_like(source), sigmas, source=source, mask=None, **more)
    assert bool((seen[0][1:].abs() < 10).all()) == full_noise and not seen[0][0].any()


def test_each_picture_keeps_its_own_prompt_where_conditions_repeat_as_the_engine_repeats_them():
    """Prompts for pictures 0 to 9 come as [0 1 ... 9 0 1 ...]. A network that answers by its prompt; all is resampled
    at every level."""
    prompts = torch.stack([torch.full((10,), 0.5), torch.arange(10.0)], 1).double()
    noise = gaussian(torch.zeros(40, 2, dtype=torch.float64), 0)
    more = {"mask": MASK, "process": VE, "noise": noise, "particles": 4, "threshold": 2.0}
    sigmas, source = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), torch.zeros_like(prompts)
    out = sample_conditional_particles(lambda *_: torch.cat([prompts] * 4), noise(), sigmas, source=source, **more)
    assert out[:, 1].tolist() == list(range(10))
