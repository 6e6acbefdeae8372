"""Null-text optimisation on a mixture that an embedding moves: exact for every embedding, and differentiable in it."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian, guided, step_index
from nulltext.samplers.inversion.corrections import negative_prompt, null_guided
from nulltext.samplers.inversion.null_text import (
    Adam,
    Schedule,
    default_rate,
    optimise_global_null,
    optimise_null_text,
    paper_schedule,
    start_towards,
)
from nulltext.samplers.inversion.pivots import invert_ddim, invert_fixed_point, random_pivot
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.ode import sample_euler, sample_heun

processes = pytest.mark.parametrize("process", [VE, FLOW])
STEPS, TOKENS, WIDTH, CFG = 20, 4, 8, 7.5
SHAPE = (2, 3, 3)


class TextMixture:
    """p(x0 | embedding): a mixture whose modes' weights and common shift are linear in the embedding [B, T, D].

    D(x; e) = shift(e) + D_0(x - a shift(e); weights(e)), exact at every sigma."""

    def __init__(self, process, dtype=torch.float64):
        g = torch.Generator().manual_seed(0)
        self.mixture = GaussianMixture(torch.randn(5, *SHAPE, generator=g), 0.5)
        self.shift = (torch.randn(18, TOKENS * WIDTH, generator=g, dtype=torch.float64) / 2).to(dtype)
        self.logits = (torch.randn(5, TOKENS * WIDTH, generator=g, dtype=torch.float64) / 2).to(dtype)
        self.process, self.dtype, self.batches, self.with_gradient = process, dtype, [], []
        self.null = torch.randn(1, TOKENS, WIDTH, generator=g, dtype=torch.float64)
        # prompts lie near the null embedding, as Adam walks: some tens of steps of 1e-2
        self.embeddings = self.null + 0.15 * torch.randn(2, TOKENS, WIDTH, generator=g, dtype=torch.float64)

    def __call__(self, x, sigma, embedding):
        self.batches.append(len(x))
        if embedding.requires_grad:
            self.with_gradient.append(float(sigma))
        out, x, e = x.dtype, x.to(self.dtype), embedding.to(self.dtype).flatten(1)
        shift = (e @ self.shift.T).reshape(-1, *SHAPE)
        log_p, expected = self.mixture.posterior(x - self.process.signal(sigma) * shift, sigma, self.process)
        share = (log_p + e @ self.logits.T).softmax(1)
        return ((share[..., None] * expected).sum(1).reshape(x.shape) + shift).to(out)

    def prompt(self, i):
        return lambda x, sigma: self(x, sigma, self.embeddings[i : i + 1])

    def source(self, n=2):
        """x0 that prompt 0 describes."""
        shift = (self.embeddings[:1].flatten(1) @ self.shift.double().T).reshape(1, *SHAPE)
        return self.mixture.sample(n, torch.Generator().manual_seed(3)) + shift


def grid(process, n=STEPS):
    ramp = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    return ramp if process is FLOW else 12 * ramp**2.5


def rms(a, b):
    return float((a.double() - b.double()).square().mean().sqrt())


def setting(process, dtype=torch.float64, n=2):
    net = TextMixture(process)
    x0, s = net.source(n).to(dtype), grid(process).to(dtype)
    pivot = invert_ddim(net.prompt(0), x0, s, process=process).trajectory
    net.batches.clear()
    return net, x0, s, pivot


def null_text(net, s, pivot, process, **options):
    return optimise_null_text(net, net.prompt(0), pivot, s, net.null, **{"cfg": CFG, "process": process, **options})


@processes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reconstructs_at_a_tenth_of_the_guided_error(process, dtype):
    net, x0, s, pivot = setting(process, dtype)
    plain = sample_euler(guided(net.prompt(0), lambda x, t: net(x, t, net.null), CFG), pivot[0], s)
    tight = Schedule(paper_schedule(STEPS).rates, (0.0,) * STEPS, 10)
    found = null_text(net, s, pivot, process, schedule=tight)
    assert rms(found.reconstruction, x0) < rms(plain, x0) / 10
    assert rms(found.reconstruction, x0) < rms(sample_euler(net.prompt(0), pivot[0], s), x0)  # better than cfg 1
    assert found.embeddings.shape == (STEPS, 2, TOKENS, WIDTH) and found.embeddings.dtype == torch.float32
    assert not found.embeddings.requires_grad and found.reconstruction.dtype == dtype
    replay = sample_euler(null_guided(net, net.prompt(0), s, found.embeddings, CFG), pivot[0], s)
    torch.testing.assert_close(replay, found.reconstruction, atol=2e-5, rtol=1e-4)  # embeddings are kept in fp32
    for first, kept in zip(found.first_losses, found.losses, strict=True):
        assert all(k <= f for f, k in zip(first, kept, strict=True))


@processes
def test_edits_with_another_prompt(process):
    net, x0, s, pivot = setting(process)
    found = null_text(net, s, pivot, process)
    edit = sample_euler(null_guided(net, net.prompt(1), s, found.embeddings, CFG), pivot[0], s)
    back = sample_euler(null_guided(net, net.prompt(0), s, found.embeddings, CFG), pivot[0], s)
    assert rms(edit, x0) > 10 * rms(back, x0)


@processes
def test_loss_is_the_papers_vp_loss(process):
    """At the first step, with no inner step: the first loss is MSE between VP latents (flow: x itself)."""
    net, _, s, pivot = setting(process)
    found = null_text(net, s, pivot, process, schedule=paper_schedule(STEPS, inner=0))
    d = guided(net.prompt(0), lambda x, t: net(x, t, net.null), CFG)(pivot[0], s[0])
    rec = pivot[0] + (s[1] - s[0]) * (pivot[0] - d) / s[0]
    scale = 1 / (1 + s[1] ** 2) if process is VE else 1.0
    expected = (scale * (rec - pivot[1]) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(torch.tensor(found.first_losses[0], dtype=torch.float64), expected)


def test_paper_schedule():
    schedule = paper_schedule(50)
    assert schedule.inner == 10 and schedule.rates[0] == 1e-2 and schedule.rates[25] == pytest.approx(1e-2 * 0.75)
    assert schedule.thresholds[0] == 1e-5 and schedule.thresholds[10] == pytest.approx(1e-5 + 10 * 2e-5)
    half = paper_schedule(25)
    assert half.rates[5] == pytest.approx(schedule.rates[10])
    assert half.thresholds[5] == pytest.approx(schedule.thresholds[10])


def test_adam_is_adam():
    g = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(2, 3, 4, generator=g), torch.randn(5, 2, 3, 4, generator=g)
    reference = start.clone().requires_grad_()
    optimiser, adam, value = torch.optim.Adam([reference], lr=1e-2), Adam(start), start
    for gradient in gradients:
        reference.grad = gradient.clone()
        optimiser.step()
        value = adam.step(value, gradient, 1e-2, torch.tensor([True, False]))
    torch.testing.assert_close(value[0], reference.detach()[0])
    assert torch.equal(value[1], start[1])


@processes
def test_no_inner_steps_is_plain_guided_ddim(process):
    net, _, s, pivot = setting(process)
    found = null_text(net, s, pivot, process, schedule=paper_schedule(STEPS, inner=0))
    plain = sample_euler(guided(net.prompt(0), lambda x, t: net(x, t, net.null), CFG), pivot[0], s)
    torch.testing.assert_close(found.reconstruction, plain)
    assert torch.equal(found.embeddings, net.null.float().expand(STEPS, 2, -1, -1))
    assert found.stats.backwards == 0 and found.stats.forwards == 2 * STEPS


@processes
def test_started_at_the_source_prompt_it_is_negative_prompt_inversion_and_needs_less_work(process):
    net, _, s, pivot = setting(process)
    source, found = net.embeddings[:1], {}
    for share in (0.0, 0.5, 1.0):
        start = start_towards(net.null, source, share)
        torch.testing.assert_close(start, net.null + share * (source - net.null))
        found[share] = optimise_null_text(net, net.prompt(0), pivot, s, start, cfg=CFG, process=process)
    less = optimise_null_text(
        net, net.prompt(0), pivot, s, source, cfg=CFG, process=process, schedule=paper_schedule(STEPS, inner=0)
    )
    torch.testing.assert_close(less.reconstruction, sample_euler(net.prompt(0), pivot[0], s))
    work = [found[share].stats.backward_rows for share in found]
    first = [sum(found[share].first_losses[0]) for share in found]
    assert first[2] < first[1] < first[0] / 3 and work[2] < work[0] / 2  # between: VE 100 of 140, flow 130 of 128
    errors = [rms(made.reconstruction, pivot[-1]) for made in found.values()]
    assert max(errors[1:]) < 1.5 * errors[0]


def test_the_start_is_each_images_own_where_there_are_several_prompts():
    null, sources = torch.zeros(1, TOKENS, WIDTH), torch.randn(3, TOKENS, WIDTH)
    torch.testing.assert_close(start_towards(null, sources, 0.25), sources / 4)


@processes
def test_cfg_one_has_no_null_branch(process):
    net, _, s, pivot = setting(process)
    found = null_text(net, s, pivot, process, cfg=1.0)
    assert torch.equal(found.reconstruction, sample_euler(net.prompt(0), pivot[0], s))
    assert torch.equal(found.embeddings[3, 1], net.null[0].float())
    assert found.stats.backwards == 0 and found.stats.forwards == STEPS


@processes
def test_calls_are_counted_and_bounded(process):
    net, _, s, pivot = setting(process)
    ticks, seen = [], []
    schedule = Schedule(paper_schedule(STEPS).rates, (0.0,) * STEPS, 4)  # nothing stops early
    found = null_text(net, s, pivot, process, schedule=schedule, tick=lambda: ticks.append(1), callback=seen.append)
    assert found.stats.forwards == STEPS * (1 + 4 + 1) == len(net.batches) == len(ticks)
    assert found.stats.backwards == STEPS * 4 == len(net.with_gradient)  # no graph that nobody walks back
    assert (found.stats.forward_rows, found.stats.backward_rows) == (2 * STEPS * 6, 2 * STEPS * 4)
    assert [c["i"] for c in seen] == list(range(STEPS)) and [float(c["sigma"]) for c in seen] == s[:-1].tolist()


@processes
def test_early_stop_is_each_images_own(process):
    """An image on its own guided path leaves the batch and keeps its embedding; the other goes on as if alone."""
    net, _, s, pivot = setting(process)
    easy = sample_trajectory(guided(net.prompt(0), lambda x, t: net(x, t, net.null), CFG), pivot[0, :1], s)
    both = torch.cat([easy, pivot[:, 1:]], 1)  # image 0 lies on its own guided path: loss 0
    net.batches.clear()
    found = null_text(net, s, both, process)
    assert torch.equal(found.embeddings[:, :1], net.null.float().expand(STEPS, 1, -1, -1))
    assert net.batches.count(1) > STEPS and max(found.losses[5]) <= max(found.first_losses[5])
    alone = null_text(net, s, pivot[:, 1:], process)
    torch.testing.assert_close(found.embeddings[:, 1:], alone.embeddings)
    whole = null_text(net, s, both, process, drop_finished=False)
    torch.testing.assert_close(whole.embeddings, found.embeddings)
    assert whole.stats.forwards == found.stats.forwards and whole.stats.forward_rows > found.stats.forward_rows
    assert whole.stats.backward_rows > found.stats.backward_rows


def sample_trajectory(denoise, x, s):
    levels = []
    last = sample_euler(denoise, x, s, callback=lambda c: levels.append(c["x"]))
    return torch.stack([*levels, last])


def test_a_good_step_costs_one_forward_and_no_backward():
    net, _, s, pivot = setting(VE)
    loose = Schedule((1e-2,) * STEPS, (1e6,) * STEPS, 10)
    found = null_text(net, s, pivot, VE, schedule=loose)
    assert found.stats.forwards == 2 * STEPS and found.stats.backwards == 0


@processes
def test_the_last_embedding_is_kept_even_where_it_is_worse(process):
    """As the authors' loop does; the step itself is taken with the embedding that is kept."""
    net, _, s, pivot = setting(process)
    wild = Schedule((0.5,) * STEPS, (0.0,) * STEPS, 3)  # overshoots
    found = null_text(net, s, pivot, process, schedule=wild)
    assert any(k > f for f, k in zip(found.first_losses[0], found.losses[0], strict=True))
    d_c, value = net.prompt(0)(pivot[0], s[0]), net.null.expand(2, -1, -1).clone().requires_grad_()
    adam = torch.optim.Adam([value], lr=0.5)
    for _ in range(3):
        rec = pivot[0] + (s[1] - s[0]) * (pivot[0] - CFG * d_c - (1 - CFG) * net(pivot[0], s[0], value)) / s[0]
        adam.zero_grad()
        (process.input_scale(s[1]) ** 2 * (rec - pivot[1]) ** 2).flatten(1).mean(1).sum().backward()
        adam.step()
    torch.testing.assert_close(found.embeddings[0], value.detach().float())
    replay = sample_euler(null_guided(net, net.prompt(0), s, found.embeddings, CFG), pivot[0], s)
    torch.testing.assert_close(replay, found.reconstruction, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_embedding_alone():
    net, _, s, pivot = setting(VE)
    given = net.prompt

    def prompt(i):
        def denoise(x, sigma):
            assert not torch.is_grad_enabled() and not x.requires_grad
            return given(i)(x, sigma)

        return denoise

    net.prompt = prompt
    net.shift.requires_grad_()
    pivot = pivot.clone().requires_grad_()
    found = null_text(net, s, pivot.detach(), VE)
    assert net.shift.grad is None and net.null.grad is None and not net.null.requires_grad
    assert not found.reconstruction.requires_grad


@pytest.mark.parametrize("optimise", [optimise_null_text, optimise_global_null])
def test_a_caller_without_gradients_gets_the_same(optimise):
    net, _, s, pivot = setting(VE)

    def embeddings():
        return optimise(net, net.prompt(0), pivot, s, net.null, cfg=CFG, process=VE).embeddings

    wanted = embeddings()
    with torch.no_grad():
        found = embeddings()
    assert torch.equal(found, wanted) and not torch.allclose(found[0], net.null.float())


def test_a_half_precision_net_keeps_state_in_fp32():
    net, x0, s, pivot = setting(VE, torch.float32)
    seen = set()

    def half(x, sigma, embedding):
        seen.add(embedding.dtype)
        return net(x.bfloat16().float(), sigma, embedding.bfloat16().float()).bfloat16()

    plain = sample_euler(guided(net.prompt(0), lambda x, t: net(x, t, net.null), CFG), pivot[0], s)
    found = optimise_null_text(
        half, lambda x, t: half(x, t, net.embeddings[:1]), pivot, s, net.null, cfg=CFG, process=VE
    )
    assert torch.float32 in seen and torch.bfloat16 not in seen
    assert found.reconstruction.dtype == torch.float32 and found.embeddings.dtype == torch.float32
    assert rms(found.reconstruction, x0) < rms(plain, x0) / 3


def test_a_broken_network_is_named():
    net, _, s, pivot = setting(VE)
    with pytest.raises(ValueError, match="not a number at step 1"):
        optimise_null_text(
            lambda x, t, e: net(x, t, e) * float("nan"), net.prompt(0), pivot, s, net.null, cfg=CFG, process=VE
        )
    with pytest.raises(ValueError, match="as many levels"):
        null_text(net, s, pivot[1:], VE)


@processes
def test_ablations(process):
    """The paper's ablations run, and do as it says: a random pivot and one global embedding come out worse."""
    net, x0, s, pivot = setting(process)
    best = rms(null_text(net, s, pivot, process).reconstruction, x0)
    astray = random_pivot(x0, s, process=process, noise=gaussian(x0, 5)).trajectory
    random = null_text(net, s, astray, process)
    assert rms(random.reconstruction, x0) > 1.5 * best
    net.with_gradient.clear()
    shared = optimise_global_null(net, net.prompt(0), pivot, s, net.null, cfg=CFG, process=process)
    assert net.with_gradient == s[:-1].tolist() * 10
    plain = sample_euler(guided(net.prompt(0), lambda x, t: net(x, t, net.null), CFG), pivot[0], s)
    assert 1.5 * best < rms(shared.reconstruction, x0) < rms(plain, x0)
    assert torch.equal(shared.embeddings[0], shared.embeddings[-1])
    assert shared.stats.backwards == 10 * STEPS and shared.stats.forwards == 12 * STEPS + STEPS
    replay = sample_euler(null_guided(net, net.prompt(0), s, shared.embeddings, CFG), pivot[0], s)
    torch.testing.assert_close(replay, shared.reconstruction, atol=2e-5, rtol=1e-4)
    other = optimise_null_text(
        net,
        lambda x, t: net(x, t, net.null),
        pivot,
        s,
        net.embeddings[:1],
        cfg=CFG,
        process=process,
        branch="conditional",
    )
    assert rms(other.reconstruction, x0) < rms(plain, x0) / 2
    assert not torch.equal(other.embeddings[-1, 0], net.embeddings[0].float())
    with pytest.raises(KeyError):
        null_text(net, s, pivot, process, branch="both")


@processes
def test_negative_prompt_makes_the_source_independent_of_cfg(process):
    net, x0, s, _ = setting(process)
    pivot = invert_fixed_point(net.prompt(0), x0, s, process=process, iterations=8).trajectory
    embeddings = negative_prompt(net.embeddings[:1], STEPS, 2)
    assert embeddings.shape == (STEPS, 2, TOKENS, WIDTH)
    one = sample_euler(net.prompt(0), pivot[0], s)
    for cfg in (1.0, 3.0, 7.5, 15.0):
        replay = sample_euler(null_guided(net, net.prompt(0), s, embeddings, cfg), pivot[0], s)
        torch.testing.assert_close(replay, one)
    edit = sample_euler(null_guided(net, net.prompt(1), s, embeddings, CFG), pivot[0], s)
    assert rms(edit, x0) > 0.2


@processes
def test_null_guided_finds_the_step_by_sigma(process):
    """Heun asks twice per step: each evaluation gets the embedding of its own level's step."""
    s = grid(process)
    embeddings = torch.arange(STEPS, dtype=torch.float64).reshape(STEPS, 1, 1, 1)
    asked = []

    def net(x, sigma, embedding):
        asked.append((float(sigma), float(embedding)))
        return x * 0

    x = torch.ones(1, *SHAPE, dtype=torch.float64)
    sample_heun(null_guided(net, lambda x, t: x * 0, s, embeddings, 3.0), x, s)
    assert len(asked) == 2 * STEPS - 1
    assert all(float(s[int(i)]) == sigma for sigma, i in asked)
    assert step_index(s[3] * (1 + 1e-7), s) == 3 and step_index(s[3] * (1 - 1e-7), s) == 3
    assert step_index(0.0, s) == STEPS - 1 and step_index(1e3, s) == 0
    with pytest.raises(ValueError, match="as many null embeddings"):
        null_guided(net, lambda x, t: x, s, embeddings[1:], 3.0)


@processes
def test_each_step_runs_at_its_own_rate(process):
    """Adam's first update moves a number by the rate itself: with one inner step the embedding tells the rate."""
    net, _, s, pivot = setting(process)
    rates = [1e-2 * (1 - i * 50 / STEPS / 100) for i in range(STEPS)]
    assert rates[0] == 1e-2 and rates[-1] < 0.53e-2
    found = null_text(net, s, pivot, process, schedule=paper_schedule(STEPS, inner=1, tolerance=0.0))
    levels = torch.cat([net.null.float().expand(1, 2, -1, -1), found.embeddings])
    moved = (levels[1:] - levels[:-1]).abs().flatten(2).median(2).values  # [step, image], 0 where it did not help
    helped = [(i, float(value)) for i, row in enumerate(moved) for value in row if value > 0]
    assert len(helped) > STEPS and max(i for i, _ in helped) > STEPS * 0.7
    for i, value in helped:
        assert value == pytest.approx(rates[i], rel=1e-2), i


def test_one_embedding_for_all_is_optimised_at_a_falling_rate(monkeypatch):
    net, _, s, pivot = setting(VE)
    seen, step = [], Adam.step

    def watched(self, value, gradient, rate, rows):
        seen.append(rate)
        return step(self, value, gradient, rate, rows)

    monkeypatch.setattr(Adam, "step", watched)
    optimise_global_null(net, net.prompt(0), pivot, s, net.null, cfg=CFG, process=VE, rounds=3, rate=0.02)
    assert seen == pytest.approx([0.02 - 0.01 * k / (3 * STEPS) for k in range(3 * STEPS)])


def test_the_authors_rate_at_stable_diffusion_s_width_and_above_more_below():
    assert default_rate(768) == default_rate(2048) == 1e-2
    assert default_rate(128) == pytest.approx(6e-2)
