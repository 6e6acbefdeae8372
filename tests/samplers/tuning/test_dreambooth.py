"""DreamBooth's two halves: the closed form of prior preservation, and UniTune where there is no prior."""

import pytest
import torch
from nulltext.samplers.core import VE, expand
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.dreambooth import PRESETS, dreambooth_step
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.objective import Examples, Levels, Objective, denoising_step
from torch import nn

F64 = torch.float64
LEVELS = Levels(table=torch.linspace(0.1, 10, 50))


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class TwoSets:
    """One shared linear parameter, D = W c, on the inputs of a subject and of a class that want different W."""

    def __init__(self):
        self.inputs = [rows(3, 40, seed=1), torch.tensor([[1.0], [2.0], [0.5]], dtype=F64) * rows(3, 40, seed=2)]
        self.wanted = [rows(2, 3, seed=3), rows(2, 3, seed=4)]
        self.moments = [c @ c.T for c in self.inputs]
        self.w = torch.zeros(2, 3, dtype=F64, requires_grad=True)
        self.sets = [Examples([w @ c], [c]) for w, c in zip(self.wanted, self.inputs)]
        self.net = lambda x, sigma, conditions: torch.stack([self.w @ c for c in conditions])

    def best(self, weight):
        (c1, c2), (w1, w2) = self.moments, self.wanted
        return (w1 @ c1 + weight * w2 @ c2) @ torch.linalg.inv(c1 + weight * c2)

    def step(self, weight):
        return dreambooth_step(self.net, *self.sets, Objective(VE, "constant"), LEVELS, prior_weight=weight)

    def class_error(self, w):
        return float(((w - self.wanted[1]) @ self.inputs[1]).square().sum())


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 10.0])
def test_the_closed_form_of_prior_preservation_is_where_the_gradient_is_zero(weight):
    problem = TwoSets()
    with torch.no_grad():
        problem.w.copy_(problem.best(weight))
    problem.step(weight)(torch.Generator())["loss"].backward()
    assert float(problem.w.grad.abs().max()) < 1e-12


def test_training_reaches_it_and_the_class_is_kept_better_the_more_it_weighs():
    errors = []
    for weight in (0.0, 0.3, 3.0):
        problem = TwoSets()
        loop = Loop({"w": problem.w}, Settings(steps=200, lr=0.3, schedule="cosine", weight_decay=0.0, clip=0.0))
        loop.run(problem.step(weight))
        torch.testing.assert_close(problem.w.detach(), problem.best(weight), rtol=0, atol=1e-3)
        errors.append(problem.class_error(problem.w.detach()))
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]
    closed = [problem.class_error(problem.best(w)) for w in (0.0, 0.1, 1.0, 10.0, 1e4)]
    assert closed == sorted(closed, reverse=True) and closed[-1] < 1e-4 * closed[0]


class Adapted:
    """A frozen linear denoiser with trainable factors, on random pictures."""

    def __init__(self):
        torch_layer = nn.Linear(4, 4)
        with torch.no_grad():
            torch_layer.weight.copy_(rows(4, 4, seed=5))
            torch_layer.bias.zero_()
        torch_layer.requires_grad_(False)
        self.factors = lora.low_rank_all([("layer", torch_layer)], 2, seed=3)

        def net(x, sigma, conditions):
            self.seen += [*conditions]
            y = x.flatten(1)
            out = torch_layer(y) + self.factors["layer"].delta(y)
            return x + expand(sigma, x) * out.reshape(x.shape) / (1 + expand(sigma, x) ** 2)

        self.net, self.seen = net, []
        self.subject = Examples([rows(1, 2, 2, seed=i).float() for i in range(3)], ["word"] * 3, empty="")
        self.prior = Examples([rows(1, 2, 2, seed=i).float() for i in range(9, 12)], ["class"] * 3, empty="")

    def trained(self, step):
        loop = Loop(lora.parameters(self.factors), Settings(steps=6, lr=0.01, warmup=2, accumulate=2), seed=8)
        loop.run(step)
        return loop


@pytest.mark.parametrize("with_prior", [False, True])
def test_without_a_weight_it_is_unitune_to_the_bit(with_prior):
    one, other = Adapted(), Adapted()
    objective = Objective(VE, "min-SNR")
    weight = 0.0 if with_prior else 1.0
    prior = one.prior if with_prior else None
    mine = one.trained(dreambooth_step(one.net, one.subject, prior, objective, LEVELS, 2, weight, dropout=0.2))
    theirs = other.trained(denoising_step(other.net, other.subject, objective, LEVELS, 2, dropout=0.2))
    a, b = mine.state()[0], theirs.state()[0]
    assert all(torch.equal(a[k], b[k]) for k in a) and mine.curve[0][1] != mine.curve[-1][1]
    assert "class" not in one.seen and "" in one.seen


def test_both_halves_have_the_same_weighting_and_half_the_rows_each():
    made = Adapted()
    objective = Objective(VE, "min-SNR", gamma=0.5)
    net = lambda x, sigma, conditions: torch.zeros_like(x)
    step = dreambooth_step(net, made.prior, made.prior, objective, Levels(table=torch.tensor([0.2])), 3, 0.25)
    losses = step(torch.Generator().manual_seed(0))
    power = float(torch.stack(made.prior.latents).square().flatten(1).mean(1).max())
    assert 0 < float(losses["subject"]) <= 0.5 * power and 0 < float(losses["prior"]) <= 0.5 * power
    torch.testing.assert_close(losses["loss"], losses["subject"] + 0.25 * losses["prior"])
    dreambooth_step(made.net, made.subject, made.prior, objective, LEVELS, 3)(torch.Generator())
    assert made.seen == ["word"] * 3 + ["class"] * 3


def test_halves_of_two_sizes_give_what_one_call_would():
    made, objective = Adapted(), Objective(VE, "eps")
    net = lambda x, sigma, conditions: 0.5 * x
    wide = Examples([rows(1, 2, 3, seed=1).float()], ["class"])
    losses = dreambooth_step(net, made.subject, wide, objective, LEVELS, 2)(torch.Generator().manual_seed(0))
    assert float(losses["loss"]) == pytest.approx(float(losses["subject"] + losses["prior"]))
    again = dreambooth_step(net, made.subject, made.prior, objective, LEVELS, 2)(torch.Generator().manual_seed(0))
    torch.testing.assert_close(again["subject"], losses["subject"])


def test_presets_are_settings_that_the_parts_take():
    for preset in PRESETS.values():
        Settings(preset.steps, preset.lr, preset.optimiser, accumulate=preset.accumulate, clip=preset.clip)
        Objective(VE, preset.weight)
        assert preset.init in lora.INITS
    with pytest.raises(ValueError, match="below 0"):
        dreambooth_step(None, None, None, None, None, prior_weight=-1.0)
