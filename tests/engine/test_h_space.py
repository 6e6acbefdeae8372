"""h is the middle block's output; reading it changes nothing, a shift of nought neither, and nothing stays behind."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks.harness import ratio
from nulltext.engine import h_space, weights
from nulltext.engine.comfy import to_model_space
from nulltext.engine.fingerprint import fingerprint
from nulltext.engine.pair_guider import prompt_to_prompt_guider
from nulltext.engine.run import sample_with
from nulltext.engine.sampler import core_sampler, own_sampler, sample_latent
from nulltext.nodes import ilvr
from nulltext.samplers.attention.alignment import TokenMap
from nulltext.samplers.attention.controllers import ReplaceCross, ReplaceSelf
from nulltext.samplers.attention.layers import StepWindow
from nulltext.samplers.inversion.record import Inversion
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.lowpass import LOW_PASSES, dct_low_pass
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.h_direction import Direction, new_block
from nulltext.samplers.window import SigmaWindow
from nulltext.tests.running import fails_and_is_interrupted


def direction(model, sigmas, site=0, scale=3.0, **changes):
    shape = {0: (64, 4, 4), 1: (64, 4, 4), 2: (64, 8, 8), 3: (32, 8, 8)}[site]
    shifts = scale * torch.randn(len(sigmas) - 1, *shape, generator=torch.Generator().manual_seed(8))
    return Direction(sigmas, shifts, site=site, fingerprint=fingerprint(model), **changes)


def mirrored(h):
    return h.flip(-1)


def inside(model, conds, latent, sigmas, body):
    with torch.inference_mode():
        return sample_with(model, conds, latent, sigmas, body)


def sampled(model, sampler, ends, latent, sigmas, cfg=3.0, mask=None):
    with torch.inference_mode():
        return sample_latent(model, *ends, cfg, sampler, sigmas, {"samples": latent}, 3, mask)["samples"]


@pytest.fixture
def sigmas(tiny, engine):
    return engine.sigmas_of(tiny, "normal", 4)


def test_site_0_reads_the_middle_blocks_output(tiny, ends, latent, sigmas):
    seen = []
    tiny.model.diffusion_model.middle_block[-1].register_forward_hook(lambda m, i, out: seen.append(out.clone()))

    def body(run):
        x, place = 3 * run.latent, h_space.Site()
        bare = run.predictions(x, sigmas[1], ["positive"])[0]
        h, denoised = h_space.read(run, place, x, sigmas[1])
        both = run.predictions(x, sigmas[1], ["positive", "negative"])
        with run.patched(h_space.PATCH, place.patch), place.reading() as found:
            again = run.predictions(x, sigmas[1], ["positive", "negative"])
        assert torch.equal(denoised, bare) and all(torch.equal(a, b) for a, b in zip(both, again))
        assert torch.equal(h, seen[0]) and h.shape == (2, 64, 4, 4)
        assert torch.allclose(found[0], h, atol=1e-5) and not torch.allclose(found[1], h, atol=1e-2)
        later, _ = h_space.read(run, h_space.Site(2), x, sigmas[1])
        assert later.shape == (2, 64, 8, 8)

    inside(tiny, dict(zip(("positive", "negative"), ends)), latent, sigmas, body)


@pytest.mark.parametrize("site", [0, 1, 3])
def test_reading_and_a_shift_of_nought_are_neutral_to_the_bit(tiny, ends, latent, sigmas, site):
    """In a direct call, and in a run of ComfyUI's own sampler with cfg."""
    place = h_space.Site(site)
    patched = tiny.clone()
    patched.set_model_output_block_patch(place.patch)
    nothing = torch.zeros_like

    def body(run):
        x = 3 * run.latent
        bare = run.predictions(x, sigmas[1], ["positive"])[0]
        with run.patched(h_space.PATCH, place.patch):
            assert torch.equal(run.predictions(x, sigmas[1], ["positive"])[0], bare)
            with place.shifting(nothing):
                assert torch.equal(run.predictions(x, sigmas[1], ["positive"])[0], bare)
            with place.shifting(mirrored):
                assert not torch.allclose(run.predictions(x, sigmas[1], ["positive"])[0], bare, rtol=1e-3)

    inside(tiny, {"positive": ends[0]}, latent, sigmas, body)
    args = (ends, latent, sigmas)
    bare = sampled(tiny, core_sampler("euler"), *args)
    with place.reading() as found:
        assert torch.equal(sampled(patched, core_sampler("euler"), *args), bare)
    assert set(found) == {0, 1}  # the prompt's h and the negative prompt's
    with place.shifting(nothing):
        assert torch.equal(sampled(patched, core_sampler("euler"), *args), bare)
    with place.shifting(mirrored):
        assert not torch.allclose(sampled(patched, core_sampler("euler"), *args), bare, rtol=1e-3)
    assert torch.equal(sampled(patched, core_sampler("euler"), *args), bare)


