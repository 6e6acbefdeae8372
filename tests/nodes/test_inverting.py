"""Inversion and its way back on tiny random models of both noise processes, on the engine at hand."""

import copy

import pytest
import torch
from nulltext.engine import files, record
from nulltext.engine.guider import null_text_guider
from nulltext.engine.noise import InversionNoise, source_latent
from nulltext.engine.sampler import own_way_back
from nulltext.nodes.inversion import InvertImage, invert
from nulltext.nodes.replay import replay
from nulltext.tests.running import SCALE, sample

STEPS = 6


@pytest.fixture(params=["EPS", "V_PREDICTION", "FLOW"])
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture
def sigmas(model, engine):
    return engine.sigmas_of(model, "normal", STEPS)


@pytest.fixture
def made(engine, latent, ends):
    """made(model, pivot, cfg) -> an INVERSION of `latent`."""

    def made(model, pivot="ddim", cfg=1.0, steps=STEPS, **options):
        conds, sigmas = dict(zip(("positive", "negative"), ends)), engine.sigmas_of(model, "normal", steps)
        with torch.inference_mode():
            return invert(model, conds, {"samples": latent}, sigmas, pivot, cfg=cfg, cache=False, **options)[0]

    return made


@pytest.fixture
def back(make_condition):
    """back(model, inversion, seed of the prompt) -> the way back."""

    def back(model, inversion, seed=1, **options):
        with torch.inference_mode():
            return replay(model, inversion, make_condition(seed), make_condition(2), **options)

    return back


exact = pytest.mark.parametrize("pivot", ["exact_pair", "edit_friendly"])


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@exact
def test_exact_pivots_come_back(model, made, back, pivot, cfg):
    """Up to and including sigma 1 of a flow model, where the engine's scalings lose the latent."""
    inversion = made(model, pivot, cfg)
    result = back(model, inversion)
    assert result.error.max() < 1e-3 and result.error.shape == (2,)
    assert back(model, inversion, 9).error.max() > 10 * result.error.max()


@exact
def test_another_cfg_on_the_way_back(tiny, made, back, make_condition, pivot):
    """Inverted at 3.5, edited at 15: the edit is the pivot's own walk with the guidance of 15."""
    inversion = made(tiny, pivot, 3.5)
    same = back(tiny, inversion, 9)
    assert torch.equal(same.samples, back(tiny, inversion, 9, cfg=3.5).samples)
    stronger = back(tiny, inversion, 9, cfg=15.0)
    assert torch.equal(stronger.samples, back(tiny, inversion.replace(cfg=15.0), 9).samples)
    assert not torch.allclose(stronger.samples, same.samples, rtol=1e-2, atol=1e-2)
    with torch.inference_mode():  # no null branch: nothing to wire
        bare = replay(tiny, inversion, make_condition(9), None, cfg=1.0)
    assert torch.equal(back(tiny, inversion, 9, cfg=1.0).samples, bare.samples)


@pytest.mark.parametrize("pivot", ["ddim", "exact_pair", "edit_friendly"])
def test_the_sampler_of_inversion_parts_refuses_sigmas_that_are_not_its_own(tiny, made, engine, ends, pivot):
    inversion = made(tiny, pivot)
    sampler, sigmas = own_way_back(inversion)
    wrong, latent = [sigmas[2:]], source_latent(inversion)
    wrong += [] if pivot == "ddim" else [engine.sigmas_of(tiny, "normal", 9)]  # from the same sigma, in other steps
    for each in wrong:
        with pytest.raises(ValueError, match="starts on an inversion's path.*wire the SIGMAS of the node"):
            sample(null_text_guider(tiny, inversion, ends[0], None, 1.0), latent * 0, each, latent, sampler)


def test_the_exact_pair_with_bdias_gamma(tiny, made, back):
    belm, one, less = (made(tiny, "exact_pair", gamma=g, steps=10) for g in (None, 1.0, 0.8))
    assert [i.metadata["gamma"] for i in (belm, one, less)] == [None, 1.0, 0.8]
    assert all(back(tiny, i).error.max() < 1e-3 for i in (belm, one, less))
    assert not torch.allclose(belm.x_T, one.x_T, rtol=1e-3)
    assert not torch.allclose(one.x_T, less.x_T, rtol=1e-3)
    wrong = one.replace(metadata={**one.metadata, "gamma": 0.8})  # the way back needs the gamma of the way there
    assert back(tiny, wrong).error.max() > 1e-2
    assert made(tiny, gamma=0.8).metadata["gamma"] is None


