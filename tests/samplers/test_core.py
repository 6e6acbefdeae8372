"""The coordinate system: every transition is linear in independent draws, so its law is read off exactly."""

import pytest
import torch
from nulltext.samplers.core import (
    FLOW,
    PROCESSES,
    VE,
    VarianceExploding,
    apply_cfg,
    as_level,
    check_descending,
    euler_step,
    expand,
    gaussian,
    guided,
    measured_cfg,
    report,
    step_of,
    to_d,
    wide,
)
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.tests.running import OnMac

ONE, ZERO = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
PAIRS = [(VE, 14.6, 9.0), (VE, 0.5, 0.03), (VE, 0.03, 0.0), (FLOW, 1.0, 0.9), (FLOW, 0.9, 0.3), (FLOW, 0.3, 0.0)]


def marginal(process, sigma):
    return float(process.signal(sigma)), float(sigma)


@pytest.mark.parametrize("process,hi,lo", PAIRS)
def test_noised_and_renoise_have_the_marginals_of_the_process(process, hi, lo):
    assert (float(process.noised(ONE, lo, ZERO)), float(process.noised(ZERO, lo, ONE))) == pytest.approx(
        marginal(process, lo)
    )
    through = process.renoise(process.noised(ONE, lo, ZERO), lo, hi, ZERO)
    old, new = process.renoise(process.noised(ZERO, lo, ONE), lo, hi, ZERO), process.renoise(ZERO, lo, hi, ONE)
    signal, std = marginal(process, hi)
    assert float(through) == pytest.approx(signal) and float((old**2 + new**2).sqrt()) == pytest.approx(std)


@pytest.mark.parametrize("process,level", [(VE, 0.0), (VE, 3.0), (FLOW, 0.0), (FLOW, 0.4), (FLOW, 1.0)])
def test_renoise_to_the_same_level_changes_nothing(process, level):
    x = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(process.renoise(x, level, level, torch.randn_like(x)), x)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("process,hi,lo", PAIRS)
def test_transition_from_the_true_x0_lands_on_the_marginal(process, hi, lo, eta):
    signal, std_part = process.transition(process.noised(ONE, hi, ZERO), ONE, hi, lo, eta)
    old, _ = process.transition(process.noised(ZERO, hi, ONE), ZERO, hi, lo, eta)
    assert float(signal) == pytest.approx(marginal(process, lo)[0], abs=1e-12)
    assert float((old**2 + std_part**2).sqrt()) == pytest.approx(lo, abs=1e-12)


@pytest.mark.parametrize("process,hi,lo", PAIRS)
def test_eta_one_is_the_posterior_of_the_forward_process(process, hi, lo):
    """Cov(x_lo, x_hi | x0) read off the reverse step must be what the forward step gives it."""
    old, _ = process.transition(process.noised(ZERO, hi, ONE), ZERO, hi, lo, 1.0)
    forward = process.renoise(ONE, lo, hi, ZERO)  # a_hi/a_lo
    assert float(old) * hi == pytest.approx(float(forward) * lo**2, abs=1e-12)


@pytest.mark.parametrize("process,hi,lo", PAIRS)
def test_eta_zero_is_euler(process, hi, lo):
    x, denoised = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    mean, std = process.transition(x, denoised, hi, lo, 0.0)
    assert float(std) == 0
    torch.testing.assert_close(mean, euler_step(x, denoised, hi, lo))
    torch.testing.assert_close(mean, x + (lo - hi) * to_d(x, hi, denoised))


def test_eta_one_is_k_diffusions_ancestral_step():
    x, denoised, s, s_next = torch.randn(4, 1), torch.randn(4, 1), 3.0, 1.2
    up = min(s_next, (s_next**2 * (s**2 - s_next**2) / s**2) ** 0.5)
    down = (s_next**2 - up**2) ** 0.5
    mean, std = VE.transition(x, denoised, s, s_next, 1.0)
    assert float(std) == pytest.approx(up)
    torch.testing.assert_close(mean, x + (down - s) * (x - denoised) / s)


@pytest.mark.parametrize("process", [VE, FLOW])
def test_a_step_to_zero_returns_denoised_to_the_bit(process):
    x, denoised = torch.randn(3, 2), torch.randn(3, 2)
    assert torch.equal(euler_step(x, denoised, 0.37, 0.0), denoised)
    assert torch.equal(process.transition(x, denoised, 0.37, 0.0, 1.0)[0], denoised)


@pytest.mark.parametrize("process", [VE, FLOW])
def test_sigma_may_be_a_number_a_scalar_or_one_per_image(process):
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    rows = process.noised(x, torch.tensor([0.5, 0.25]), noise)
    assert torch.equal(rows[1], process.noised(x, 0.25, noise)[1])
    assert torch.equal(rows[0], process.noised(x, torch.tensor(0.5), noise)[0])
    assert expand(0.5, x).ndim == 0 and expand(torch.ones(2), x).shape == (2, 1, 1)
    mean, std = process.transition(x, noise, torch.tensor([0.5, 0.25]), torch.tensor([0.2, 0.1]))
    one, _ = process.transition(x, noise, 0.25, 0.1)
    torch.testing.assert_close(mean[1], one[1])
    assert std.shape == (2, 1, 1)


