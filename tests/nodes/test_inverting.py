"""Inversion and its way back on tiny random models of both noise processes, on the engine at hand."""

import pytest
import torch
from nulltext.engine import files, record
from nulltext.engine.guider import null_text_guider
from nulltext.engine.noise import InversionNoise, source_latent
from nulltext.engine.sampler import core_sampler
from nulltext.nodes.inversion import invert
from nulltext.nodes.replay import replay

STEPS = 6


@pytest.fixture(params=["EPS", "V_PREDICTION", "FLOW"])
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture
def sigmas(model, engine):
    return engine.sigmas_of(model, "normal", STEPS)


def made(model, latent, sigmas, make_condition, pivot, cfg=1.0, **options):
    conds = {"positive": make_condition(1), "negative": make_condition(2)}
    with torch.inference_mode():
        return invert(model, conds, {"samples": latent}, sigmas, pivot, cfg=cfg, cache=False, **options)[0]


def back(model, inversion, make_condition, seed=1, **options):
    with torch.inference_mode():
        return replay(model, inversion, make_condition(seed), make_condition(2), **options)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("pivot", ["exact_pair", "edit_friendly"])
def test_exact_pivots_come_back(model, sigmas, latent, make_condition, pivot, cfg):
    """Up to and including sigma 1 of a flow model, where the engine's scalings lose the latent."""
    inversion = made(model, latent, sigmas, make_condition, pivot, cfg)
    result = back(model, inversion, make_condition)
    assert result.error.max() < 1e-3 and result.error.shape == (2,)
    other = back(model, inversion, make_condition, seed=9)
    assert other.error.max() > 10 * result.error.max()


@pytest.mark.parametrize("pivot", ["exact_pair", "edit_friendly"])
def test_another_cfg_on_the_way_back(make_model, engine, latent, make_condition, pivot):
    """Inverted at 3.5, edited at 15: the edit is the pivot's own walk with the guidance of 15."""
    model = make_model()
    inversion = made(model, latent, engine.sigmas_of(model, "normal", STEPS), make_condition, pivot, 3.5)
    same = back(model, inversion, make_condition, seed=9)
    assert torch.equal(same.samples, back(model, inversion, make_condition, seed=9, cfg=3.5).samples)
    stronger = back(model, inversion, make_condition, seed=9, cfg=15.0)
    walked = back(model, inversion.replace(cfg=15.0), make_condition, seed=9)
    assert torch.equal(stronger.samples, walked.samples)
    assert not torch.allclose(stronger.samples, same.samples, rtol=1e-2, atol=1e-2)
    alone = back(model, inversion, make_condition, seed=9, cfg=1.0)  # no null branch: nothing to wire
    with torch.inference_mode():
        bare = replay(model, inversion, make_condition(9), None, cfg=1.0)
    assert torch.equal(alone.samples, bare.samples)


def test_the_exact_pair_with_bdias_gamma(make_model, engine, latent, make_condition):
    model = make_model()
    sigmas = engine.sigmas_of(model, "normal", STEPS)
    belm, one, less = (made(model, latent, sigmas, make_condition, "exact_pair", gamma=g) for g in (None, 1.0, 0.8))
    assert [i.metadata["gamma"] for i in (belm, one, less)] == [None, 1.0, 0.8]
    assert all(back(model, i, make_condition).error.max() < 1e-3 for i in (belm, one, less))
    assert not torch.allclose(belm.x_T, one.x_T, rtol=1e-3)
    assert not torch.allclose(one.x_T, less.x_T, rtol=1e-3)
    wrong = one.replace(metadata={**one.metadata, "gamma": 0.8})  # the way back needs the gamma of the way there
    assert back(model, wrong, make_condition).error.max() > 1e-2
    assert made(model, latent, sigmas, make_condition, "ddim", gamma=0.8).metadata["gamma"] is None


