"""The prompt-to-prompt guider on a real UNet of the engine: identities to the bit, groupings that must not matter,
refusals."""

import pytest
import torch
from nulltext.engine import terms
from nulltext.engine.comfy import sigmas_of
from nulltext.engine.noise import model_notes, source_latent
from nulltext.engine.pair_guider import prompt_to_prompt_guider, run_guider, source_of
from nulltext.engine.run import sample_with
from nulltext.engine.sampler import own_sampler, own_way_back
from nulltext.nodes.inversion import invert
from nulltext.nodes.replay import replay
from nulltext.samplers.attention.alignment import TokenMap
from nulltext.samplers.attention.controllers import MutualSelf, ReplaceCross, ReplaceSelf
from nulltext.samplers.attention.layers import StepWindow
from nulltext.samplers.attention.maps import LayerChoice, LocalBlend
from nulltext.samplers.core import euler_step
from nulltext.samplers.guidance.terms import Guidance
from nulltext.samplers.inversion.record import Inversion
from nulltext.samplers.ode import sample_ancestral
from nulltext.tests.running import SCALE, Control, Traffic, noised_inversion, normal, run, sample, walk

ALL, HALF, NEVER, STEPS = StepWindow(0, 1), StepWindow(0, 0.5), StepWindow(0, 0), 4
NOISE = normal(2, 4, 8, 8, seed=3)
SAMPLERS = ("euler", "dpmpp_2m")


def p2p(cross=ALL, own=ALL, tokens=77, edits=1):
    return [ReplaceCross([TokenMap(tuple(range(tokens)))] * edits, cross), ReplaceSelf(own)]


def blend(threshold):
    return LocalBlend([[3]], [[3]], threshold=threshold, start=0.0, layers=LayerChoice("all"))


def levels(model):
    return sigmas_of(model, "normal", STEPS)


def close(a, b):
    return bool((a - b).abs().max() <= 2e-3 * b.abs().max())


@pytest.fixture
def prompts(make_condition):
    """source, edit, negative"""
    return make_condition(1), make_condition(4), make_condition(2)


@pytest.fixture
def pair(tiny, prompts):
    """pair(controllers): the guider of `tiny` for the three prompts, or for others."""

    def made(controllers, source=prompts[0], edits=(prompts[1],), negative=prompts[2], cfg=3.0, model=tiny, **options):
        return prompt_to_prompt_guider(model, source, list(edits), negative, cfg, controllers, **options)

    return made


@pytest.fixture
def guide(pair, tiny):
    """guide(controllers): (result, guider); with an inversion, over its own levels."""

    def made(controllers, sampler="euler", noise=NOISE, sigmas=None, change=lambda guider: None, **options):
        guider = pair(controllers, **options)
        change(guider)
        inversion = options.get("inversion")
        own = levels(tiny) if inversion is None else inversion.sigmas
        return sample(guider, noise, own if sigmas is None else sigmas, sampler=sampler, seed=1), guider

    return made


def euler_inversion(model, source, **options):
    """An INVERSION by plain backward Euler steps; its trajectory is all that matters here."""
    sigmas = levels(model)

    def body(run):
        path, x = [run.latent], run.latent
        for s, s_next in zip(sigmas.flip(0)[:-1], sigmas.flip(0)[1:]):
            at = max(float(s), run.sigma_min)
            x = euler_step(x, run.guided("positive", None, 1.0)(x, at), at, s_next)
            path.append(x)
        return torch.stack(path[::-1]).cpu()

    with torch.inference_mode():
        trajectory = sample_with(model, {"positive": source}, normal(2, 4, 8, 8, seed=9) / SCALE, sigmas, body)
    return Inversion(sigmas, trajectory, metadata=model_notes(model, float(sigmas[0])), **options)


@pytest.fixture
def inversion(tiny, prompts):
    return euler_inversion(tiny, prompts[0])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
@pytest.mark.parametrize(
    "controllers",
    [p2p, lambda: p2p(HALF, HALF), lambda: [*p2p(), blend(0.3)], lambda: [MutualSelf(ALL, 0.0)]],
    ids=["all", "half", "blend", "mutual"],
)
def test_equal_prompts_give_the_source_to_the_bit(guide, prompts, sampler, controllers):
    out, _ = guide(controllers(), sampler, edits=[prompts[0]], keep_source=True)
    assert torch.equal(out[:2], out[2:])