@pytest.mark.parametrize("process,sigma", [(VE, 0.3), (VE, 4.0), (FLOW, 0.3), (FLOW, 0.95)])
def test_guidance_weight_turns_a_likelihood_gradient_into_the_class_denoiser(process, sigma):
    m = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]]), 0.4, labels=[0, 1, 0])
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(m.log_prob_class(x, sigma, process)[:, 0].sum(), x)
    steered = m.denoise(x, sigma, process) + process.guidance_weight(sigma) * gradient
    torch.testing.assert_close(steered, m.of(0).denoise(x, sigma, process))


def test_flow_guidance_weight_is_finite_at_one():
    assert FLOW.guidance_weight(1.0) == pytest.approx(1000.0)
    assert float(FLOW.guidance_weight(torch.tensor(1.0))) == pytest.approx(1000.0)


def test_input_scale():
    assert VE.input_scale(0.0) == 1 and VE.input_scale(3.0) == pytest.approx(10**-0.5)
    assert FLOW.input_scale(0.7) == 1
    assert VarianceExploding(data=0.5).input_scale(1.0) == pytest.approx(5**-0.5)
    assert VarianceExploding(power=1.0).input_scale(3.0) == 0.25
    s = torch.logspace(-3, 2, 99)
    assert torch.equal(VE.input_scale(s), (1 + s**2) ** -0.5) and VE.input_scale(0.3) == (1 + 0.3**2) ** -0.5
    assert PROCESSES == {"ve": VE, "flow": FLOW}


def test_guided():
    def cond(x, s):
        return x * 2

    def uncond(x, s):
        raise AssertionError("the unconditional branch must not be asked at cfg 1")

    x = torch.ones(1, 2)
    assert guided(cond, uncond, 1.0) is cond
    torch.testing.assert_close(guided(cond, lambda x, s: x, 7.5)(x, 1.0), x + 7.5 * x)
    torch.testing.assert_close(guided(cond, lambda x, s: x, 0.0)(x, 1.0), x)


def test_gaussian_has_its_own_generator():
    like = torch.zeros(2, 3, dtype=torch.float64)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    draw, again = gaussian(like, 7), gaussian(like, 7)
    first = draw()
    assert torch.equal(first, again()) and not torch.equal(first, draw()) and first.dtype == like.dtype
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first, gaussian(like, 8)())


def test_step_of():
    sigmas = torch.tensor([14.6, 7.0, 3.0, 1.0, 0.0])
    assert [step_of(s, sigmas) for s in sigmas] == [0, 1, 2, 3, 4]
    assert step_of(5.0, sigmas) == pytest.approx(1.5)
    assert step_of(20.0, sigmas) == 0 and step_of(torch.tensor([0.5, 0.5]), sigmas) == pytest.approx(3.5)
    assert step_of(0.01, [3.0, 1.0]) == 1


def test_report():
    seen = []
    x = torch.zeros(1, 1)
    report(None, 0, x, 1.0, x)
    report(seen.append, 3, x, 2.0, x + 1)
    assert list(seen[0]) == ["x", "i", "sigma", "sigma_hat", "denoised"] and seen[0]["i"] == 3


@pytest.mark.parametrize("bad", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -0.1], [[1.0, 0.0]], [float("nan"), 0.0]])
def test_check_descending_refuses(bad):
    with pytest.raises(ValueError, match="sigma"):
        check_descending(torch.tensor(bad))
    check_descending(torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, -2.0])
def test_the_scale_of_guidance_is_read_back_from_its_result(scale):
    cond, uncond = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    made = apply_cfg(cond, uncond, scale)
    torch.testing.assert_close(made, (1 - scale) * uncond + scale * cond, rtol=1e-4, atol=1e-5)
    assert measured_cfg(cond, uncond, made, torch.float64) == pytest.approx(scale, abs=1e-5)
    assert measured_cfg(cond, cond, made, torch.float64) is None


def test_a_level_keeps_its_digits_from_wherever_it_comes():
    assert float(as_level(0.1)) == 0.1 and as_level([0.3, 0.1]).tolist() == [0.3, 0.1]
    kept = torch.tensor([0.1], requires_grad=True)
    assert as_level(kept).dtype == torch.float64 and not as_level(kept).requires_grad
    assert float(as_level(kept)) == float(kept)
    assert wide(kept).dtype == torch.float64 and wide(kept, torch.device("cpu")).requires_grad


def test_a_level_that_lies_on_a_gpu_without_float64_is_widened_once_it_has_left_it():
    there = torch.tensor([0.1]).as_subclass(OnMac)
    assert as_level(there).dtype == torch.float64 and float(as_level(there)) == float(torch.tensor(0.1))