def test_the_conditional_rows_alone(tiny, ends, latent, sigmas):
    place = h_space.Site()

    def body(run):
        x, names = 3 * run.latent, ["positive", "negative"]
        bare = run.predictions(x, sigmas[1], names)
        with run.patched(h_space.PATCH, place.patch), place.shifting(mirrored, null_branch=False):
            made = run.predictions(x, sigmas[1], names)
            swapped = run.predictions(x, sigmas[1], names[::-1])
        assert torch.equal(made[1], bare[1]) and not torch.allclose(made[0], bare[0], rtol=1e-3)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(swapped, made[::-1]))
        with run.patched(h_space.PATCH, place.patch), place.shifting(mirrored, h_space.SECOND_HALF):
            halves = run.predictions(x, sigmas[1], names)
        for half, whole in zip(halves, bare):
            assert torch.equal(half[:1], whole[:1]) and not torch.allclose(half[1:], whole[1:], rtol=1e-3)

    inside(tiny, dict(zip(("positive", "negative"), ends)), latent, sigmas, body)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_strength_0_is_euler_to_the_bit_and_two_rows_are_two_calls(make_model, engine, ends, latent, kind):
    model = make_model(kind)
    sigmas = engine.sigmas_of(model, "normal", 4)
    d = direction(model, sigmas, process="flow" if kind == "FLOW" else "ve")
    args = (ends, latent, sigmas)
    euler = sampled(model, own_sampler(sample_euler), *args)
    assert torch.equal(sampled(model, h_space.asyrp_sampler([(d, 0.0)]), *args), euler)
    one = sampled(model, h_space.asyrp_sampler([(d, 1.0)]), *args)
    two = sampled(model, h_space.asyrp_sampler([(d, 1.0)], two_calls=True), *args)
    assert not torch.allclose(one, euler, rtol=1e-2)
    assert torch.allclose(one, two, atol=2e-5 * float(one.abs().max()))
    window = SigmaWindow(float("inf"), float(sigmas[1]))
    early = sampled(model, h_space.asyrp_sampler([(d, 1.0)], window=window), *args)
    assert not torch.allclose(early, one, rtol=1e-2) and not torch.allclose(early, euler, rtol=1e-2)


def test_calls_and_rows_of_a_run(tiny, ends, latent, sigmas):
    rows = []
    tiny.model.diffusion_model.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    d = direction(tiny, sigmas, edit=float(sigmas[2]))
    sampled(tiny, h_space.asyrp_sampler([(d, 1.0)]), ends, latent, sigmas)
    assert rows == [8, 8, 8, 4]  # 2 samples x 2 prompts, twice as many down to the direction's last level


def test_a_step_takes_little_longer_than_two_plain_calls(tiny, ends, latent, sigmas):
    """At most 1.15 times as long: medians of interleaved runs, since a machine is shared."""
    asyrp, euler = h_space.asyrp_sampler([(direction(tiny, sigmas), 1.0)]), own_sampler(sample_euler)
    walk = lambda sampler: sampled(tiny, sampler, ends, latent, sigmas)  # noqa: E731
    assert ratio(lambda: walk(asyrp), lambda: (walk(euler), walk(euler)), 9) <= 1.15


