"""The law of classifier guidance, through the node at its own defaults: with an exact classifier it samples the class.

The network is a Gaussian mixture, whose denoiser and whose class probabilities are known at every noise level; the
inputs that the node does not need are its schema's defaults, so that a changed default shows here."""

import re

import pytest
import torch
from nulltext.engine import guide
from nulltext.engine.guider import guider_class
from nulltext.engine.sampler import core_sampler
from nulltext.nodes import NODE_CLASS_MAPPINGS as NODES
from nulltext.samplers.measure.mixture import GaussianMixture
from nulltext.samplers.networks.latent_classifier import LatentClassifier
from nulltext.tools import workflows

NODE = NODES["NullText_ClassifierGuidance"]
NAMES = ["cat", "dog", "owl"]
MEANS = torch.tensor([[-1.5, 0.5], [1.4, -0.9], [0.4, 1.9], [2.0, 1.2]])
#: latents [4, 1, 1]: two channels tell the class, two are noise of their own
MIXTURE = GaussianMixture(torch.cat([MEANS, torch.zeros(4, 2)], 1)[..., None, None], 0.3, labels=[0, 1, 1, 2])


def defaults(node) -> dict:
    """The value of every widget as the node opens."""
    groups = node.INPUT_TYPES()
    specs = [item for part in ("required", "optional") for item in groups.get(part, {}).items()]
    return {name: spec[1]["default"] for name, spec in specs if "default" in spec[1]}


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


def share_of_class(model, engine, make_condition, label, n=1500) -> float:
    """Share of n samples, 40 Euler steps each, whose likeliest class is `label`."""
    guider = guider_class()(model)
    guider.set_conds(make_condition(1), make_condition(2))
    guider.set_cfg(1.0)
    noise = torch.randn(n, 4, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = guider.sample(
            noise,
            torch.zeros_like(noise),
            core_sampler("euler"),
            engine.sigmas_of(model, "karras", 40),
            disable_pbar=True,
            seed=3,
        )
        x0 = model.get_model_object("latent_format").process_in(out)
    return float((MIXTURE.log_prob_class(x0.double()).argmax(1) == label).double().mean())


def guided(model, exact, **changes):
    with torch.inference_mode():
        return NODE().run(**(defaults(NODE) | {"model": model, "classifier": exact, "class_name": "dog"} | changes))[
            "result"
        ][0]


def test_the_nodes_defaults_are_the_published_technique():
    assert defaults(NODE) | {"class_name": ""} == {
        "class_name": "",
        "scale": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "gradient_mode": "automatic",
        "bound": 0.0,
        "every": 1,
        "variance": 1.0,
    }
    for name in ("CLIPGuidance", "SemanticGuidance"):
        found = defaults(NODES[f"NullText_{name}"])
        assert found["bound"] == 0.0 and found["start_percent"] == 0.0 and found["end_percent"] == 1.0


def test_a_shipped_workflow_that_needs_a_bound_says_so():
    bounds = {}
    for name in workflows.names():
        flow = workflows.load(name)
        bounds[name] = max((node["inputs"]["bound"] for node in flow.values() if "bound" in node["inputs"]), default=0)
        said = re.search(r"\bbound of ([0-9.]+)", workflows.note(name, flow))
        assert (float(said.group(1).rstrip(".")) if said else 0) == bounds[name], name
    assert sum(map(bool, bounds.values())) >= 3


def test_scale_1_at_the_nodes_defaults_samples_the_class(engine, mixture_model, make_condition, exact):
    true = MIXTURE.log_prob_class(MIXTURE.of(1).sample(4000, torch.Generator().manual_seed(2))).argmax(1) == 1
    assert true.double().mean() > 0.99
    assert share_of_class(mixture_model, engine, make_condition, 1) < 0.6
    assert share_of_class(guided(mixture_model, exact), engine, make_condition, 1) >= 0.98


def test_a_bound_breaks_the_law_and_the_record_says_how_often_it_acted(engine, mixture_model, make_condition, exact):
    shares, acted = [], []
    for bound in (0.0, 4.0, 0.25):
        model = guided(mixture_model, exact, bound=bound)
        shares.append(share_of_class(model, engine, make_condition, 1))
        acted.append(guide.record_of(model).bound_share("class dog"))
        pushes = [s["terms"]["class dog"] for s in guide.record_of(model).steps]
        at_bound = torch.cat([(p["rms"] > 0.9999 * bound).float() for p in pushes]).mean() if bound else 0.0
        assert acted[-1] == pytest.approx(float(at_bound), abs=1e-3)
        said = guide.bounds_said(model)
        assert (said == []) if bound == 0 else (f"bound of {bound:g} acted in {acted[-1]:.0%} of the steps" in said[0])
    assert acted[0] == acted[1] == 0 and acted[2] > 0.2
    assert shares[0] == shares[1] >= 0.98 and shares[2] < 0.85
