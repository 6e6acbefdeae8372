"""Masked edits of a picture on tiny random models: how many masks there may be, soft masks, flow models, notices."""

import dataclasses
import logging

import pytest
import torch
from nulltext.engine.comfy import process_of, to_model_space
from nulltext.engine.guider import guider_class
from nulltext.engine.noise import model_notes, source_latent
from nulltext.engine.sampler import core_sampler, own_sampler, sample_latent
from nulltext.nodes import blended, diffedit, inversion_sampling, repaint, sdedit
from nulltext.samplers.core import VE
from nulltext.samplers.inversion.record import Inversion
from nulltext.samplers.picture.repaint import ranged_path, sample_repaint
from nulltext.samplers.picture.repaint_schedules import OURS, Schedule, data_scale

INSIDE = torch.zeros(8, 8, dtype=torch.bool)
INSIDE[2:6, 2:5] = True


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():  # as nodes run
        yield


@pytest.fixture
def mask():
    return INSIDE.float().repeat_interleave(8, 0).repeat_interleave(8, 1)[None]


@pytest.fixture
def invert(engine):
    """invert(model, latent): an INVERSION of ten steps whose trajectory is the noised picture."""

    def made(model, latent, **more):
        process, sigmas = process_of(model), engine.sigmas_of(model, "normal", 10)
        clean = to_model_space(model, {"samples": latent})
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
        return Inversion(
            sigmas=sigmas,
            trajectory=torch.stack([process.noised(clean, s, noise) for s in sigmas]),
            process="ve" if process is VE else "flow",
            metadata=model_notes(model, float(sigmas[0])),
            **more,
        )

    return made


def text(result):
    return result["ui"]["text"][0]


def samples(result):
    return result["result"][0]["samples"]


@pytest.fixture
def edits(make_condition, invert):
    """By name, edit(model, latent [B, C, h, w], mask, **more) of each node that edits inside a mask."""
    ends = lambda model: (model, make_condition(1), make_condition(2))

    def fill(model, latent, mask, mode=repaint.RESAMPLING, grow=0, schedule=repaint.CUSTOM, **more):
        return repaint.RePaintSampler().run(
            *ends(model),
            {"samples": latent, **more},
            mask,
            7,
            3.0,
            schedule=schedule,
            levels=5,
            jump=1,
            resamples=3,
            low=0.0,
            high=2.0,
            noise=repaint.RENEWED,
            mode=mode,
            particles=3,
            grow=grow,
        )

    def noised(model, latent, mask, t0=0.6, **more):
        return sdedit.SDEdit().run(
            *ends(model), {"samples": latent, **more}, 1, 3.0, t0, 5, sdedit.STOCHASTIC, "", mask
        )

    def inverted(model, latent, mask, depth=0.8, **more):
        return diffedit.DiffEdit().run(*ends(model), invert(model, latent, **more), mask, 3.0, depth)

    def blend(model, latent, mask, hold=blended.BLEND, weight=1.0):
        return blended.BlendedDiffusion().run(
            *ends(model), {"samples": latent}, mask, 2, 3.0, 5, 0.9, "noise", 2, "fresh", hold, weight
        )

    return {"repaint": fill, "sdedit": noised, "diffedit": inverted, "blended": blend}


class Asked(Exception):
    """The network was asked."""


@pytest.fixture
def idle(tiny):
    """A model that may not be asked."""

    def refuse(*_, **__):
        raise Asked

    handle = tiny.model.diffusion_model.register_forward_pre_hook(refuse)
    yield tiny
    handle.remove()


@pytest.mark.parametrize("masks, latents", [(3, 2), (2, 1)])
@pytest.mark.parametrize("name", ["repaint", "sdedit", "diffedit", "blended"])
def test_masks_that_do_not_match_are_refused_before_any_work(edits, idle, latent, mask, name, masks, latents):
    with pytest.raises(ValueError, match=f"There are {masks} masks for {latents} latents?: give one, or one for each"):
        edits[name](idle, latent[:latents], mask.expand(masks, -1, -1))
    with pytest.raises(Asked):  # one for each is asked of the network
        edits[name](idle, latent[:latents], mask.expand(latents, -1, -1))


def test_pixel_composite_refuses_masks_that_do_not_match():
    pictures = torch.rand(2, 16, 16, 3)
    with pytest.raises(ValueError, match="There are 3 masks for 2 edits: give one, or one for each"):
        repaint.PixelComposite().run(pictures, pictures, torch.ones(3, 16, 16), 0)


def test_diffedit_needs_one_path(edits, idle, latent, mask):
    with pytest.raises(ValueError, match="DiffEdit follows one path from noise to image, and the pivot random"):
        edits["diffedit"](idle, latent, mask, pivot="random")