def test_outside_a_mask_the_source_stands_for_every_sample(tiny, ends, latent, sigmas):
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4], mask[1, :, :, 4:] = 1, 1
    d = direction(tiny, sigmas)
    out = sampled(tiny, h_space.asyrp_sampler([(d, 1.0)]), ends, latent, sigmas, mask=mask)
    assert torch.allclose(torch.where(mask == 0, out - latent, 0), torch.zeros(1), atol=1e-5)
    assert not torch.allclose(torch.where(mask == 1, out - latent, 0), torch.zeros(1), atol=1.0)


def test_from_an_inversion_the_walk_begins_at_its_noise(tiny, ends, latent, sigmas):
    clean = to_model_space(tiny, {"samples": latent}).clone()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    inversion = Inversion(sigmas, torch.stack([clean + s * noise for s in sigmas]))
    d = direction(tiny, sigmas)
    args = (ends, latent, sigmas)
    euler = sampled(tiny, own_sampler(sample_euler, start=inversion.x_T), *args)
    assert torch.equal(sampled(tiny, h_space.asyrp_sampler([(d, 0.0)], inversion=inversion), *args), euler)
    assert not torch.allclose(sampled(tiny, h_space.asyrp_sampler([(d, 1.0)], inversion=inversion), *args), euler)
    with pytest.raises(ValueError, match="fits sigmas that begin at 14.61; this run has 3 steps"):
        sampled(tiny, h_space.asyrp_sampler([(d, 1.0)], inversion=inversion), ends, latent, sigmas[1:])


def test_after_an_error_and_an_interrupt_nothing_stays(tiny, engine, ends, latent, sigmas, monkeypatch):
    d, net = direction(tiny, sigmas), tiny.model.diffusion_model
    args = (ends, latent, sigmas)
    euler = sampled(tiny, own_sampler(sample_euler), *args)
    options, hooks = repr(tiny.model_options), len(net._forward_pre_hooks)
    asyrp, plain = h_space.asyrp_sampler([(d, 1.0)]), h_space.asyrp_sampler([(d, 0.0)])
    first = sampled(tiny, asyrp, *args)
    fails_and_is_interrupted(engine, net, lambda: sampled(tiny, asyrp, *args))
    assert repr(tiny.model_options) == options and len(net._forward_pre_hooks) == hooks
    assert torch.equal(sampled(tiny, plain, *args), euler) and torch.equal(sampled(tiny, asyrp, *args), first)


def test_gradients_reach_the_direction_and_no_weight(tiny, ends, latent, sigmas):
    def body(run):
        place = h_space.Site()
        with run.gradients(), run.patched(h_space.PATCH, place.patch):
            net = new_block(64, 1)
            with torch.no_grad():
                net.out.weight.normal_(generator=torch.Generator().manual_seed(1))
            pair = h_space.training_pair(run, place)
            x = (3 * run.latent).clone()
            plain, shifted = pair(x, sigmas[1], lambda h: net(h.float(), sigmas[1], "ve"))
            assert not plain.requires_grad and not torch.allclose(plain, shifted, rtol=1e-3)
            shifted.square().mean().backward()
            assert all(float(p.grad.abs().sum()) > 0 for n, p in net.named_parameters() if n != "into.bias")
            assert torch.equal(pair(x, sigmas[1], None)[1], plain)
        assert all(p.grad is None for p in run.model.parameters())

    inside(tiny, {"positive": ends[0]}, latent, sigmas, body)


def test_what_has_no_such_place_is_refused(tiny, make_model, sigmas):
    transformer = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="no middle block"):
        h_space.check_site(transformer, 0)
    with pytest.raises(ValueError, match="0 .* to 3"):
        h_space.check_site(tiny, 4)
    d = direction(tiny, sigmas)
    h_space.check_belongs(d, tiny)
    patched = tiny.clone()
    patched.add_patches({"diffusion_model.out.2.weight": (torch.ones(4, 32, 3, 3),)}, 0.1)
    assert fingerprint(patched)["patches"] != fingerprint(tiny)["patches"]
    h_space.check_belongs(d, patched)
    with pytest.raises(ValueError, match="flow"):
        h_space.check_belongs(d, make_model("FLOW"))
    with pytest.raises(ValueError, match="direction was made"):
        h_space.check_belongs(d, make_model("V_PREDICTION"))
    with pytest.raises(ValueError, match="one site"):
        h_space.asyrp_sampler([(d, 1.0), (direction(tiny, sigmas, site=1), 1.0)])


