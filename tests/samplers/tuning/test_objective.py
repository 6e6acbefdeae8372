"""The objective against the published losses it stands for, and the draws that a run makes."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, expand
from nulltext.samplers.tuning.objective import (
    WEIGHTS,
    Batch,
    Examples,
    FixedLoss,
    Levels,
    Objective,
    batch_losses,
    denoising_step,
    draw,
)

F64 = torch.float64
SIGMA = torch.tensor([0.03, 0.4, 0.9, 3.0, 60.0], dtype=F64)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture
def sample():
    x0, noise, wrong = rows(5, 4, 6, 6), rows(5, 4, 6, 6, seed=1), 0.3 * rows(5, 4, 6, 6, seed=2)
    return x0, noise, x0 + wrong  # a denoiser's answer, off by `wrong`


def mean(x):
    return x.square().flatten(1).mean(1)


def test_eps_weight_is_the_error_of_the_noise(sample):
    x0, noise, denoised = sample
    x = VE.noised(x0, SIGMA, noise)
    eps = (x - denoised) / expand(SIGMA, x)
    torch.testing.assert_close(Objective(VE, "eps").losses(denoised, x0, SIGMA), mean(eps - noise))


def test_v_weight_is_the_error_of_v_at_unit_variance(sample):
    """v = a n - b x0 with a^2 + b^2 = 1 and a/b = 1/s (Salimans & Ho, the net's own coordinates)."""
    x0, noise, denoised = sample
    a, b = (1 + SIGMA**2) ** -0.5, SIGMA * (1 + SIGMA**2) ** -0.5
    z = expand(a, x0) * VE.noised(x0, SIGMA, noise)
    v = expand(a, x0) * noise - expand(b, x0) * x0
    guess = (expand(a, x0) * z - denoised) / expand(b, x0)
    torch.testing.assert_close(Objective(VE, "v").losses(denoised, x0, SIGMA), mean(guess - v))


def test_flow_weight_is_the_error_of_the_velocity(sample):
    x0, noise, denoised = sample
    sigma = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=F64)
    x = FLOW.noised(x0, sigma, noise)
    velocity = (x - denoised) / expand(sigma, x)
    torch.testing.assert_close(Objective(FLOW, "flow").losses(denoised, x0, sigma), mean(velocity - (noise - x0)))
    torch.testing.assert_close(Objective(FLOW, "flow").weights(sigma), sigma**-2)


def test_min_snr_is_one_weight_for_eps_and_v_nets(sample):
    """Hang et al.: min(SNR, g)/SNR on the eps loss, min(SNR, g)/(SNR + 1) on the v loss."""
    x0, _, denoised = sample
    snr = SIGMA**-2
    losses = {name: Objective(VE, name).losses(denoised, x0, SIGMA) for name in WEIGHTS}
    for name, published in (("eps", snr.clamp(max=5) / snr), ("v", snr.clamp(max=5) / (snr + 1))):
        torch.testing.assert_close(losses["min-SNR"], published * losses[name])
    torch.testing.assert_close(Objective(VE, "min-SNR", gamma=2.0).weights(SIGMA), snr.clamp(max=2))
    assert torch.equal(Objective(VE, "constant").weights(SIGMA), torch.ones(5, dtype=F64))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_know_the_level_by_its_signal_to_noise_ratio_alone(weight):
    """x_s of a flow over 1 - s is x of VE at s/(1 - s): the same denoising problem, so the same weight."""
    flow = torch.linspace(0.05, 0.95, 9, dtype=F64)
    torch.testing.assert_close(Objective(FLOW, weight).weights(flow), Objective(VE, weight).weights(flow / (1 - flow)))


def test_a_mask_counts_only_its_pixels_and_not_how_many_they_are(sample):
    x0, _, denoised = sample
    objective = Objective(VE, "constant")
    mask = torch.zeros(5, 1, 6, 6)
    mask[..., :2, :3] = 1
    want = objective.losses(denoised[..., :2, :3], x0[..., :2, :3], SIGMA)
    torch.testing.assert_close(objective.losses(denoised, x0, SIGMA, mask), want)
    torch.testing.assert_close(objective.losses(denoised, x0, SIGMA, mask / 2), want)
    whole = objective.losses(denoised, x0, SIGMA, torch.ones(5, 1, 6, 6))
    torch.testing.assert_close(whole, objective.losses(denoised, x0, SIGMA))


def test_losses_do_not_depend_on_the_order_of_the_batch(sample):
    x0, noise, _ = sample
    order = torch.tensor([3, 0, 4, 2, 1])
    net = lambda x, sigma, conditions: x * expand(1 / (1 + sigma**2), x) + sum(conditions) * 0
    batch = Batch(x0, SIGMA, noise, [0.0] * 5)
    turned = Batch(x0[order], SIGMA[order], noise[order], [0.0] * 5)
    objective = Objective(VE, "v")
    assert torch.equal(batch_losses(net, objective, batch)[order], batch_losses(net, objective, turned))


def test_uniform_levels_take_each_of_the_table_equally():
    table = torch.tensor([9.0, 3.0, 1.0, 0.5])
    drawn = Levels(table=table).draw(40_000, torch.Generator().manual_seed(0))
    for sigma in table:
        assert float((drawn == sigma).double().mean()) == pytest.approx(0.25, abs=0.01)


