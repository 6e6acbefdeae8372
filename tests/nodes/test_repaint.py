"""RePaint's nodes on tiny random models: the known part, schedules and their costs, the sampler, pixel composites."""

import dataclasses
import logging

import pytest
import torch
from nulltext.engine.comfy import to_model_space
from nulltext.engine.sampler import own_sampler, sample_latent
from nulltext.nodes import repaint
from nulltext.samplers.core import VE
from nulltext.samplers.picture.repaint import ranged_path, sample_repaint
from nulltext.samplers.picture.repaint_schedules import OURS, Schedule, data_scale
from nulltext.tests.running import normal, run, walk

pytestmark = pytest.mark.usefixtures("inference")
modes = pytest.mark.parametrize("mode", [repaint.RESAMPLING, repaint.EXACT])


def sampler(**inputs):
    """RePaint as a SAMPLER: Out."""
    values = {"schedule": repaint.CUSTOM, "jump": 1, "noise": repaint.RENEWED, "particles": 2, **inputs}
    return run("RePaint", **values)


@pytest.fixture
def grid(inside):
    """[1, 1, 8, 8], a noise mask."""
    return inside.float()[None, None]


@modes
@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_repaint_keeps_the_known_latent_to_the_bit(edits, make_model, latent, mask, kind, mode):
    result = edits["repaint"](make_model(kind), latent, mask, mode=mode, grow=1)
    known = torch.ones(8, 8, dtype=torch.bool)
    known[1:7, 1:6] = False  # the mask's cells and one around them
    assert torch.equal(result.samples[..., known], latent[..., known])
    assert torch.isfinite(result.samples).all() and (result.samples - latent)[..., ~known].abs().max() > 0.1
    assert "network calls over 5 levels" in result.text


@modes
@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_what_lies_under_the_mask_has_no_influence_at_full_noise(edits, make_model, latent, mask, inside, kind, mode):
    model, other = make_model(kind), latent.masked_fill(inside, 15.0)
    fills = [edits["repaint"](model, each, mask, mode=mode, cfg=1.0).samples[..., inside] for each in (latent, other)]
    assert torch.equal(*fills)


@modes
def test_a_run_that_starts_lower_begins_with_what_lies_under_the_mask(tiny, engine, ends, latent, grid, inside, mode):
    (made,), sigmas = sampler(resamples=1, mode=mode), engine.sigmas_of(tiny, "normal", 5)[1:]
    fills = [
        sample_latent(tiny, *ends, 1.0, made, sigmas, {"samples": each}, 0, grid)["samples"][..., inside]
        for each in (latent, latent.masked_fill(inside, 15.0))
    ]
    assert (fills[0] - fills[1]).abs().max() > 0.1


def test_a_full_mask_is_noticed(edits, tiny, latent):
    assert "Notice" in edits["repaint"](tiny, latent, torch.ones(1, 64, 64)).text


def test_exact_leaning_counts_a_soft_mask_from_a_half_on_and_resampling_from_0(edits, tiny, latent):
    soft = torch.zeros(1, 8, 8)
    soft[:, 2:6, 2:4], soft[:, 2:6, 4:6] = 0.3, 0.7
    for mode, changed in ((repaint.RESAMPLING, soft[0] > 0), (repaint.EXACT, soft[0] > 0.5)):
        out = edits["repaint"](tiny, latent, soft, mode=mode).samples
        assert torch.equal(out[..., ~changed], latent[..., ~changed])
        assert ((out - latent).abs().amax((0, 1))[changed] > 0.01).all()


def test_exact_leaning_says_before_any_work_that_a_mask_is_too_soft(edits, idle, latent, mask):
    result = edits["repaint"](idle, latent, 0.4 * mask, mode=repaint.EXACT)
    assert result.text.startswith("Notice: the mask nowhere reaches 0.5") and torch.equal(result.samples, latent)
    with pytest.raises(idle.asked):
        edits["repaint"](idle, latent, 0.4 * mask, mode=repaint.RESAMPLING)


@pytest.mark.parametrize("cfg, rows", [(3.0, 32), (1.0, 16)])
def test_room_is_made_for_all_particles(edits, tiny, latent, mask, room, network_calls, cfg, rows):
    asked, calls = room(tiny), network_calls(tiny)
    edits["repaint"](tiny, latent, mask, mode=repaint.EXACT, particles=8, cfg=cfg)
    assert {len(x) for x, _ in calls} == set(asked) == {rows}


