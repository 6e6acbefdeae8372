"""Every node with start_percent and end_percent acts between the same two levels as a core conditioning does."""

import pytest
import torch
from nulltext.engine.comfy import sigma_range
from nulltext.tests import running
from nulltext.tests.running import normal

START, END = 0.3, 0.6
CFG = 1.5
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def worded(prompt):
    return prompt("ring")


@pytest.fixture
def differs(tiny, make_condition, euler):
    """differs(model, sigma, positive): whether one step from that level is not the same as the untouched model's."""

    def made(model, sigma, positive):
        ends, sigmas = (positive, make_condition(2)), torch.tensor([sigma, sigma / 2])
        return euler(model, normal(1, 4, 8, 8, seed=3), CFG, sigmas=sigmas, seed=5, ends=ends)

    def differs(model, sigma, positive, untouched=tiny, plain=None):
        return not torch.equal(made(model, sigma, positive), made(untouched, sigma, plain or positive))

    return differs


@pytest.fixture
def levels(tiny):
    """sigma -> whether a window from START to END acts there."""
    start, end = (float(tiny.get_model_object("model_sampling").percent_to_sigma(p)) for p in (START, END))
    return {start * 1.01: False, start: True, (start + end) / 2: True, end: True, end * 0.99: False}


def outputs(name, span=(START, END), **inputs):
    return running.run(name, start_percent=span[0], end_percent=span[1], **inputs)


@pytest.fixture
def patched(tiny, worded, vae, image_text, classifier):
    """By name, a node's patched MODEL for a span."""
    picture = normal(1, 4, 8, 8, seed=4)
    alone = {"text_weight": 50.0, "content_weight": 0.0, "structure_weight": 0.0, "style_weight": 0.0}
    of = lambda name, **inputs: lambda span=(START, END): outputs(name, span, model=tiny, **inputs)[0]
    return {
        "AttentionReweight": of("AttentionReweight", positive=worded, weights="ring: 5"),
        "ILVR": of("ILVR", reference=picture),
        "Disturbance": of("Disturbance", look="picture (Image-D)", picture=picture, cfg=CFG),
        "CFGConvention": of("CFGConvention", w=3.0),
        "CFGConvention, linear": of("CFGConvention", w=3.0, shape="linear", w_end=2.0),
        "ClassifierGuidance": of("ClassifierGuidance", classifier=classifier, class_name="dog", scale=3.0),
        "CLIPGuidance": of("CLIPGuidance", vae=vae, image_text=image_text, text="a red circle", scale=50.0),
        "SemanticGuidance": of("SemanticGuidance", vae=vae, image_text=image_text, text="a red circle", **alone),
    }


NAMES = [
    *("AttentionReweight", "ILVR", "Disturbance", "CFGConvention", "CFGConvention, linear"),
    *("ClassifierGuidance", "CLIPGuidance", "SemanticGuidance"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_nodes_window_has_both_edges_inside(patched, tiny, differs, levels, worded, name):
    """Outside of it the CFG node is the prompt alone, which is w = 0; the others are the model."""
    untouched = outputs("CFGConvention", model=tiny, w=0.0)[0] if "CFG" in name else tiny
    model = patched[name]()
    assert {sigma: differs(model, sigma, worded, untouched) for sigma in levels} == levels


def test_core_counts_both_edges_too(tiny, make_condition, differs, levels, worded):
    """The rule is the engine's: a conditioning with the same span is asked at the same levels."""
    ((embedding, extra),) = worded
    limited = [[embedding, {**extra, "start_percent": START, "end_percent": END}]]
    asked = {sigma: not differs(tiny, sigma, limited, plain=worded) for sigma in levels}
    assert asked == levels


def test_a_recording_has_the_same_edges(tiny, levels, differs, worded):
    for sigma, inside in levels.items():
        model, maps = outputs("AttentionRecord", model=tiny, positive=worded, layers="all")
        differs(model, sigma, worded)
        assert bool(maps["record"].maps.images()) == inside


@pytest.mark.parametrize("name", NAMES)
def test_a_full_span_acts_beyond_the_models_own_levels_too(patched, tiny, differs, worded, name):
    untouched = outputs("CFGConvention", model=tiny, w=0.0)[0] if "CFG" in name else tiny
    low, high = sigma_range(tiny)
    assert all(differs(patched[name]((0.0, 1.0)), sigma, worded, untouched) for sigma in (1.03 * high, 0.4 * low))


@pytest.mark.parametrize("name", [n for n in NAMES if "CFG" not in n])
def test_an_empty_span_is_the_untouched_model_even_on_its_own_level(patched, differs, levels, worded, name):
    model = patched[name]((START, START))
    assert not any(differs(model, sigma, worded) for sigma in levels)
