"""Guidance on the Gaussian mixture, where Bayes' rule has a closed form, and by finite differences on a toy network.

With exact class posteriors grad log p(y | x_s) = score_y - score, so that the guided denoiser is D + k (D_y - D)."""

import math

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, to_d
from nulltext.samplers.guidance.losses import caption_log_probs
from nulltext.samplers.guidance.terms import Guidance, bounded, generator_at, shift, with_guidance
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler

MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.3], [0.9, -0.6], [0.5, 1.2], [1.4, 0.8]]),
    torch.tensor([0.5, 0.7, 0.4, 0.6]),
    torch.tensor([0.4, 0.3, 0.2, 0.1]),
    labels=[0, 1, 1, 2],
)
LEVELS = [(VE, 0.05), (VE, 0.7), (VE, 12.0), (FLOW, 0.05), (FLOW, 0.5), (FLOW, 0.97)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(label, process=VE, **kwargs):
    """The mixture's own class posterior at the noise level, a likelihood of the noisy sample."""
    return Guidance(lambda x, s, _: MIXTURE.log_prob_class(x, s, process)[:, label], mode="latent", **kwargs)


def karras(n, hi=20.0, lo=0.01, rho=7):
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.cat([(hi ** (1 / rho) + ramp * (lo ** (1 / rho) - hi ** (1 / rho))) ** rho, torch.zeros(1)]).double()


@pytest.mark.parametrize("process,sigma", LEVELS)
@pytest.mark.parametrize("scale", [1.0, 0.5, 4.0])
def test_guided_denoiser_is_its_closed_form(process, sigma, scale):
    x = 3 * normal(16, 2)
    plain = MIXTURE.denoise(x, sigma, process)
    want = plain + scale * (MIXTURE.of(1).denoise(x, sigma, process) - plain)
    guided = with_guidance(MIXTURE.denoiser(process), [exact(1, process, scale=scale)], process=process)
    torch.testing.assert_close(guided(x, sigma), want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("label", [0, 1])
def test_scale_1_samples_the_class_conditional(label):
    n = 4000
    guided = with_guidance(MIXTURE.denoiser(VE), [exact(label)])
    sigmas = karras(80)
    got = sample_euler(guided, normal(n, 2, seed=5) * sigmas[0], sigmas)
    true = MIXTURE.of(label)
    mean = true.weights @ true.means
    variance = true.weights @ (true.variances + (true.means - mean) ** 2)
    assert (got.mean(0) - mean).abs().max() < 4 * math.sqrt(float(variance.max()) / n)
    assert ((got.var(0) / variance) - 1).abs().max() < 0.12
    share = MIXTURE.log_prob_class(got)[:, label].exp().mean()
    real = MIXTURE.log_prob_class(true.sample(n, torch.Generator().manual_seed(1)))[:, label].exp()
    assert abs(share - real.mean()) < 4 * real.std() * math.sqrt(2 / n)
    unguided = MIXTURE.log_prob_class(sample_euler(MIXTURE.denoiser(VE), normal(n, 2, seed=5) * sigmas[0], sigmas))
    assert unguided[:, label].exp().mean() < share - 0.2


def test_other_scales_follow_the_fine_ode_and_not_the_power_of_the_posterior():
    x = normal(2000, 2, seed=7) * 20
    guided = with_guidance(MIXTURE.denoiser(VE), [exact(1, scale=4.0)])
    field = lambda x, s: MIXTURE.denoise(x, s) + 4 * (MIXTURE.of(1).denoise(x, s) - MIXTURE.denoise(x, s))  # noqa: E731
    got, coarse = sample_euler(guided, x, karras(200)), sample_euler(guided, x, karras(50))
    fine = sample_euler(field, x, karras(800))
    error, error_coarse = ((a - fine).pow(2).mean().sqrt() for a in (got, coarse))
    assert error < 0.02
    assert error < error_coarse / 2
    # importance weights give the true law of p(x) p(y|x)^4
    draws = MIXTURE.sample(200_000, torch.Generator().manual_seed(2))
    weights = MIXTURE.log_prob_class(draws)[:, 1].mul(4).softmax(0)
    assert (got.mean(0) - weights @ draws).abs().max() > 0.05


@pytest.mark.parametrize("process,sigma", LEVELS)
def test_eps_form_equals_the_denoised_form(process, sigma):
    x = 2 * normal(8, 2)
    plain = MIXTURE.denoise(x, sigma, process)
    leaf = x.clone().requires_grad_()
    g = torch.autograd.grad(MIXTURE.log_prob_class(leaf, sigma, process)[:, 0].sum(), leaf)[0]
    guided = with_guidance(MIXTURE.denoiser(process), [exact(0, process, scale=2.5)], process=process)
    # d' = d - f/s k g: eps - s k g for VE, and (s/(1-s)) k g off the velocity of a flow
    factor = sigma if process is VE else sigma / (1 - sigma)
    torch.testing.assert_close(to_d(x, sigma, guided(x, sigma)), to_d(x, sigma, plain) - factor * 2.5 * g)


def test_a_batch_equals_its_single_runs():
    guided = with_guidance(MIXTURE.denoiser(VE), [exact(1, scale=3.0, bound=0.5)])
    x, sigmas = normal(5, 2) * 20, karras(20)
    singles = torch.cat([sample_euler(guided, row[None], sigmas) for row in x])
    torch.testing.assert_close(sample_euler(guided, x, sigmas), singles, rtol=1e-9, atol=1e-9)


def test_scale_0_and_a_closed_window_are_untouched_to_the_bit():
    x = normal(4, 2).float()
    for off in (exact(1, scale=0.0), exact(1, window=(0.4, 0.0)), exact(1, scale=lambda s: 0.0)):
        guided = with_guidance(MIXTURE.denoise, [off])
        assert torch.equal(guided(x, 0.5), MIXTURE.denoise(x, 0.5))
        assert shift([off], x, 0.5, x) is None
    inside = with_guidance(MIXTURE.denoise, [exact(1, window=(0.6, 0.0))])
    assert not torch.equal(inside(x, 0.5), MIXTURE.denoise(x, 0.5))


def test_terms_add_up_and_each_has_its_own_scale():
    x, s = normal(4, 2), 0.8
    parts = [exact(0, scale=2.0), exact(1, scale=-0.5)]
    both = shift(parts, x, s, MIXTURE.denoise(x, s))
    torch.testing.assert_close(both, sum(shift([p], x, s, MIXTURE.denoise(x, s)) for p in parts))


def test_gradients_of_all_classes_cancel_under_their_probabilities():
    x, s = normal(6, 2), 0.7
    p = MIXTURE.log_prob_class(x, s).exp()
    total = sum(p[:, [k]] * shift([exact(k)], x, s, MIXTURE.denoise(x, s)) for k in range(3))
    assert total.abs().max() < 1e-12
    # and of all captions of a contrastive guidance
    u, captions = normal(3, 8).requires_grad_(), normal(5, 8, seed=1)
    logs = caption_log_probs(u, captions, 20.0)
    summed = sum(
        (logs[:, k].exp().detach()[:, None] * torch.autograd.grad(logs[:, k].sum(), u, retain_graph=True)[0])
        for k in range(5)
    )
    assert summed.abs().max() < 1e-10


# ------------------------------------------------------------------------------------------- finite differences

W = normal(6, 6, seed=3) / 2
A = normal(6, 4, seed=4)


def toy(x, sigma):
    return torch.tanh(x @ W) + x / (1 + sigma**2)


def decoded(x, sigma, d):
    """A likelihood of the decoded estimate and, a little, of the noisy sample."""
    return -(torch.sin(d @ A) - 0.3).pow(2).sum(1) + 0.1 * x.pow(3).sum(1) / (1 + sigma)


def numeric(f, at, step=1e-5):
    out = torch.zeros_like(at)
    for i in range(at.shape[1]):
        e = torch.zeros_like(at)
        e[:, i] = step
        out[:, i] = (f(at + e) - f(at - e)) / (2 * step)
    return out


@pytest.mark.parametrize("process,sigma", [(VE, 0.6), (VE, 5.0), (FLOW, 0.6)])
@pytest.mark.parametrize("mode", ["network", "decoder", "latent"])
def test_each_gradient_mode_by_finite_differences(mode, process, sigma):
    x, v, k = normal(3, 6), 0.7, 1.7
    d = toy(x, sigma)
    guided = with_guidance(toy, [Guidance(decoded, mode=mode, scale=k, variance=v)], process=process)
    factor = sigma**2 if process is VE else sigma**2 / (1 - sigma)
    if mode == "network":
        want = factor * numeric(lambda z: decoded(z, sigma, toy(z, sigma)), x)
    elif mode == "decoder":
        a = 1 if process is VE else 1 - sigma
        want = factor * (a * v / (a * a * v + sigma**2)) * numeric(lambda z: decoded(x, sigma, z), d)
    else:
        want = factor * numeric(lambda z: decoded(z, sigma, d), x)
    torch.testing.assert_close(guided(x, sigma) - d, k * want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("process,sigma", LEVELS)
def test_the_decoder_mode_is_exact_for_a_gaussian_prior(process, sigma):
    prior = GaussianMixture(torch.tensor([[0.4, -0.2]]), 1.3)
    likelihood = lambda x, s, d: -(d - 1).pow(2).sum(1)  # noqa: E731
    x = normal(5, 2)
    results = [
        with_guidance(prior.denoiser(process), [Guidance(likelihood, mode=mode, variance=1.3**2)], process=process)(
            x, sigma
        )
        for mode in ("network", "decoder")
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("mode", ["network", "decoder", "latent"])
def test_a_flow_at_s_1_stays_finite(mode):
    likelihood = lambda x, s, d: -(d - 1).pow(2).sum(1) - 0 * x.sum(1)  # noqa: E731
    out = with_guidance(MIXTURE.denoiser(FLOW), [Guidance(likelihood, mode=mode)], process=FLOW)(normal(4, 2), 1.0)
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("mode", ["network", "decoder", "latent"])
def test_a_networks_small_error_at_s_1_of_a_flow_is_not_multiplied_into_a_push(mode):
    """An exact likelihood does not change with x there; a trained one does a little."""
    likelihood = lambda x, s, d: 1e-2 * (x.sum(1) + d.sum(1))  # noqa: E731
    x, said = normal(4, 2), {}
    for s in (1.0, 0.985, 0.96):
        report = lambda seen, s=s: said.update({s: float(seen["rms"].max())})  # noqa: E731
        shift([Guidance(likelihood, mode)], x, s, x / 2, process=FLOW, network=lambda x, _: x / 2, report=report)
    assert said.keys() == ({1.0, 0.985, 0.96} if mode == "decoder" else {0.96})
    assert max(said.values()) < 1


@pytest.mark.parametrize("mode", ["network", "decoder", "latent"])
def test_nor_is_it_at_the_levels_where_a_model_of_zero_terminal_snr_begins(mode):
    """The same rule at equal noise: 4518 is that table's last level, 14.6 Stable Diffusion's."""
    guidance = Guidance(lambda x, s, d: x.sum(1), mode)
    for sigma in (4518.0, 600.0, 55.0, 45.0, 14.6, 1.0):
        alike = guidance.scale_at(sigma), guidance.scale_at(sigma / (1 + sigma), process=FLOW)
        assert alike == ((0.0, 0.0) if sigma > 50 and mode != "decoder" else (1.0, 1.0))


# ------------------------------------------------------------------------------------------------- the odd ends


def test_the_network_is_run_once_per_call_whatever_the_number_of_terms():
    calls = []

    def counting(x, sigma):
        calls.append(sigma)
        return toy(x, sigma)

    terms = [Guidance(decoded), Guidance(decoded, scale=0.5), Guidance(decoded, mode="decoder")]
    with_guidance(counting, terms)(normal(2, 6), 0.5)
    assert len(calls) == 1


def test_the_bound_limits_each_sample_alone():
    change = torch.stack([torch.full((10,), 4.0), torch.full((10,), 0.1)])
    out, rms, limited = bounded(change, 2.0, 0.5)
    torch.testing.assert_close(rms, torch.tensor([0.5, 0.05]))
    assert limited.tolist() == [1.0, 0.0] and bounded(change, 2.0, None)[2].tolist() == [0.0, 0.0]
    assert torch.equal(out[1], change[1])
    torch.testing.assert_close(out[0] / 2, torch.full((10,), 0.5))


@pytest.mark.parametrize("process,sigma", LEVELS)
def test_a_bound_push_stays_within_the_estimates_uncertainty(process, sigma):
    x = 2 * normal(8, 2)
    push = shift([exact(0, process, scale=1e6, bound=0.5, variance=0.9)], x, sigma, x, process=process)
    a = 1 if process is VE else 1 - sigma
    unit = math.sqrt(sigma**2 * 0.9 / (a * a * 0.9 + sigma**2))
    assert push.pow(2).mean(1).sqrt().max() <= 0.5 * unit * (1 + 1e-6)
    assert push.pow(2).mean(1).sqrt().max() > 0.4 * unit


def test_a_window_has_two_ends():
    term = exact(0, scale=2.0, window=(1.0, 0.5))
    assert [term.scale_at(s) for s in (1.1, 1.0, 0.7, 0.4)] == [0.0, 2.0, 2.0, 0.0]


def test_each_seed_and_each_level_have_random_numbers_of_their_own():
    draws = [torch.rand(4, generator=generator_at(seed, s)) for seed, s in ((0, 0.5), (0, 0.5), (0, 0.6), (1, 0.5))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


def test_every_other_step_only():
    sigmas = karras(6)
    term = exact(1, every=2)
    assert [term.scale_at(s, sigmas) != 0 for s in sigmas[:-1]] == [True, False] * 3
    # Heun looks at the next level, DPM-2 between two: both are told by place, not by count
    assert term.scale_at(float(sigmas[0]) * 0.9, sigmas) != 0
    with pytest.raises(ValueError, match="schedule"):
        term.scale_at(1.0)


def test_a_guided_run_is_repeatable_and_leaves_the_global_generator_alone():
    def noisy(x, s, d):
        return -(d - torch.randn(d.shape[1:], generator=generator_at(3, s)).to(d)).pow(2).sum(1)

    torch.manual_seed(11)
    before = torch.get_rng_state()
    guided = with_guidance(MIXTURE.denoiser(VE), [Guidance(noisy, scale=0.1)])
    runs = [sample_euler(guided, normal(2, 2) * 20, karras(8)) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(before, torch.get_rng_state())
    other = generator_at(4, 0.5)
    assert not torch.equal(torch.randn(3, generator=generator_at(3, 0.5)), torch.randn(3, generator=other))


def test_reports_say_what_happened():
    seen = []
    x = normal(3, 2)
    with_guidance(MIXTURE.denoiser(VE), [exact(0, name="class")], report=seen.append)(x, 0.5)
    assert [r["name"] for r in seen] == ["class"]
    torch.testing.assert_close(seen[0]["log_likelihood"], MIXTURE.log_prob_class(x, 0.5)[:, 0])


def test_bad_terms_are_refused():
    for bad in ({"mode": "sideways"}, {"every": 0}, {"bound": 0.0}, {"variance": 0.0}):
        with pytest.raises(ValueError):
            Guidance(decoded, **bad)
    with pytest.raises(ValueError, match="per sample"):
        with_guidance(toy, [Guidance(lambda x, s, d: d.sum())])(normal(2, 6), 0.5)
