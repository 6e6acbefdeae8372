"""A latent classifier trained on a mixture whose class posterior is known at every level."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.guidance.terms import Guidance, shift, with_guidance
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.networks.latent_classifier import LatentClassifier, class_index, train_latent_classifier
from nulltext.samplers.ode import sample_euler

SHAPE = (2, 8, 8)
G = torch.Generator().manual_seed(1)
MEANS = torch.randn(3, *SHAPE, generator=G) * 0.6
MIXTURE = GaussianMixture(MEANS, 0.8)
SIGMAS = torch.logspace(-1.5, 1.2, 60)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = LatentClassifier.new(["cat", "dog", "Owl"], 2, 8, width=16, fingerprint="abc")
    index = torch.arange(3).repeat(100)
    latents = (MEANS[index] + 0.8 * torch.randn(300, *SHAPE, generator=G)).float()
    losses = train_latent_classifier(model, latents, index, SIGMAS, steps=120, batch=48, lr=2e-3)
    return model, losses


def test_training_learns(trained):
    _, losses = trained
    assert losses[-30:].mean() < 0.7 * losses[:10].mean()


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_its_posterior_is_near_the_exact_one(trained, sigma):
    model, _ = trained
    x = VE.noised(MIXTURE.sample(200, G).float(), sigma, torch.randn(200, *SHAPE, generator=G))
    exact = MIXTURE.log_prob_class(x, sigma)
    agree = (model(x, sigma).argmax(1) == exact.argmax(1)).float().mean()
    assert agree > 0.9


def test_guidance_raises_the_class_share(trained):
    model, _ = trained
    term = Guidance(model.log_likelihood("owl"), mode="latent", scale=10.0)
    sigmas = torch.cat([torch.logspace(1.2, -1, 16), torch.zeros(1)])
    x = 16 * torch.randn(48, *SHAPE, generator=G)
    share = [
        float((MIXTURE.log_prob_class(sample_euler(d, x, sigmas)).argmax(1) == 2).float().mean())
        for d in (MIXTURE.denoise, with_guidance(MIXTURE.denoise, [term]))
    ]
    assert share[0] < 0.5 < 0.8 < share[1]


def test_it_guides_a_flow_as_the_model_it_was_trained_for(trained):
    """The same latent in the flow's coordinates is pushed by the same change of D: y = x/(1 - s) at r = s/(1 - s)."""
    model, _ = trained
    y, r = MIXTURE.sample(4, G).float() + 1.5 * torch.randn(4, *SHAPE, generator=G), torch.tensor(1.5)
    x, s = y / (1 + r), r / (1 + r)
    pushed = [
        shift([Guidance(model.log_likelihood("dog", process), "latent")], at, level, at, process=process)
        for process, at, level in ((VE, y, r), (FLOW, x, s))
    ]
    torch.testing.assert_close(pushed[1], pushed[0], rtol=1e-3, atol=1e-5)
    assert pushed[0].abs().max() > 1e-3


def test_guidance_raises_the_class_share_on_a_flow(trained):
    model, _ = trained
    term = Guidance(model.log_likelihood("owl", FLOW), mode="latent", scale=10.0, window=(0.94, 0.0))  # sigma 16 of VE
    x, sigmas = torch.randn(48, *SHAPE, generator=G), torch.linspace(1, 0, 33)
    share = [
        float((MIXTURE.log_prob_class(sample_euler(d, x, sigmas)).argmax(1) == 2).float().mean())
        for d in (MIXTURE.denoiser(FLOW), with_guidance(MIXTURE.denoiser(FLOW), [term], process=FLOW))
    ]
    assert share[0] < 0.5 < 0.8 < share[1]


def test_a_file_gives_it_back(trained):
    model, _ = trained
    state = {k: v.half() for k, v in model.state_dict().items()}
    again = LatentClassifier.build(state, model.metadata())
    x = torch.randn(2, *SHAPE, generator=G)
    torch.testing.assert_close(again(x, 0.5), model(x, 0.5), rtol=1e-2, atol=2e-2)
    assert again.labels == ["cat", "dog", "Owl"] and again.fingerprint == "abc"
    with pytest.raises(ValueError, match="not a latent classifier"):
        LatentClassifier.build(state, {"format": "pt"})


def test_classes_by_name():
    assert class_index(["cat", "Owl"], "owl") == 1
    with pytest.raises(ValueError, match="cat, Owl"):
        class_index(["cat", "Owl"], "horse")


def test_training_may_be_stopped_and_leaves_the_global_generator_alone():
    model = LatentClassifier.new(["a", "b"], 2, 8, width=16, process=FLOW)
    seen = []

    def stop(i, loss, accuracy):
        seen.append((i, loss))
        if i == 2:
            raise KeyboardInterrupt

    state = torch.get_rng_state()
    data = torch.randn(4, *SHAPE, generator=G), torch.tensor([0, 1, 0, 1]), torch.linspace(0, 1, 9)
    with pytest.raises(KeyboardInterrupt):
        train_latent_classifier(model, *data, steps=10, batch=4, callback=stop)
    assert len(seen) == 3 and torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="one class for each"):
        train_latent_classifier(model, torch.zeros(3, *SHAPE), torch.zeros(2, dtype=torch.long), SIGMAS)


class Spy(torch.nn.Module):
    """Stands for the network: keeps what it is shown and answers with two weights."""

    labels, process = ("often", "rare"), VE

    def __init__(self):
        super().__init__()
        self.answer, self.seen, self.weights = torch.nn.Parameter(torch.tensor([0.3, 0.0])), [], []

    def forward(self, x, sigma):
        self.seen.append((x.detach(), sigma))
        self.weights.append(self.answer.detach().clone())
        return self.answer.expand(len(x), 2)


def shown(**options):
    """(the spy, what it saw as x0's sign, noise over sigma) after training on 31 latents of -1 and one of +1, whose
    right half is doubled."""
    spy, latents = Spy(), torch.cat([-torch.ones(31, 1, 4, 8), torch.ones(1, 1, 4, 8)])
    latents[..., 4:] *= 2
    index, sigmas = (latents[:, 0, 0, 0] > 0).long(), torch.tensor([0.0, 0.01, 0.02])
    train_latent_classifier(spy, latents, index, sigmas, steps=60, batch=16, lr=1e-2, **options)
    return spy


def test_training_draws_rare_classes_as_often_and_levels_above_0_only():
    spy = shown()
    x, sigma = torch.cat([x for x, _ in spy.seen]), torch.cat([s for _, s in spy.seen])
    assert 0.44 < (x.mean((1, 2, 3)) > 0).float().mean() < 0.56
    assert sigma.min() > 0 and 0.4 < (sigma > 0.015).float().mean() < 0.6
    noise = (x.abs() - torch.tensor([1.0] * 4 + [2.0] * 4)) / sigma[:, None, None, None]
    assert 0.97 < noise.std() < 1.03


def test_the_rate_rises_and_falls_to_nothing():
    moves = torch.stack(shown().weights).diff(dim=0).abs().amax(1)
    assert moves[-1] < 0.03 * moves.max() and moves[0] < moves.max()


def test_mirrored_copies_are_every_second_batch_and_only_on_request():
    def mirrored(**options):
        return sum(bool(x[..., :4].abs().mean() > x[..., 4:].abs().mean()) for x, _ in shown(**options).seen)

    assert mirrored() == 0 and 18 <= mirrored(mirror=True) <= 42
