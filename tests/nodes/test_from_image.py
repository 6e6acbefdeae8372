"""Sampling from a picture, on tiny random models of the engine at hand: identities, spies, constraints, refusals."""

import logging

import pytest
import torch
from nulltext.engine.comfy import time_to_sigma, to_model_space
from nulltext.engine.guider import guider_class
from nulltext.engine.noise import source_latent
from nulltext.engine.sampler import core_sampler, sample_latent
from nulltext.nodes import blended, diffedit, disturbance, disturbance_schedule, ilvr, repaint, sdedit
from nulltext.samplers.picture import disturbance_schedules as paper
from nulltext.samplers.picture.lowpass import LOW_PASSES, dct_low_pass

SCALE = 0.18215


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():  # as nodes run
        yield


def text(result):
    return result["ui"]["text"][0]


def euler(model, engine, make_condition, latent, cfg=5.0, steps=8, sigmas=None, seed=3):
    sigmas = engine.sigmas_of(model, "normal", steps) if sigmas is None else sigmas
    return sample_latent(
        model, make_condition(1), make_condition(2), cfg, core_sampler("euler"), sigmas, {"samples": latent}, seed
    )["samples"]


@pytest.fixture
def mask():
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:40] = 1
    return mask


# ------------------------------------------------------------------------------------------------------- disturbance


def patched(model, latent=None, look=disturbance.ROLLBACK, strength=1.0, rollback=0.3, start=0.7, end=1.0, cfg=5.0):
    picture = None if latent is None else {"samples": latent}
    return disturbance.Disturbance().run(model, look, strength, rollback, start, end, cfg, picture)


@pytest.mark.parametrize("change", [{"strength": 0.0}, {"rollback": 0.0}, {"start": 0.6, "end": 0.6}])
def test_disturbance_that_changes_nothing_passes_the_model_on(tiny, change):
    result = patched(tiny, **change)
    assert result["result"][0] is tiny and text(result).startswith("Notice:")


@pytest.mark.parametrize("look", [disturbance.ROLLBACK, disturbance.PICTURE])
def test_outside_the_window_the_run_is_the_untouched_one_to_the_bit(tiny, engine, make_condition, latent, look):
    sigmas = engine.sigmas_of(tiny, "normal", 8)[:5]  # ends above the window
    plain = euler(tiny, engine, make_condition, latent, sigmas=sigmas)
    model = patched(tiny, latent, look, start=0.9)["result"][0]
    assert torch.equal(euler(model, engine, make_condition, latent, sigmas=sigmas), plain)
    assert "model_function_wrapper" not in tiny.model_options  # the given model is as it was


def test_null_branch_sees_the_picture_at_the_current_timestep_and_nothing_is_asked_twice(
    tiny, engine, make_condition, latent
):
    seen = []
    sigmas = paper.disturbance_schedule(engine.sigmas_of(tiny, "normal", 8), 2.0, time_to_sigma(tiny)(0.3))
    hook = tiny.model.diffusion_model.register_forward_pre_hook(
        lambda module, args: seen.append((args[0].clone(), args[1].clone()))
    )
    try:
        plain = euler(tiny, engine, make_condition, latent, cfg=2.0, sigmas=sigmas)
        calls, seen[:] = len(seen), []
        model = patched(tiny, latent, disturbance.PICTURE, cfg=2.0)["result"][0]
        disturbed = euler(model, engine, make_condition, latent, cfg=2.0, sigmas=sigmas)
    finally:
        hook.remove()
    assert len(seen) == calls
    start = time_to_sigma(tiny)(0.3)
    z = to_model_space(tiny, {"samples": latent})
    inside = 0
    for (x, t), sigma in zip(seen, sigmas):
        uncond, cond = x.chunk(2)  # the engine's order: the null branch first
        assert (t == t[0]).all()
        if sigma <= start:
            inside += 1
            torch.testing.assert_close(uncond, z, rtol=1e-5, atol=1e-5)
            assert (cond - z).abs().max() > 0.01
        else:
            assert torch.equal(uncond, cond)
    assert 0 < inside < calls and not torch.equal(disturbed, plain)


