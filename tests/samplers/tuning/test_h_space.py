"""Asyrp on a Gaussian whose denoiser has an h of its own: its equations, recursions, levels, boost and training."""

import itertools
import math

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, euler_step, gaussian
from nulltext.samplers.ode import sample_ancestral, sample_euler
from nulltext.samplers.tuning import h_space
from nulltext.samplers.tuning.diffusion_clip import Pictures
from nulltext.samplers.tuning.h_space import (
    distances,
    edit_and_boost,
    jump,
    lowest_level,
    sample_asyrp,
    training_step,
    two_rows,
)
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.window import SigmaWindow

TAU, MU = 0.7, 0.3
MIX = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
LEVELS = {
    "ve": torch.tensor([9.0, 4.0, 1.5, 0.6, 0.2, 0.0], dtype=torch.float64),
    "flow": torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1, 0.0], dtype=torch.float64),
}
both = pytest.mark.parametrize("process", [VE, FLOW], ids=lambda p: p.name)


def net(process, rows="half"):
    """denoise(x [B, 2], sigma, change): D = h MIX, h from x; the second half of the rows has h + change(h)."""

    def denoise(x, sigma, change):
        a, s = process.signal(sigma), torch.as_tensor(sigma, dtype=x.dtype)
        s = s if s.ndim == 0 else s[:, None]
        a = a if not isinstance(a, torch.Tensor) or a.ndim == 0 else a[:, None]
        clean = MU + TAU**2 * a * (x - a * MU) / (a**2 * TAU**2 + s**2)
        h = clean @ torch.linalg.inv(MIX)
        if change is not None:
            plain, rest = h.chunk(2)
            h = torch.cat([plain, rest + change(rest)])
        return h @ MIX

    return denoise


def plain(process):
    return lambda x, s: net(process)(x, s, None)


def start(process, n=3):
    g = torch.Generator().manual_seed(2)
    return LEVELS[process.name][0] * torch.randn(n, 2, generator=g, dtype=torch.float64)


DH = torch.tensor([0.4, -0.2], dtype=torch.float64)


def constant(_sigma):
    return lambda h: DH.expand_as(h)


@both
def test_no_change_is_eulers_method_to_the_bit(process):
    x, sigmas = start(process), LEVELS[process.name]
    expected = sample_euler(plain(process), x, sigmas)
    pair = two_rows(net(process))
    assert torch.equal(sample_asyrp(pair, x, sigmas, changes=lambda _: None, process=process), expected)
    window = SigmaWindow(0.0, 0.0)  # holds nothing
    assert torch.equal(sample_asyrp(pair, x, sigmas, changes=constant, process=process, window=window), expected)
    zero = sample_asyrp(pair, x, sigmas, changes=lambda _: torch.zeros_like, process=process)
    assert torch.equal(zero, expected)
    symmetric = sample_asyrp(pair, x, sigmas, changes=lambda _: torch.zeros_like, process=process, symmetric=True)
    assert torch.equal(symmetric, expected)


@both
def test_one_step_is_the_papers(process):
    """P~ scaled by the signal of s' plus the unshifted noise at s'; for the symmetric one the noise is shifted too."""
    x = start(process)
    s, s_next = LEVELS[process.name][1:3]
    pair = two_rows(net(process))
    d, shifted = pair(x, s, constant(s))
    assert torch.equal(d, plain(process)(x, s)) and torch.allclose(shifted - d, DH @ MIX)
    step = torch.stack([s, s_next])
    noise = (x - process.signal(s) * d) / s  # the n of x = a D + s n
    wrong = (x - process.signal(s) * shifted) / s
    for symmetric, n in ((False, noise), (True, wrong)):
        made = sample_asyrp(pair, x, step, changes=constant, process=process, symmetric=symmetric)
        assert torch.allclose(made, process.signal(s_next) * shifted + s_next * n, rtol=1e-12)
    made = sample_asyrp(pair, x, step, changes=constant, process=process)
    factor = 1 if process is VE else 1 - s_next
    assert torch.allclose(made - euler_step(x, d, s, s_next), factor * (shifted - d), rtol=1e-10)


@both
def test_two_rows_are_two_calls_to_the_bit(process):
    x, s = start(process), LEVELS[process.name][1]
    one, two = two_rows(net(process))(x, s, constant(s))
    twice = net(process)(torch.cat([x, x]), s, constant(s))
    assert torch.equal(one, plain(process)(x, s)) and torch.equal(two, twice[3:])
    rows = two_rows(net(process))(x, s.expand(3), constant(s))  # a sigma for each row
    assert torch.allclose(rows[1], two, rtol=1e-14)