def test_the_exact_pair_is_bdia_where_a_step_is_too_long_for_o_belm(tiny, latent, ends, back):
    """A first step as a zero-terminal-SNR table has it, here in a schedule that is wired."""
    sigmas, given = torch.tensor([14.0, 2.0, 1.5, 1.0, 0.5, 0.0]), {"gamma": 0.0, "negative": ends[1]}
    with torch.inference_mode():
        result = InvertImage().run(
            tiny, ends[0], {"samples": latent}, "exact pair", 5, "normal", 1.0, 5, 0, True, sigmas=sigmas, **given
        )["result"]
        told = InvertImage().run(
            tiny, ends[0], {"samples": latent}, "exact pair", 4, "normal", 1.0, 5, 0, True, sigmas=sigmas[1:], **given
        )["result"][2]
    assert "exact pair (BDIA, gamma 1, for a step is too long for O-BELM), 5 steps" in result[2]
    assert "exact pair, 4 steps" in told
    assert result[0].metadata["gamma"] == 1.0 and back(tiny, result[0]).error.max() < 1e-3


def test_ddim_at_the_lower_level_asks_where_x_lies(model, sigmas, made, back, monkeypatch):
    asked, apply = [], type(model.model).apply_model

    def watched(self, x, t, *args, **kwargs):
        asked.append(float(t.max()))
        return apply(self, x, t, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "apply_model", watched)
    inversion = made(model, "ddim_lower")
    expected = [float(s) for s in (sigmas[-2], *sigmas[1:-1].flip(0))]  # the first step has no lower level to ask at
    assert torch.allclose(torch.tensor(asked), torch.tensor(expected))
    assert inversion.metadata["calls"] == STEPS
    assert not torch.allclose(inversion.x_T, made(model).x_T, rtol=1e-3)
    assert back(model, inversion).error.isfinite().all()


def test_what_an_inversion_holds(model, engine, sigmas, latent, made):
    inversion = made(model)
    assert inversion.process == engine.process_of(model).name and inversion.steps == STEPS
    assert torch.allclose(inversion.source, latent * SCALE) and torch.equal(inversion.sigmas, sigmas)
    assert torch.allclose(source_latent(inversion), latent, rtol=1e-5, atol=1e-6)
    assert not inversion.trajectory.is_inference() and inversion.fingerprint["prediction"]
    assert inversion.metadata["calls"] == STEPS
    assert record.source_conditioning(inversion)[0][0].shape == (1, 77, 64)
    record.check_belongs(inversion, model, {"samples": latent})
    with pytest.raises(ValueError, match=r"shape \[2, 4, 8, 8\].*\[1, 4, 8, 8\]"):
        record.check_belongs(inversion, model, {"samples": latent[:1]})


def test_another_model_is_refused(tiny, made, make_model):
    inversion = made(tiny)
    for kind, words in (("V_PREDICTION", "prediction type"), ("FLOW", "ve model.*flow model")):
        with pytest.raises(ValueError, match=words):
            record.check_belongs(inversion, make_model(kind))


@pytest.mark.parametrize("first", [0, 2])
def test_noise_brings_core_euler_onto_the_trajectory(model, sigmas, latent, made, back, make_condition, first):
    """The NOISE undoes the engine's scaling: core euler and our own walk give the same picture."""
    inversion = made(model)
    ours = back(model, inversion, first=first).samples
    guider = null_text_guider(model, inversion, make_condition(1), None, 1.0)
    for given in (source_latent(inversion), torch.zeros_like(latent)):
        noise = InversionNoise(inversion, first).generate_noise({"samples": given})
        core = sample(guider, noise, sigmas[first:], given)
        assert (core - ours).abs().max() / core.abs().max() < 1e-4


def test_noise_refuses_another_latent(tiny, made, latent):
    noise = InversionNoise(made(tiny))
    for other, words in ((latent + 1, "not the one that was inverted"), (latent[..., :4], "shape")):
        with pytest.raises(ValueError, match=words):
            noise.generate_noise({"samples": other})


@pytest.mark.parametrize(
    ("name", "pivot", "cut", "words"),
    [
        ("euler_ancestral", "ddim", None, "euler_ancestral does not walk"),
        ("dpmpp_2m", "ddim", None, "dpmpp_2m"),
        ("euler", "exact_pair", None, "own way back"),
        ("euler", "ddim", -1, "sigmas are not the inversion's"),
    ],
)
def test_other_samplers_are_refused(tiny, made, latent, make_condition, name, pivot, cut, words):
    inversion = made(tiny, pivot)
    guider = null_text_guider(tiny, inversion, make_condition(1), None, 1.0)
    with pytest.raises(ValueError, match=words):
        sample(guider, torch.zeros_like(latent), inversion.sigmas[:cut], latent, name)


def test_mask_keeps_the_source_outside(model, latent, made, back):
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    out = back(model, made(model, "exact_pair"), 9, mask=mask).samples
    assert torch.allclose(out[..., :4], latent[..., :4], atol=2e-3)
    assert (out[..., 4:] - latent[..., 4:]).abs().max() > 0.05


