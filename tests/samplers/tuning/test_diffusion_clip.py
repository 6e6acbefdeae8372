"""DiffusionCLIP on a Gaussian with a trainable shift of D: whose steps the gradient passes; mixing; the way in."""

import itertools
import math

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.tuning.diffusion_clip import PRESETS, Pictures, chain_step, into_seen_domain, saving_step
from nulltext.samplers.tuning.loop import Loop, Settings

TAU, MU = 0.7, 0.3
SIGMAS = torch.tensor([8.0, 3.0, 1.0, 0.4, 0.0], dtype=torch.float64)


def net(b):
    """D of a Gaussian N(MU, TAU^2), plus b."""

    def denoise(x, s):
        return (TAU**2 * x + s**2 * MU) / (TAU**2 + s**2) + b

    return denoise


def factors():
    """dx'/dx of every Euler step: (tau^2 + s s')/(tau^2 + s^2)."""
    return [(TAU**2 + s * t) / (TAU**2 + s**2) for s, t in itertools.pairwise(SIGMAS.tolist())]


class Error:
    """|x^ - target|^2 in the place of the directional loss."""

    def __call__(self, edited, source, kept=None):
        return {"loss": (edited - source).square().sum() / 2}


def one_picture(value=2.0, target=5.0):
    start = torch.full((1, 1, 1, 1), value, dtype=torch.float64)
    return Pictures([start], [torch.full_like(start, target)], [None])


def test_the_gradient_of_the_whole_chain_is_the_product_of_the_steps_factors():
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    pictures = one_picture()
    losses = chain_step(lambda _: net(b), pictures, SIGMAS, lambda z: z, Error())(torch.Generator())
    losses["loss"].backward()
    a, jumps = factors(), [1 - t / s for s, t in itertools.pairwise(SIGMAS.tolist())]
    slope = sum(j * math.prod(a[k + 1 :]) for k, j in enumerate(jumps))
    result = sample_euler(net(0.0), pictures.starts[0], SIGMAS)
    assert float(b.grad) == pytest.approx(float(result - 5.0) * slope, rel=1e-12)
    assert slope > 1.05  # more than the last step alone, whose factor is 1


def test_the_saving_form_has_the_gradient_of_its_own_prediction_alone():
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    pictures = one_picture()
    step, x = saving_step(lambda _: net(b), pictures, SIGMAS, lambda z: z, Error()), pictures.starts[0]
    for k, (s, t) in enumerate(itertools.pairwise(SIGMAS)):
        assert step.between is (k == 0)
        (grad,) = torch.autograd.grad(step(torch.Generator())["loss"], b)
        d = net(0.0)(x, s)
        assert float(grad) == pytest.approx(float(d - 5.0), rel=1e-12)  # dD/db = 1, nothing from earlier steps
        x = d + t / s * (x - d)
    assert step.between


def trained(make, steps, lr):
    b = torch.zeros((), dtype=torch.float64)
    loop = Loop({"b": b}, Settings(steps=steps, lr=lr, optimiser="SGD", weight_decay=0, clip=0))
    loop.run(make(lambda _: net(b), one_picture(), SIGMAS, lambda z: z, Error()))
    predictions = []
    x = sample_euler(
        net(b.detach()), one_picture().starts[0], SIGMAS, callback=lambda s: predictions.append(float(s["denoised"]))
    )
    return float(x), predictions


def test_the_chain_is_trained_to_its_end_and_the_saving_form_to_the_mean_of_its_predictions():
    end, predictions = trained(chain_step, 400, 0.02)
    assert end == pytest.approx(5.0, abs=1e-6) and abs(sum(predictions) / 4 - 5) > 0.1
    end, predictions = trained(saving_step, 4000, 0.005)
    assert sum(predictions) / 4 == pytest.approx(5.0, abs=0.01) and abs(end - 5) > 0.1


def test_a_stopped_run_goes_on_with_the_same_bits_between_two_walks():
    def run(until, state=None):
        b = torch.zeros((), dtype=torch.float64)
        loop = Loop({"b": b}, Settings(steps=24, lr=0.05, optimiser="Adam", weight_decay=0), seed=4)
        if state:
            loop.restore(*state)
        pictures = Pictures(
            [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (1.0, 2.0, 3.0)],
            [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (5.0, 4.0, 7.0)],
            [None] * 3,
        )
        step = saving_step(lambda _: net(b), pictures, SIGMAS, lambda z: z, Error())
        loop.run(step, until=until)
        return b.detach().clone(), loop, step

    whole, loop, _ = run(24)
    _, half, step = run(12)
    assert step.between  # 12 is 3 walks of 4 steps
    again, _, _ = run(24, half.state())
    assert torch.equal(whole, again)
    assert len({round(v, 6) for _, v in loop.curve}) > 12


def test_presets_are_settings_whose_rate_grows_with_every_pass():
    found = PRESETS["README"].settings(pictures=10, passes=3)
    assert found.steps == 30 and found.optimiser == "Adam"
    assert [found.rate(i) for i in (0, 9, 10, 29)] == pytest.approx([8e-6, 8e-6, 1.3 * 8e-6, 1.69 * 8e-6])
    assert PRESETS["code"].settings().steps == 50 and PRESETS["README"].settings().steps == 250


@pytest.mark.parametrize("process", [VE, FLOW])
def test_the_way_into_the_seen_domain_forgets_the_picture_as_its_factors_say(process):
    """On a Gaussian one pass multiplies the distance to the mean by (signal of s0) x (product of the steps' factors),
    noise aside."""
    sigmas = SIGMAS[1:] / 4 if process is FLOW else SIGMAS[1:]

    def denoise(x, s):
        a, s = process.signal(s), torch.as_tensor(s, dtype=x.dtype)
        return MU + TAU**2 * a * (x - a * MU) / (a**2 * TAU**2 + s**2)

    x0 = torch.tensor([[4.0], [MU]], dtype=torch.float64)
    passes = []

    def noise():
        return torch.zeros_like(x0)

    out = into_seen_domain(
        denoise, x0, sigmas, noise=noise, process=process, repeats=3, on_pass=lambda i, x: passes.append(x)
    )
    assert len(passes) == 3 and torch.equal(passes[-1], out)
    gain = [float(p[0] - p[1]) for p in [x0, *passes]]
    ratios = [b / a for a, b in itertools.pairwise(gain)]
    factor = float(process.signal(sigmas[0]))
    for s, t in itertools.pairwise(sigmas.tolist()):
        a = float(process.signal(s))
        slope = TAU**2 * a / (a**2 * TAU**2 + s**2)
        factor *= slope + t / s * (1 - slope)
    assert ratios == pytest.approx([factor] * 3, rel=1e-10) and 0 < factor < 0.9
    drawn = into_seen_domain(denoise, x0, sigmas, noise=gaussian(x0, 3), process=process, repeats=1)
    assert not torch.allclose(drawn, passes[0])


def test_pictures_without_their_source_are_refused():
    with pytest.raises(ValueError, match="each picture"):
        Pictures([torch.zeros(1, 1, 1, 1)], [], [])
