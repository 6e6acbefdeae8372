"""The prompt-to-prompt guider on a real UNet of the engine: identities to the bit, groupings that must not matter,
refusals."""

import pytest
import torch
from nulltext.engine.comfy import sigmas_of
from nulltext.engine.noise import model_notes, source_latent
from nulltext.engine.pair_guider import prompt_to_prompt_guider, run_guider, source_of
from nulltext.engine.run import sample_with
from nulltext.engine.sampler import core_sampler, own_way_back
from nulltext.nodes.inversion import invert
from nulltext.nodes.replay import replay
from nulltext.samplers.attention.alignment import TokenMap
from nulltext.samplers.attention.controllers import MutualSelf, ReplaceCross, ReplaceSelf
from nulltext.samplers.attention.layers import StepWindow
from nulltext.samplers.attention.maps import LayerChoice, LocalBlend
from nulltext.samplers.core import euler_step
from nulltext.samplers.inversion.record import Inversion

ALL, NEVER, STEPS = StepWindow(0, 1), StepWindow(0, 0), 4
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
EMPTY = torch.zeros_like(NOISE)


def p2p(cross=ALL, own=ALL, tokens=77, edits=1):
    return [ReplaceCross([TokenMap(tuple(range(tokens)))] * edits, cross), ReplaceSelf(own)]


def blend(threshold):
    return LocalBlend([[3]], [[3]], threshold=threshold, start=0.0, layers=LayerChoice("all"))


def guide(
    model,
    source,
    edits,
    negative,
    controllers,
    cfg=3.0,
    sampler="euler",
    noise=NOISE,
    latent=EMPTY,
    sigmas=None,
    change=None,
    **options,
):
    """(result, guider)"""
    guider = prompt_to_prompt_guider(model, source, edits, negative, cfg, controllers, **options)
    if change:
        change(guider)
    sigmas = sigmas_of(model, "normal", STEPS) if sigmas is None else sigmas
    with torch.inference_mode():
        out = guider.sample(noise, latent, core_sampler(sampler), sigmas, disable_pbar=True, seed=1)
    return out, guider


@pytest.fixture
def prompts(make_condition):
    """source, edit, negative"""
    return make_condition(1), make_condition(4), make_condition(2)


def euler_inversion(model, source, latent=None, **options):
    """An INVERSION by plain backward Euler steps; its trajectory is all that matters here."""
    sigmas = sigmas_of(model, "normal", STEPS)
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9)) if latent is None else latent

    def body(run):
        levels, x = [run.latent], run.latent
        for s, s_next in zip(sigmas.flip(0)[:-1], sigmas.flip(0)[1:]):
            at = max(float(s), run.sigma_min)
            x = euler_step(x, run.guided("positive", None, 1.0)(x, at), at, s_next)
            levels.append(x)
        return torch.stack(levels[::-1]).cpu()

    with torch.inference_mode():
        trajectory = sample_with(model, {"positive": source}, x0 / 0.18215, sigmas, body)
    return Inversion(sigmas, trajectory, metadata=model_notes(model, float(sigmas[0])), **options)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_equal_prompts_give_the_source_to_the_bit(tiny, prompts, sampler):
    source, _, negative = prompts
    for controllers in (
        p2p(),
        p2p(StepWindow(0, 0.5), StepWindow(0, 0.5)),
        [*p2p(), blend(0.3)],
        [MutualSelf(ALL, 0.0)],
    ):
        out, _ = guide(tiny, source, [source], negative, controllers, sampler=sampler, keep_source=True)
        assert torch.equal(out[:2], out[2:])


def test_closed_windows_give_the_unhooked_run_to_the_bit(tiny, prompts):
    source, edit, negative = prompts
    bare = tiny.clone()
    held = bare.model_options["transformer_options"]
    assert not held.get("patches_replace")
    assert not held.get("patches")

    def unhook(guider):
        assert guider.model_options["transformer_options"]["patches_replace"].keys() >= {"attn1", "attn2"}
        guider.model_patcher, guider.model_options = bare, bare.model_options

    inversion = euler_inversion(tiny, source)
    for options in ({"keep_source": True}, {"inversion": inversion, "sigmas": inversion.sigmas}):
        unhooked, _ = guide(tiny, source, [edit], negative, p2p(NEVER, NEVER), change=unhook, **options)
        closed, _ = guide(tiny, source, [edit], negative, p2p(NEVER, NEVER), **options)
        assert torch.equal(unhooked, closed)
        # no controllers at all is the same run
        assert torch.equal(unhooked, guide(tiny, source, [edit], negative, [], **options)[0])
    closed, _ = guide(tiny, source, [edit], negative, p2p(NEVER, NEVER), keep_source=True)
    edited, _ = guide(tiny, source, [edit], negative, p2p(), keep_source=True)
    assert not torch.equal(edited, closed)
    torch.testing.assert_close(edited[:2], closed[:2], rtol=1e-4, atol=1e-4 * float(closed.abs().max()))


