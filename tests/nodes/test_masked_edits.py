"""SDEdit, DiffEdit, Blended Diffusion and masks in general, on tiny random models: identities, how many masks there may
be, soft masks, flow models, notices."""

import pytest
import torch
from nulltext.engine.comfy import time_to_sigma
from nulltext.engine.noise import source_latent
from nulltext.engine.sampler import held_start, own_sampler, sample_latent
from nulltext.nodes import blended, repaint, sdedit
from nulltext.samplers.attention.branches import StoredSource
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.sdedit import sdedit_sigmas
from nulltext.tests.running import SCALE, noised_inversion, normal, run

pytestmark = pytest.mark.usefixtures("inference")


NAMES = ["repaint", "sdedit", "diffedit", "blended", "direct", "sampler", "grid"]
INVERTED = ["diffedit", "sampler", "grid"]  # whose source is the inversion's, scaled in and out


@pytest.mark.parametrize("masks, latents", [(3, 2), (2, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_masks_that_do_not_match_are_refused_before_any_work(edits, idle, latent, mask, name, masks, latents):
    with pytest.raises(ValueError, match=f"There are {masks} masks for {latents} latents?: give one, or one for each"):
        edits[name](idle, latent[:latents], mask.expand(masks, -1, -1))
    with pytest.raises(idle.asked):  # one for each is asked of the network
        edits[name](idle, latent[:latents], mask.expand(latents, -1, -1))


@pytest.mark.parametrize("name", ["repaint", "sdedit", "blended"])
def test_an_empty_latent_is_refused(edits, idle, latent, mask, name):
    with pytest.raises(ValueError, match="latent is empty"):
        edits[name](idle, latent * 0, mask)


@pytest.mark.parametrize(
    "name, inputs",
    [
        *((name, {}) for name in NAMES),
        *(("sdedit", {"t0": 0.0}), ("diffedit", {"depth": 0.0}), ("blended", {"t0": 0.0})),
        *(("direct", {"strength": 0.0}), ("sampler", {"strength": 0.0}), ("grid", {"strengths": "0"})),
    ],
)
def test_nothing_to_change_is_the_source_and_a_notice(edits, idle, latent, mask, name, inputs):
    result = edits[name](idle, latent, mask if inputs else mask * 0, **inputs)
    assert result.text.startswith(("Notice", "Nothing to change"))
    source = source_latent(noised_inversion(idle, latent)) if name in INVERTED else latent
    assert torch.equal(result.samples, source)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("name", ["sdedit", "diffedit", "direct", "sampler", "grid"])
def test_masked_edits_keep_the_rest_to_the_bit(edits, make_model, latent, mask, inside, kind, name):
    model = make_model(kind)
    source = source_latent(noised_inversion(model, latent)) if name in INVERTED else latent
    out = edits[name](model, latent, mask).samples
    assert torch.equal(out[..., ~inside], source[..., ~inside]) and torch.isfinite(out).all()
    assert (out - source).abs().amax((0, 1))[inside].min() > 0.01
    torch.testing.assert_close(source, latent, rtol=1e-5, atol=1e-5)  # the inversion keeps model space


@pytest.mark.parametrize("name", [*INVERTED, "held start"])
def test_outside_a_mask_a_walk_from_an_inversion_follows_its_path(edits, tiny, ends, latent, mask, inside, name):
    asked, watched = [], tiny.clone()

    def watch(network, args):
        asked.append((args["input"], args["timestep"]))
        return network(args["input"], args["timestep"], **args["c"])

    watched.set_model_unet_function_wrapper(watch)
    inversion = noised_inversion(tiny, latent)
    if name == "held start":
        walk, grid = own_sampler(sample_euler, **held_start(inversion)), inside.float()[None, None].expand(2, 1, -1, -1)
        given = {"samples": source_latent(inversion)}, 0, grid
        sample_latent(watched, *ends, 3.0, walk, inversion.sigmas, *given)
    else:
        edits[name](watched, latent, mask)
    path = StoredSource(inversion.trajectory, inversion.sigmas)
    assert len(asked) >= 5
    for x, sigma in asked:
        stored = path.at(sigma)[..., ~inside]
        torch.testing.assert_close(x[..., ~inside], stored.repeat(len(x) // 2, 1, 1), rtol=1e-5, atol=1e-5)
        assert sigma[0] == asked[0][1][0] or (x[:2] - path.at(sigma))[..., inside].abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_two_pixels_changes_the_cell_they_lie_in_and_no_other(edits, tiny, latent, name):
    mask = torch.zeros(1, 64, 64)
    mask[0, 20:22, 33] = 1
    source = source_latent(noised_inversion(tiny, latent)) if name in INVERTED else latent
    changed = (edits[name](tiny, latent, mask).samples != source).any(1)
    assert changed.nonzero()[:, 1:].tolist() == [[2, 4]] * 2


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", [*NAMES, "direct, InfEdit"])
def test_each_picture_with_frames_has_its_own_mask(edits, family, name, frames):
    model, latent = family("Wan 2.1", text_dim=64), normal(2, 16, frames, 8, 8)
    masks = torch.zeros(2, 64, 64)
    masks[0, :, 32:], masks[1, :, :24] = 1, 1
    source = source_latent(noised_inversion(model, latent)) if name in INVERTED else latent
    name, _, method = name.partition(", ")
    out = edits[name](model, latent, masks, **({"method": method} if method else {})).samples
    changed = (out != source).any(1)
    assert torch.equal(changed, (masks[:, ::8, ::8] > 0)[:, None].expand_as(changed))


@pytest.mark.parametrize("name", [*NAMES, "direct, InfEdit"])
def test_a_video_keeps_its_first_frame_and_each_frame_its_own_mask(edits, family, name):
    model, latent = family("Wan 2.1", text_dim=64), normal(1, 16, 3, 8, 8)
    masks = torch.zeros(3, 64, 64)
    masks[1, :, 32:], masks[2, :, :24] = 1, 1
    source = source_latent(noised_inversion(model, latent)) if name in INVERTED else latent
    name, _, method = name.partition(", ")
    out = edits[name](model, latent, masks, **({"method": method} if method else {})).samples
    assert torch.equal((out != source).any(1)[0], masks[:, ::8, ::8] > 0)


# ------------------------------------------------------------------------------------------------------------ SDEdit


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_whole_picture_moves_further_from_a_higher_level(edits, make_model, latent, kind):
    result = edits["sdedit"](make_model(kind), latent, None, t0=0.1, more_levels="0.4, 0.9")
    far = [(x - latent).square().mean().item() for x in result.samples.chunk(3)]
    assert len(result.samples) == 6 and far[0] > 0 and far == sorted(set(far)) and "layout" in result.text


def test_a_strip_of_one_picture_of_a_batch_has_its_noise_for_each_level(edits, tiny):
    """batch_index, from core's Latent From Batch; it is counted where the strip is sampled on."""
    latent = {"samples": normal(1, 4, 8, 8), "batch_index": [3]}
    assert edits["sdedit"](tiny, latent, None, more_levels="0.2, 0.3")[0]["batch_index"] == [3, 3, 3]


def test_sdedit_refuses_what_is_no_level(edits, idle, latent):
    with pytest.raises(ValueError, match="noise levels are numbers from 0 to 1"):
        edits["sdedit"](idle, latent, None, more_levels="half")


def test_deterministic_sdedit_is_the_engines_img2img(edits, euler, tiny, latent):
    ours = edits["sdedit"](tiny, latent, None, t0=0.5, noise=sdedit.DETERMINISTIC).samples
    core = euler(tiny, latent, cfg=3.0, sigmas=sdedit_sigmas(time_to_sigma(tiny), 0.5, 5).float(), seed=1)
    assert (ours - core).abs().max() / core.abs().max() < 1e-5


def test_sdedit_takes_the_latents_own_mask_where_none_is_wired(edits, tiny, latent, mask, inside):
    def masked(noise_mask, mask=None):
        return edits["sdedit"](tiny, {"samples": latent, "noise_mask": noise_mask}, mask)

    wired, own = edits["sdedit"](tiny, latent, mask).samples, masked(mask[:, None])
    assert torch.equal(own.samples, wired) and torch.equal(wired[..., ~inside], latent[..., ~inside])
    assert "noise_mask" not in own[0]
    assert torch.equal(masked(torch.ones(1, 1, 64, 64), mask).samples, wired)  # the wired one counts


# ---------------------------------------------------------------------------------------------------------- DiffEdit


def test_diffedit_mask(tiny, make_condition, latent):
    def made(source, target, latent=latent):
        conds = {"source": make_condition(source), "target": make_condition(target)}
        return run("DiffEditMask", model=tiny, latent=latent, maps=2, **conds)

    equal = made(1, 1)
    assert equal[0].sum() == 0 and equal.text.startswith("Notice")
    mask, heat = made(1, 2)
    assert mask.shape == (2, 64, 64) and heat.shape == (2, 64, 64, 3)
    assert 0 < mask.mean() < 1 and set(mask.unique().tolist()) == {0.0, 1.0} and heat.max() <= 1
    assert torch.equal(mask, (heat[..., 0] > 0.5).float())
    with pytest.raises(ValueError, match="latent is empty"):
        made(1, 2, latent * 0)


def test_an_empty_diffedit_mask_says_whether_the_prompts_agree_or_the_threshold_is_too_high(
    tiny, make_condition, latent
):
    def said(target, threshold):
        conds = {"source": make_condition(1), "target": make_condition(target)}
        return run("DiffEditMask", model=tiny, latent=latent, maps=1, threshold=threshold, **conds).text

    assert said(1, 0.5).startswith("Notice: the prompts agree everywhere, so")
    assert said(2, 1.0).startswith("Notice: no heat is above the threshold 1, so")


def test_diffedit_says_which_depth_samples_no_step(edits, idle, latent, mask):
    said = edits["diffedit"](idle, latent, mask, {"steps": 4}, depth=0.1).text
    assert said.startswith("Notice: depth 0.1 samples no step")


def test_diffedit_says_its_cost_and_that_null_embeddings_are_not_used(edits, tiny, latent, mask):
    plain = edits["diffedit"](tiny, latent, mask)
    carried = edits["diffedit"](tiny, latent, mask, {"null_embeddings": torch.ones(10, 2, 77, 64)})
    assert plain.text.startswith("8 network calls") and "Notice" not in plain.text
    assert "Notice: this inversion's null embeddings are not used" in carried.text
    assert torch.equal(plain.samples, carried.samples)


def test_diffedit_needs_one_path(edits, idle, latent, mask):
    with pytest.raises(ValueError, match="DiffEdit follows one path from noise to image, and the pivot random"):
        edits["diffedit"](idle, latent, mask, {"pivot": "random"})


# ----------------------------------------------------------------------------------------------------------- blended


@pytest.mark.parametrize(
    "kind, start, noise", [("EPS", "noise", "fresh"), ("EPS", "picture", "fixed"), ("FLOW", "noise", "fixed")]
)
def test_blending_keeps_the_background_to_the_bit(edits, make_model, latent, mask, inside, kind, start, noise):
    out = edits["blended"](make_model(kind), latent, mask, start=start, noise=noise).samples
    assert torch.equal(out[..., ~inside], latent[..., ~inside])
    assert torch.isfinite(out).all() and (out - latent)[..., inside].abs().max() > 0.1


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_loss_pulls_the_background_and_leaves_the_model_alone(edits, make_model, latent, mask, inside, kind):
    model = make_model(kind)
    before = {k: (id(p), p.clone()) for k, p in model.model.named_parameters()}

    def drift(weight):
        out = edits["blended"](model, latent, mask, hold=blended.LOSS, weight=weight).samples
        assert torch.isfinite(out).all() and (out - latent)[..., inside].abs().max() > 0.1
        return (out - latent)[..., ~inside].square().mean().item()

    assert 0 < drift(5.0) < drift(0.0)
    assert all(id(p) == before[k][0] and torch.equal(p, before[k][1]) for k, p in model.model.named_parameters())


def test_the_loss_too_begins_in_noise_under_the_mask_alone(edits, tiny, latent, mask, inside, monkeypatch):
    starts = []
    monkeypatch.setattr(blended, "sample_walk", lambda denoise, x, *_, **__: starts.append(x) or x)
    for start in ("picture", "noise"):
        edits["blended"](tiny, latent, mask, hold=blended.LOSS, start=start)
    assert torch.equal(starts[0][..., ~inside], starts[1][..., ~inside])
    taken = (starts[0] - starts[1])[..., inside]
    torch.testing.assert_close(taken, latent[..., inside] * SCALE, rtol=1e-4, atol=1e-5)


def test_blending_says_when_it_holds_nothing(edits, tiny, latent, mask):
    def told(mask, weight=1.0, hold=blended.LOSS):
        return edits["blended"](tiny, latent, mask, hold=hold, weight=weight).text

    everything = torch.ones_like(mask)
    assert "Notice: the weight is 0, so nothing holds the background" in told(mask, 0.0)
    assert "Notice: the mask covers everything, so there is no background" in told(everything)
    assert "Notice" not in told(mask) and "only pulled" in told(mask)
    assert "nothing is held" in told(everything, hold=blended.BLEND)


# -------------------------------------------------------------------------------------------------------- soft masks

ANSWER, SOURCE = 2.0, 0.5  # what the network always says, and the picture, in model space


@pytest.fixture
def constant(tiny):
    """A model whose guided answer is ANSWER everywhere."""
    model = tiny.clone()
    model.set_model_sampler_post_cfg_function(lambda args: torch.full_like(args["denoised"], ANSWER))
    return model


@pytest.fixture
def soft(inside):
    """[1, 8, 8]: a half where `inside`, all and nothing in two rows beside it."""
    grid = 0.5 * inside.float()
    grid[0] = 1.0
    return grid[None]


@pytest.fixture
def masked(edits):
    """By name, edit(model, latent, mask) of everything that samples inside a mask with a loop of ours."""
    friendly = {"pivot": "edit_friendly", "residuals": torch.zeros(10, 2, 4, 8, 8)}
    return {
        **edits,
        "repaint, exact-leaning": lambda *a: edits["repaint"](*a, mode=repaint.EXACT),
        "sampler, edit-friendly": lambda *a: edits["sampler"](*a, record=friendly),
        "direct": lambda *a: edits["direct"](*a, plain_steps=5),  # else the constant answers cancel
    }


SCALED = [*INVERTED, "sampler, edit-friendly"]


@pytest.mark.parametrize("name", ["repaint", "repaint, exact-leaning", "sdedit", "blended", "direct", *SCALED])
def test_a_soft_mask_mixes_once_as_in_the_engines_euler(masked, constant, euler, latent, soft, inside, name):
    """m D + (1 - m) source: D = 2, source .5, mask .5 make 1.25; mixing twice would make .875."""
    source = torch.full_like(latent, SOURCE / SCALE)
    source[..., 5] = latent[..., 5]  # somewhere outside, a picture
    out = masked[name](constant, source, soft).samples
    assert (SCALE * out)[..., inside].sub(1.25).abs().max() < 1e-5
    torch.testing.assert_close(out, euler(constant, source, 3.0, 5, seed=7, mask=soft[:, None]), rtol=1e-4, atol=1e-4)
    outside, kept = (x[..., soft[0] == 0] for x in (out, source))
    torch.testing.assert_close(outside, kept, rtol=1e-6 if name in SCALED else 0, atol=0)


@pytest.mark.parametrize("holds", [True, False])
def test_only_a_loop_that_says_so_is_given_the_mask(tiny, engine, ends, latent, inside, holds):
    """A parameter of that name says nothing: what is asked is `holds_mask`."""
    seen = []

    def loop(denoise, x, sigmas, *, process, noise, callback, mask=None, source=None):
        seen.append((mask, source))
        return x * 0 + 3

    grid, sigmas = inside.float()[None, None].expand(2, 1, -1, -1), engine.sigmas_of(tiny, "normal", 3)
    sampler = own_sampler(loop, holds_mask=holds)
    out = sample_latent(tiny, *ends, 1.0, sampler, sigmas, {"samples": latent}, 0, grid)["samples"]
    ((mask, source),) = seen
    assert (mask is not None) == (source is not None) == holds
    torch.testing.assert_close(out[..., inside], torch.full_like(out[..., inside], 3 / SCALE))
    torch.testing.assert_close(out[..., ~inside], latent[..., ~inside])


# -------------------------------------------------------------------------------------------------------- interrupts


@pytest.fixture
def runs(edits, ends, tiny, latent, mask):
    """name -> a run of that node, each of at least 8 network calls."""
    both = {"model": tiny, "positive": ends[0], "negative": ends[1]}
    cartoon = {"cfg": 4.0, "steps_above": 4, "steps_below": 6}
    return {
        "disturbance": lambda: run("DisturbanceSampler", latent=latent, **both, **cartoon),
        "ilvr": lambda: run("ILVRSampler", reference=latent, steps=10, strip="4@0.5", **both),
        "sdedit": lambda: edits["sdedit"](tiny, latent, None, t0=0.8, steps=10),
        "diffedit mask": lambda: run("DiffEditMask", model=tiny, source=ends[0], target=ends[1], latent=latent),
        "diffedit": lambda: edits["diffedit"](tiny, latent, mask, depth=0.9),
        "repaint exact": lambda: edits["repaint"](tiny, latent, mask, mode=repaint.EXACT, levels=10),
        "blended": lambda: edits["blended"](tiny, latent, mask, steps=10),
        "blended, by the loss": lambda: edits["blended"](tiny, latent, mask, steps=10, hold=blended.LOSS),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("disturbance", "ilvr", "sdedit", "diffedit mask", "diffedit"),
        *("repaint exact", "blended", "blended, by the loss"),
    ],
)
def test_interrupt_in_mid_run_stops_and_the_next_run_works(runs, tiny, engine, monkeypatch, name):
    calls, manage = [], engine.get("model_management")
    monkeypatch.setattr(  # a server's hook stands in the progress bar: where core samplers notice
        engine.get("utils").ProgressBar,
        "update_absolute",
        lambda *a, **k: manage.throw_exception_if_processing_interrupted(),
    )

    def count(module, args):
        calls.append(1)
        if len(calls) == 2:
            manage.interrupt_current_processing(True)

    hook = tiny.model.diffusion_model.register_forward_pre_hook(count)
    try:
        with pytest.raises(engine.Interrupted()):
            runs[name]()
        stopped = len(calls)
    finally:
        hook.remove()
        manage.interrupt_current_processing(False)
    assert 2 <= stopped <= 4
    made = runs[name]()
    assert torch.isfinite(made[0] if name == "diffedit mask" else made.samples).all()