def test_logit_normal_levels_and_their_shift():
    g = torch.Generator().manual_seed(0)
    drawn = Levels("logit-normal", mean=0.5, std=0.8, shift=3.0).draw(40_000, g)
    ratio = drawn / (1 - drawn)  # the shift multiplies it (Esser et al. eq. 23)
    assert float((ratio / 3).log().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((ratio / 3).log().std()) == pytest.approx(0.8, abs=0.02)
    assert float(drawn.min()) > 0 and float(drawn.max()) < 1


@pytest.mark.parametrize(
    "levels", [Levels(), Levels("logit-normal", std=0.7, shift=2.0), Levels(table=torch.arange(1, 101.0))]
)
def test_spread_levels_have_the_distribution_they_stand_for(levels):
    drawn = levels.draw(20_000, torch.Generator().manual_seed(1)).sort().values
    spread = levels.spread(200)
    quantiles = drawn[((torch.arange(200) + 0.5) / 200 * 20_000).long()]
    assert float((spread - quantiles).abs().max() / drawn.max()) < 0.02
    assert torch.equal(spread, levels.spread(200))


def examples(n=5, size=4, **extra):
    latents = [rows(2, size, size, seed=i).float() for i in range(n)]
    return Examples(latents, [f"picture {i}" for i in range(n)], **extra)


def test_a_batch_has_one_size_and_every_picture_is_equally_likely():
    small, large = examples(4), examples(2, size=6)
    both = Examples(small.latents + large.latents, range(6))
    g, counts = torch.Generator().manual_seed(0), torch.zeros(6)
    for _ in range(1500):
        batch = draw(both, 3, Levels(), g)
        for i in batch.conditions:
            counts[i] += 1
        assert batch.x0.shape == (3, *both.latents[batch.conditions[0]].shape)
    assert float((counts / counts.sum() - 1 / 6).abs().max()) < 0.02


def test_dropped_captions_are_the_empty_one():
    g = torch.Generator().manual_seed(0)
    captions = [c for _ in range(400) for c in draw(examples(empty=""), 4, Levels(), g, dropout=0.1).conditions]
    assert captions.count("") / len(captions) == pytest.approx(0.1, abs=0.025)
    assert "" not in draw(examples(empty=""), 400, Levels(), g).conditions


def test_masks_follow_their_pictures():
    mask = torch.zeros(1, 4, 4)
    mask[..., 0] = 1
    some = examples(2, masks=[mask, None])
    batch = some.batch(torch.tensor([1, 0]), torch.ones(2), torch.zeros(2, 2, 4, 4))
    assert torch.equal(batch.mask, torch.stack([torch.ones(1, 4, 4), mask]))
    joined = batch.joined(examples(1).batch(torch.tensor([0]), torch.ones(1), torch.zeros(1, 2, 4, 4)))
    assert torch.equal(joined.mask[2], torch.ones(1, 4, 4)) and joined.conditions[2] == "picture 0" and len(joined) == 3


def test_the_fixed_loss_is_the_expectation_and_never_moves():
    """D = 0 with weight 1: mean |x0|^2 at every level; with D = x it is s^2, whose mean over the levels is known."""
    some, levels = examples(3), Levels(table=torch.tensor([1.0, 2.0, 3.0]))
    fixed = FixedLoss.of(some, levels, count=300, size=7)
    objective = Objective(VE, "constant")
    energy = float(torch.stack(some.latents).square().mean())
    assert fixed.loss(lambda x, s, c: 0 * x, objective) == pytest.approx(energy, rel=1e-5)
    value = fixed.loss(lambda x, s, c: x, objective)
    assert value == pytest.approx(14 / 3, rel=0.05)
    assert value == FixedLoss.of(some, levels, count=300, size=7).loss(lambda x, s, c: x, objective)


def test_a_step_is_the_mean_of_its_rows():
    net = lambda x, s, c: 0.5 * x
    objective, levels, some = Objective(VE, "v"), Levels(table=torch.tensor([1.0, 2.0])), examples()
    loss = denoising_step(net, some, objective, levels, size=3)(torch.Generator().manual_seed(4))["loss"]
    batch = draw(some, 3, levels, torch.Generator().manual_seed(4))
    assert torch.equal(loss, batch_losses(net, objective, batch).mean())


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Objective(VE, "snr"), "no loss weight"),
        (lambda: Objective(VE, gamma=0.0), "gamma"),
        (lambda: Levels("cosine"), "no distribution"),
        (lambda: Levels(shift=0.0), "above 0"),
        (lambda: Levels(table=torch.ones(3), shift=2.0), "shift inside"),
        (lambda: Levels(table=torch.zeros(3)), "no level"),
        (lambda: Examples([], []), "no picture"),
        (lambda: Examples([torch.zeros(1, 2, 2)], ["a", "b"]), "2 captions"),
        (lambda: Examples([torch.full((1, 2, 2), torch.nan)], ["a"]), "Picture 1 holds NaN"),
        (lambda: Examples([torch.zeros(1, 2, 2)], ["a"], [torch.zeros(1, 2, 2)]), "mask of picture 1"),
        (lambda: Examples([torch.zeros(1, 2, 2)], ["a"], [torch.ones(1, 3, 2)]), "mask of picture 1"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(ValueError, match=said):
        make()
