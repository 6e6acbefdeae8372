"""The low-pass projector and ILVR: phi(result) equals phi(reference) at the last conditioned step."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.ilvr import coarse_guided, sample_ilvr
from nulltext.samplers.lowpass import dct_low_pass, resized_low_pass
from nulltext.samplers.mixture import GaussianMixture
from nulltext.samplers.ode import sample_heun
from nulltext.samplers.repaint import karras_sigmas
from nulltext.samplers.walk import sample_walk

GENERATOR = torch.Generator().manual_seed(0)
MIXTURE = GaussianMixture(torch.randn(5, 2, 8, 8, generator=GENERATOR), 0.7)
REFERENCE = torch.randn(3, 2, 8, 8, generator=GENERATOR, dtype=torch.float64)
SIGMAS = karras_sigmas(12, 0.03, 10.0)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 1.5])
@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 3, 12, 20), (2, 1, 3, 8, 8)])
def test_dct_is_an_idempotent_symmetric_smooth_projector(factor, shape):
    phi, x = dct_low_pass(factor), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(phi(phi(x)), phi(x), rtol=0, atol=1e-12)
    y = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close((phi(x) * y).sum(), (x * phi(y)).sum())
    flat = torch.full(shape, 2.5, dtype=torch.float64)
    torch.testing.assert_close(phi(flat), flat, rtol=0, atol=1e-12)
    assert phi(x).square().sum() <= x.square().sum()


def test_factor_1_is_the_identity_and_larger_factors_keep_less():
    x = torch.randn(1, 1, 16, 16)
    assert dct_low_pass(1)(x) is x
    energy = [dct_low_pass(n)(x).square().sum().item() for n in (1, 2, 4, 8, 16)]
    assert energy == sorted(energy, reverse=True) and energy[-1] < 0.1 * energy[0]
    with pytest.raises(ValueError, match="1 or more"):
        dct_low_pass(0.5)


def test_the_authors_filter_is_close_to_but_no_projector():
    x = torch.randn(2, 3, 16, 16)
    phi = resized_low_pass(4)
    gap = (phi(phi(x)) - phi(x)).abs().max()
    assert phi(x).shape == x.shape and 1e-4 < gap < phi(x).abs().max()


def run(stop, process=VE, factor=4, eta=1.0):
    sigmas = SIGMAS if process is VE else SIGMAS / (1 + SIGMAS)
    noise = gaussian(REFERENCE, 7)
    x = process.noised(REFERENCE * 0, sigmas[0], noise())
    return sample_ilvr(
        MIXTURE.denoiser(process),
        x,
        sigmas,
        reference=REFERENCE,
        low_pass=dct_low_pass(factor),
        stop=stop,
        process=process,
        noise=noise,
        eta=eta,
    )


@pytest.mark.parametrize("process", [VE, FLOW])
def test_constraint_holds_at_the_last_step(process):
    phi = dct_low_pass(4)
    torch.testing.assert_close(phi(run(len(SIGMAS) - 1, process)), phi(REFERENCE), rtol=0, atol=1e-10)
    free = run(0, process)
    assert (phi(free) - phi(REFERENCE)).abs().max() > 0.1


def test_constraint_holds_at_an_earlier_stop_with_the_references_noise():
    """Conditioned for 5 steps: right after the fifth, phi(x) is phi of the noised reference."""
    phi, noise, seen = dct_low_pass(4), gaussian(REFERENCE, 7), {}
    draws = []

    def recorded():
        draws.append(noise())
        return draws[-1]

    def watch(d):
        seen[d["i"]] = d["x"]

    x = SIGMAS[0] * recorded()
    sample_ilvr(
        MIXTURE.denoise,
        x,
        SIGMAS,
        reference=REFERENCE,
        low_pass=phi,
        stop=5,
        process=VE,
        noise=recorded,
        callback=watch,
    )
    noised = REFERENCE + SIGMAS[5] * draws[2 * 5]
    torch.testing.assert_close(phi(seen[5]), phi(noised), rtol=0, atol=1e-10)


def test_identities():
    noise = gaussian(REFERENCE, 7)
    x = SIGMAS[0] * noise()
    plain = sample_walk(MIXTURE.denoise, x, SIGMAS, process=VE, noise=noise)
    assert torch.equal(run(0), plain)
    torch.testing.assert_close(run(12, factor=1), REFERENCE, rtol=0, atol=1e-12)


def test_denoised_form_works_with_a_second_order_sampler():
    phi = dct_low_pass(2)
    x = SIGMAS[0] * gaussian(REFERENCE, 1)()
    out = sample_heun(coarse_guided(MIXTURE.denoise, REFERENCE, phi, lambda s: True), x, SIGMAS)
    torch.testing.assert_close(phi(out), phi(REFERENCE), rtol=0, atol=1e-10)
    assert (out - REFERENCE).abs().max() > 0.1
    off = sample_heun(coarse_guided(MIXTURE.denoise, REFERENCE, phi, lambda s: False), x, SIGMAS)
    assert torch.equal(off, sample_heun(MIXTURE.denoise, x, SIGMAS))