@pytest.mark.parametrize("pivot", ["ddim", "exact_pair", "edit_friendly"])
def test_a_flow_shift_whose_first_sigma_is_rounded_above_1_inverts_as_from_1(make_model, made, back, engine, pivot):
    model = make_model("FLOW")
    model.get_model_object("model_sampling").set_parameters(shift=2.14)
    assert 1 < float(engine.sigmas_of(model, "normal", STEPS)[0]) < 1.000001
    inversion = made(model, pivot)
    assert float(inversion.sigmas[0]) == 1 and back(model, inversion).error.isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent": torch.full((1, 4, 8, 8), float("nan"))}, "NaN"),
        ({"latent": torch.zeros(1, 4, 8, 8)}, "empty"),
        ({"latent": torch.randn(1, 16, 8, 8)}, "4 channels"),
        ({"sigmas": torch.tensor([1.0, 0.0])}, "An inversion needs at least 2 steps"),
        ({"sigmas": torch.tensor([0.0, 1.0, 5.0])}, "not flipped"),
        ({"sigmas": torch.tensor([5.0, 2.0, 1.0])}, "end at 0.*before an inversion"),
        ({"pivot": "euler"}, "pivot is one of"),
        ({"cfg": 3.0, "negative": None}, "negative"),
        ({"positive": []}, "missing"),
    ],
)
def test_bad_input_is_refused_before_any_call(tiny, ends, change, words):
    tiny.model.apply_model = None  # any call would fail otherwise
    given = {"latent": torch.randn(1, 4, 8, 8), "sigmas": torch.tensor([5.0, 1.0, 0.0]), "pivot": "ddim", "cfg": 1.0}
    given |= {"positive": ends[0], "negative": ends[1], **change}
    conds, latent = {k: given[k] for k in ("positive", "negative")}, {"samples": given["latent"]}
    with pytest.raises(ValueError, match=words) as caught:
        invert(tiny, conds, latent, given["sigmas"], given["pivot"], cfg=given["cfg"], cache=False)
    assert "\n" not in str(caught.value)


def test_cache_finds_it_again_and_stays_small(tiny, engine, latent, make_condition, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    sigmas, conds = engine.sigmas_of(tiny, "normal", 3), {"positive": make_condition(1)}

    def run(latent=latent, model=tiny, pivot="ddim"):
        with torch.inference_mode():
            return invert(model, conds, {"samples": latent}, sigmas, pivot)

    first, found = run()
    again, found_again = run()
    assert (found, found_again) == (False, True) and torch.equal(first.trajectory, again.trajectory)
    assert again.fingerprint == first.fingerprint and again.metadata == first.metadata
    assert not run(latent + 1)[1] and not run(pivot="exact_pair")[1]
    patched = tiny.clone()
    patched.set_model_attn1_patch(lambda n, context, value, extra: (n, context, value))
    assert not run(model=patched)[1] and not run(model=patched)[1]
    file = tmp_path / f"{files.cache_key(tiny, 1)}.safetensors"
    file.write_bytes(b"broken")
    assert files.find(file.stem) is None and not file.exists()
    sizes = [p.stat().st_size for p in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 3
    files.keep("new", first, limit=2 * max(sizes))
    assert sorted(p.name for p in tmp_path.glob("*"))[-1] == "new.safetensors" and len(list(tmp_path.glob("*"))) == 2


def test_levels_found_in_the_cache_are_a_part_of_the_schedule_that_asks(
    tiny, engine, latent, make_condition, monkeypatch, tmp_path
):
    """DiffEdit asks how many steps the whole schedule has, of which these levels may be the lower part."""
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    sigmas, given = engine.sigmas_of(tiny, "normal", 4), ({"positive": make_condition(1)}, {"samples": latent})
    with torch.inference_mode():
        part, _ = invert(tiny, *given, sigmas, "ddim", depth=0.5)
        whole, found = invert(tiny, *given, sigmas[2:], "ddim")
    assert found and torch.equal(part.sigmas, whole.sigmas)
    assert (part.metadata["schedule_steps"], whole.metadata["schedule_steps"]) == (4, 2)


def test_a_flow_that_tells_the_network_other_times_is_another_model_to_the_cache(make_model):
    model = make_model("FLOW")
    before, sampling = files.cache_key(model, 1), model.get_model_object("model_sampling")
    other = model.clone()
    other.add_object_patch("model_sampling", copy.copy(sampling))
    assert files.cache_key(other, 1) == before
    found = {before}
    for other.get_model_object("model_sampling").multiplier in (2, 500):
        found.add(files.cache_key(other, 1))
    assert len(found) == 3


@pytest.mark.parametrize("name", ["wrappers", "injections", "hook_patches", "weight_wrapper_patches"])
def test_what_is_made_with_a_model_that_somebody_patched_in_code_is_not_kept(tiny, name):
    model = tiny.clone()
    setattr(model, name, {"diffusion_model.out.2.weight": [lambda weight: 2 * weight]})
    assert files.cache_key(tiny, 1) and files.cache_key(model, 1) is None