def test_ddim_at_the_lower_level_asks_where_x_lies(model, engine, sigmas, latent, make_condition, monkeypatch):
    asked, apply = [], type(model.model).apply_model

    def watched(self, x, t, *args, **kwargs):
        asked.append(float(t.max()))
        return apply(self, x, t, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "apply_model", watched)
    inversion = made(model, latent, sigmas, make_condition, "ddim_lower")
    expected = [float(s) for s in (sigmas[-2], *sigmas[1:-1].flip(0))]  # the first step has no lower level to ask at
    assert torch.allclose(torch.tensor(asked), torch.tensor(expected))
    assert inversion.metadata["calls"] == STEPS
    assert not torch.allclose(inversion.x_T, made(model, latent, sigmas, make_condition, "ddim").x_T, rtol=1e-3)
    assert back(model, inversion, make_condition).error.isfinite().all()


def test_what_an_inversion_holds(model, engine, sigmas, latent, make_condition):
    inversion = made(model, latent, sigmas, make_condition, "ddim")
    assert inversion.process == engine.process_of(model).name and inversion.steps == STEPS
    assert torch.allclose(inversion.source, latent * 0.18215) and torch.equal(inversion.sigmas, sigmas)
    assert torch.allclose(source_latent(inversion), latent, rtol=1e-5, atol=1e-6)
    assert not inversion.trajectory.is_inference() and inversion.fingerprint["prediction"]
    assert inversion.metadata["calls"] == STEPS
    assert record.source_conditioning(inversion)[0][0].shape == (1, 77, 64)
    record.check_belongs(inversion, model, {"samples": latent})
    with pytest.raises(ValueError, match=r"shape \[2, 4, 8, 8\].*\[1, 4, 8, 8\]"):
        record.check_belongs(inversion, model, {"samples": latent[:1]})


def test_another_model_is_refused(make_model, engine, latent, make_condition):
    model = make_model()
    inversion = made(model, latent, engine.sigmas_of(model, "normal", STEPS), make_condition, "ddim")
    with pytest.raises(ValueError, match="prediction type"):
        record.check_belongs(inversion, make_model("V_PREDICTION"))
    with pytest.raises(ValueError, match="ve model.*flow model"):
        record.check_belongs(inversion, make_model("FLOW"))


@pytest.mark.parametrize("first", [0, 2])
def test_noise_brings_core_euler_onto_the_trajectory(model, sigmas, latent, make_condition, first):
    """The NOISE undoes the engine's scaling: core euler and our own walk give the same picture."""
    inversion = made(model, latent, sigmas, make_condition, "ddim")
    ours = back(model, inversion, make_condition, first=first)
    noise = InversionNoise(inversion, first).generate_noise({"samples": latent})
    guider = null_text_guider(model, inversion, make_condition(1), None, 1.0)
    with torch.inference_mode():
        core = guider.sample(noise, source_latent(inversion), core_sampler("euler"), sigmas[first:], disable_pbar=True)
    assert (core - ours.samples).abs().max() / core.abs().max() < 1e-4
    empty = InversionNoise(inversion, first).generate_noise({"samples": torch.zeros_like(latent)})
    with torch.inference_mode():
        blank = torch.zeros_like(latent)
        again = guider.sample(empty, blank, core_sampler("euler"), sigmas[first:], disable_pbar=True)
    assert (again - core).abs().max() / core.abs().max() < 1e-4


def test_noise_refuses_another_latent(make_model, engine, latent, make_condition):
    model = make_model()
    inversion = made(model, latent, engine.sigmas_of(model, "normal", STEPS), make_condition, "ddim")
    with pytest.raises(ValueError, match="not the one that was inverted"):
        InversionNoise(inversion).generate_noise({"samples": latent + 1})
    with pytest.raises(ValueError, match="shape"):
        InversionNoise(inversion).generate_noise({"samples": latent[..., :4]})