def test_diffedit_says_that_null_embeddings_are_not_used(edits, tiny, latent, mask):
    plain = edits["diffedit"](tiny, latent, mask)
    carried = edits["diffedit"](tiny, latent, mask, null_embeddings=torch.ones(10, 2, 77, 64))
    assert "Notice" not in text(plain) and "Notice: this inversion's null embeddings are not used" in text(carried)
    assert torch.equal(samples(plain), samples(carried))


def test_exact_leaning_counts_a_soft_mask_from_a_half_on_and_resampling_from_0(edits, tiny, latent):
    soft = torch.zeros(1, 8, 8)
    soft[:, 2:6, 2:4], soft[:, 2:6, 4:6] = 0.3, 0.7
    for mode, changed in ((repaint.RESAMPLING, soft[0] > 0), (repaint.EXACT, soft[0] > 0.5)):
        out = samples(edits["repaint"](tiny, latent, soft, mode))
        assert torch.equal(out[..., ~changed], latent[..., ~changed])
        assert ((out - latent).abs().amax((0, 1))[changed] > 0.01).all()


def test_exact_leaning_says_before_any_work_that_a_mask_is_too_soft(edits, idle, latent, mask):
    result = edits["repaint"](idle, latent, 0.4 * mask, repaint.EXACT)
    assert text(result).startswith("Notice: the mask nowhere reaches 0.5") and torch.equal(samples(result), latent)
    with pytest.raises(Asked):
        edits["repaint"](idle, latent, 0.4 * mask, repaint.RESAMPLING)


@pytest.mark.parametrize("mode", [repaint.RESAMPLING, repaint.EXACT])
def test_the_repaint_sampler_warns_of_filling_all_or_nothing(tiny, engine, latent, mode, make_condition, caplog):
    sampler = repaint.RePaint().run(repaint.CUSTOM, 1, 1, 0.0, 5.0, repaint.RENEWED, mode, 2)["result"][0]
    ends, sigmas = (make_condition(1), make_condition(2)), engine.sigmas_of(tiny, "normal", 2)

    def warnings(grid):
        caplog.clear()
        sample_latent(tiny, *ends, 3.0, sampler, sigmas, {"samples": latent}, 0, grid)
        return [r.message for r in caplog.records if r.levelno == logging.WARNING and r.name == "nulltext"]

    grid = INSIDE.float()[None, None]
    assert "no noise mask, so everything is repainted" in "".join(warnings(None))
    assert not warnings(grid)
    assert bool(warnings(0.4 * grid)) == (mode == repaint.EXACT)


@pytest.mark.parametrize("mode", [repaint.RESAMPLING, repaint.EXACT])
def test_the_repaint_box_says_its_cost_once_and_before_the_first_call(edits, tiny, latent, mask, mode, caplog):
    costs = lambda: [r.getMessage() for r in caplog.records if "network calls over" in r.getMessage()]
    before = []
    hook = tiny.model.diffusion_model.register_forward_pre_hook(lambda *_: before.append(costs()))
    try:
        with caplog.at_level(logging.INFO, logger="nulltext"):
            result = edits["repaint"](tiny, latent, mask, mode)
    finally:
        hook.remove()
    assert len(costs()) == 1 and before[0] == costs() and text(result) in costs()[0]


def test_sdedit_takes_the_latents_own_mask_where_none_is_wired(edits, tiny, latent, mask):
    wired, own = edits["sdedit"](tiny, latent, mask), edits["sdedit"](tiny, latent, None, noise_mask=mask[:, None])
    assert torch.equal(samples(own), samples(wired)) and torch.equal(samples(own)[..., ~INSIDE], latent[..., ~INSIDE])
    assert "noise_mask" not in own["result"][0]
    other = edits["sdedit"](tiny, latent, mask, noise_mask=torch.ones(1, 1, 64, 64))  # the wired one counts
    assert torch.equal(samples(other), samples(wired))


def test_the_loss_says_when_it_holds_nothing(edits, tiny, latent, mask):
    told = lambda mask, weight: text(edits["blended"](tiny, latent, mask, hold=blended.LOSS, weight=weight))
    assert "Notice: the weight is 0, so nothing holds the background" in told(mask, 0.0)
    assert "Notice: the mask covers everything, so there is no background" in told(torch.ones_like(mask), 1.0)
    assert "Notice" not in told(mask, 1.0) and "only pulled" in told(mask, 1.0)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("name", ["sdedit", "diffedit"])