def test_rollback_feeds_the_earlier_latent_unscaled_at_the_networks_input(tiny, engine, make_condition, latent):
    seen = []
    sigmas = engine.sigmas_of(tiny, "normal", 30)
    hook = tiny.model.diffusion_model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    try:
        euler(patched(tiny, cfg=2.0)["result"][0], engine, make_condition, latent, cfg=2.0, sigmas=sigmas)
    finally:
        hook.remove()
    start, time = time_to_sigma(tiny)(0.3), disturbance.sigma_to_time(tiny)
    inputs = {float(s): x.chunk(2) for s, x in zip(sigmas, seen)}
    levels = sorted(inputs)
    s = max(level for level in levels if level <= start)
    old = time_to_sigma(tiny)(time(s) + 0.3)
    lower, upper = max(v for v in levels if v <= old), min(v for v in levels if v >= old)
    own = {v: inputs[v][1] * (1 + v * v) ** 0.5 for v in (lower, upper)}  # latents, from the positive branch's input
    expected = own[upper] + (upper - old) / max(upper - lower, 1e-9) * (own[lower] - own[upper])
    torch.testing.assert_close(inputs[s][0], expected / (1 + old * old) ** 0.5, rtol=1e-3, atol=1e-3)


def test_two_runs_are_equal_and_another_wrapper_is_kept(tiny, engine, make_condition, latent):
    asked = []

    def mine(apply_model, args):
        asked.append(float(args["timestep"][0]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    base = tiny.clone()
    base.set_model_unet_function_wrapper(mine)
    model = patched(base, cfg=2.0)["result"][0]
    first = euler(model, engine, make_condition, latent, cfg=2.0)
    assert len(asked) == 8
    assert torch.equal(euler(model, engine, make_condition, latent, cfg=2.0), first)


def test_a_run_after_an_interrupted_one_does_not_see_its_latents(tiny, engine, make_condition, latent):
    model = patched(tiny, latent, rollback=0.2, cfg=2.0)["result"][0]
    sigmas = engine.sigmas_of(tiny, "normal", 12)
    late = sigmas[7:]
    fresh = euler(model, engine, make_condition, latent, cfg=2.0, sigmas=late)
    euler(model, engine, make_condition, latent * 3, cfg=2.0, sigmas=sigmas[:5])  # ends high, as if interrupted there
    again = euler(model, engine, make_condition, latent, cfg=2.0, sigmas=late)
    if "sample_sigmas" in _told(tiny, engine, make_condition, latent):
        assert torch.equal(fresh, again)
    else:  # this engine does not tell where a run begins: at most the first step may differ
        assert (fresh - again).abs().max() < (fresh.abs().max() * 0.5)


def _told(model, engine, make_condition, latent):
    told = set()
    base = model.clone()

    def spy(apply_model, args):
        told.update(args["c"].get("transformer_options", {}))
        return apply_model(args["input"], args["timestep"], **args["c"])

    base.set_model_unet_function_wrapper(spy)
    euler(base, engine, make_condition, latent, steps=2)
    return told


def test_a_coarse_schedule_fades_the_strength_and_says_so(tiny, engine, make_condition, latent, caplog):
    model = patched(tiny, latent, disturbance.PICTURE, cfg=10.0)["result"][0]
    with caplog.at_level(logging.WARNING, logger="nulltext"):
        coarse = euler(model, engine, make_condition, latent, cfg=10.0, steps=10)
    assert any("strength fades" in r.message for r in caplog.records)
    assert torch.isfinite(coarse).all()
    caplog.clear()
    sigmas = paper.disturbance_schedule(engine.sigmas_of(tiny, "normal", 10), 10.0, time_to_sigma(tiny)(0.3))
    with caplog.at_level(logging.WARNING, logger="nulltext"):
        euler(model, engine, make_condition, latent, cfg=10.0, sigmas=sigmas)
    assert not [r for r in caplog.records if "strength fades" in r.message]


def test_cfg_1_is_noticed(tiny, engine, make_condition, latent, caplog):
    model = patched(tiny, latent, disturbance.PICTURE)["result"][0]
    with caplog.at_level(logging.WARNING, logger="nulltext"):
        out = euler(model, engine, make_condition, latent, cfg=1.0)
    assert torch.equal(out, euler(tiny, engine, make_condition, latent, cfg=1.0))
    assert any("no null branch" in r.message for r in caplog.records)
    assert "cfg 1" in text(patched(tiny, cfg=1.0))


def test_disturbance_report_and_schedule_node(tiny, engine):
    given = engine.sigmas_of(tiny, "normal", 20)
    told = disturbance.Disturbance().run(tiny, disturbance.ROLLBACK, 1.0, 0.3, 0.7, 1.0, 10.0, None, given)
    assert "fades to" in text(told)
    result = disturbance_schedule.DisturbanceSchedule().run(tiny, given, 10.0, 0.7, 8, 0)
    sigmas = result["result"][0]
    assert "stable" in text(result) and "NOT" not in text(result)
    assert sigmas[0] == given[0] and sigmas[-1] == 0 and bool((sigmas[1:] < sigmas[:-1]).all())
    told = disturbance.Disturbance().run(tiny, disturbance.ROLLBACK, 1.0, 0.3, 0.7, 1.0, 10.0, None, sigmas)
    assert "keeps the full strength" in text(told)


def test_disturbance_refusals(tiny, latent):
    with pytest.raises(ValueError, match="connect its LATENT"):
        patched(tiny, None, disturbance.PICTURE)
    with pytest.raises(ValueError, match="latent is empty"):
        patched(tiny, latent * 0, disturbance.PICTURE)


def test_disturbance_of_another_size_is_refused_at_the_first_step(tiny, engine, make_condition, latent):
    model = patched(tiny, latent[..., :4], disturbance.PICTURE)["result"][0]
    with pytest.raises(ValueError, match="resize the picture"):
        euler(model, engine, make_condition, latent)


def box(node, tiny, make_condition, *args, **kwargs):
    return node().run(tiny, make_condition(1), make_condition(2), *args, **kwargs)


def test_disturbance_sampler(tiny, make_condition, latent):
    run = lambda strength, denoise, look=disturbance.ROLLBACK, samples=latent: box(
        disturbance.DisturbanceSampler,
        tiny,
        make_condition,
        {"samples": samples},
        5,
        4.0,
        look,
        strength,
        0.3,
        0.7,
        denoise,
        4,
        6,
    )
    plain, cartoon = run(0.0, 1.0), run(1.0, 1.0)
    assert "Notice" in text(plain) and "network calls" in text(cartoon)
    assert not torch.equal(plain["result"][0]["samples"], cartoon["result"][0]["samples"])
    assert torch.equal(run(1.0, 0.0)["result"][0]["samples"], latent)
    near = run(1.0, 0.3, disturbance.PICTURE)["result"][0]["samples"]
    assert near.shape == latent.shape and torch.isfinite(near).all()
    with pytest.raises(ValueError, match="starts from a picture"):
        run(1.0, 0.5, samples=latent * 0)


# ----------------------------------------------------------------------------------------------------------- RePaint


def fill(model, make_condition, latent, mask, mode=repaint.RESAMPLING, noise=repaint.RENEWED):
    return box(
        repaint.RePaintSampler,
        model,
        make_condition,
        {"samples": latent},
        mask,
        7,
        3.0,
        schedule=repaint.CUSTOM,
        levels=5,
        jump=1,
        resamples=3,
        low=0.0,
        high=2.0,
        noise=noise,
        mode=mode,
        particles=3,
        grow=1,
    )


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
@pytest.mark.parametrize("mode", [repaint.RESAMPLING, repaint.EXACT])
def test_repaint_keeps_the_known_latent_to_the_bit(make_model, make_condition, latent, mask, kind, mode):
    model = make_model(kind)
    result = fill(model, make_condition, latent, mask, mode)
    out = result["result"][0]["samples"]
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[1:7, 1:6] = False  # the mask's cells and one around them
    assert torch.equal(out[..., outside], latent[..., outside])
    assert torch.isfinite(out).all() and (out - latent)[..., ~outside].abs().max() > 0.1
    assert "network calls over 5 levels" in text(result)


def test_repaint_empty_and_full_mask(tiny, make_condition, latent):
    empty = fill(tiny, make_condition, latent, torch.zeros(1, 64, 64))
    assert torch.equal(empty["result"][0]["samples"], latent) and text(empty).startswith("Notice")
    assert "Notice" in text(fill(tiny, make_condition, latent, torch.ones(1, 64, 64)))
    with pytest.raises(ValueError, match="latent is empty"):
        fill(tiny, make_condition, latent * 0, torch.ones(1, 64, 64))


def test_repaint_as_a_sampler_holds_the_noise_mask_and_counts_its_calls(tiny, engine, make_condition, latent):
    sigmas = engine.sigmas_of(tiny, "karras", 6)
    made = repaint.RePaint().run(repaint.CUSTOM, 1, 3, 0.0, 50.0, repaint.RENEWED, repaint.RESAMPLING, 1, tiny, sigmas)
    calls = int(text(made).split()[0])
    grid = torch.zeros(1, 1, 8, 8)
    grid[..., 2:6, 2:6] = 1
    guider = guider_class()(tiny)
    guider.set_conds(make_condition(1), make_condition(2))
    guider.set_cfg(3.0)
    ticks = []
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    out = guider.sample(
        noise,
        latent,
        made["result"][0],
        sigmas,
        denoise_mask=grid,
        seed=1,
        disable_pbar=True,
        callback=lambda step, x0, x, total: ticks.append((step, total)),
    )
    assert ticks == [(i, calls) for i in range(calls)] and calls > 6
    known = (grid == 0).expand_as(latent)
    torch.testing.assert_close(out[known], latent[known], rtol=1e-6, atol=1e-6)  # the engine scales in and out


def test_pixel_composite():
    original, edited, mask = torch.rand(1, 16, 16, 3), torch.rand(2, 16, 16, 3), torch.zeros(1, 16, 16)
    mask[:, 4:8, 4:8] = 1
    out = repaint.PixelComposite().run(original, edited, mask, 2)["result"][0]
    assert torch.equal(out[:, 11:], original.expand(2, -1, -1, -1)[:, 11:])
    assert torch.equal(out[:, 4:8, 4:8], edited[:, 4:8, 4:8])
    empty = repaint.PixelComposite().run(original, edited, mask * 0, 2)
    assert torch.equal(empty["result"][0][1], original[0]) and text(empty).startswith("Notice")
    with pytest.raises(ValueError, match="resize one"):
        repaint.PixelComposite().run(original, edited[:, :8], mask, 2)


# -------------------------------------------------------------------------------------------------------------- ILVR

BICUBIC, COSINES = LOW_PASSES  # the paper's first: what both nodes start at


def test_ilvr_patch_holds_the_coarse_content(tiny, engine, make_condition, latent):
    phi = dct_low_pass(2)
    reference = latent.flip(0) + 1
    model = ilvr.ILVR().run(tiny, {"samples": reference}, 2.0, COSINES, 1.0, 0.0, 1.0)["result"][0]
    out = euler(model, engine, make_condition, latent)
    torch.testing.assert_close(phi(out) * SCALE, phi(reference) * SCALE, rtol=0, atol=1e-4)
    assert (out - reference).abs().max() > 0.5
    late = ilvr.ILVR().run(tiny, {"samples": reference}, 2.0, COSINES, 1.0, 0.99999, 1.0)["result"][0]
    assert torch.equal(
        euler(late, engine, make_condition, latent, sigmas=engine.sigmas_of(tiny, "normal", 8)[:6]),
        euler(tiny, engine, make_condition, latent, sigmas=engine.sigmas_of(tiny, "normal", 8)[:6]),
    )


def test_ilvr_off_and_refusals(tiny, engine, make_condition, latent):
    reference = {"samples": latent}
    for strength, start, end in ((0.0, 0.0, 1.0), (1.0, 0.5, 0.5)):
        result = ilvr.ILVR().run(tiny, reference, 2.0, BICUBIC, strength, start, end)
        assert result["result"][0] is tiny and text(result).startswith("Notice")
    with pytest.raises(ValueError, match="latent is empty"):
        ilvr.ILVR().run(tiny, {"samples": latent * 0}, 2.0, BICUBIC, 1.0, 0.0, 1.0)
    other = ilvr.ILVR().run(tiny, {"samples": latent[..., :4]}, 2.0, BICUBIC, 1.0, 0.0, 1.0)["result"][0]
    with pytest.raises(ValueError, match="resize the reference"):
        euler(other, engine, make_condition, latent)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_ilvr_sampler_and_its_strip(make_model, make_condition, latent, kind):
    result = box(
        ilvr.ILVRSampler,
        make_model(kind),
        make_condition,
        {"samples": latent},
        3,
        2.0,
        6,
        "normal",
        2.0,
        COSINES,
        1.0,
        "4@0.5, 2@0",
    )
    out = result["result"][0]["samples"]
    assert out.shape[0] == 3 * latent.shape[0]
    phi = dct_low_pass(2)
    torch.testing.assert_close(phi(out[:2]) * SCALE, phi(latent) * SCALE, rtol=0, atol=1e-4)
    assert (phi(out[4:]) - phi(latent)).abs().max() > 0.1
    assert "18 network calls" in text(result) and "no step is conditioned" in text(result)
    assert "2 in latent cells = 16 in pixels" in text(result)


# ------------------------------------------------------------------------------------------------------------ SDEdit


def edit(tiny, make_condition, latent, t0=0.5, more="", mask=None, noise=sdedit.STOCHASTIC):
    return box(sdedit.SDEdit, tiny, make_condition, {"samples": latent}, 1, 3.0, t0, 5, noise, more, mask)


def test_sdedit_levels_and_identities(tiny, make_condition, latent, mask):
    nothing = edit(tiny, make_condition, latent, 0.0)
    assert torch.equal(nothing["result"][0]["samples"], latent) and text(nothing).startswith("Notice")
    strip = edit(tiny, make_condition, latent, 0.1, "0.4, 0.9")
    out = strip["result"][0]["samples"]
    far = [(part - latent).square().mean().item() for part in out.chunk(3)]
    assert out.shape[0] == 6 and far == sorted(far) and "layout" in text(strip)
    masked = edit(tiny, make_condition, latent, 0.6, mask=mask)["result"][0]["samples"]
    assert torch.equal(masked[..., 7:, :], latent[..., 7:, :]) and not torch.equal(masked, latent)
    assert torch.equal(edit(tiny, make_condition, latent, 0.6, mask=mask * 0)["result"][0]["samples"], latent)
    with pytest.raises(ValueError, match="noise levels are numbers from 0 to 1"):
        edit(tiny, make_condition, latent, 0.5, "half")
    with pytest.raises(ValueError, match="latent is empty"):
        edit(tiny, make_condition, latent * 0)


def test_deterministic_sdedit_is_the_engines_img2img(tiny, engine, make_condition, latent):
    from nulltext.samplers.picture.sdedit import sdedit_sigmas

    ours = edit(tiny, make_condition, latent, 0.5, noise=sdedit.DETERMINISTIC)["result"][0]["samples"]
    sigmas = sdedit_sigmas(time_to_sigma(tiny), 0.5, 5).float()
    core = euler(tiny, engine, make_condition, latent, cfg=3.0, sigmas=sigmas, seed=1)
    assert (ours - core).abs().max() / core.abs().max() < 1e-5


# ---------------------------------------------------------------------------------------------------------- DiffEdit


def test_diffedit_mask(tiny, make_condition, latent):
    run = lambda source, target: diffedit.DiffEditMask().run(
        tiny, make_condition(source), make_condition(target), {"samples": latent}, 0, 2, 0.5, 0.5, 3.0, 0, 0
    )
    equal = run(1, 1)
    assert equal["result"][0].sum() == 0 and text(equal).startswith("Notice")
    mask, heat = run(1, 2)["result"]
    assert mask.shape == (2, 64, 64) and heat.shape == (2, 64, 64, 3)
    assert 0 < mask.mean() < 1 and set(mask.unique().tolist()) == {0.0, 1.0} and heat.max() <= 1
    assert torch.equal(mask, (heat[..., 0] > 0.5).float())
    with pytest.raises(ValueError, match="latent is empty"):
        diffedit.DiffEditMask().run(
            tiny, make_condition(1), make_condition(2), {"samples": latent * 0}, 0, 2, 0.5, 0.5, 3.0, 0, 0
        )


@pytest.fixture
def inversion(tiny, engine, latent):
    from nulltext.engine.noise import model_notes
    from nulltext.samplers.inversion.record import Inversion

    sigmas = engine.sigmas_of(tiny, "normal", 10)
    clean = to_model_space(tiny, {"samples": latent})
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    return Inversion(
        sigmas=sigmas,
        trajectory=torch.stack([clean + s * noise for s in sigmas]),
        metadata=model_notes(tiny, float(sigmas[0])),
    )


def test_diffedit_holds_the_trajectory(tiny, make_condition, latent, inversion, mask):
    run = lambda mask, depth: diffedit.DiffEdit().run(
        tiny, make_condition(1), make_condition(2), inversion, mask, 3.0, depth
    )
    result = run(mask, 0.8)
    out = result["result"][0]["samples"]
    assert text(result).startswith("8 network calls")
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:5] = True
    source = source_latent(inversion)
    torch.testing.assert_close(source, latent, rtol=1e-5, atol=1e-5)  # the inversion keeps model space
    assert torch.equal(out[..., ~inside], source[..., ~inside])
    assert (out - latent)[..., inside].abs().max() > 0.1
    for nothing in (run(mask * 0, 0.8), run(mask, 0.0)):
        assert text(nothing).startswith("Notice")
        assert torch.equal(nothing["result"][0]["samples"], source)


# ----------------------------------------------------------------------------------------------------------- blended


def blend(
    model, make_condition, latent, mask, start="noise", noise="fresh", hold=blended.BLEND, t0=0.9, weight=1.0, shrink=2
):
    return box(
        blended.BlendedDiffusion,
        model,
        make_condition,
        {"samples": latent},
        mask,
        2,
        3.0,
        5,
        t0,
        start,
        shrink,
        noise,
        hold,
        weight,
    )


@pytest.mark.parametrize(
    "kind, start, noise", [("EPS", "noise", "fresh"), ("EPS", "picture", "fixed"), ("FLOW", "noise", "fixed")]
)
def test_blending_keeps_the_background_to_the_bit(make_model, make_condition, latent, mask, kind, start, noise):
    out = blend(make_model(kind), make_condition, latent, mask, start, noise)["result"][0]["samples"]
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:5] = False
    assert torch.equal(out[..., outside], latent[..., outside])
    assert torch.isfinite(out).all() and (out - latent)[..., ~outside].abs().max() > 0.1