@pytest.mark.parametrize(
    ("name", "pivot", "cut", "words"),
    [
        ("euler_ancestral", "ddim", 0, "euler_ancestral does not walk"),
        ("dpmpp_2m", "ddim", 0, "dpmpp_2m"),
        ("euler", "exact_pair", 0, "own way back"),
        ("euler", "ddim", -1, "sigmas are not the inversion's"),
    ],
)
def test_other_samplers_are_refused(make_model, engine, latent, make_condition, name, pivot, cut, words):
    model = make_model()
    sigmas = engine.sigmas_of(model, "normal", STEPS)
    inversion = made(model, latent, sigmas, make_condition, pivot)
    guider = null_text_guider(model, inversion, make_condition(1), None, 1.0)
    with pytest.raises(ValueError, match=words):
        guider.sample(torch.zeros_like(latent), latent, core_sampler(name), sigmas[:cut] if cut else sigmas)


def test_mask_keeps_the_source_outside(model, sigmas, latent, make_condition):
    inversion = made(model, latent, sigmas, make_condition, "exact_pair")
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    result = back(model, inversion, make_condition, seed=9, mask=mask)
    assert torch.allclose(result.samples[..., :4], latent[..., :4], atol=2e-3)
    assert (result.samples[..., 4:] - latent[..., 4:]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent": torch.full((1, 4, 8, 8), float("nan"))}, "NaN"),
        ({"latent": torch.zeros(1, 4, 8, 8)}, "empty"),
        ({"latent": torch.randn(1, 16, 8, 8)}, "4 channels"),
        ({"sigmas": torch.tensor([1.0, 0.0])}, "at least 2 steps"),
        ({"sigmas": torch.tensor([0.0, 1.0, 5.0])}, "not flipped"),
        ({"sigmas": torch.tensor([5.0, 2.0, 1.0])}, "end at 0"),
        ({"pivot": "euler"}, "pivot is one of"),
        ({"cfg": 3.0, "negative": None}, "negative"),
        ({"positive": []}, "missing"),
    ],
)
def test_bad_input_is_refused_before_any_call(make_model, make_condition, change, words):
    model = make_model()
    model.model.apply_model = None  # any call would fail otherwise
    given = {
        "latent": torch.randn(1, 4, 8, 8),
        "sigmas": torch.tensor([5.0, 1.0, 0.0]),
        "pivot": "ddim",
        "cfg": 1.0,
        "positive": make_condition(),
        "negative": make_condition(2),
        **change,
    }
    with pytest.raises(ValueError, match=words) as caught:
        invert(
            model,
            {k: given[k] for k in ("positive", "negative")},
            {"samples": given["latent"]},
            given["sigmas"],
            given["pivot"],
            cfg=given["cfg"],
            cache=False,
        )
    assert "\n" not in str(caught.value)


def test_cache_finds_it_again_and_stays_small(make_model, engine, latent, make_condition, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    model = make_model()
    sigmas = engine.sigmas_of(model, "normal", 3)
    conds = {"positive": make_condition(1)}

    def run(latent=latent, model=model, pivot="ddim"):
        with torch.inference_mode():
            return invert(model, conds, {"samples": latent}, sigmas, pivot)

    first, found = run()
    again, found_again = run()
    assert (found, found_again) == (False, True) and torch.equal(first.trajectory, again.trajectory)
    assert again.fingerprint == first.fingerprint and again.metadata == first.metadata
    assert not run(latent + 1)[1] and not run(pivot="exact_pair")[1]
    patched = model.clone()
    patched.set_model_attn1_patch(lambda n, context, value, extra: (n, context, value))
    assert not run(model=patched)[1] and not run(model=patched)[1]
    file = tmp_path / f"{files.cache_key(model, 1)}.safetensors"
    file.write_bytes(b"broken")
    assert files.find(file.stem) is None and not file.exists()
    sizes = [p.stat().st_size for p in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 3
    files.keep("new", first, limit=2 * max(sizes))
    assert sorted(p.name for p in tmp_path.glob("*"))[-1] == "new.safetensors" and len(list(tmp_path.glob("*"))) == 2