def test_masked_edits_keep_the_rest_to_the_bit(edits, make_model, invert, latent, mask, kind, name):
    model = make_model(kind)
    source = source_latent(invert(model, latent)) if name == "diffedit" else latent
    out = samples(edits[name](model, latent, mask))
    assert torch.equal(out[..., ~INSIDE], source[..., ~INSIDE]) and torch.isfinite(out).all()
    assert (out - source).abs().amax((0, 1))[INSIDE].min() > 0.01
    torch.testing.assert_close(source, latent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_whole_picture_moves_further_from_a_higher_level(edits, make_model, latent, kind):
    model = make_model(kind)
    out = [samples(edits["sdedit"](model, latent, None, t0)) for t0 in (0.0, 0.1, 0.4, 0.9)]
    far = [(x - latent).square().mean().item() for x in out]
    assert far[0] == 0 and far == sorted(set(far))


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_loss_pulls_the_background(edits, make_model, latent, mask, kind):
    model = make_model(kind)

    def drift(weight):
        out = samples(edits["blended"](model, latent, mask, hold=blended.LOSS, weight=weight))
        assert torch.isfinite(out).all() and (out - latent)[..., INSIDE].abs().max() > 0.1
        return (out - latent)[..., ~INSIDE].square().mean().item()

    assert 0 < drift(5.0) < drift(0.0)


@pytest.fixture
def repainted(tiny, engine, make_condition, latent):
    """run(SAMPLER) of five levels with a noise mask, and those levels."""
    sigmas = engine.sigmas_of(tiny, "karras", 5)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))

    def run(sampler, latent=latent):
        guider = guider_class()(tiny)
        guider.set_conds(make_condition(1), make_condition(2))
        guider.set_cfg(1.0)
        return guider.sample(
            noise, latent, sampler, sigmas, seed=1, denoise_mask=INSIDE.float()[None, None], disable_pbar=True
        )

    return run, sigmas


def make(plan):
    return repaint.make_sampler(plan, repaint.RESAMPLING, 1)


def test_the_papers_schedules_take_its_posterior_steps_and_renewed_noise_others(repainted):
    run, sigmas = repainted
    paper = own_sampler(sample_repaint, holds_mask=True, eta=1.0, path=ranged_path(sigmas, 1, 2))
    posterior, renewed = run(make(Schedule(5, 1, 2))), run(make(Schedule(5, 1, 2, renew=True)))
    assert torch.equal(posterior, run(paper))
    assert (renewed - posterior).abs().max() > 0.1
    assert not any(plan.renew for name, plan in repaint.PRESETS.items() if name.startswith("paper"))
    title, plan = next(iter(repaint.PRESETS.items()))  # what both nodes start at
    assert title == "paper, 2410 calls (250/10/10)" and (plan.levels, plan.jump, plan.resamples) == (250, 10, 10)


def test_our_range_is_in_units_of_the_known_parts_spread(repainted, tiny, latent):
    run, sigmas = repainted
    quiet = 0.2 * latent
    scale = data_scale(to_model_space(tiny, {"samples": quiet}), INSIDE.float()[None, None])
    assert 0.1 < scale < 0.3
    middle = float(sigmas[3])
    plan = Schedule(5, 1, 4, 0.9 * middle / scale, 1.1 * middle / scale, renew=True)
    in_sigma = ranged_path(sigmas, 1, 4, 0.9 * middle, 1.1 * middle)
    assert plan.path(sigmas, VE, scale) == in_sigma != plan.path(sigmas)
    fixed = own_sampler(sample_repaint, holds_mask=True, path=in_sigma, eta=plan.eta(VE, scale))
    assert torch.equal(run(make(plan), quiet), run(fixed, quiet))


@pytest.mark.parametrize("grid", [None, INSIDE.float()[None, None]], ids=["no mask", "a mask"])
def test_the_progress_of_our_schedule_counts_what_is_walked(tiny, engine, make_condition, latent, grid):
    """Its calls follow the latent's spread, so the bar's total must too."""
    sigmas, ticks = OURS.sigmas(0.0292, 14.61, scale=0.18).float(), []
    guider = guider_class()(tiny)
    guider.set_conds(make_condition(1), make_condition(2))
    guider.set_cfg(1.0)
    guider.sample(
        latent,
        0.2 * latent,
        make(dataclasses.replace(OURS, resamples=2)),
        sigmas,
        seed=1,
        denoise_mask=grid,
        disable_pbar=True,
        callback=lambda step, x0, x, total: ticks.append((step, total)),
    )
    assert ticks == [(i, len(ticks)) for i in range(len(ticks))] and len(ticks) > 30


def test_numbers_are_read_with_custom_only(edits, tiny, latent, mask, monkeypatch):
    seen = []

    def made(plan, *more, **options):
        seen.append(plan)
        raise Asked

    monkeypatch.setattr(repaint, "make_sampler", made)
    for name in (*repaint.PRESETS, repaint.CUSTOM):
        with pytest.raises(Asked):
            edits["repaint"](tiny, latent, mask, schedule=name)
    *presets, custom = seen
    assert presets == list(repaint.PRESETS.values())
    assert custom == Schedule(5, 1, 3, 0.0, 2.0, renew=True)