@modes
def test_the_repaint_box_says_its_cost_once_and_before_the_first_call(edits, tiny, latent, mask, mode, caplog):
    costs = lambda: [r.getMessage() for r in caplog.records if "network calls over" in r.getMessage()]
    before = []
    hook = tiny.model.diffusion_model.register_forward_pre_hook(lambda *_: before.append(costs()))
    try:
        with caplog.at_level(logging.INFO, logger="nulltext"):
            result = edits["repaint"](tiny, latent, mask, mode=mode)
    finally:
        hook.remove()
    assert len(costs()) == 1 and before[0] == costs() and result.text in costs()[0]


@modes
def test_the_repaint_sampler_warns_of_filling_all_or_nothing(tiny, engine, ends, latent, grid, mode, caplog):
    (made,), sigmas = sampler(resamples=1, high=5.0, mode=mode), engine.sigmas_of(tiny, "normal", 2)

    def warnings(grid):
        caplog.clear()
        sample_latent(tiny, *ends, 3.0, made, sigmas, {"samples": latent}, 0, grid)
        return [r.message for r in caplog.records if r.levelno == logging.WARNING and r.name == "nulltext"]

    assert "no noise mask, so everything is repainted" in "".join(warnings(None))
    assert not warnings(grid)
    assert bool(warnings(0.4 * grid)) == (mode == repaint.EXACT)


def test_repaint_as_a_sampler_holds_the_noise_mask_and_counts_its_calls(tiny, engine, ends, latent):
    sigmas, ticks = engine.sigmas_of(tiny, "karras", 6), []
    made = sampler(resamples=3, high=50.0, model=tiny, sigmas=sigmas, particles=1)
    calls, grid = int(made.text.split()[0]), torch.zeros(1, 1, 8, 8)
    grid[..., 2:6, 2:6] = 1
    watch = lambda step, x0, x, total: ticks.append((step, total))
    out = walk(tiny, ends, 3.0, normal(*latent.shape), sigmas, latent, made[0], grid, watch, seed=1)
    assert ticks == [(i, calls) for i in range(calls)] and calls > 6
    known = (grid == 0).expand_as(latent)
    torch.testing.assert_close(out[known], latent[known], rtol=1e-6, atol=1e-6)  # the engine scales in and out


@pytest.fixture
def repainted(tiny, engine, ends, latent, grid):
    """run(SAMPLER) of five levels with a noise mask, and those levels."""
    sigmas = engine.sigmas_of(tiny, "karras", 5)

    def made(sampler, latent=latent):
        return walk(tiny, ends, 1.0, normal(*latent.shape), sigmas, latent, sampler, grid, seed=1)

    return made, sigmas


def make(plan):
    return repaint.make_sampler(plan, repaint.RESAMPLING, 1)


def test_the_papers_schedules_take_its_posterior_steps_and_renewed_noise_others(repainted):
    run, sigmas = repainted
    paper = own_sampler(sample_repaint, holds_mask=True, from_noise=True, eta=1.0, path=ranged_path(sigmas, 1, 2))
    posterior, renewed = run(make(Schedule(5, 1, 2))), run(make(Schedule(5, 1, 2, renew=True)))
    assert torch.equal(posterior, run(paper))
    assert (renewed - posterior).abs().max() > 0.1
    assert not any(plan.renew for name, plan in repaint.PRESETS.items() if name.startswith("paper"))
    title, plan = next(iter(repaint.PRESETS.items()))  # what both nodes start at
    assert title == "paper, 2410 calls (250/10/10)" and (plan.levels, plan.jump, plan.resamples) == (250, 10, 10)