def test_the_gaussian_recursions_and_their_ratio():
    """Error against the unedited walk: e' = a e + delta, symmetric e' = a e + (1 - s'/s) delta, with
    a = (tau^2 + s s')/(tau^2 + s^2)."""
    x, sigmas = start(VE), LEVELS["ve"]
    unedited = sample_euler(plain(VE), x, sigmas)
    delta = DH @ MIX
    for symmetric in (False, True):
        e = 0.0
        for s, t in itertools.pairwise(sigmas.tolist()):
            e = (TAU**2 + s * t) / (TAU**2 + s**2) * e + (1 - t / s if symmetric else 1.0)
        made = sample_asyrp(two_rows(net(VE)), x, sigmas, changes=constant, process=VE, symmetric=symmetric)
        assert torch.allclose(made - unedited, e * delta.expand_as(made), rtol=1e-10)
    d, shifted = two_rows(net(VE))(x, sigmas[1], constant(None))
    moved = euler_step(x, shifted, sigmas[1], sigmas[2]) - euler_step(x, d, sigmas[1], sigmas[2])
    ratio = jump(d, shifted, sigmas[2], VE) / moved
    assert torch.allclose(ratio, (sigmas[1] / (sigmas[1] - sigmas[2])).expand_as(ratio), rtol=1e-10)


@both
@pytest.mark.parametrize("boost", [0.0, 1e9])
def test_a_symmetric_step_is_the_shifted_predictions_own_also_where_it_is_stochastic(process, boost):
    x, sigmas = start(process), LEVELS[process.name][1:3]
    shifted, drawn = two_rows(net(process))(x, sigmas[0], constant(None))[1], torch.ones_like(x)
    given = {"changes": constant, "process": process, "noise": lambda: drawn}
    made = sample_asyrp(two_rows(net(process)), x, sigmas, symmetric=True, boost=boost, **given)
    mean, std = process.transition(x, shifted, *sigmas, 1.0 if boost else 0.0)
    assert torch.allclose(made, mean + std * drawn, rtol=1e-10)


def test_the_window_ends_the_shift_at_its_level():
    x, sigmas = start(VE), LEVELS["ve"]
    window, asked = SigmaWindow(math.inf, 1.5), []

    def changes(s):
        asked.append(float(s))
        return constant(s)

    made = sample_asyrp(two_rows(net(VE)), x, sigmas, changes=changes, process=VE, window=window)
    assert asked == [9.0, 4.0, 1.5]
    upper = sample_asyrp(two_rows(net(VE)), x, sigmas[:4], changes=constant, process=VE)
    assert torch.equal(made, sample_euler(plain(VE), upper, sigmas[3:]))


@both
def test_below_the_boost_level_the_walk_is_stochastic(process):
    x, sigmas = start(process), LEVELS[process.name]
    boost = float(sigmas[2])  # steps FROM levels below it: the last three
    pair, made = two_rows(net(process)), []
    for seed in (1, 2):
        noise = gaussian(x, seed)
        made.append(sample_asyrp(pair, x, sigmas, changes=lambda _: None, process=process, noise=noise, boost=boost))
    assert not torch.allclose(made[0], made[1])
    upper = sample_euler(plain(process), x, sigmas[:4])
    lower = sample_ancestral(plain(process), upper, sigmas[3:], process=process, noise=gaussian(x, 1))
    assert torch.equal(made[0], lower)
    with pytest.raises(ValueError, match="noise source"):
        sample_asyrp(pair, x, sigmas, changes=lambda _: None, process=process, boost=1.0)


def test_the_levels_are_the_lowest_that_reach_their_distance():
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    assert lowest_level(sigmas, [0.9, 0.5, 0.34, 0.1], 0.33) == 2.0
    assert lowest_level(sigmas, [0.9, 0.2, 0.34, 0.1], 0.33) == 2.0
    assert lowest_level(sigmas, [0.1, 0.1, 0.1, 0.1], 0.33) == 8.0
    with pytest.raises(ValueError, match="distances"):
        lowest_level(sigmas, [0.1], 0.33)


@both
def test_the_distances_are_those_of_the_path_without_a_call(process):
    """On an Euler walk P_s is the net's own prediction; x_s is compared at the variance of a picture."""
    x, sigmas, path, told = start(process), LEVELS[process.name], [], []
    x0 = sample_euler(plain(process), x, sigmas, callback=lambda state: path.append(state["x"]))
    path = torch.stack([*path, x0])
    apart = lambda z: (z - x0).abs().flatten(1).mean(1)  # noqa: E731
    predicted, noisy = distances(path, sigmas, apart, process, on_level=lambda: told.append(1))
    assert len(noisy) == len(predicted) == len(told) == 5
    for i, s in enumerate(sigmas[:-1]):
        assert predicted[i] == pytest.approx(float((plain(process)(path[i], s) - x0).abs().mean()), abs=1e-9)
        scale = math.sqrt(float(process.signal(s)) ** 2 + float(s) ** 2)
        assert noisy[i] == pytest.approx(float((path[i] / scale - x0).abs().mean()))


