import pytest
import torch
from nulltext.samplers.core import FLOW
from nulltext.samplers.guidance.start_noise import _walk, optimise_start_noise
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler

MIXTURE = GaussianMixture(torch.tensor([[-1.0, 0.3], [0.9, -0.6]]), 0.4)
SIGMAS = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0], dtype=torch.float64)


def start(n=4, seed=0):
    return 10 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unlikely(x0):
    return -MIXTURE.log_prob_class(x0, 0.05)[:, 0]


def test_the_best_is_never_worse_than_the_first_and_the_class_is_reached():
    x = start(16)
    out = optimise_start_noise(MIXTURE.denoise, x, SIGMAS, unlikely, steps=40, lr=0.1, prior=0.1)
    torch.testing.assert_close(out.losses[0], unlikely(sample_euler(MIXTURE.denoise, x, SIGMAS)))
    assert bool((unlikely(out.result) <= out.losses[0] + 1e-9).all())
    torch.testing.assert_close(unlikely(out.result), out.losses.min(0).values)
    assert (out.losses[0] > 2).any() and unlikely(out.result).max() < 0.7
    torch.testing.assert_close(out.result, sample_euler(MIXTURE.denoise, out.x, SIGMAS))


def test_checkpointing_changes_memory_and_not_the_result():
    kept, counted = [], []

    def peak(checkpointed):
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t)
        with hooks:
            out = optimise_start_noise(
                MIXTURE.denoise, start(), SIGMAS, unlikely, steps=1, lr=0.1, checkpointed=checkpointed
            )
        counted.append(sum(kept))
        kept.clear()
        return out

    a, b = peak(True), peak(False)
    torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)
    assert counted[0] < counted[1] / 2


def test_the_gradient_through_the_walk_by_finite_differences():
    x = start(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: unlikely(_walk(MIXTURE.denoise, z, SIGMAS, True, None)), (x,))


def test_samples_are_independent():
    x = start()
    out = optimise_start_noise(MIXTURE.denoise, x, SIGMAS, unlikely, steps=3, lr=0.1)
    alone = optimise_start_noise(MIXTURE.denoise, x[2:3], SIGMAS, unlikely, steps=3, lr=0.1)
    torch.testing.assert_close(out.x[2:3], alone.x, rtol=1e-8, atol=1e-8)


def test_the_radius_is_held():
    x = start(64)
    far = lambda x0: -x0.abs().sum(1)  # noqa: E731
    free, held = (
        optimise_start_noise(MIXTURE.denoise, x, SIGMAS, far, steps=30, lr=0.1, prior=prior).x.norm(dim=1)
        / x.norm(dim=1)
        for prior in (0.0, 30.0)
    )
    assert (held - 1).abs().mean() < 0.5 * (free - 1).abs().mean()


def test_a_flow_from_s_1_and_the_ticks():
    ticks = []
    sigmas = torch.tensor([1.0, 0.6, 0.2, 0.0], dtype=torch.float64)
    out = optimise_start_noise(
        MIXTURE.denoiser(FLOW),
        start() / 10,
        sigmas,
        unlikely,
        steps=2,
        checkpointed=False,
        tick=lambda: ticks.append(1),
    )
    assert bool(torch.isfinite(out.x).all()) and len(ticks) == (2 + 1) * 3


def test_no_walk_is_walked_twice():
    starts = []

    def denoise(x, sigma):
        if float(sigma) == float(SIGMAS[0]):
            starts.append(x.detach().clone())
        return MIXTURE.denoise(x, sigma)

    optimise_start_noise(denoise, start(), SIGMAS, unlikely, steps=3, lr=0.1, checkpointed=False)
    assert len({x.numpy().tobytes() for x in starts}) == len(starts) == 3 + 1


def test_refusals():
    with pytest.raises(ValueError, match="at least one step"):
        optimise_start_noise(MIXTURE.denoise, start(), SIGMAS, unlikely, steps=0)
    with pytest.raises(ValueError, match="fall strictly"):
        optimise_start_noise(MIXTURE.denoise, start(), SIGMAS.flip(0), unlikely)


def test_the_first_step_moves_every_number_by_the_rate_and_a_losss_size_does_not_matter():
    x, aim = start(), torch.tensor([1.0, -2.0], dtype=torch.float64)
    plain = lambda x, sigma: 0.5 * x  # noqa: E731 - linear: the walk is a factor
    out = optimise_start_noise(plain, x, SIGMAS, lambda x0: x0 @ aim, steps=1, lr=0.1, prior=0.0)
    unit = x.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(out.x, x - 0.1 * unit * aim.sign(), rtol=1e-6, atol=1e-6)

    def of_size(size):
        loss = lambda x0: size * (x0 - aim).square().sum(1)  # noqa: E731
        return optimise_start_noise(plain, x, SIGMAS, loss, steps=4, lr=0.1, prior=0.0).x

    sizes = [of_size(size) for size in (1.0, 1e-6)]
    torch.testing.assert_close(*sizes, rtol=1e-6, atol=1e-6)