def test_our_range_is_in_units_of_the_known_parts_spread(repainted, tiny, latent, grid):
    run, sigmas = repainted
    quiet, middle = 0.2 * latent, float(sigmas[3])
    scale = data_scale(to_model_space(tiny, {"samples": quiet}), grid)
    assert 0.1 < scale < 0.3
    plan = Schedule(5, 1, 4, 0.9 * middle / scale, 1.1 * middle / scale, renew=True)
    in_sigma = ranged_path(sigmas, 1, 4, 0.9 * middle, 1.1 * middle)
    assert plan.path(sigmas, VE, scale) == in_sigma != plan.path(sigmas)
    fixed = own_sampler(sample_repaint, holds_mask=True, from_noise=True, path=in_sigma, eta=plan.eta(VE, scale))
    assert torch.equal(run(make(plan), quiet), run(fixed, quiet))


@pytest.mark.parametrize("masked", [False, True])
def test_the_progress_of_our_schedule_counts_what_is_walked(tiny, ends, latent, grid, masked):
    """Its calls follow the latent's spread, so the bar's total must too."""
    sigmas, ticks = OURS.sigmas(0.0292, 14.61, scale=0.18).float(), []
    watch = lambda step, x0, x, total: ticks.append((step, total))
    ours = make(dataclasses.replace(OURS, resamples=2))
    walk(tiny, ends, 1.0, latent, sigmas, 0.2 * latent, ours, grid if masked else None, watch, seed=1)
    assert ticks == [(i, len(ticks)) for i in range(len(ticks))] and len(ticks) > 30


def test_numbers_are_read_with_custom_only(edits, idle, latent, mask, monkeypatch):
    seen = []

    def made(plan, *more, **options):
        seen.append(plan)
        raise idle.asked

    monkeypatch.setattr(repaint, "make_sampler", made)
    for name in (*repaint.PRESETS, repaint.CUSTOM):
        with pytest.raises(idle.asked):
            edits["repaint"](idle, latent, mask, schedule=name)
    *presets, custom = seen
    assert presets == list(repaint.PRESETS.values())
    assert custom == Schedule(5, 1, 3, 0.0, 2.0, renew=True)


def test_the_sampler_says_when_other_levels_are_wired_than_its_preset_is_made_for(tiny, engine):
    def said(levels, schedule):
        sigmas = engine.sigmas_of(tiny, "normal", levels)
        return sampler(schedule=schedule, jump=5, noise=repaint.POSTERIOR, model=tiny, sigmas=sigmas).text

    small = "paper, 105 calls (25/5/5)"
    assert said(25, small).startswith("105 network calls over 25 levels") and "Notice" not in said(25, small)
    assert "Notice: this schedule is made for 25 levels, and 20 are wired" in said(20, small)
    assert "Notice" not in said(20, repaint.CUSTOM)


@pytest.mark.parametrize(
    "name, calls",
    [("paper, 105 calls (25/5/5)", 105), ("paper, 230 calls (50/5/5)", 230), ("paper, 2410 calls (250/10/10)", 2410)],
)
def test_a_papers_preset_costs_what_it_says_on_levels_even_in_time(
    edits, tiny, latent, mask, monkeypatch, engine, name, calls
):
    walked = []
    monkeypatch.setattr(repaint, "sample_latent", lambda *args: walked.append(args[5]) or {"samples": latent})
    result = edits["repaint"](tiny, latent, mask, schedule=name)
    assert result.text.startswith(f"{calls} network calls over {repaint.PRESETS[name].levels} levels")
    assert torch.equal(walked[0], engine.sigmas_of(tiny, "normal", repaint.PRESETS[name].levels))


def test_pixel_composite():
    original, edited, mask = torch.rand(1, 16, 16, 3), torch.rand(2, 16, 16, 3), torch.zeros(1, 16, 16)
    mask[:, 4:8, 4:8] = 1

    def pasted(edited=edited, mask=mask, feather=2):
        return run("PixelComposite", original=original, edited=edited, mask=mask, feather=feather)

    out, empty = pasted()[0], pasted(mask=mask * 0)
    assert torch.equal(out[:, 11:], original.expand(2, -1, -1, -1)[:, 11:])
    assert torch.equal(out[:, 4:8, 4:8], edited[:, 4:8, 4:8])
    assert torch.equal(empty[0][1], original[0]) and empty.text.startswith("Notice")
    with pytest.raises(ValueError, match="resize one"):
        pasted(edited[:, :8])
    with pytest.raises(ValueError, match="There are 3 masks for 2 edits: give one, or one for each"):
        pasted(mask=torch.ones(3, 16, 16))