def test_an_empty_blend_mask_gives_the_source_to_the_bit(tiny, prompts):
    source, edit, negative = prompts
    out, _ = guide(tiny, source, [edit], negative, [*p2p(), blend(1.0)], keep_source=True)
    assert torch.equal(out[:2], out[2:])
    inversion = euler_inversion(tiny, source)
    out, _ = guide(tiny, source, [edit], negative, [*p2p(), blend(1.0)], inversion=inversion, sigmas=inversion.sigmas)
    torch.testing.assert_close(out * 0.18215, inversion.source)
    # a core sampler that is not Euler blends denoised predictions: not to the bit, but the source in the end
    out, _ = guide(
        tiny,
        source,
        [edit],
        negative,
        [*p2p(), blend(1.0)],
        inversion=inversion,
        sigmas=inversion.sigmas,
        sampler="dpmpp_2m",
    )
    torch.testing.assert_close(out * 0.18215, inversion.source, rtol=1e-3, atol=1e-3)


def close(a, b):
    return bool((a - b).abs().max() <= 2e-3 * b.abs().max())


@pytest.mark.parametrize(
    "controllers", [p2p, lambda: [MutualSelf(ALL, 0.0), *p2p(own=NEVER)], lambda: [*p2p(), blend(0.3)]]
)
@pytest.mark.parametrize("inverted", [False, True])
def test_groupings_of_rows_do_not_matter(tiny, prompts, short_of_memory, controllers, inverted):
    source, edit, negative = prompts
    options = {}
    if inverted:
        inversion = euler_inversion(tiny, source)
        options = {"inversion": inversion, "sigmas": inversion.sigmas}
    together, _ = guide(tiny, source, [edit], negative, controllers(), **options)
    different, _ = guide(tiny, source, [edit], negative, [], **options)
    assert not close(different, together)  # else nothing is shown here

    def apart(guider):
        guider._fit_together = lambda asked: False

    assert close(guide(tiny, source, [edit], negative, controllers(), change=apart, **options)[0], together)
    short_of_memory(tiny)
    assert close(guide(tiny, source, [edit], negative, controllers(), **options)[0], together)


def test_three_rows_a_step_from_an_inversion_and_four_from_noise(tiny, prompts):
    source, edit, negative = prompts
    inversion = euler_inversion(tiny, source)
    _, guider = guide(tiny, source, [edit], negative, p2p(), inversion=inversion, sigmas=inversion.sigmas)
    assert guider.network_rows == 3 * 2 * STEPS
    _, guider = guide(tiny, source, [edit], negative, p2p(), noise=NOISE)
    assert guider.network_rows == 4 * 2 * STEPS
    # a source that nobody looks at any more is not asked
    _, guider = guide(
        tiny, source, [edit], negative, p2p(StepWindow(0, 0.4), NEVER), inversion=inversion, sigmas=inversion.sigmas
    )
    assert guider.network_rows == (3 * 2 + 2 * 2) * 2


def test_the_source_is_the_stored_trajectory_whatever_the_noise(tiny, prompts):
    source, edit, negative = prompts
    inversion = euler_inversion(tiny, source)
    options = {"inversion": inversion, "sigmas": inversion.sigmas}
    results = [
        guide(tiny, source, [edit], negative, p2p(), sampler=name, noise=NOISE * k, **options)[0]
        for k, name in ((1.0, "euler"), (0.0, "euler"), (1.0, "dpmpp_2m"), (0.0, "dpmpp_2m"))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
    assert not torch.equal(results[0], results[2])
    with torch.inference_mode():
        part = guide(tiny, source, [edit], negative, p2p(), inversion=inversion, sigmas=inversion.sigmas[2:])[0]
    assert torch.isfinite(part).all()
    with pytest.raises(ValueError, match="sigmas are not the inversion"):
        guide(tiny, source, [edit], negative, p2p(), inversion=inversion, sigmas=inversion.sigmas * 0.9)


def exact(model, source, negative, pivot, cfg=3.5):
    """An INVERSION by a pivot that has its own way back, at cfg 3.5."""
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9)) / 0.18215}
    conds = {"positive": source, "negative": negative}
    with torch.inference_mode():
        return invert(model, conds, latent, sigmas_of(model, "normal", STEPS), pivot, cfg=cfg, cache=False)[0]


