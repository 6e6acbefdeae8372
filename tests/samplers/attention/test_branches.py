"""Two branches on a toy network with one self- and two cross-attention layers: the identities, and who is
overwritten by what."""

import pytest
import torch
from nulltext.samplers.attention.alignment import TokenMap
from nulltext.samplers.attention.branches import Branches, StoredSource
from nulltext.samplers.attention.controllers import ReplaceCross, ReplaceSelf, Reweight
from nulltext.samplers.attention.layers import QKV, Layer, Rows, StepWindow, attend
from nulltext.samplers.attention.maps import LocalBlend
from nulltext.samplers.core import VE, euler_step, gaussian
from nulltext.samplers.inversion.edit_friendly import invert_edit_friendly, sample_edit_friendly
from nulltext.samplers.walk import sample_walk

SIDE, TOKENS, WIDTH, STEPS = 8, 5, 16, 10
SIGMAS = torch.cat([torch.linspace(8, 0.5, STEPS), torch.zeros(1)])
IDENTITY = TokenMap(tuple(range(TOKENS)))
ALL = StepWindow(0, 1)


class Net:
    """x [rows, 4, 8, 8], prompts [rows, TOKENS, WIDTH] -> D, every attention through `attend` under the jobs given."""

    def __init__(self):
        g = torch.Generator().manual_seed(5)
        self.weights = {
            name: torch.randn(a, b, generator=g) * a**-0.5
            for name, a, b in [("in", 4, WIDTH), ("out", WIDTH, 4)]
            + [(f"{n}{i}", WIDTH, WIDTH) for n in "qkv" for i in range(3)]
        }
        self.rows = 0

    def __call__(self, x, sigma, prompts, jobs, moment):
        self.rows += len(x)
        h = (x / (1 + sigma**2) ** 0.5).flatten(2).transpose(1, 2) @ self.weights["in"]
        for i, cross in enumerate((False, True, True)):
            context = prompts if cross else h
            qkv = QKV(*(t @ self.weights[f"{n}{i}"] for n, t in zip("qkv", (h, context, context))))
            layer = Layer("output", i, 0, i, 3, cross, 2, (SIDE, SIDE), (SIDE, SIDE), moment)
            h = h + attend(qkv, layer, jobs, backend)
        return x / (1 + sigma**2) + sigma / (1 + sigma**2) ** 0.5 * (h @ self.weights["out"]).transpose(1, 2).view_as(x)


def backend(c):
    q, k, v = (t.view(*t.shape[:2], 2, -1).transpose(1, 2) for t in c)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def prompt(seed):
    return torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


SOURCE, EMPTY = prompt(1), prompt(2)


