"""Guidance through a network that computes in fp16, as on a graphics card: a small gradient keeps its direction."""

import pytest
import torch
from nulltext.engine import terms
from nulltext.engine.gradients import normal as ordinary
from nulltext.engine.run import sample_with
from nulltext.samplers.guidance.terms import Guidance
from nulltext.samplers.ode import sample_euler
from nulltext.tests.running import normal, walk

cosine = torch.nn.functional.cosine_similarity


@pytest.fixture
def both(make_model):
    """The same network in fp16 throughout, and in fp32."""
    half = make_model(dtype=torch.float16)
    half.model.manual_cast_dtype = None
    for module in half.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = False
    return half, make_model()


@pytest.mark.parametrize("size", [1e-2, 1e-6])
def test_a_loss_of_any_size_pushes_alike_through_the_network(both, ends, size):
    wanted, sigmas = normal(1, 4, 8, 8, seed=5), torch.tensor([2.0, 0.0])
    pushes = []
    for model in both:
        far = lambda x, s, d: -size * (d - wanted).pow(2).flatten(1).mean(1)  # noqa: E731
        guided = terms.attach(model, [terms.Term(Guidance(far, "network", 1 / size))])
        start = normal(1, 4, 8, 8, seed=7)
        pushes.append((walk(guided, ends, 1.0, start, sigmas) - walk(model, ends, 1.0, start, sigmas)).flatten())
    half, full = (push.double() for push in pushes)
    assert cosine(half, full, dim=0) > 0.995 and half.norm() == pytest.approx(float(full.norm()), rel=0.05)


@pytest.mark.parametrize("size", [1e-2, 1e-6])
def test_a_loss_of_any_size_leads_the_start_noise_alike(both, ends, latent, size):
    """Through a chain of calls."""
    sigmas, gradients = torch.tensor([8.0, 3.0, 1.0, 0.0]), []

    def body(run):
        with run.gradients():
            start = (ordinary(run.latent) * 0 + 8 * normal(2, 4, 8, 8, seed=1)).requires_grad_()
            made = sample_euler(run.differentiable("positive", "negative", 3.0), start, sigmas)
            loss = size * (made - normal(2, 4, 8, 8, seed=9)).pow(2).flatten(1).mean(1).sum()
            return torch.autograd.grad(loss, start)[0]

    for model in both:
        with torch.inference_mode():
            found = sample_with(model, {"positive": ends[0], "negative": ends[1]}, latent, sigmas, body)
        gradients.append(found.double().flatten())
    assert cosine(*gradients, dim=0) > 0.995