def walked(model, inversion, edits, negative, controllers, cfg, first=0, source=None):
    """Edits by the sampler of Inversion Parts."""
    guider = prompt_to_prompt_guider(model, source, edits, negative, cfg, controllers, inversion=inversion)
    sampler, sigmas = own_way_back(inversion, first)
    with torch.inference_mode():
        return guider.sample(
            torch.zeros(inversion.shape), source_latent(inversion), sampler, sigmas, disable_pbar=True, seed=0
        ), guider


@pytest.mark.parametrize("pivot", ["edit_friendly", "exact_pair"])
def test_pivots_with_their_own_way_back(tiny, prompts, make_condition, pivot):
    """Inverted at cfg 3.5, edited at 9: recorded residuals (or the pair) are walked in every edit's rows."""
    source, edit, negative = prompts
    inversion = exact(tiny, source, negative, pivot)
    latent = source_latent(inversion)
    same, guider = walked(tiny, inversion, [source], negative, p2p(), 3.5, source=source)
    assert close(same, latent)  # its own words at its own cfg: the picture, whatever is looked at
    assert guider.network_rows == 3 * 2 * (STEPS - (pivot == "exact_pair"))
    for first in (0, 1):
        plain, _ = walked(tiny, inversion, [edit], negative, [], 9.0, first, source=source)
        with torch.inference_mode():
            alone = replay(tiny, inversion, edit, negative, cfg=9.0, first=first).samples
        assert close(plain, alone)
    edited, _ = walked(tiny, inversion, [edit], negative, p2p(), 9.0, source=source)
    assert not close(edited, plain)
    both, _ = walked(tiny, inversion, [edit, make_condition(5)], negative, p2p(edits=2), 9.0, source=source)
    assert both.shape == (4, 4, 8, 8)
    assert close(both[:2], edited)
    kept, _ = walked(tiny, inversion, [edit], negative, [*p2p(), blend(1.0)], 9.0, source=source)
    torch.testing.assert_close(kept * 0.18215, inversion.source, rtol=1e-4, atol=1e-5)
    # the one box takes the same walk
    guider = prompt_to_prompt_guider(tiny, source, [edit], negative, 9.0, p2p(), inversion=inversion)
    with torch.inference_mode():
        assert torch.equal(run_guider(guider, None, inversion.sigmas, 0).edits, edited)


def test_pivots_with_their_own_way_back_refuse_other_samplers(tiny, prompts):
    source, edit, negative = prompts
    for pivot in ("edit_friendly", "exact_pair"):
        inversion = exact(tiny, source, negative, pivot)
        for name in ("euler", "dpmpp_2m"):
            with pytest.raises(ValueError, match="own way back.*wire the sampler of Inversion Parts"):
                guide(tiny, source, [edit], negative, p2p(), inversion=inversion, sigmas=inversion.sigmas, sampler=name)


def test_null_embeddings_of_the_inversion_stand_in_for_the_negative_prompt(tiny, prompts, make_condition):
    source, edit, negative = prompts
    null = make_condition(8)[0][0].clone()
    null = null.expand(STEPS, 2, -1, -1).clone()
    corrected = euler_inversion(tiny, source, null_embeddings=null, correction="null_text")
    plain = corrected.replace(null_embeddings=None, correction="none")
    with_null, _ = guide(tiny, source, [edit], negative, p2p(), inversion=corrected, sigmas=plain.sigmas)
    as_negative, _ = guide(tiny, source, [edit], [[null, {}]], p2p(), inversion=plain, sigmas=plain.sigmas)
    assert close(with_null, as_negative)
    assert not close(with_null, guide(tiny, source, [edit], negative, p2p(), inversion=plain, sigmas=plain.sigmas)[0])


def test_several_edits_and_prompts_of_other_lengths(tiny, prompts, make_condition):
    source, edit, negative = prompts
    long = make_condition(5, 154)
    maps = [TokenMap(tuple(range(77))), TokenMap(tuple(range(77)) + (-1,) * 77)]
    both, guider = guide(tiny, source, [edit, long], negative, [ReplaceCross(maps, ALL), ReplaceSelf(ALL)])
    assert both.shape == (4, 4, 8, 8)
    assert guider.network_rows == 6 * 2 * STEPS
    for e, one in enumerate((edit, long)):
        alone, _ = guide(tiny, source, [one], negative, [ReplaceCross(maps[e : e + 1], ALL), ReplaceSelf(ALL)])
        assert close(both[2 * e : 2 * e + 2], alone)