STOCHASTIC = ("euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "lcm", "ours")


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_sampler_that_draws_gives_source_and_edits_the_noise_of_the_plain_run(tiny, guide, prompts, inversion, name):
    source = prompts[0]
    sampler = own_sampler(sample_ancestral, eta=1.0) if name == "ours" else name

    def seeded(run):
        torch.manual_seed(5)  # older engines draw from the global generator
        return run()

    out, _ = seeded(lambda: guide(p2p(), sampler, edits=[source], keep_source=True))
    assert torch.equal(out[:2], out[2:])
    alone = seeded(lambda: walk(tiny, (source, prompts[2]), 3.0, NOISE, levels(tiny), None, sampler, seed=1))
    assert close(out[:2], alone)
    if name != "ours":
        out, _ = guide(p2p(edits=2), sampler, edits=[source, source], inversion=inversion)
        assert torch.equal(out[:2], out[2:])


def test_closed_windows_give_the_unhooked_run_to_the_bit(tiny, guide, inversion):
    bare = tiny.clone()
    held = bare.model_options["transformer_options"]
    assert not held.get("patches_replace") and not held.get("patches")

    def unhook(guider):
        assert guider.model_options["transformer_options"]["patches_replace"].keys() >= {"attn1", "attn2"}
        guider.model_patcher, guider.model_options = bare, bare.model_options

    for options in ({"inversion": inversion}, {"keep_source": True}):
        unhooked, _ = guide(p2p(NEVER, NEVER), change=unhook, **options)
        closed, _ = guide(p2p(NEVER, NEVER), **options)
        assert torch.equal(unhooked, closed)
        assert torch.equal(unhooked, guide([], **options)[0])  # no controllers at all is the same run
    edited, _ = guide(p2p(), keep_source=True)
    assert not torch.equal(edited, closed)
    torch.testing.assert_close(edited[:2], closed[:2], rtol=1e-4, atol=1e-4 * float(closed.abs().max()))


def test_an_empty_blend_mask_gives_the_source_to_the_bit(guide, inversion):
    out, _ = guide([*p2p(), blend(1.0)], keep_source=True)
    assert torch.equal(out[:2], out[2:])
    out, _ = guide([*p2p(), blend(1.0)], inversion=inversion)
    torch.testing.assert_close(out * SCALE, inversion.source)
    # a core sampler that is not Euler blends denoised predictions: not to the bit, but the source in the end
    out, _ = guide([*p2p(), blend(1.0)], "dpmpp_2m", inversion=inversion)
    torch.testing.assert_close(out * SCALE, inversion.source, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "controllers", [p2p, lambda: [MutualSelf(ALL, 0.0), *p2p(own=NEVER)], lambda: [*p2p(), blend(0.3)]]
)
@pytest.mark.parametrize("inverted", [False, True])
def test_groupings_of_rows_do_not_matter(tiny, guide, inversion, short_of_memory, controllers, inverted):
    options = {"inversion": inversion} if inverted else {}
    together, _ = guide(controllers(), **options)
    assert not close(guide([], **options)[0], together)  # else nothing is shown here

    def apart(guider):
        guider._fit_together = lambda asked: False

    assert close(guide(controllers(), change=apart, **options)[0], together)
    short_of_memory(tiny)
    assert close(guide(controllers(), **options)[0], together)


def test_three_rows_a_step_from_an_inversion_and_four_from_noise(guide, inversion):
    assert guide(p2p(), inversion=inversion)[1].network_rows == 3 * 2 * STEPS
    assert guide(p2p())[1].network_rows == 4 * 2 * STEPS
    # a source that nobody looks at any more is not asked
    assert guide(p2p(StepWindow(0, 0.4), NEVER), inversion=inversion)[1].network_rows == (3 * 2 + 2 * 2) * 2


@pytest.mark.parametrize("edits", [1, 2, 3])
@pytest.mark.parametrize("controllers, rows_of_source", [(p2p, 1), (lambda **_: [MutualSelf(ALL, 0.0)], 2)])
def test_room_is_made_for_the_source_of_an_inversion_beside_its_edits(
    tiny, guide, prompts, inversion, room, network_calls, edits, controllers, rows_of_source
):
    asked, calls = room(tiny), network_calls(tiny)
    guide(controllers(edits=edits), edits=[prompts[1]] * edits, inversion=inversion)
    assert {len(x) for x, _ in calls} == set(asked) == {2 * (2 * edits + rows_of_source)}


def test_the_source_is_the_stored_trajectory_whatever_the_noise(guide, inversion):
    euler, dpmpp = ([guide(p2p(), name, NOISE * k, inversion=inversion)[0] for k in (1, 0)] for name in SAMPLERS)
    assert torch.equal(*euler) and torch.equal(*dpmpp) and not torch.equal(euler[0], dpmpp[0])
    assert torch.isfinite(guide(p2p(), sigmas=inversion.sigmas[2:], inversion=inversion)[0]).all()
    with pytest.raises(ValueError, match="sigmas are not the inversion"):
        guide(p2p(), sigmas=inversion.sigmas * 0.9, inversion=inversion)


def exact(model, source, negative, pivot):
    """An INVERSION by a pivot that has its own way back, at cfg 3.5."""
    latent, conds = {"samples": normal(2, 4, 8, 8, seed=9) / SCALE}, {"positive": source, "negative": negative}
    with torch.inference_mode():
        return invert(model, conds, latent, levels(model), pivot, cfg=3.5, cache=False)[0]


@pytest.mark.parametrize("pivot", ["edit_friendly", "exact_pair"])
def test_pivots_with_their_own_way_back(tiny, pair, prompts, make_condition, pivot):
    """Inverted at cfg 3.5, edited at 9: recorded residuals (or the pair) are walked in every edit's rows."""
    source, edit, negative = prompts
    inversion = exact(tiny, source, negative, pivot)
    latent = source_latent(inversion)

    def walked(edits, controllers, cfg=9.0, first=0):
        """Edits by the sampler of Inversion Parts."""
        guider = pair(controllers, edits=edits, cfg=cfg, inversion=inversion)
        sampler, sigmas = own_way_back(inversion, first)
        return sample(guider, torch.zeros(inversion.shape), sigmas, latent, sampler, seed=0), guider

    same, guider = walked([source], p2p(), 3.5)
    assert close(same, latent)  # its own words at its own cfg: the picture, whatever is looked at
    assert guider.network_rows == 3 * 2 * (STEPS - (pivot == "exact_pair"))
    for first in (0, 1):
        plain, _ = walked([edit], [], first=first)
        with torch.inference_mode():
            alone = replay(tiny, inversion, edit, negative, cfg=9.0, first=first).samples
        assert close(plain, alone)
    edited, _ = walked([edit], p2p())
    assert not close(edited, plain)
    both, _ = walked([edit, make_condition(5)], p2p(edits=2))
    assert both.shape == (4, 4, 8, 8)
    assert close(both[:2], edited)
    kept, _ = walked([edit], [*p2p(), blend(1.0)])
    torch.testing.assert_close(kept * SCALE, inversion.source, rtol=1e-4, atol=1e-5)
    # the one box takes the same walk
    with torch.inference_mode():
        assert torch.equal(
            run_guider(pair(p2p(), cfg=9.0, inversion=inversion), None, inversion.sigmas, 0).edits, edited
        )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("pivot", ["edit_friendly", "exact_pair"])
def test_pivots_with_their_own_way_back_refuse_other_samplers(tiny, guide, prompts, pivot, name):
    inversion = exact(tiny, prompts[0], prompts[2], pivot)
    with pytest.raises(ValueError, match="own way back.*wire the sampler of Inversion Parts"):
        guide(p2p(), name, inversion=inversion)


def test_null_embeddings_of_the_inversion_stand_in_for_the_negative_prompt(tiny, guide, prompts, make_condition):
    null = make_condition(8)[0][0].clone()
    kept = null.expand(STEPS, 2, -1, -1).clone()
    corrected = euler_inversion(tiny, prompts[0], null_embeddings=kept, correction="null_text")
    plain = corrected.replace(null_embeddings=None, correction="none")
    with_null, _ = guide(p2p(), inversion=corrected)
    assert close(with_null, guide(p2p(), negative=[[null, {}]], inversion=plain)[0])
    assert not close(with_null, guide(p2p(), inversion=plain)[0])


def test_several_edits_and_prompts_of_other_lengths(guide, prompts, make_condition):
    edits = prompts[1], make_condition(5, 154)
    maps = [TokenMap(tuple(range(77))), TokenMap(tuple(range(77)) + (-1,) * 77)]
    both, guider = guide([ReplaceCross(maps, ALL), ReplaceSelf(ALL)], edits=edits)
    assert both.shape == (4, 4, 8, 8)
    assert guider.network_rows == 6 * 2 * STEPS
    for e, one in enumerate(edits):
        alone, _ = guide([ReplaceCross(maps[e : e + 1], ALL), ReplaceSelf(ALL)], edits=[one])
        assert close(both[2 * e : 2 * e + 2], alone)


def test_masks_previews_and_combined_negatives(tiny, pair, guide, prompts):
    plain, _ = guide(p2p())
    assert close(guide(p2p(), negative=prompts[2] * 2)[0], plain)
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    latent, seen = torch.randn(2, 4, 8, 8), []
    watch = lambda i, x0, x, total: seen.append((i, x0.shape, x.shape, total))
    out = sample(pair([*p2p(), blend(0.3)]), NOISE, levels(tiny), latent, mask=mask, callback=watch, seed=1)
    assert seen == [(i, NOISE.shape, NOISE.shape, STEPS) for i in range(STEPS)]
    torch.testing.assert_close(out[..., :3], latent[..., :3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("split", [False, True])
def test_mutual_attention_with_combined_negatives_pairs_each_with_the_sources_own(
    tiny, guide, prompts, make_condition, short_of_memory, split
):
    source, _, negative = prompts
    if split:
        short_of_memory(tiny)
    mutual = lambda **options: guide([MutualSelf(ALL, 0.0)], keep_source=True, **options)[0]
    single = mutual()
    assert close(mutual(negative=negative * 2), single)
    assert not close(guide([], keep_source=True)[0], single)
    same = mutual(negative=negative + make_condition(7), edits=[source])
    assert close(same[:2], same[2:])


class Seen(Control):
    """Adds a number to the middle block that tells which x it was shown."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options=None):
        seen = x_noisy.abs().amax((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 64, 4, 4)
        return {"input": [], "middle": [0.5 * seen], "output": []}


def test_control_nets_see_their_own_latent(tiny, guide, prompts):
    control = Seen()
    edit, negative = ([[cond, {**extra, "control": control}] for cond, extra in c] for c in prompts[1:])
    out, _ = guide([], edits=[edit], negative=negative, keep_source=True)
    assert close(out[2:], walk(tiny, (edit, negative), 3.0, NOISE, levels(tiny), seed=1))
    assert not close(out[2:], guide([])[0])
    assert not close(guide(p2p(), edits=[edit], negative=negative)[0], out[2:])


def test_an_error_leaves_nothing_behind(tiny, pair, guide):
    before = dict(tiny.model_options["transformer_options"])
    guider = pair(p2p())

    def stop(*a):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(guider, NOISE, levels(tiny), callback=stop)
    assert guider._branches is None
    assert tiny.model_options["transformer_options"] == before
    assert torch.equal(sample(guider, NOISE, levels(tiny), seed=1), guide(p2p())[0])


def test_refusals(tiny, pair, prompts, inversion):
    source, edit, _ = prompts
    theirs = tiny.clone()
    theirs.set_model_attn1_replace(lambda q, k, v, extra: q, "middle", 0)
    for options, words in (
        ({"source": source + source}, "source prompt must be one prompt"),
        ({"edits": [[[edit[0][0], {"area": (4, 4, 0, 0)}]]]}, "edited prompt must be one prompt"),
        ({"negative": [[edit[0][0], {"area": (4, 4, 0, 0)}]]}, "negative prompt must be for the whole picture"),
        ({"edits": [[[edit[0][0], {"mask": 0, "set_area_to_bounds": True}]]]}, "edited prompt must be one prompt"),
        ({"inversion": inversion.replace(pivot="random")}, "draws every level's noise anew"),
        ({"model": theirs}, "self-attention of layer middle 0"),
    ):
        with pytest.raises(ValueError, match=words):
            pair(p2p(), **options)
    pair(p2p()[:1], model=theirs)  # cross-attention alone does not need it
    with pytest.raises(ValueError, match="does not know its source prompt's words"):
        source_of(inversion)


def test_samplers_and_patches_that_know_one_prompt_a_step_are_refused(engine, tiny, guide):
    def sample_euler_cfg_pp(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return x

    with pytest.raises(ValueError, match="sampler euler_cfg_pp .*use a sampler without"):
        guide(p2p(), engine.get("samplers").KSAMPLER(sample_euler_cfg_pp))
    asks = tiny.clone()
    asks.model_options["sampler_calc_cond_batch_function"] = lambda args: args["conds"]
    with pytest.raises(ValueError, match="take that patch out"):
        guide(p2p(), model=asks)


def test_a_patch_ahead_of_cfg_sees_all_rows_once_a_step(tiny, guide):
    """It doubles the guidance here, which is a doubled cfg."""
    patched, seen = tiny.clone(), []

    def double(args):
        cond, uncond = args["conds_out"]
        seen.append((len(cond), len(args["input"]), len(args["sigma"])))
        return [2 * cond - uncond, uncond]

    patched.model_options["sampler_pre_cfg_function"] = [double]
    out, _ = guide(p2p(), model=patched, keep_source=True)
    assert seen == [(4, 4, 4)] * STEPS
    assert close(out, guide(p2p(), cfg=6.0, keep_source=True)[0])


def test_joined_prompts_and_prompts_for_a_part_of_the_steps_are_refused(pair, prompts, prompt):
    late = [[prompts[0][0][0], {**prompts[0][0][1], "start_percent": 0.5, "end_percent": 1.0}]]
    with pytest.raises(ValueError, match="source prompt holds for a part of the steps"):
        pair(p2p(), source=late)
    ((embedding, extra),) = prompt("a red ring")
    joined = [[torch.cat([embedding, embedding], 1), extra]]
    with pytest.raises(ValueError, match="joined from several: it has 154 tokens"):
        pair(p2p(), edits=[joined])


@pytest.mark.parametrize("negatives", [1, 2])
def test_every_null_branch_looks_back_at_its_own_run(tiny, guide, prompts, make_condition, negatives):
    """Without controllers the source and each edit are the run of their prompt alone; combined negative prompts make
    calls of their own."""
    source, edit, negative = prompts
    model = run("Disturbance", model=tiny, start_percent=0.3, cfg=3.0)[0]
    edits, negative = [edit, make_condition(5)], negative * negatives
    out, _ = guide([], edits=edits, negative=negative, model=model, keep_source=True)
    for rows, prompt in zip(out.split(len(NOISE)), (source, *edits)):
        alone, plain = (walk(m, (prompt, negative), 3.0, NOISE, levels(tiny)) for m in (model, tiny))
        assert close(rows, alone) and not close(rows, plain)


def test_an_edit_waits_for_the_gpu_a_few_times_a_step_however_many_layers_there_are(guide, make_condition):
    spread = TokenMap((*range(75), -1, 75), spread=(((3, 4), (5, 7)),))
    cross = ReplaceCross([spread] * 2, ALL, windows=[{5: HALF}] * 2)
    words = LocalBlend([[3, 5]] * 2, [[3, 6]] * 2, start=0.0, layers=LayerChoice("all"))
    edits = {"edits": [make_condition(4), make_condition(5)]}
    guide([cross, ReplaceSelf(ALL), words], **edits)  # what is sent once is there by now
    with Traffic() as traffic:
        guide([cross, ReplaceSelf(ALL), words], **edits)
    assert traffic.of("layers.py", "alignment.py", "controllers.py") == 0, traffic.sites
    assert traffic.of("branches.py") == 2 * STEPS  # sigma, before and after a step
    grids, sums, pairs = 2, 2, 4
    assert traffic.of("maps.py") == STEPS * grids * sums * pairs, traffic.sites


def test_what_guides_through_the_network_is_asked_with_the_steps_null_embedding(tiny, prompts, monkeypatch):
    """A guidance term measures the network anew: with the negative that the step was made with."""
    latent, far, real = normal(1, 4, 8, 8), [], terms.shift
    null = normal(STEPS, 1, *prompts[2][0][0].shape[1:], seed=3)
    made = noised_inversion(tiny, latent, STEPS, null_embeddings=null, correction="null_text", cfg=4.0)

    def spied(guidances, x, sigma, denoised, **more):
        again = more["network"](x, sigma).detach()
        far.append(float((again - denoised).abs().max() / denoised.abs().max()))
        return real(guidances, x, sigma, denoised, **more)

    monkeypatch.setattr(terms, "shift", spied)
    small = Guidance(lambda x, s, d: -1e-6 * d.pow(2).flatten(1).sum(1), "network", 1.0)
    model = terms.attach(tiny, [terms.Term(small)])
    source, edit, negative = prompts
    guider = prompt_to_prompt_guider(model, source, [edit], negative, 4.0, [], inversion=made)
    sampler, sigmas = own_way_back(made)
    sample(guider, torch.zeros_like(latent), sigmas, source_latent(made), sampler)
    assert len(far) == STEPS and max(far) < 1e-4