def test_the_run_is_what_was_asked_for(tiny, engine, ends, latent, sigmas):
    """Symmetric, boosted and rescaled runs differ as the loop's own do; another pack's block patch stays in force."""
    d = direction(tiny, sigmas)
    args = (ends, latent, sigmas)

    def made(**options):
        return sampled(tiny, h_space.asyrp_sampler([(d, 1.0)], **options), *args)

    bare = made()
    boosted = made(boost=float(sigmas[1]) * 1.1)
    assert not torch.allclose(made(symmetric=True), bare, rtol=1e-2) and not torch.allclose(boosted, bare, rtol=1e-2)
    assert torch.equal(boosted, made(boost=float(sigmas[1]) * 1.1))  # the noise is the run's own
    finer = engine.sigmas_of(tiny, "normal", 8)
    once, often = (
        sampled(tiny, h_space.asyrp_sampler([(d, 0.5)], rescale=False), ends, latent, finer),
        sampled(tiny, h_space.asyrp_sampler([(d, 1.0)]), ends, latent, finer),
    )
    assert torch.allclose(once, often, atol=1e-4)
    foreign = tiny.clone()
    foreign.set_model_output_block_patch(lambda h, skip, options: (h, 0.5 * skip))
    ours = sampled(foreign, h_space.asyrp_sampler([(d, 0.0)]), *args)
    assert torch.equal(ours, sampled(foreign, own_sampler(sample_euler), *args))
    assert not torch.allclose(ours, sampled(tiny, own_sampler(sample_euler), *args), rtol=1e-2)


def test_beside_other_techniques(tiny, ends, make_condition, latent, sigmas):
    """Prompt-to-Prompt's guider and ILVR's patch, which count rows, with two calls; a LoRA in one."""
    d = direction(tiny, sigmas, scale=1.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    controllers = [ReplaceCross([TokenMap(tuple(range(77)))], StepWindow(0, 1)), ReplaceSelf(StepWindow(0, 0.5))]

    def p2p(sampler):
        guider = prompt_to_prompt_guider(tiny, ends[0], [make_condition(4)], ends[1], 3.0, controllers)
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(latent), sampler, sigmas, disable_pbar=True, seed=1)

    plain = p2p(own_sampler(sample_euler))
    assert torch.allclose(p2p(h_space.asyrp_sampler([(d, 0.0)], two_calls=True)), plain, rtol=1e-4, atol=1e-4)
    made = p2p(h_space.asyrp_sampler([(d, 1.0)], two_calls=True))
    assert bool(torch.isfinite(made).all()) and not torch.allclose(made, plain, rtol=1e-2)

    args = (ends, latent, sigmas)
    with torch.inference_mode():
        held = ilvr.ILVR().run(tiny, {"samples": latent.flip(0)}, 2.0, list(LOW_PASSES)[1], 1.0, 0.0, 1.0)
    model = held["result"][0]
    free, edited = (sampled(m, h_space.asyrp_sampler([(d, 1.0)], two_calls=True), *args) for m in (tiny, model))
    low = dct_low_pass(2)
    gaps = [float((low(out) - low(latent.flip(0))).abs().max()) for out in (edited, free)]
    assert gaps[0] < 1e-3 and gaps[1] > 1
    assert not torch.allclose(edited, sampled(model, own_sampler(sample_euler), *args), rtol=1e-2)

    factors = lora.low_rank_all(weights.layers(tiny).items(), 2, seed=1)
    for f in factors.values():
        with torch.no_grad():
            f.up.fill_(0.1)
    tuned = weights.applied(tiny, None, weights.to_lora_model(factors))[0]
    one, two = (sampled(tuned, h_space.asyrp_sampler([(d, 1.0)], two_calls=t), *args) for t in (False, True))
    assert torch.allclose(one, two, atol=2e-5 * float(one.abs().max())) and not torch.allclose(one, free, rtol=1e-2)
