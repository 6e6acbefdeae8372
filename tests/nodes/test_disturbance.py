"""Disturbance and the cartoon in one box on tiny random models: windows, what the null branch sees, what is said of the
schedule, and where it is ordinary sampling to the bit."""

import inspect
import logging
import re

import pytest
import torch
from nulltext.engine.comfy import sigma_range, time_to_sigma, to_model_space
from nulltext.nodes import disturbance
from nulltext.nodes.disturbance_schedule import picture_sigmas
from nulltext.samplers.picture.disturbance import MATCH_PICTURE, MATCH_ROLLBACK
from nulltext.samplers.picture.disturbance_schedules import disturbance_schedule, stable_strength
from nulltext.tests.running import SCALE, run

pytestmark = pytest.mark.usefixtures("inference")
ROLLBACK, PICTURE, ITSELF = disturbance.ROLLBACK, disturbance.PICTURE, disturbance.ITSELF


def patched(model, latent=None, look=ROLLBACK, cfg=5.0, **inputs):
    return run("Disturbance", model=model, look=look, cfg=cfg, picture=latent, **inputs)


@pytest.fixture
def cartoon(ends):
    """cartoon(model, latent) -> Out of the one box."""

    def made(model, latent, cfg=10.0, below=0, ends=ends, **inputs):
        values = {"seed": 5, "steps_above": 4, "steps_below": below, **inputs}
        return run(
            "DisturbanceSampler", model=model, positive=ends[0], negative=ends[1], latent=latent, cfg=cfg, **values
        )

    return made


def levels(model, cfg, denoise=1.0, below=None):
    return picture_sigmas(time_to_sigma(model), sigma_range(model)[0], denoise, cfg, 0.7, 4, below)


@pytest.mark.parametrize("change", [{"strength": 0.0}, {"rollback": 0.0}, {"start_percent": 0.6, "end_percent": 0.6}])
def test_disturbance_that_changes_nothing_passes_the_model_on(tiny, change):
    result = patched(tiny, **change)
    assert result[0] is tiny and result.text.startswith("Notice:")


@pytest.mark.parametrize("look", [ROLLBACK, PICTURE])
def test_outside_the_window_the_run_is_the_untouched_one_to_the_bit(tiny, engine, euler, latent, look):
    sigmas = engine.sigmas_of(tiny, "normal", 8)[:5]  # ends above the window
    model = patched(tiny, latent, look, start_percent=0.9)[0]
    assert torch.equal(euler(model, latent, sigmas=sigmas), euler(tiny, latent, sigmas=sigmas))
    assert "model_function_wrapper" not in tiny.model_options  # the given model is as it was


def test_null_branch_sees_the_picture_at_the_current_timestep_and_nothing_is_asked_twice(
    tiny, engine, euler, latent, network_calls
):
    start, z = time_to_sigma(tiny)(0.3), to_model_space(tiny, {"samples": latent})
    sigmas = disturbance_schedule(engine.sigmas_of(tiny, "normal", 8), 2.0, start)
    seen = network_calls(tiny)
    plain = euler(tiny, latent, cfg=2.0, sigmas=sigmas)
    calls, seen[:] = len(seen), []
    model = patched(tiny, latent, PICTURE, cfg=2.0, sigmas=sigmas)[0]
    disturbed = euler(model, latent, cfg=2.0, sigmas=sigmas)
    assert len(seen) == calls
    inside, strengths = 0, stable_strength(sigmas, 2.0)
    assert all(f == 1 for f in strengths[:-1])  # the last step to 0 fades on every schedule
    for (x, t), sigma, strength in zip(seen, sigmas, strengths):
        uncond, cond = x.chunk(2)  # the engine's order: the null branch first
        assert (t == t[0]).all()
        if sigma <= start:
            inside += 1
            torch.testing.assert_close(uncond, cond + strength * (z - cond), rtol=1e-5, atol=1e-5)
            assert (cond - z).abs().max() > 0.01
        else:
            assert torch.equal(uncond, cond)
    assert 0 < inside < calls and not torch.equal(disturbed, plain)


