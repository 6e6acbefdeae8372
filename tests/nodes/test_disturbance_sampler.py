"""The cartoon in one box on a tiny random model."""

import re

import pytest
import torch
from nulltext.nodes import disturbance
from nulltext.nodes.bridge.engine import sigma_range
from nulltext.nodes.bridge.sampling import time_to_sigma
from nulltext.nodes.bridge.schedules import picture_sigmas
from nulltext.samplers.disturbance import stable_strength


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():  # as nodes run
        yield


def cartoon(model, positive, negative, latent, cfg=10.0, strength=1.0, denoise=1.0, below=0, **options):
    result = disturbance.DisturbanceSampler().run(
        model, positive, negative, {"samples": latent}, 5, cfg, options.pop("look", disturbance.ROLLBACK), strength,
        0.3, 0.7, denoise, 4, below, **options,
    )
    return result["result"][0]["samples"], result["ui"]["text"][0]


def levels(model, cfg, denoise=1.0, below=None):
    return picture_sigmas(time_to_sigma(model), sigma_range(model)[0], denoise, cfg, 0.7, 4, below)


def test_a_schedule_too_short_for_cfg_is_said_with_the_strength_that_is_left(tiny, make_condition, latent):
    few, said = cartoon(tiny, make_condition(1), make_condition(2), latent, below=3)
    sigmas = levels(tiny, 10.0, below=3)
    inside = (sigmas[:-1] <= time_to_sigma(tiny)(0.3) * (1 + 1e-6)).tolist()
    strengths = [f for f, here in zip(stable_strength(sigmas, 10.0), inside) if here][:-1]  # the last step always fades
    found = re.search(r"Notice: strength fades to ([\d.]+), .*raise steps_below", said)
    assert len(strengths) == 3 and float(found[1]) == round(min(strengths), 2) < 0.2
    assert torch.isfinite(few).all()
    for options in ({}, {"strength": 0.0, "below": 3}, {"cfg": 1.0, "below": 3}):  # enough steps; nothing disturbed
        _, said = cartoon(tiny, make_condition(1), make_condition(2), latent, **options)
        assert "fades" not in said, options
