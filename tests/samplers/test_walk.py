"""The stochastic loop: its law on a mixture, its paths, its hook."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, euler_step, gaussian
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.picture.repaint import karras_sigmas
from nulltext.samplers.walk import network_calls, sample_walk

MIXTURE = GaussianMixture([[-2.0], [1.0]], 0.4, weights=[0.3, 0.7])
SIGMAS = karras_sigmas(80, 0.02, 30.0)


@pytest.mark.parametrize("process, eta", [(VE, 1.0), (VE, 0.0), (FLOW, 1.0)])
def test_walk_samples_the_mixture(process, eta):
    sigmas = SIGMAS if process is VE else SIGMAS / (1 + SIGMAS)
    like = torch.empty(8000, 1, dtype=torch.float64)
    noise = gaussian(like, 1)
    x = process.noised(torch.zeros_like(like), sigmas[0], noise())
    out = sample_walk(MIXTURE.denoiser(process), x, sigmas, process=process, noise=noise, eta=eta)
    assert out.mean().item() == pytest.approx(0.1, abs=0.07)
    assert out.var().item() == pytest.approx(0.16 + 0.21 * 9, rel=0.06)
    assert (out > -0.5).double().mean().item() == pytest.approx(0.7, abs=0.03)


def test_eta_0_is_ddim_and_draws_no_noise():
    x = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30

    def never():
        raise AssertionError("eta 0 must not draw")

    out = sample_walk(MIXTURE.denoise, x, SIGMAS, process=VE, noise=never, eta=0.0)
    for s, s_next in zip(SIGMAS, SIGMAS[1:], strict=False):
        x = euler_step(x, MIXTURE.denoise(x, s), s, s_next)
    torch.testing.assert_close(out, x, rtol=1e-12, atol=1e-12)


def test_path_is_followed_and_reported():
    seen, path = [], [0, 1, 2, 0, 1, 2, 3]
    sigmas = torch.tensor([3.0, 2.0, 1.0, 0.0])

    def after(x, step):
        seen.append((step.index, float(step.sigma), float(step.sigma_next)))
        return x

    steps = []
    watch = lambda d: steps.append((d["i"], float(d["sigma"])))
    more = {"process": VE, "noise": lambda: torch.ones(1, 1), "path": path, "after": after, "callback": watch}
    sample_walk(lambda x, s: x * 0, torch.ones(1, 1), sigmas, **more)
    assert seen == [(0, 3, 2), (1, 2, 1), (0, 3, 2), (1, 2, 1), (2, 1, 0)]
    assert steps == [(0, 3), (1, 2), (2, 3), (3, 2), (4, 1)] and network_calls(path) == 5


@pytest.mark.parametrize("process", [VE, FLOW])
def test_a_jump_inside_a_walk_is_the_forward_process_between_its_two_levels(process):
    """Signal and noise at the level above are those of a sample that was never below, by one draw of full size."""
    sigmas, one = torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    def seen(x0, start, draw):  # x before each network call, with a denoiser that knows x0
        steps, x = [], process.noised(x0 * one, sigmas[0], start * one)
        more = {"process": process, "noise": lambda: draw * one, "eta": 0.0, "path": [0, 1, 2, 0, 1, 2, 3]}
        sample_walk(lambda x, s: x0 * one, x, sigmas, callback=lambda d: steps.append(d["x"]), **more)
        return float(steps[2])  # after the jump from level 2 to level 0

    signal, old, new = seen(1.0, 0.0, 0.0), seen(0.0, 1.0, 0.0), seen(0.0, 0.0, 1.0)
    assert signal == pytest.approx(float(process.signal(sigmas[0])))
    assert old**2 + new**2 == pytest.approx(0.8**2) and 0 < old < 0.3