def test_rollback_feeds_the_earlier_latent_unscaled_at_the_networks_input(tiny, engine, euler, latent, network_calls):
    sigmas, seen = engine.sigmas_of(tiny, "normal", 30), network_calls(tiny)
    euler(patched(tiny, cfg=2.0)[0], latent, cfg=2.0, sigmas=sigmas)
    start, time = time_to_sigma(tiny)(0.3), disturbance.sigma_to_time(tiny)
    inputs = {float(s): x.chunk(2) for s, (x, _) in zip(sigmas, seen)}
    levels = sorted(inputs)
    s = max(level for level in levels if level <= start)
    old = time_to_sigma(tiny)(time(s) + 0.3)
    lower, upper = max(v for v in levels if v <= old), min(v for v in levels if v >= old)
    own = {v: inputs[v][1] * (1 + v * v) ** 0.5 for v in (lower, upper)}  # latents, from the positive branch's input
    expected = own[upper] + (upper - old) / max(upper - lower, 1e-9) * (own[lower] - own[upper])
    torch.testing.assert_close(inputs[s][0], expected / (1 + old * old) ** 0.5, rtol=1e-3, atol=1e-3)


def spying(model, see):
    """The model with a wrapper of somebody else's that shows every call's arguments."""

    def spy(apply_model, args):
        see(args)
        return apply_model(args["input"], args["timestep"], **args["c"])

    base = model.clone()
    base.set_model_unet_function_wrapper(spy)
    return base


def test_two_runs_are_equal_and_another_wrapper_is_kept(tiny, euler, latent):
    asked = []
    model = patched(spying(tiny, asked.append), cfg=2.0)[0]
    first = euler(model, latent, cfg=2.0)
    assert len(asked) == 8
    assert torch.equal(euler(model, latent, cfg=2.0), first)


@pytest.mark.parametrize("match", [False, True])
def test_what_another_node_adds_after_cfg_is_not_taken_for_cfg(tiny, euler, latent, match):
    """ILVR behind the disturbance adds after its measurement of cfg; in front of it, no other way."""
    held = lambda model: run("ILVR", model=model, reference=latent.flip(0) + 1, end_percent=1.0)[0]
    disturbed = lambda model: patched(model, start_percent=0.3, cfg=8.0, match=match)[0]
    front, behind = (euler(model, latent, cfg=8.0) for model in (disturbed(held(tiny)), held(disturbed(tiny))))
    assert torch.equal(front, behind) and not torch.equal(front, euler(held(tiny), latent, cfg=8.0))


def test_a_run_after_an_interrupted_one_does_not_see_its_latents(tiny, engine, euler, latent):
    model, sigmas = patched(tiny, latent, start_percent=0.3, cfg=2.0)[0], engine.sigmas_of(tiny, "normal", 12)
    fresh = euler(model, latent, cfg=2.0, sigmas=sigmas[7:])
    euler(model, latent * 3, cfg=2.0, sigmas=sigmas[:5])  # ends high, as if interrupted there
    assert torch.equal(euler(model, latent, cfg=2.0, sigmas=sigmas[7:]), fresh)


