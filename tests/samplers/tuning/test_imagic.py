"""Imagic on a linear Gaussian model: the least-squares embedding, and a result that is linear in eta."""

import pytest
import torch
from nulltext.samplers.core import VE, expand
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.tuning.imagic import PRESETS, embedding_loop, interpolate
from nulltext.samplers.tuning.loop import Settings
from nulltext.samplers.tuning.objective import Examples, Levels, Objective, denoising_step

F64 = torch.float64
TAU = 0.3


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(b):
    """The exact denoiser of N(B e, tau^2): affine in x and in e [1, 1, D]."""

    def net(x, sigma, embedding):
        s = expand(sigma, x) ** 2
        return (TAU**2 * x + s * (embedding[:, 0] @ b.T)[:, None]) / (TAU**2 + s)

    return net


def test_part_one_finds_the_least_squares_embedding():
    """At one noise-free level the loss is |s^2/(tau^2 + s^2)|^2 |B e - x0|^2, whatever the weight."""
    b, target, x0 = rows(7, 3), rows(1, 1, 3, seed=1), rows(1, 7, seed=2)
    net = gaussian(b)
    quiet = lambda x, sigma, embedding: net(x0.expand_as(x), sigma, embedding)
    loop = embedding_loop(target, Settings(steps=300, schedule="cosine", weight_decay=0.0, clip=0.0), relative_lr=0.3)
    assert loop.settings.lr == pytest.approx(0.3 * float(target.square().mean().sqrt()))
    assert torch.equal(loop.result()["embedding"], target)
    own = lambda x, sigma, conditions: quiet(x, sigma, loop.parameters["embedding"])
    loop.run(denoising_step(own, Examples([x0], [None]), Objective(VE), Levels(table=torch.tensor([2.0]))))
    want = torch.linalg.lstsq(b, x0[0]).solution
    torch.testing.assert_close(loop.result()["embedding"][0, 0], want, rtol=0, atol=1e-4)


def test_the_result_is_linear_in_eta_from_the_picture_to_the_targets_mean():
    b, target, x0 = rows(3, 3), rows(1, 1, 3, seed=1), rows(1, 1, 3, seed=2)
    optimised = torch.linalg.solve(b, x0[0, 0])[None, None]
    sigmas = torch.cat([torch.logspace(1.5, -2, 60, dtype=F64), torch.zeros(1, dtype=F64)])
    net, noise = gaussian(b), rows(1, 1, 3, seed=3)

    def sampled(eta, start):
        embedding = interpolate(target, optimised, eta)
        return sample_euler(lambda x, s: net(x, s, embedding), start, sigmas)

    mean = lambda eta: (interpolate(target, optimised, eta)[:, 0] @ b.T)[:, None]
    start = sigmas[0] * noise
    ends = [sampled(eta, start) for eta in (0.0, 0.25, 0.7, 1.0)]
    for eta, got in ((0.25, ends[1]), (0.7, ends[2])):
        torch.testing.assert_close(got, (1 - eta) * ends[0] + eta * ends[3])
    at_mean = [sampled(eta, mean(eta)) for eta in (0.0, 1.0)]  # no noise: the path stays at the mean
    torch.testing.assert_close(at_mean[0], x0)
    torch.testing.assert_close(at_mean[1], mean(1.0))


def test_ends_of_the_interpolation_are_bitwise():
    target, optimised = rows(1, 2, 3).float(), rows(1, 2, 3, seed=1).float()
    assert interpolate(target, optimised, 0) is optimised and interpolate(target, optimised, 1) is target
    torch.testing.assert_close(interpolate(target, optimised, 1.2), optimised + 1.2 * (target - optimised))
    with pytest.raises(ValueError, match="shape"):
        interpolate(target, optimised[:, :1], 0.5)


def test_no_steps_leave_the_target():
    target = rows(1, 2, 3).float()
    loop = embedding_loop(target, Settings(steps=0))
    loop.run(None)
    assert torch.equal(loop.result()["embedding"], target) and loop.result()["embedding"] is not target
    assert all(p.embedding_steps > 0 for p in PRESETS.values())