def test_masks_previews_and_combined_negatives(tiny, prompts, make_condition):
    source, edit, negative = prompts
    plain, _ = guide(tiny, source, [edit], negative, p2p())
    assert close(guide(tiny, source, [edit], negative + negative, p2p())[0], plain)
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    latent = torch.randn(2, 4, 8, 8)
    seen = []
    guider = prompt_to_prompt_guider(tiny, source, [edit], negative, 3.0, [*p2p(), blend(0.3)])
    with torch.inference_mode():
        out = guider.sample(
            NOISE,
            latent,
            core_sampler("euler"),
            sigmas_of(tiny, "normal", STEPS),
            denoise_mask=mask,
            callback=lambda i, x0, x, total: seen.append((i, x0.shape, x.shape, total)),
            disable_pbar=True,
            seed=1,
        )
    assert seen == [(i, NOISE.shape, NOISE.shape, STEPS) for i in range(STEPS)]
    torch.testing.assert_close(out[..., :3], latent[..., :3], atol=1e-4, rtol=1e-4)


class Control:
    """A control net's face to the engine: adds a number to the middle block that tells which x it was shown."""

    previous_controlnet = None
    extra_hooks = None
    timestep_range = None

    def pre_run(self, model, percent_to_timestep):
        pass

    def cleanup(self):
        pass

    def get_models(self):
        return []

    def get_control_models(self):
        return []

    def get_extra_hooks(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 0

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options=None):
        seen = x_noisy.abs().amax((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 64, 4, 4)
        return {"input": [], "middle": [0.5 * seen], "output": []}


def test_control_nets_see_their_own_latent(tiny, prompts):
    from nulltext.engine.guider import guider_class

    source, edit, negative = prompts
    control = Control()
    edit, negative = ([[cond, {**extra, "control": control}] for cond, extra in c] for c in (edit, negative))
    out, _ = guide(tiny, source, [edit], negative, [], keep_source=True)
    plain = guider_class()(tiny)
    plain.set_conds(edit, negative)
    plain.set_cfg(3.0)
    with torch.inference_mode():
        alone = plain.sample(
            NOISE, EMPTY, core_sampler("euler"), sigmas_of(tiny, "normal", STEPS), disable_pbar=True, seed=1
        )
    assert close(out[2:], alone)
    assert not close(out[2:], guide(tiny, source, [prompts[1]], prompts[2], [])[0])
    edited, _ = guide(tiny, source, [edit], negative, p2p())
    assert not close(edited, out[2:])


def test_an_error_leaves_nothing_behind(tiny, prompts):
    source, edit, negative = prompts
    before = dict(tiny.model_options["transformer_options"])
    guider = prompt_to_prompt_guider(tiny, source, [edit], negative, 3.0, p2p())

    def stop(*a):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        guider.sample(
            NOISE, EMPTY, core_sampler("euler"), sigmas_of(tiny, "normal", STEPS), callback=stop, disable_pbar=True
        )
    assert guider._branches is None
    assert tiny.model_options["transformer_options"] == before
    with torch.inference_mode():
        again = guider.sample(
            NOISE, EMPTY, core_sampler("euler"), sigmas_of(tiny, "normal", STEPS), disable_pbar=True, seed=1
        )
    assert torch.equal(again, guide(tiny, source, [edit], negative, p2p())[0])


def test_refusals(tiny, prompts):
    source, edit, negative = prompts
    with pytest.raises(ValueError, match="source prompt must be one prompt"):
        prompt_to_prompt_guider(tiny, source + source, [edit], negative, 3.0, p2p())
    with pytest.raises(ValueError, match="edited prompt must be one prompt"):
        prompt_to_prompt_guider(tiny, source, [[[edit[0][0], {"area": (4, 4, 0, 0)}]]], negative, 3.0, p2p())
    inversion = euler_inversion(tiny, source)
    with pytest.raises(ValueError, match="draws every level's noise anew"):
        prompt_to_prompt_guider(tiny, source, [edit], negative, 3.0, p2p(), inversion=inversion.replace(pivot="random"))
    with pytest.raises(ValueError, match="does not know its source prompt's words"):
        source_of(inversion)
    theirs = tiny.clone()
    theirs.set_model_attn1_replace(lambda q, k, v, extra: q, "middle", 0)
    with pytest.raises(ValueError, match="self-attention of layer middle 0"):
        prompt_to_prompt_guider(theirs, source, [edit], negative, 3.0, p2p())
    prompt_to_prompt_guider(theirs, source, [edit], negative, 3.0, p2p()[:1])  # cross-attention alone does not need it
