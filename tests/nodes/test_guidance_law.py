"""The law of classifier guidance, through the node at its own defaults: with an exact classifier it samples the class.

The network is a Gaussian mixture, whose denoiser and whose class probabilities are known at every noise level; the
inputs that the node does not need are its schema's defaults, so that a changed default shows here."""

import re

import pytest
import torch
from nulltext.engine import terms
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.networks.latent_classifier import LatentClassifier
from nulltext.tests.running import defaults, normal, run, walk
from nulltext.tools import notes, workflows

NAMES = ["cat", "dog", "owl"]
MEANS = torch.tensor([[-1.5, 0.5], [1.4, -0.9], [0.4, 1.9], [2.0, 1.2]])
#: latents [4, 1, 1]: two channels tell the class, two are noise of their own
MIXTURE = GaussianMixture(torch.cat([MEANS, torch.zeros(4, 2)], 1)[..., None, None], 0.3, labels=[0, 1, 1, 2])


class ExactClassifier(LatentClassifier):
    """The mixture's own class probabilities at the noise level."""

    def forward(self, x, sigma, process=None):
        return MIXTURE.log_prob_class(x, sigma)


@pytest.fixture
def exact():
    return ExactClassifier(NAMES, {"in_channels": 4, "out": 3, "widths": [8], "size": 8, "noise_aware": True})


@pytest.fixture
def mixture_model(tiny):
    model = tiny.clone()
    model.set_model_unet_function_wrapper(
        lambda _apply, args: MIXTURE.denoise(args["input"].double(), args["timestep"].double()).to(args["input"])
    )
    return model


def share_of_class(model, engine, ends, label, n=1500) -> float:
    """Share of n samples, 40 Euler steps each, whose likeliest class is `label`."""
    out = walk(model, ends, 1.0, normal(n, 4, 1, 1, seed=1), engine.sigmas_of(model, "karras", 40))
    x0 = model.get_model_object("latent_format").process_in(out)
    return float((MIXTURE.log_prob_class(x0.double()).argmax(1) == label).double().mean())


def guided(model, exact, **changes):
    return run("ClassifierGuidance", model=model, classifier=exact, class_name="dog", **changes)[0]


def test_the_nodes_defaults_are_the_published_technique():
    found = {"scale": 1.0, "start_percent": 0.0, "end_percent": 1.0, "gradient_mode": "automatic"}
    found |= {"bound": 0.0, "every": 1, "variance": 1.0}
    assert defaults("ClassifierGuidance") | {"class_name": ""} == {"class_name": "", **found}
    for name in ("CLIPGuidance", "SemanticGuidance"):
        found = defaults(name)
        assert found["bound"] == 0.0 and found["start_percent"] == 0.0 and found["end_percent"] == 1.0


def test_a_shipped_workflow_that_needs_a_bound_says_so():
    bounds = {}
    for name in workflows.names():
        flow = workflows.load(name)
        bounds[name] = max((node["inputs"]["bound"] for node in flow.values() if "bound" in node["inputs"]), default=0)
        said = re.search(r"\bbound of ([0-9.]+)", notes.note(name, flow))
        assert (float(said.group(1).rstrip(".")) if said else 0) == bounds[name], name
    assert sum(map(bool, bounds.values())) >= 3


def test_scale_1_at_the_nodes_defaults_samples_the_class(engine, mixture_model, ends, exact):
    true = MIXTURE.log_prob_class(MIXTURE.of(1).sample(4000, torch.Generator().manual_seed(2))).argmax(1) == 1
    assert true.double().mean() > 0.99
    assert share_of_class(mixture_model, engine, ends, 1) < 0.6
    assert share_of_class(guided(mixture_model, exact), engine, ends, 1) >= 0.98


def test_a_bound_breaks_the_law_and_the_record_says_how_often_it_acted(engine, mixture_model, ends, exact):
    shares, acted = [], []
    for bound in (0.0, 4.0, 0.25):
        model = guided(mixture_model, exact, bound=bound)
        shares.append(share_of_class(model, engine, ends, 1))
        acted.append(terms.trace_of(model).bound_share("class dog"))
        pushes = [s["terms"]["class dog"] for s in terms.trace_of(model).steps]
        at_bound = torch.cat([(p["rms"] > 0.9999 * bound).float() for p in pushes]).mean() if bound else 0.0
        assert acted[-1] == pytest.approx(float(at_bound), abs=1e-3)
        said = terms.bounds_said(model)
        assert (said == []) if bound == 0 else (f"bound of {bound:g} acted in {acted[-1]:.0%} of the steps" in said[0])
    assert acted[0] == acted[1] == 0 and acted[2] > 0.2
    assert shares[0] == shares[1] >= 0.98 and shares[2] < 0.85