def test_the_sampler_says_when_other_levels_are_wired_than_its_preset_is_made_for(tiny, engine):
    def said(levels, schedule):
        sigmas = engine.sigmas_of(tiny, "normal", levels)
        return text(
            repaint.RePaint().run(schedule, 5, 5, 0.0, 1000.0, repaint.POSTERIOR, repaint.RESAMPLING, 2, tiny, sigmas)
        )

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
    assert text(result).startswith(f"{calls} network calls over {repaint.PRESETS[name].levels} levels")
    assert torch.equal(walked[0], engine.sigmas_of(tiny, "normal", repaint.PRESETS[name].levels))


ANSWER, SOURCE, SCALE = 2.0, 0.5, 0.18215  # what the network always says, and the picture, in model space


@pytest.fixture
def constant(tiny):
    """A model whose guided answer is ANSWER everywhere."""
    model = tiny.clone()
    model.set_model_sampler_post_cfg_function(lambda args: torch.full_like(args["denoised"], ANSWER))
    return model


@pytest.fixture
def soft():
    """[1, 8, 8]: a half where INSIDE, all and nothing in two rows beside it."""
    grid = 0.5 * INSIDE.float()
    grid[0] = 1.0
    return grid[None]


@pytest.fixture
def masked(edits, make_condition, invert):
    """By name, run(model, latent, mask) -> latent of everything that samples inside a mask with a loop of ours."""

    def replayed(pivot, **more):
        def run(model, latent, mask):
            inversion = invert(model, latent, pivot=pivot, **more)
            return inversion_sampling.Sampler().run(model, inversion, 1.0, make_condition(1), make_condition(2), mask)

        return run

    return {
        **edits,
        "repaint, exact-leaning": lambda *a: edits["repaint"](*a, mode=repaint.EXACT),
        "Null-Text Sampler": replayed("ddim"),
        "Null-Text Sampler, edit-friendly": replayed("edit_friendly", residuals=torch.zeros(10, 2, 4, 8, 8)),
    }


@pytest.mark.parametrize(
    "name",
    [
        "repaint",
        "repaint, exact-leaning",
        "sdedit",
        "blended",
        "diffedit",
        "Null-Text Sampler",
        "Null-Text Sampler, edit-friendly",
    ],
)
def test_a_soft_mask_mixes_once_as_in_the_engines_euler(masked, constant, engine, make_condition, latent, soft, name):
    """m D + (1 - m) source: D = 2, source .5, mask .5 make 1.25; mixing twice would make .875."""
    source = torch.full_like(latent, SOURCE / SCALE)
    source[..., 5] = latent[..., 5]  # somewhere outside, a picture
    out = samples(masked[name](constant, source, soft))
    core = sample_latent(
        constant,
        make_condition(1),
        make_condition(2),
        3.0,
        core_sampler("euler"),
        engine.sigmas_of(constant, "normal", 5),
        {"samples": source},
        7,
        soft[:, None],
    )["samples"]
    assert (SCALE * out)[..., INSIDE].sub(1.25).abs().max() < 1e-5
    torch.testing.assert_close(out, core, rtol=1e-4, atol=1e-4)
    outside = out[..., soft[0] == 0]
    if name in ("diffedit", "Null-Text Sampler", "Null-Text Sampler, edit-friendly"):  # scaled in and out again
        torch.testing.assert_close(outside, source[..., soft[0] == 0], rtol=1e-6, atol=0)
    else:
        assert torch.equal(outside, source[..., soft[0] == 0])


@pytest.mark.parametrize("holds", [True, False])
def test_only_a_loop_that_says_so_is_given_the_mask(tiny, engine, make_condition, latent, holds):
    """A parameter of that name says nothing: what is asked is `holds_mask`."""
    seen = []

    def loop(denoise, x, sigmas, *, process, noise, callback, mask=None, source=None):
        seen.append((mask, source))
        return x * 0 + 3

    grid = INSIDE.float()[None, None].expand(2, 1, -1, -1)
    out = sample_latent(
        tiny,
        make_condition(1),
        make_condition(2),
        1.0,
        own_sampler(loop, holds_mask=holds),
        engine.sigmas_of(tiny, "normal", 3),
        {"samples": latent},
        0,
        grid,
    )["samples"]
    ((mask, source),) = seen
    assert (mask is not None) == (source is not None) == holds
    torch.testing.assert_close(out[..., INSIDE], torch.full_like(out[..., INSIDE], 3 / SCALE))
    torch.testing.assert_close(out[..., ~INSIDE], latent[..., ~INSIDE])