def test_the_first_variant_pulls_the_background_and_leaves_the_model_alone(tiny, make_condition, latent, mask):
    before = {k: (id(p), p.clone()) for k, p in tiny.model.named_parameters()}
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:5] = False

    def drift(weight):
        result = blend(tiny, make_condition, latent, mask, hold=blended.LOSS, weight=weight)
        out = result["result"][0]["samples"]
        assert torch.isfinite(out).all()
        return (out - latent)[..., outside].square().mean().item()

    assert 0 < drift(5.0) < drift(0.0)
    assert all(id(p) == before[k][0] and torch.equal(p, before[k][1]) for k, p in tiny.model.named_parameters())


def test_blending_notices(tiny, make_condition, latent, mask):
    for nothing in (blend(tiny, make_condition, latent, mask * 0), blend(tiny, make_condition, latent, mask, t0=0.0)):
        assert text(nothing).startswith("Notice") and torch.equal(nothing["result"][0]["samples"], latent)
    assert "nothing is held" in text(blend(tiny, make_condition, latent, torch.ones(1, 64, 64)))
    with pytest.raises(ValueError, match="latent is empty"):
        blend(tiny, make_condition, latent * 0, mask)


# --------------------------------------------------------------------------------------------------------- interrupt


@pytest.mark.parametrize("hold", [blended.BLEND, blended.LOSS])
def test_interrupt_stops_and_the_next_run_works(tiny, engine, make_condition, latent, mask, hold):
    manage = engine.get("model_management")
    manage.interrupt_current_processing(True)
    with pytest.raises(engine.Interrupted()):
        blend(tiny, make_condition, latent, mask, hold=hold)
    manage.interrupt_current_processing(False)
    assert torch.isfinite(blend(tiny, make_condition, latent, mask, hold=hold)["result"][0]["samples"]).all()


# ------------------------------------------------------------------------------------------------------------- house


def test_every_node_has_a_tooltip_on_every_input_and_says_its_search_words():
    for module in (disturbance, repaint, ilvr, sdedit, diffedit, blended):
        for node in module.NODES:
            for group in node.INPUT_TYPES().values():
                for name, spec in group.items():
                    assert len(spec) == 2 and len(spec[1]["tooltip"]) > 15, f"{node.ID}.{name}"
            assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
            assert all(alias in node.DESCRIPTION for alias in node.SEARCH_ALIASES)