def run(net, edited, controllers, *, stored=None, batch=2, cfg=3.0, seed=7, eta=0.0, residuals=None):
    """x after the whole run, all rows; the call is [edits, negatives, (negative of source), source], cfg on each
    branch."""
    branches = Branches(len(edited), batch, controllers, SIGMAS, stored)

    def denoise(x, sigma):
        source, target = branches.split(x, sigma)
        n, b, sampled = len(target), batch, stored is None
        at = tuple(2 * n + b * sampled + i for i in branches.image)
        rows = Rows(tuple(range(n)), branches.prompt, branches.image, source=at)
        counts = [(e, b) for e in edited] + [(EMPTY, n + b * sampled), (SOURCE, b)]
        prompts = torch.cat([e.expand(count, -1, -1) for e, count in counts])
        together = torch.cat([target, target] + [source] * (1 + sampled))
        out = net(together, sigma, prompts, [(c, rows) for c in controllers], branches.moment(sigma))
        d_target = out[n : 2 * n] + cfg * (out[:n] - out[n : 2 * n])
        d_source = out[2 * n : 2 * n + b] + cfg * (out[-b:] - out[2 * n : 2 * n + b]) if sampled else source
        return branches.join(d_source, d_target)

    def after(x, step):
        return branches.after_step(x, step.sigma, step.sigma_next)

    x0 = 8 * torch.randn(batch, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    start = branches.doubled(x0) if stored is None else branches.doubled(stored.trajectory[0])
    if residuals is not None:
        residuals = torch.stack([branches.doubled(r) for r in residuals])
        return sample_edit_friendly(denoise, start, SIGMAS, process=VE, residuals=residuals, after=after)
    draw = gaussian(x0, 11)

    def noise():  # the same for a source and its edits
        return branches.doubled(draw()[:batch])

    return sample_walk(denoise, start, SIGMAS, process=VE, noise=noise, eta=eta, after=after)


def p2p(maps, cross=ALL, self_=ALL):
    return [ReplaceCross(maps, cross), ReplaceSelf(self_)]


def test_equal_prompts_give_the_source_to_the_bit():
    for controllers in (p2p([IDENTITY]), [], [ReplaceCross([IDENTITY], StepWindow(0, 0.5))]):
        for eta in (0.0, 1.0):
            x = run(Net(), [SOURCE], controllers, eta=eta)
            assert torch.equal(x[:2], x[2:])


def test_closed_windows_give_the_unhooked_run_to_the_bit():
    hooked = run(Net(), [prompt(3)], [*p2p([IDENTITY], StepWindow(0, 0), StepWindow(0, 0)), Reweight([{1: 1.0}])])
    assert torch.equal(hooked, run(Net(), [prompt(3)], []))
    assert not torch.equal(hooked, run(Net(), [prompt(3)], p2p([IDENTITY])))


def test_rows_are_edit_by_edit_and_image_by_image():
    branches = Branches(2, 3, [], SIGMAS)
    assert branches.prompt == (0, 0, 0, 1, 1, 1) and branches.image == (0, 1, 2, 0, 1, 2)


def test_the_source_does_not_feel_the_edit():
    free = run(Net(), [prompt(3)], [])
    edited = run(Net(), [prompt(3)], p2p([IDENTITY]))
    torch.testing.assert_close(edited[:2], free[:2], atol=1e-4, rtol=1e-4)
    near, far = ((x[2:] - x[:2]).square().mean() for x in (edited, free))
    assert near < far  # and the edit keeps nearer to it


def test_local_blend_with_an_empty_mask_gives_the_source_to_the_bit():
    blend = LocalBlend([[1]], [[1]], threshold=1.0)
    x = run(Net(), [prompt(3)], [*p2p([IDENTITY]), blend])
    assert torch.equal(x[:2], x[2:])


def test_several_edits_of_several_images():
    both = run(Net(), [prompt(3), prompt(4)], p2p([IDENTITY, IDENTITY]))
    for e, seed in enumerate((3, 4)):
        alone = run(Net(), [prompt(seed)], p2p([IDENTITY]))
        torch.testing.assert_close(both[2 + 2 * e : 4 + 2 * e], alone[2:], atol=1e-4, rtol=1e-4)


def test_from_a_trajectory_the_source_is_the_trajectory():
    levels = []

    def record(net):
        x = 8 * torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
        for s, s_next in zip(SIGMAS[:-1], SIGMAS[1:]):
            levels.append(x)
            branches = Branches(1, 2, [], SIGMAS)
            x = euler_step(x, net(x, s, SOURCE.expand(2, -1, -1), [], branches.moment(s)), s, s_next)
        return torch.stack([*levels, x])

    stored = StoredSource(record(Net()), SIGMAS)
    net = Net()
    edited = run(net, [prompt(3)], p2p([IDENTITY]), stored=stored)
    assert net.rows == STEPS * 3 * 2  # N x 3 rows for each of two images
    assert edited.shape == stored.trajectory[0].shape
    # at cfg 1 the edit from the trajectory is the edit from the trajectory's own noise
    direct = run(Net(), [prompt(3)], p2p([IDENTITY]), stored=stored, cfg=1.0)
    noise = run(Net(), [prompt(3)], p2p([IDENTITY]), cfg=1.0)
    torch.testing.assert_close(direct, noise[2:], atol=1e-4, rtol=1e-4)
    blend = LocalBlend([[1]], [[1]], threshold=1.0)
    assert torch.equal(run(Net(), [prompt(3)], [*p2p([IDENTITY]), blend], stored=stored), stored.trajectory[-1])


def two_rows(net, x0, levels, edited, controllers, cfg_source, cfg_target):
    """Prompt-to-prompt on edit-friendly noise as its authors run it (their reverse_step, in the variance-preserving
    coordinates of their code): source and target both walk from x_T, each at its own cfg, with the same z_t."""
    count = len(x0)

    def ask(x, i, guidance, prompts, pairs):
        sigma, n = SIGMAS[i], len(x)
        moment = Branches(1, count, controllers, SIGMAS).moment(sigma)
        out = net(torch.cat([x, x]), sigma, torch.cat([*prompts, EMPTY.expand(n, -1, -1)]), pairs, moment)
        return out[n:] + torch.tensor(guidance).view(-1, 1, 1, 1) * (out[:n] - out[n:])

    def step(z, denoised, i, noise):
        """(mean + std noise) at level i + 1, and mean and std; z = x sqrt(abar)"""
        abar, lower = (1 / (1 + SIGMAS[j] ** 2) for j in (i, i + 1))
        eps = (z - abar.sqrt() * denoised) / (1 - abar).sqrt()
        variance = (1 - lower) / (1 - abar) * (1 - abar / lower)
        mean = lower.sqrt() * denoised + (1 - lower - variance).sqrt() * eps
        return mean + variance.sqrt() * noise, mean, variance.sqrt()

    scale = (1 + SIGMAS**2).rsqrt()
    prompts = SOURCE.expand(count, -1, -1), edited.expand(count, -1, -1)
    noises, drift = [], torch.zeros_like(x0)
    for i in range(STEPS):
        denoised = ask(levels[i], i, [cfg_source] * count, prompts[:1], [])
        _, mean, std = step(levels[i] * scale[i], denoised, i, 0.0)
        gap = levels[i + 1] * scale[i + 1] - mean
        noises.append(gap / std if float(std) > 0 else gap)
        drift = gap if float(std) == 0 else drift  # the last step has no noise: what is left there is kept as it is
    source = target = levels[0]
    rows = Rows(tuple(range(count, 2 * count)), (0,) * count, tuple(range(count)), source=tuple(range(count)))
    for i in range(STEPS):
        both = torch.cat([source, target])
        cfgs = [cfg_source] * count + [cfg_target] * count
        denoised = ask(both, i, cfgs, prompts, [(c, rows) for c in controllers])
        z = torch.cat([noises[i]] * 2)
        out, mean, std = step(both * scale[i], denoised, i, z)
        out = mean + torch.cat([drift] * 2) if float(std) == 0 else out
        source, target = (out / scale[i + 1]).split(count)
    return source, target


@pytest.mark.parametrize("cfg_target", [3.5, 9.0])
def test_edit_friendly_noise_is_replayed_in_both_rows(cfg_target):
    """Source at 3.5, target at 9, against the authors' loop with both rows walked."""
    net, x0 = Net(), torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(3))

    def source_at(x, sigma):
        moment, n = Branches(1, 2, [], SIGMAS).moment(sigma), len(x)
        out = net(torch.cat([x, x]), sigma, torch.cat([SOURCE.expand(n, -1, -1), EMPTY.expand(n, -1, -1)]), [], moment)
        return out[n:] + 3.5 * (out[:n] - out[n:])

    pivot = invert_edit_friendly(source_at, x0, SIGMAS, process=VE, noise=gaussian(x0, 5))
    controllers = p2p([IDENTITY], StepWindow(0, 0.6), StepWindow(0, 0.4, 0))
    source, target = two_rows(Net(), x0, pivot.trajectory, prompt(3), controllers, 3.5, cfg_target)
    torch.testing.assert_close(source, x0, atol=1e-4, rtol=1e-4)  # so the stored levels are the source's own walk
    stored, net = StoredSource(pivot.trajectory, SIGMAS), Net()

    def walked(edited=None, controllers=controllers, cfg=cfg_target, residuals=pivot.residuals):
        edited = prompt(3) if edited is None else edited
        return run(net, [edited], controllers, stored=stored, cfg=cfg, residuals=residuals)

    torch.testing.assert_close(walked(), target, atol=1e-3, rtol=1e-3)
    assert net.rows == STEPS * 3 * 2  # before any other run of this network
    assert not torch.allclose(walked(residuals=None), target, atol=0.1)
    torch.testing.assert_close(walked(SOURCE, cfg=3.5), x0, atol=1e-4, rtol=1e-4)
    blend = LocalBlend([[1]], [[1]], threshold=1.0, start=0.0)
    assert torch.equal(walked(controllers=[*controllers, blend]), pivot.trajectory[-1])


def test_a_stored_source_between_its_levels():
    stored = StoredSource(torch.randn(STEPS + 1, 2, 4, SIDE, SIDE), SIGMAS)
    for i, s in enumerate(SIGMAS):
        assert torch.equal(stored.at(s), stored.trajectory[i])
    middle = (SIGMAS[3] + SIGMAS[4]) / 2
    torch.testing.assert_close(stored.at(middle), (stored.trajectory[3] + stored.trajectory[4]) / 2)
    for i in range(STEPS):
        step = euler_step(stored.trajectory[i], stored.denoised(SIGMAS[i]), SIGMAS[i], SIGMAS[i + 1])
        torch.testing.assert_close(step, stored.trajectory[i + 1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="3 levels"):
        StoredSource(torch.zeros(3, 1, 4, 8, 8), SIGMAS)
    with pytest.raises(ValueError, match="2 images, the latent 3"):
        Branches(1, 3, [], SIGMAS, stored)
