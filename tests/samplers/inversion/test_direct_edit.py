"""Edits without inversion: identity to the bit, and the closed-form answer between two Gaussians."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian, guided
from nulltext.samplers.inversion.direct_edit import sample_flow_edit, sample_infedit
from nulltext.samplers.measure.mixture import GaussianMixture

G = torch.Generator().manual_seed(0)
SHARED = torch.randn(1, 2, 3, 3, generator=G).repeat(6, 1, 1, 1)
# the classes differ in three coordinates only
SHARED[:, 0, 0] = torch.tensor([-2.0] * 3 + [2.0] * 3)[:, None] + 0.3 * torch.randn(6, 3, generator=G)
MIX = GaussianMixture(SHARED, 0.4, labels=[0, 0, 0, 1, 1, 1])
CHANGES = torch.zeros(2, 3, 3, dtype=torch.bool)
CHANGES[0, 0] = True
processes = pytest.mark.parametrize("process", [VE, FLOW])
samplers = pytest.mark.parametrize("sampler", [sample_flow_edit, sample_infedit])
STD, DELTA = 0.5, torch.tensor([1.3, -0.8], dtype=torch.float64)
ONE = GaussianMixture(torch.tensor([[0.2, -0.4]]), STD)
OTHER = GaussianMixture(torch.tensor([[0.2, -0.4]]) + DELTA, STD)


def grid(process, n=40, top=None):
    ramp = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    return ramp * (top or 1.0) if process is FLOW else (top or 12.0) * ramp**2


def source(n=3):
    return MIX.of(0).sample(n, torch.Generator().manual_seed(1))


def prompt(label, process, cfg=1.0):
    return guided(MIX.of(label).denoiser(process), MIX.denoiser(process), cfg)


def edit(sampler, x, sigmas, process, target=None, origin=None, seed=3, **options):
    """From class 0 to class 1, or from and to other denoisers."""
    target, origin = target or prompt(1, process), origin or prompt(0, process)
    return sampler(target, x, sigmas, process=process, noise=gaussian(x, seed), source=origin, **options)


def between(sampler, x, sigmas, process, seed):
    """From the one Gaussian to the other."""
    return edit(sampler, x, sigmas, process, OTHER.denoiser(process), ONE.denoiser(process), seed)


@processes
@samplers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_equal_prompts_return_the_source_to_the_bit(process, sampler, dtype, cfg):
    x, denoise = source().to(dtype), prompt(0, process, cfg)
    kept = x.clone()
    out = edit(sampler, x, grid(process), process, denoise, denoise)
    assert torch.equal(out, kept) and torch.equal(x, kept)


@processes
@samplers
def test_edits_the_class_and_leaves_the_rest(process, sampler):
    x = source()
    out = edit(sampler, x, grid(process), process)
    assert float(MIX.log_prob_class(out)[:, 1].exp().min()) > 0.95
    background = (out - x)[:, ~CHANGES].abs().max()
    assert background < 0.05 < (out - x)[:, CHANGES].abs().mean()


def test_flow_edit_between_gaussians_is_the_shift_of_their_means():
    """From s = 1 the flow's x_edit - x_src is (1 - s) (m1 - m0) at every level, for any grid and any noise."""
    x = ONE.sample(4, G)
    for n in (1, 3, 17):
        torch.testing.assert_close(between(sample_flow_edit, x, grid(FLOW, n), FLOW, n), x + DELTA)


def test_flow_edit_on_ve_follows_its_ode():
    """u = x_edit - x_src obeys u' = s (u - delta)/(std^2 + s^2): a share std/sqrt(std^2 + s_max^2) is left undone."""
    x, top = ONE.sample(4, G), 2.0
    errors = []
    for n in (100, 200):
        out = between(sample_flow_edit, x, grid(VE, n, top), VE, n)
        errors.append(float((out - x - DELTA * (1 - STD / (STD**2 + top**2) ** 0.5)).abs().max()))
    assert errors[1] < 0.01 and 1.7 < errors[0] / errors[1] < 2.4


@processes
def test_infedit_between_gaussians_follows_its_recursion(process):
    x, s = ONE.sample(4, G), grid(process, 6)
    out = between(sample_infedit, x, s, process, 0)
    u = torch.zeros(2, dtype=torch.float64)  # z_tar - z_src
    for i in range(6):
        a, a_next = float(process.signal(s[i])), float(process.signal(s[i + 1]))
        gain = a * STD**2 / (a**2 * STD**2 + float(s[i]) ** 2)
        u = a_next * (gain * u + (1 - gain * a) * DELTA)
    torch.testing.assert_close(out, x + u)


@processes
def test_a_lower_start_changes_less(process):
    x = source()
    moved = []
    for share in (0.1, 0.4, 1.0):
        s = grid(process, top=share * (1 if process is FLOW else 12))
        moved.append(float((edit(sample_flow_edit, x, s, process) - x).abs().mean()))
    assert moved[0] < moved[1] < moved[2]


@processes
def test_average_plain_steps_calls_and_callback(process):
    x, calls, seen = source(), [], []

    def count(denoise):
        def ask(z, s):
            calls.append(float(s))
            return denoise(z, s)

        return ask

    counted = x, grid(process, 10), process, count(prompt(1, process)), count(prompt(0, process))
    out = edit(sample_flow_edit, *counted, average=3, plain_steps=4, callback=seen.append)
    assert len(calls) == 2 * 3 * 6 + 4 and 0.0 not in calls
    assert [c["i"] for c in seen] == list(range(10)) and torch.equal(out, seen[-1]["denoised"])
    calls.clear()
    edit(sample_infedit, *counted)
    assert len(calls) == 20 and 0.0 not in calls
    for bad in ({"average": 0}, {"plain_steps": 11}, {"plain_steps": -1}):
        with pytest.raises(ValueError, match="FlowEdit needs"):
            edit(sample_flow_edit, *counted, **bad)


@processes
@pytest.mark.parametrize("plain", [1, 4, 10])
def test_plain_steps_go_on_from_the_edit_at_its_own_noise(process, plain):
    """Algorithm 1 written out: the last n_min steps begin at z = noised(x_src) + (x_edit - x_src)."""
    x, s, steps = source(), grid(process, 10), 10
    target, origin, draw = prompt(1, process, 3.0), prompt(0, process, 1.5), gaussian(x, 7)
    made = x.clone()
    for i in range(steps - plain):
        share = 1 - s[i] if process is FLOW else 1.0
        z = share * x + s[i] * draw()
        moved = z + made - x
        velocity = (moved - target(moved, s[i])) / s[i] - (z - origin(z, s[i])) / s[i]
        made = made + (s[i + 1] - s[i]) * velocity
    i = steps - plain
    share = 1 - s[i] if process is FLOW else 1.0
    z = share * x + s[i] * draw() + made - x
    for i in range(steps - plain, steps):
        z = z + (s[i + 1] - s[i]) * (z - target(z, s[i])) / s[i]
    out = edit(sample_flow_edit, x, s, process, target, origin, 7, plain_steps=plain)
    torch.testing.assert_close(out, z)


@processes
def test_averaging_lowers_the_noise_of_the_edit(process):
    x = source(1)

    def spread(average):
        runs = [edit(sample_flow_edit, x, grid(process, 10), process, seed=seed, average=average) for seed in range(24)]
        return float(torch.cat(runs)[:, CHANGES].std(0).mean())

    assert spread(8) < spread(1)
