"""ILVR: phi(result) equals phi(reference) at the last conditioned step."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_heun
from nulltext.samplers.picture.ilvr import coarse_of, sample_ilvr
from nulltext.samplers.picture.lowpass import bicubic_low_pass, dct_low_pass
from nulltext.samplers.picture.repaint import karras_sigmas
from nulltext.samplers.walk import sample_walk

GENERATOR = torch.Generator().manual_seed(0)
MIXTURE = GaussianMixture(torch.randn(5, 2, 8, 8, generator=GENERATOR), 0.7)
REFERENCE = torch.randn(3, 2, 8, 8, generator=GENERATOR, dtype=torch.float64)
SIGMAS = karras_sigmas(12, 0.03, 10.0)
FOUR = dct_low_pass(4)


def run(stop=12, process=VE, low_pass=FOUR, sigmas=None, noise=None, **options):
    """From pure noise, on the run's own levels or on the first of them."""
    levels = SIGMAS if process is VE else SIGMAS / (1 + SIGMAS)
    noise = noise or gaussian(REFERENCE, 7)
    x = process.noised(REFERENCE * 0, levels[0], noise())
    options |= {"reference": REFERENCE, "low_pass": low_pass, "stop": stop, "process": process, "noise": noise}
    return sample_ilvr(MIXTURE.denoiser(process), x, levels if sigmas is None else sigmas, **options)


@pytest.mark.parametrize("process", [VE, FLOW])
def test_what_the_authors_filter_leaves_of_the_constraint(process):
    """phi(out) - phi(reference) = (phi - phi phi)(proposal - reference) at the last step: small, and not 0."""
    phi, seen = bicubic_low_pass(4), []
    out = run(process=process, low_pass=phi, callback=seen.append)
    gap = seen[-1]["denoised"] - REFERENCE  # the last step's proposal is the network's answer
    torch.testing.assert_close(phi(out) - phi(REFERENCE), phi(gap) - phi(phi(gap)), rtol=0, atol=1e-10)
    assert 1e-3 < (phi(out) - phi(REFERENCE)).abs().max() < 0.6 * phi(gap).abs().max()


@pytest.mark.parametrize("process", [VE, FLOW])
def test_constraint_holds_at_the_last_step(process):
    phi = dct_low_pass(4)
    torch.testing.assert_close(phi(run(len(SIGMAS) - 1, process)), phi(REFERENCE), rtol=0, atol=1e-10)
    free = run(0, process)
    assert (phi(free) - phi(REFERENCE)).abs().max() > 0.1


def test_constraint_holds_at_an_earlier_stop_with_the_references_noise():
    """Conditioned for 5 steps: right after the fifth, phi(x) is phi of the noised reference."""
    phi, noise, draws, seen = dct_low_pass(4), gaussian(REFERENCE, 7), [], []

    def recorded():
        draws.append(noise())
        return draws[-1]

    run(5, noise=recorded, callback=seen.append)
    noised = REFERENCE + SIGMAS[5] * draws[2 * 5]
    torch.testing.assert_close(phi(seen[5]["x"]), phi(noised), rtol=0, atol=1e-10)


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_steps_after_the_stop_are_free(stop):
    """The run is the conditioned one down to its stop and a plain ancestral walk from there on."""
    noise = gaussian(REFERENCE, 7)
    held = run(stop, sigmas=SIGMAS[: stop + 1], noise=noise)
    free = sample_walk(MIXTURE.denoise, held, SIGMAS[stop:], process=VE, noise=noise)
    assert torch.equal(run(stop), free)
    assert (free - run(12)).abs().max() > 0.01


def test_identities():
    noise = gaussian(REFERENCE, 7)
    x = SIGMAS[0] * noise()
    plain = sample_walk(MIXTURE.denoise, x, SIGMAS, process=VE, noise=noise)
    assert torch.equal(run(0), plain)
    torch.testing.assert_close(run(low_pass=dct_low_pass(1)), REFERENCE, rtol=0, atol=1e-12)


def test_denoised_form_works_with_a_second_order_sampler():
    phi = dct_low_pass(2)
    x = SIGMAS[0] * gaussian(REFERENCE, 1)()
    out = sample_heun(lambda x, s: coarse_of(MIXTURE.denoise(x, s), REFERENCE, phi), x, SIGMAS)
    torch.testing.assert_close(phi(out), phi(REFERENCE), rtol=0, atol=1e-10)
    assert (out - REFERENCE).abs().max() > 0.1