def test_edit_and_boost_are_the_authors_levels():
    """Their thresholds: .33 times the texts' cosine of P_s, 1.2 of x_s."""
    sigmas, predicted, noisy = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]), [0.9, 0.34, 0.3, 0.1], [1.4, 1.3, 1.21, 0.8]
    assert edit_and_boost(sigmas, predicted, noisy) == (4.0, 2.0)
    assert edit_and_boost(sigmas, predicted, noisy, cosine=0.9) == (2.0, 2.0)
    assert edit_and_boost(sigmas, predicted, [1.1] * 4) == (4.0, 0.0)  # nothing stands so far off: no boost


class Seen:
    """|D~ - (source + 1)|^2 + |D~ - kept|^2, and what it was given."""

    def __init__(self):
        self.kept = []

    def __call__(self, edited, source, kept):
        self.kept.append(kept)
        return {"loss": (edited - source - 1).square().sum() + (edited - kept).square().sum()}


def test_the_training_walks_edited_and_unedited_side_by_side():
    x, sigmas, loss = start(VE, 1), LEVELS["ve"], Seen()
    dh = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    table = [float(s) for s in sigmas]

    def changes(s):
        return lambda h: dh[table.index(float(s))].expand_as(h)

    source = torch.full_like(x, 0.5)
    pictures = Pictures([x], [source], ["words"])
    step = training_step(lambda _: two_rows(net(VE)), pictures, sigmas, changes, lambda z: z, loss)
    losses = step(torch.Generator())
    losses["loss"].backward()
    d = plain(VE)(x, sigmas[0])
    assert torch.equal(loss.kept[0], d)  # at the first level both walks stand on one place
    assert torch.allclose(dh.grad[0], (2 * (d - source - 1) @ MIX.T).sum(0), rtol=1e-10)
    assert torch.equal(dh.grad[1:], torch.zeros(4, 2, dtype=torch.float64))
    with torch.no_grad():
        dh += DH
    step(torch.Generator())
    # the edited walk went on with the shift of before the update, 0: still the unedited one
    x1 = euler_step(x, d, sigmas[0], sigmas[1])
    assert torch.allclose(loss.kept[1], plain(VE)(x1, sigmas[1]))
    step(torch.Generator())
    edited, unedited = step._state[:2]
    delta, e = DH @ MIX, 0.0
    for s, t in itertools.pairwise(table[1:4]):
        e = (TAU**2 + s * t) / (TAU**2 + s**2) * e + 1
    assert torch.allclose(edited - unedited, e * delta.expand_as(x), rtol=1e-8)


def test_the_unedited_walk_of_a_picture_is_asked_and_decoded_once(monkeypatch):
    """As far as there is room for it, and with the same bits."""
    sigmas, pictures = LEVELS["ve"], [start(VE)[i : i + 1] for i in range(3)]
    table = [float(s) for s in sigmas]

    def trained(room):
        monkeypatch.setattr(h_space, "_KEPT_BYTES", room)
        asked, decoded, dh = [], [], torch.zeros(5, 2, dtype=torch.float64)

        def pair(_):
            def ask(x, s, change):
                asked.append(change)
                return two_rows(net(VE))(x, s, change)

            return ask

        loop = Loop({"dh": dh}, Settings(steps=60, lr=0.05, optimiser="Adam"), seed=2)
        changes = lambda s: lambda h: dh[table.index(float(s))].expand_as(h)  # noqa: E731
        given = Pictures(pictures, pictures, [None] * 3), sigmas, changes
        loop.run(training_step(pair, *given, lambda z: decoded.append(z) or z, Seen()))
        return asked.count(None), len(decoded) - 60, dh

    each, size = 3 * 5, pictures[0].nbytes
    (*all_kept, dh), (*some, of_some), (*none, of_none) = trained(2**30), trained(2 * size), trained(0)
    assert all_kept == [each, each] and none == [60, 60] and each < some[0] == some[1] < 60
    assert torch.equal(dh, of_some) and torch.equal(dh, of_none) and dh.any()


def test_training_finds_the_shift_that_the_loss_asks_for():
    x, sigmas = start(VE, 1), LEVELS["ve"]
    dh = torch.zeros(5, 2, dtype=torch.float64)
    table = [float(s) for s in sigmas]

    class Target:
        def __call__(self, edited, source, kept):
            return {"loss": (edited - kept - 1.0).square().sum()}

    loop = Loop({"dh": dh}, Settings(steps=1000, lr=0.05, optimiser="Adam", weight_decay=0, schedule="cosine"))
    pictures = Pictures([x], [x], [None])

    def changes(s):
        return lambda h: dh[table.index(float(s))].expand_as(h)

    loop.run(training_step(lambda _: two_rows(net(VE)), pictures, sigmas, changes, lambda z: z, Target()))
    made = sample_asyrp(two_rows(net(VE)), x, sigmas, changes=lambda s: changes(s), process=VE)
    # at the last level D~ is the end result
    assert torch.allclose(made - sample_euler(plain(VE), x, sigmas), torch.ones_like(x), atol=0.02)
