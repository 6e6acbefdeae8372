"""The cartoon in one box on a tiny random model: what it says of its schedule, where it is ordinary sampling to the
bit, and prompts of unlike length."""

import inspect
import re

import pytest
import torch
from nulltext.engine.comfy import sigma_range, time_to_sigma, to_model_space
from nulltext.engine.sampler import core_sampler, sample_latent
from nulltext.nodes import disturbance
from nulltext.nodes.disturbance_schedule import picture_sigmas
from nulltext.samplers.picture.disturbance import MATCH_PICTURE, MATCH_ROLLBACK
from nulltext.samplers.picture.disturbance_schedules import stable_strength


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():  # as nodes run
        yield


def cartoon(model, positive, negative, latent, cfg=10.0, strength=1.0, denoise=1.0, below=0, **options):
    result = disturbance.DisturbanceSampler().run(
        model,
        positive,
        negative,
        {"samples": latent},
        5,
        cfg,
        options.pop("look", disturbance.ROLLBACK),
        strength,
        0.3,
        0.7,
        denoise,
        4,
        below,
        **options,
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


@pytest.mark.parametrize("cfg, strength, denoise", [(4.0, 0.0, 1.0), (1.0, 1.0, 1.0), (4.0, 0.0, 0.3), (1.0, 1.0, 0.3)])
def test_without_strength_or_cfg_it_is_the_engines_euler_to_the_bit(
    tiny, make_condition, latent, cfg, strength, denoise
):
    positive, negative = make_condition(1), make_condition(2)
    out, said = cartoon(tiny, positive, negative, latent, cfg, strength, denoise)
    plain = sample_latent(
        tiny, positive, negative, cfg, core_sampler("euler"), levels(tiny, cfg, denoise), {"samples": latent}, 5
    )["samples"]
    assert torch.equal(out, plain) and "ordinary sampling" in said
    assert not torch.equal(cartoon(tiny, positive, negative, latent, 4.0, 1.0, denoise)[0], plain)


@pytest.mark.parametrize("lengths", [(77, 154), (154, 77), (77, 77 * 7), (77 * 7, 77)])
def test_prompts_of_unlike_length_leave_the_null_rows_looking_at_the_picture(tiny, make_condition, latent, lengths):
    """77 and 154 tokens share a call (padded), 77 and 539 do not; the negative prompt is a text, not the empty one."""
    positive, negative = (make_condition(seed, tokens) for seed, tokens in zip((1, 2), lengths))
    z, start, seen = to_model_space(tiny, {"samples": latent}), time_to_sigma(tiny)(0.3), []

    def spy(apply_model, args):
        kinds = args["cond_or_uncond"]
        seen.append((float(args["timestep"].max()), kinds, args["input"].chunk(len(kinds))))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = tiny.clone()
    model.set_model_unet_function_wrapper(spy)  # the disturbance calls it with what the network is given
    out, _ = cartoon(model, positive, negative, latent, cfg=1.5, below=8, look=disturbance.PICTURE)
    assert torch.isfinite(out).all()
    inside = [(s, kind, x) for s, kinds, rows in seen for kind, x in zip(kinds, rows) if s <= start * (1 + 1e-6)]
    null, cond = ([(s, x) for s, kind, x in inside if kind == which] for which in (1, 0))
    assert len(null) == len(cond) == 9
    for s, x in null:  # cfg 1.5 is stable whatever the steps: the strength fades nowhere
        torch.testing.assert_close(x * (1 + s * s) ** -0.5, z, rtol=1e-4, atol=1e-4)
    assert all((x * (1 + s * s) ** -0.5 - z).abs().max() > 0.01 for s, x in cond)
    together = {len(kinds) for _, kinds, _ in seen}
    assert together == ({1} if max(lengths) > 77 * 4 else {2})  # as the engine joins them
    swapped, _ = cartoon(tiny, positive, make_condition(3, lengths[1]), latent, 1.5, below=8, look=disturbance.PICTURE)
    assert not torch.equal(out, swapped)  # the negative prompt is read


@pytest.mark.parametrize("node", [disturbance.Disturbance, disturbance.DisturbanceSampler])
def test_the_default_is_the_papers_formula(node):
    assert node.INPUT_TYPES()["optional"]["match"][1]["default"] is False
    assert inspect.signature(node.run).parameters["match"].default is False


def test_match_is_off_unless_asked_for_and_the_report_says_that_it_is_ours(tiny, make_condition, latent):
    ends = make_condition(1), make_condition(2)
    options = {"cfg": 4.0, "look": disturbance.PICTURE}
    default, said = cartoon(tiny, *ends, latent, **options)
    off, on = (cartoon(tiny, *ends, latent, **options, match=match) for match in (False, True))
    assert torch.equal(default, off[0]) and not torch.equal(default, on[0])
    assert "smoothing" not in said and "match is on: our own smoothing" in on[1]


@pytest.mark.parametrize("look, bounds", [(disturbance.ROLLBACK, MATCH_ROLLBACK), (disturbance.PICTURE, MATCH_PICTURE)])
def test_each_look_sees_its_own_latent_and_has_its_own_bounds(tiny, look, bounds, latent):
    """Asked of the patch itself: a picture is wired both times, and only Image-D may look at it."""
    picture = {"samples": torch.ones_like(latent[:1]) / 0.18215}
    of = lambda match: disturbance.disturb(tiny, look, 1.0, 0.3, 0.7, 1.0, 1.5, picture, match)[0].model_options[
        "model_function_wrapper"
    ]
    branch = of(True)
    sigma_at, seen = time_to_sigma(tiny), []
    x = {sigma_at(0.5): torch.full((1, 4, 8, 8), 5.0), sigma_at(0.2): torch.full((1, 4, 8, 8), 2.0)}
    for sigma, here in x.items():
        args = {"input": here, "timestep": torch.tensor([sigma]), "c": {}, "cond_or_uncond": [1]}
        branch(lambda given, s: seen.append(given * (1 + s**2) ** -0.5) or given, args)
    high = sigma_at(0.5)
    expected = x[high] * (1 + high**2) ** -0.5 if look == disturbance.ROLLBACK else torch.ones(1, 4, 8, 8)
    torch.testing.assert_close(seen[1], expected, rtol=1e-4, atol=1e-4)
    assert branch.match == bounds and of(False).match is None


def test_the_bound_alone_needs_no_picture_and_is_no_disturbance(tiny, make_condition, latent):
    ends = make_condition(1), make_condition(2)
    itself, said = cartoon(tiny, *ends, latent, cfg=4.0, below=8, look=disturbance.ITSELF)
    plain, _ = cartoon(tiny, *ends, latent, cfg=4.0, below=8, strength=0.0)
    assert torch.isfinite(itself).all() and "fades" not in said
    patched, nothing = disturbance.disturb(tiny, disturbance.ITSELF, 1.0, 0.3, 0.7, 1.0, 4.0)
    branch = patched.model_options["model_function_wrapper"]
    assert nothing is None and branch.disturbance.itself and branch.match == MATCH_ROLLBACK
    assert disturbance.disturb(tiny, disturbance.ITSELF, 0.0, 0.3, 0.7, 1.0, 4.0)[0] is tiny
    assert not torch.equal(itself, plain)