def test_a_coarse_schedule_fades_the_strength_and_says_so(tiny, engine, euler, latent, caplog):
    model, given = patched(tiny, latent, PICTURE, cfg=10.0)[0], engine.sigmas_of(tiny, "normal", 10)
    for sigmas, fades in ((given, True), (disturbance_schedule(given, 10.0, time_to_sigma(tiny)(0.3)), False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="nulltext"):
            assert torch.isfinite(euler(model, latent, cfg=10.0, sigmas=sigmas)).all()
        assert any("strength fades" in r.message for r in caplog.records) == fades


def test_cfg_1_is_noticed(tiny, euler, latent, caplog):
    with caplog.at_level(logging.WARNING, logger="nulltext"):
        out = euler(patched(tiny, latent, PICTURE)[0], latent, cfg=1.0)
    assert torch.equal(out, euler(tiny, latent, cfg=1.0))
    assert any("no null branch" in r.message for r in caplog.records)
    assert "cfg 1" in patched(tiny, cfg=1.0).text


def test_disturbance_report_and_schedule_node(tiny, engine):
    given = engine.sigmas_of(tiny, "normal", 20)
    assert "fades to" in patched(tiny, cfg=10.0, sigmas=given).text
    inputs = {"cfg": 10.0, "start_percent": 0.7, "steps_above": 8, "steps_below": 0}
    result = run("DisturbanceSchedule", model=tiny, sigmas=given, **inputs)
    (sigmas,) = result
    assert "stable" in result.text and "NOT" not in result.text
    assert sigmas[0] == given[0] and sigmas[-1] == 0 and bool((sigmas[1:] < sigmas[:-1]).all())
    assert "keeps the full strength" in patched(tiny, cfg=10.0, sigmas=sigmas).text


def test_disturbance_refusals(tiny, euler, latent):
    with pytest.raises(ValueError, match="connect its LATENT"):
        patched(tiny, None, PICTURE)
    with pytest.raises(ValueError, match="latent is empty"):
        patched(tiny, latent * 0, PICTURE)
    smaller = patched(tiny, latent[..., :4], PICTURE)[0]
    with pytest.raises(ValueError, match="resize the picture"):  # at the first step
        euler(smaller, latent)


def test_a_rollback_has_no_run_to_look_back_at_in_direct_edit(tiny, ends, make_condition, latent):
    def edited(model):
        conds = {"source": ends[0], "target": make_condition(4), "negative": ends[1]}
        return run("DirectEdit", model=model, latent=latent, steps=4, **conds).samples

    with pytest.raises(ValueError, match=r"rollback .* looks back at one run, and FlowEdit .* \(Image-D\)"):
        edited(patched(patched(tiny)[0], latent, PICTURE)[0])
    assert not torch.equal(edited(patched(tiny, latent, PICTURE)[0]), edited(tiny))


def test_two_prompts_without_a_null_branch_are_compared_undisturbed(tiny, ends, latent):
    """DiffEdit Mask asks for two prompts, and neither is the negative one."""
    masks = [
        run("DiffEditMask", model=model, source=ends[0], target=ends[1], latent=latent, maps=2)[1]
        for model in (tiny, patched(tiny, latent[:1], PICTURE, start_percent=0.3)[0])
    ]
    assert torch.equal(*masks)


def test_disturbance_sampler(tiny, cartoon, latent):
    def made(strength, denoise, samples=latent, **inputs):
        return cartoon(tiny, samples, 4.0, 6, strength=strength, denoise=denoise, **inputs)

    plain, disturbed = made(0.0, 1.0), made(1.0, 1.0)
    assert "Notice" in plain.text and "network calls" in disturbed.text
    assert not torch.equal(plain.samples, disturbed.samples)
    assert torch.equal(made(1.0, 0.0).samples, latent)
    near = made(1.0, 0.3, look=PICTURE).samples
    assert near.shape == latent.shape and torch.isfinite(near).all()
    with pytest.raises(ValueError, match="starts from a picture"):
        made(1.0, 0.5, samples=latent * 0)


def test_a_schedule_too_short_for_cfg_is_said_with_the_strength_that_is_left(tiny, cartoon, latent):
    few = cartoon(tiny, latent, below=3)
    sigmas = levels(tiny, 10.0, below=3)
    inside = (sigmas[:-1] <= time_to_sigma(tiny)(0.3) * (1 + 1e-6)).tolist()
    strengths = [f for f, here in zip(stable_strength(sigmas, 10.0), inside) if here][:-1]  # the last step always fades
    found = re.search(r"Notice: strength fades to ([\d.]+), .*raise steps_below", few.text)
    assert len(strengths) == 3 and float(found[1]) == round(min(strengths), 2) < 0.2
    assert torch.isfinite(few.samples).all()
    for options in ({}, {"strength": 0.0, "below": 3}, {"cfg": 1.0, "below": 3}):  # enough steps; nothing disturbed
        assert "fades" not in cartoon(tiny, latent, **options).text, options


@pytest.mark.parametrize("cfg, strength, denoise", [(4.0, 0.0, 1.0), (1.0, 1.0, 1.0), (4.0, 0.0, 0.3), (1.0, 1.0, 0.3)])
def test_without_strength_or_cfg_it_is_the_engines_euler_to_the_bit(
    tiny, cartoon, euler, latent, cfg, strength, denoise
):
    out = cartoon(tiny, latent, cfg, strength=strength, denoise=denoise)
    plain = euler(tiny, latent, cfg, sigmas=levels(tiny, cfg, denoise), seed=5)
    assert torch.equal(out.samples, plain) and "ordinary sampling" in out.text
    assert not torch.equal(cartoon(tiny, latent, 4.0, denoise=denoise).samples, plain)


@pytest.mark.parametrize("lengths", [(77, 154), (154, 77), (77, 77 * 7), (77 * 7, 77)])
def test_prompts_of_unlike_length_leave_the_null_rows_looking_at_the_picture(
    tiny, cartoon, make_condition, latent, lengths
):
    """77 and 154 tokens share a call (padded), 77 and 539 do not; the negative prompt is a text, not the empty one."""
    positive, negative, other = (make_condition(i, n) for i, n in ((1, lengths[0]), (2, lengths[1]), (3, lengths[1])))
    z, start, seen = to_model_space(tiny, {"samples": latent}), time_to_sigma(tiny)(0.3), []

    def see(args):
        kinds = args["cond_or_uncond"]
        seen.append((float(args["timestep"].max()), kinds, args["input"].chunk(len(kinds))))

    model = spying(tiny, see)  # the disturbance calls it with what the network is given
    out = cartoon(model, latent, 1.5, 8, (positive, negative), look=PICTURE).samples
    assert torch.isfinite(out).all()
    inside = [(s, kind, x) for s, kinds, rows in seen for kind, x in zip(kinds, rows) if s <= start * (1 + 1e-6)]
    null, cond = ([(s, x) for s, kind, x in inside if kind == which] for which in (1, 0))
    assert len(null) == len(cond) == 9
    for s, x in null:  # cfg 1.5 is stable whatever the steps: the strength fades nowhere
        torch.testing.assert_close(x * (1 + s * s) ** -0.5, z, rtol=1e-4, atol=1e-4)
    assert all((x * (1 + s * s) ** -0.5 - z).abs().max() > 0.01 for s, x in cond)
    together = {len(kinds) for _, kinds, _ in seen}
    assert together == ({1} if max(lengths) > 77 * 4 else {2})  # as the engine joins them
    swapped = cartoon(tiny, latent, 1.5, 8, (positive, other), look=PICTURE).samples
    assert not torch.equal(out, swapped)  # the negative prompt is read


@pytest.mark.parametrize("node", [disturbance.Disturbance, disturbance.DisturbanceSampler])
def test_the_default_is_the_papers_formula(node):
    assert node.INPUT_TYPES()["optional"]["match"][1]["default"] is False
    assert inspect.signature(node.run).parameters["match"].default is False


def test_match_is_off_unless_asked_for_and_the_report_says_that_it_is_ours(tiny, cartoon, latent):
    default, off, on = (
        cartoon(tiny, latent, 4.0, look=PICTURE, **match) for match in ({}, {"match": False}, {"match": True})
    )
    assert torch.equal(default.samples, off.samples) and not torch.equal(default.samples, on.samples)
    assert "smoothing" not in default.text and "match is on: our own smoothing" in on.text


@pytest.mark.parametrize("look, bounds", [(ROLLBACK, MATCH_ROLLBACK), (PICTURE, MATCH_PICTURE)])
def test_each_look_sees_its_own_latent_and_has_its_own_bounds(tiny, look, bounds, latent):
    """Asked of the patch itself: a picture is wired both times, and only Image-D may look at it."""
    of = lambda match: patched(tiny, torch.ones_like(latent[:1]) / SCALE, look, 1.5, match=match)[0].model_options[
        "model_function_wrapper"
    ]
    branch = of(True)
    sigma_at, seen = time_to_sigma(tiny), []
    x = {sigma_at(0.5): torch.full((1, 4, 8, 8), 5.0), sigma_at(0.2): torch.full((1, 4, 8, 8), 2.0)}
    for sigma, here in x.items():
        args = {"input": here, "timestep": torch.tensor([sigma]), "c": {}, "cond_or_uncond": [1]}
        branch(lambda given, s: seen.append(given * (1 + s**2) ** -0.5) or given, args)
    high = sigma_at(0.5)
    expected = x[high] * (1 + high**2) ** -0.5 if look == ROLLBACK else torch.ones(1, 4, 8, 8)
    torch.testing.assert_close(seen[1], expected, rtol=1e-4, atol=1e-4)
    assert branch.match == bounds and of(False).match is None


def test_the_bound_alone_needs_no_picture_and_is_no_disturbance(tiny, cartoon, latent):
    itself = cartoon(tiny, latent, 4.0, 8, look=ITSELF)
    plain = cartoon(tiny, latent, 4.0, 8, strength=0.0)
    assert torch.isfinite(itself.samples).all() and "fades" not in itself.text
    branch = patched(tiny, look=ITSELF, cfg=4.0)[0].model_options["model_function_wrapper"]
    assert branch.disturbance.itself and branch.match == MATCH_ROLLBACK
    assert patched(tiny, look=ITSELF, cfg=4.0, strength=0.0)[0] is tiny
    assert not torch.equal(itself.samples, plain.samples)
