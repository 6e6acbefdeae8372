"""Guidance on a MODEL inside the engine's own sampling run, with a tiny random model, decoder, towers and
classifier."""

import pytest
import torch
from nulltext.demo import nets
from nulltext.demo.image_text import IMAGE, NOISY, TEXT, WORDS
from nulltext.engine import guide
from nulltext.engine.guider import guider_class
from nulltext.engine.sampler import core_sampler
from nulltext.nodes import NODE_CLASS_MAPPINGS as NODES
from nulltext.samplers.guidance.terms import Guidance
from nulltext.samplers.networks.image_text import ImageText
from nulltext.samplers.networks.latent_classifier import LatentClassifier

EXACT, DECODER, LATENT = ("through network and decoder (exact)", "through decoder only", "on the latent (no decoder)")


def run(node, **inputs):
    """A node's outputs and what it says, under inference mode as the engine runs it."""
    with torch.inference_mode():
        made = NODES[f"NullText_{node}"]()
        out = getattr(made, made.FUNCTION)(**inputs)
    return (out["result"], out["ui"]["text"][0]) if isinstance(out, dict) else (out, "")


def sample(model, engine, make_condition, cfg=1.0, steps=3, batch=2, sampler="euler", seed=1):
    guider = guider_class()(model)
    guider.set_conds(make_condition(1), make_condition(2))
    guider.set_cfg(cfg)
    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return guider.sample(
            noise,
            torch.zeros_like(noise),
            core_sampler(sampler),
            engine.sigmas_of(model, "karras", steps),
            disable_pbar=True,
            seed=3,
        ).clone()


@pytest.fixture(scope="module")
def vae(engine):
    torch.manual_seed(0)
    sd = dict(nets.AutoEncoder().state_dict())
    sd |= {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
    with torch.inference_mode():
        return engine.get("sd").VAE(sd=sd)


@pytest.fixture(scope="module")
def image_text():
    torch.manual_seed(0)
    made = ImageText(WORDS, IMAGE, TEXT, NOISY)
    for p in made.noisy.parameters():  # zero-initialised branches would hide mistakes
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(1)
    made = LatentClassifier.new(["cat", "dog", "owl"], 4, 8, width=16)
    for p in made.parameters():  # zero-initialised branches would hide mistakes
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return made.eval().requires_grad_(False)


def parameters(*modules):
    return [p for m in modules for p in m.parameters()]


def clip(model, vae, image_text, **changes):
    inputs = {
        "model": model,
        "vae": vae,
        "image_text": image_text,
        "text": "a red circle",
        "loss": "spherical",
        "distractors": "a blue square",
        "scale": 50.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "gradient_mode": DECODER,
        "cutouts": 2,
        "cut_power": 1.0,
        "smallest_cut": 0.7,
        "augment": True,
        "bound": 0.5,
        "every": 1,
        "seed": 0,
    }
    return run("CLIPGuidance", **(inputs | changes))


def semantic(model, image_text, **changes):
    inputs = {
        "model": model,
        "image_text": image_text,
        "gradient_mode": LATENT,
        "text": "",
        "text_weight": 0.0,
        "content_weight": 0.0,
        "structure_weight": 0.0,
        "style_weight": 0.0,
        "scale": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "bound": 0.5,
        "every": 1,
        "layers": "0,1",
        "seed": 0,
    }
    return run("SemanticGuidance", **(inputs | changes))


def classify(model, classifier, **changes):
    inputs = {
        "model": model,
        "classifier": classifier,
        "class_name": "dog",
        "scale": 3.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "gradient_mode": "automatic",
        "bound": 0.5,
        "every": 1,
    }
    return run("ClassifierGuidance", **(inputs | changes))


# ----------------------------------------------------------------------------------------- gradients in the engine


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("mode", ["network", "decoder", "latent"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_push_is_the_gradient_by_finite_differences(engine, make_model, make_condition, vae, kind, mode, cfg):
    """One Euler step from sigma to 0 returns D'. Its change against the unguided one is f k g, and g is taken
    numerically along one direction of x (or D) through the very same engine calls."""
    model = make_model(kind)
    decode = guide.decoder(model, vae)

    def likelihood(x, sigma, d):
        return -10 * (decode(d) - 0.3).pow(2).flatten(1).mean(1) - 0.05 * (x / 4).tanh().pow(2).flatten(1).sum(1)

    s, k, v = (2.0, 1.5, 0.8) if kind == "EPS" else (0.7, 1.5, 0.8)
    sigmas = torch.tensor([s, 0.0])
    term = guide.Term(Guidance(likelihood, mode, k, variance=v), (vae.first_stage_model,))
    guided = guide.attach(model, [term])

    def denoised(m, x):
        g = guider_class()(m)
        g.set_conds(make_condition(1), make_condition(2))
        g.set_cfg(cfg)
        scaled = m.get_model_object("latent_format")
        with torch.inference_mode():
            out = g.sample(x / s, torch.zeros_like(x), core_sampler("euler"), sigmas, disable_pbar=True, seed=3)
        return scaled.process_in(out).clone()

    x = s * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    d = denoised(model, x)
    push = denoised(guided, x) - d
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(8))
    way = way / way.norm() + push / push.norm()  # a good part of the way uphill, or fp32 drowns the difference
    way = way / way.norm()
    h = 0.01
    with torch.inference_mode():
        if mode == "network":
            ends = [likelihood(x + e * way, s, denoised(model, x + e * way)) for e in (h, -h)]
        elif mode == "decoder":
            ends = [likelihood(x, s, d + e * way) for e in (h, -h)]
        else:
            ends = [likelihood(x + e * way, s, d) for e in (h, -h)]
    slope = float((ends[0] - ends[1]) / (2 * h))
    factor = s**2 if kind == "EPS" else s**2 / (1 - s)
    if mode == "decoder":
        a = 1 if kind == "EPS" else 1 - s
        factor *= a * v / (a * a * v + s * s)
    assert float((push * way).sum()) == pytest.approx(k * factor * slope, rel=0.03, abs=1e-5)


def test_towers_of_noisy_latents_judge_a_flows_latents_too(engine, tiny, make_model, vae, image_text, classifier):
    """What is trained on x0 + r n judges (1 - s) x0 + s n as the same latent, r = s / (1 - s)."""
    x, s = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)), torch.tensor(0.6)
    for attach in (
        lambda m: classify(m, classifier),
        lambda m: clip(m, vae, image_text, gradient_mode=LATENT),
        lambda m: semantic(m, image_text, text="a red circle", text_weight=5.0),
    ):
        (ours,), (theirs,) = (guide.terms_of(attach(m)[0][0]) for m in (make_model("FLOW"), tiny))
        value = ours.guidance.log_likelihood(x, s, x)
        torch.testing.assert_close(value, theirs.guidance.log_likelihood(x / (1 - s), s / (1 - s), x))
        if ours.probabilities is not None and ours.guidance.name.startswith("class"):
            mine, other = ours.probabilities(x, s, x)[1], theirs.probabilities(x / (1 - s), s / (1 - s), x)[1]
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_unguided_branches_are_untouched_to_the_bit(engine, tiny, make_condition, vae, image_text, classifier, cfg):
    want = sample(tiny, engine, make_condition, cfg)
    for out, said in (
        clip(tiny, vae, image_text, scale=0.0),
        classify(tiny, classifier, scale=0.0),
        semantic(tiny, image_text),
        semantic(tiny, image_text, text="a red circle", text_weight=5.0, scale=0.0),
    ):
        assert out[0] is tiny and "Notice" in said
    closed = clip(tiny, vae, image_text, start_percent=1.0)[0][0]
    assert torch.equal(sample(closed, engine, make_condition, cfg), want)


@pytest.mark.parametrize("mode", [DECODER, EXACT])
def test_the_model_is_left_as_it_was(engine, tiny, make_condition, vae, image_text, mode):
    before = [
        (id(p), p.is_inference(), p._version if not p.is_inference() else 0)
        for p in parameters(tiny.model, vae.first_stage_model)
    ]
    plain = sample(tiny, engine, make_condition, 3.0)
    out, said = clip(tiny, vae, image_text, gradient_mode=mode)
    guided = sample(out[0], engine, make_condition, 3.0)
    assert (guided - plain).abs().max() > 0.01 and "Cost" in said
    assert torch.equal(guided, sample(out[0], engine, make_condition, 3.0))
    assert torch.equal(plain, sample(tiny, engine, make_condition, 3.0))
    after = [
        (id(p), p.is_inference(), p._version if not p.is_inference() else 0)
        for p in parameters(tiny.model, vae.first_stage_model)
    ]
    assert before == after and not tiny.model_options.get("sampler_post_cfg_function")


def test_an_error_or_interrupt_inside_leaves_everything(engine, tiny, make_condition, vae):
    before = [id(p) for p in parameters(tiny.model, vae.first_stage_model)]

    def broken(x, sigma, d):
        raise engine.Interrupted()()

    term = guide.Term(Guidance(broken, "network"), (vae.first_stage_model,))
    with pytest.raises(engine.Interrupted()):
        sample(guide.attach(tiny, [term]), engine, make_condition)
    assert before == [id(p) for p in parameters(tiny.model, vae.first_stage_model)]


def test_terms_of_two_nodes_add_up(engine, tiny, make_condition, vae, image_text, classifier):
    one, two = clip(tiny, vae, image_text, bound=0.0)[0][0], classify(tiny, classifier, bound=0.0)[0][0]
    both = classify(clip(tiny, vae, image_text, bound=0.0)[0][0], classifier, bound=0.0)[0][0]
    assert [t.guidance.name for t in guide.terms_of(both)] == ["spherical: a red circle", "class dog"]
    assert len(both.model_options["sampler_post_cfg_function"]) == 1
    plain, a, b, ab = (sample(m, engine, make_condition, steps=1) for m in (tiny, one, two, both))
    torch.testing.assert_close(ab - plain, (a - plain) + (b - plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("every", [1, 2])
def test_every_other_step_by_the_schedules_place(engine, tiny, make_condition, classifier, every):
    model = classify(tiny, classifier, every=every)[0][0]
    sample(model, engine, make_condition, steps=4, sampler="heun")
    acted = [bool(s["terms"]) for s in guide.record_of(model).steps]
    assert acted == ([True] * 4 if every == 1 else [True, False, True, False])


# ------------------------------------------------------------------------------------------------------ the nodes


def test_all_kinds_of_losses_run(engine, tiny, make_condition, vae, image_text):
    picture = torch.rand(1, 64, 64, 3)
    plain = sample(tiny, engine, make_condition)
    seen = [plain]
    for changes in (
        {"loss": "contrastive"},
        {"loss": "cosine"},
        {"loss": "cosine", "gradient_mode": LATENT},
        {"text": "", "image": picture},
        {"mask": torch.ones(64, 64).triu()[None]},
        {"smoothness": 10.0, "range_weight": 10.0},
    ):
        out = sample(clip(tiny, vae, image_text, **changes)[0][0], engine, make_condition)
        assert bool(torch.isfinite(out).all()) and all((out - s).abs().max() > 1e-4 for s in seen)
        seen.append(out)
    for changes in (
        {"text": "a red circle", "text_weight": 160.0},
        {"content_weight": 100.0},
        {"structure_weight": 50.0},
        {"style_weight": 50.0},
        {"style_weight": 50.0, "gradient_mode": DECODER},
    ):
        out = sample(semantic(tiny, image_text, reference=picture, vae=vae, **changes)[0][0], engine, make_condition)
        assert bool(torch.isfinite(out).all()) and all((out - s).abs().max() > 1e-4 for s in seen)
        seen.append(out)


def test_a_batch_equals_its_single_runs(engine, tiny, make_condition, vae, image_text):
    model = clip(tiny, vae, image_text, scale=5.0)[0][0]

    def go(noise):
        guider = guider_class()(model)
        guider.set_conds(make_condition(1), make_condition(2))
        guider.set_cfg(1.0)
        with torch.inference_mode():
            return guider.sample(
                noise,
                torch.zeros_like(noise),
                core_sampler("euler"),
                torch.tensor([4.0, 1.0, 0.0]),
                disable_pbar=True,
                seed=3,
            ).clone()

    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(go(noise), torch.cat([go(n[None]) for n in noise]), rtol=1e-3, atol=1e-3)


def test_trace_shows_the_last_run(engine, tiny, make_condition, vae, classifier):
    model = classify(tiny, classifier)[0][0]
    with pytest.raises(ValueError, match="not been sampled"):
        run("GuidanceTrace", model=model, latent={"samples": torch.zeros(1, 4, 8, 8)}, vae=vae, pictures=3, item=1)
    for steps in (5, 3):
        out = sample(model, engine, make_condition, steps=steps)
    (image, table), said = run("GuidanceTrace", model=model, latent={"samples": out}, vae=vae, pictures=3, item=2)
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[2] >= 512
    assert len(table.splitlines()) == 1 + 3 and "class dog" in table and "3 steps" in said
    names, told = guide.probabilities_of(model)["class dog"]
    assert names == ["cat", "dog", "owl"] and len(told) == 3
    last = guide.record_of(model).steps[-1]
    want = classifier(last["x"].float(), last["sigma"]).softmax(1)
    torch.testing.assert_close(told[-1], want, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="choose item"):
        run("GuidanceTrace", model=model, latent={"samples": out}, vae=vae, pictures=3, item=3)
    with pytest.raises(ValueError, match="no guidance of this pack"):
        run("GuidanceTrace", model=tiny, latent={"samples": out}, vae=vae, pictures=3, item=1)


def test_rank_orders_by_similarity(image_text):
    target = torch.rand(1, 64, 64, 3)
    batch = torch.cat([torch.rand(1, 64, 64, 3), target, 1 - target])
    (best, table, latent), _ = run(
        "CLIPRank",
        images=batch,
        image_text=image_text,
        text="",
        keep=2,
        target_image=target,
        latent={"samples": torch.arange(3.0).view(3, 1, 1, 1)},
    )
    assert torch.equal(best[0], target[0]) and len(best) == 2 and "picture   2" in table.splitlines()[0]
    assert latent["samples"].flatten()[0] == 1
    with pytest.raises(ValueError, match="no target"):
        run("CLIPRank", images=batch, image_text=image_text, text="", keep=2)


def test_start_noise_is_optimised_and_reproduces_its_result(engine, tiny, make_condition, vae, classifier):
    model = classify(tiny, classifier)[0][0]
    inputs = {
        "positive": make_condition(1),
        "negative": make_condition(2),
        "latent": {"samples": torch.zeros(2, 4, 8, 8)},
        "seed": 4,
        "steps": 3,
        "scheduler": "karras",
        "cfg": 1.0,
        "iterations": 6,
        "learning_rate": 0.1,
        "prior": 1.0,
    }
    (latent, noise, sigmas, chart), said = run("OptimiseStartNoise", model=model, **inputs)
    first, best = (float(v) for v in said.split("Loss ")[1].split(" (")[0].split(" -> "))
    assert best < first and chart.shape[0] == 1
    empty = {"samples": torch.zeros(2, 4, 8, 8)}
    guider = guider_class()(tiny)
    guider.set_conds(make_condition(1), make_condition(2))
    guider.set_cfg(1.0)
    with torch.inference_mode():
        again = guider.sample(
            noise.generate_noise(empty), empty["samples"], core_sampler("euler"), sigmas, disable_pbar=True, seed=0
        )
    torch.testing.assert_close(again, latent["samples"], rtol=1e-3, atol=2e-3)
    with pytest.raises(ValueError, match="no loss"):
        run("OptimiseStartNoise", model=tiny, **inputs)
    with pytest.raises(ValueError, match="shape"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8)})


def test_cfg_convention_is_1_plus_w(engine, tiny, make_condition):
    inputs = {"model": tiny, "shape": "constant", "w_end": 0.0, "start_percent": 0.0, "end_percent": 1.0}
    (model, cfg, _), said = run("CFGConvention", w=2.5, **inputs)
    assert cfg == 3.5 and "3.5" in said
    torch.testing.assert_close(
        sample(model, engine, make_condition, cfg=1.0),
        sample(tiny, engine, make_condition, cfg=3.5),
        rtol=1e-4,
        atol=1e-4,
    )
    alone = run("CFGConvention", w=0.0, **inputs)[0][0]
    torch.testing.assert_close(
        sample(alone, engine, make_condition, cfg=9.0),
        sample(tiny, engine, make_condition, cfg=1.0),
        rtol=1e-4,
        atol=1e-4,
    )
    falling = run("CFGConvention", w=4.0, **(inputs | {"shape": "linear"}))[0][0]
    assert (sample(falling, engine, make_condition) - sample(model, engine, make_condition)).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- refusals


def test_refusals_come_before_sampling(engine, tiny, make_model, make_condition, vae, image_text, classifier, tmp_path):
    class Pixels(torch.nn.Module):
        labels = ["cat", "dog"]

    cases = [
        (lambda: classify(tiny, classifier, class_name="horse"), "cat, dog, owl"),
        (lambda: classify(tiny, Pixels(), gradient_mode=LATENT), "not latents"),
        (lambda: classify(tiny, Pixels()), "wire the VAE"),
        (lambda: classify(tiny, classifier, gradient_mode=DECODER), "noisy latents"),
        (lambda: classify(tiny, LatentClassifier.new(["cat", "dog"], 16, 8, width=16)), "train one for this model"),
        (lambda: classify(tiny, classifier, start_percent=0.9, end_percent=0.2), "empty"),
        (lambda: clip(tiny, vae, image_text, loss="contrastive", distractors=""), "distractor"),
        (lambda: clip(tiny, vae, image_text, loss="contrastive", distractors="a red circle"), "distractor"),
        (lambda: clip(tiny, vae, image_text, text=""), "no target"),
        (lambda: clip(tiny, vae, image_text, text="zebra"), "knows no word"),
        (lambda: clip(tiny, vae, image_text, text="a red circle : 1\na blue ring : -1"), "sum to zero"),
        (lambda: clip(tiny, vae, image_text, mask=torch.zeros(1, 8, 8)), "mask is empty"),
        (lambda: semantic(tiny, image_text, text_weight=5.0), "needs a text"),
        (lambda: semantic(tiny, image_text, content_weight=5.0), "reference picture"),
        (
            lambda: semantic(tiny, ImageText(WORDS, IMAGE, TEXT), text="a red circle", text_weight=5.0),
            "no noise-aware tower",
        ),
        (lambda: semantic(tiny, image_text, text="a red circle", text_weight=5.0, layers="x"), "Layers are numbers"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()


def test_weights_without_a_backward_are_refused_in_one_sentence(engine, tiny, make_condition, vae, image_text):
    model = clip(tiny, vae, image_text, gradient_mode=EXACT)[0][0]
    name, weight = next(((n, p) for n, p in tiny.model.named_parameters() if p.ndim == 2))
    owner = tiny.model.get_submodule(name.rpartition(".")[0])
    with torch.inference_mode():
        owner._parameters["weight"] = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    try:
        with pytest.raises(ValueError, match="quantised"):
            guide_only_gradients(model, engine, make_condition)
    finally:
        owner._parameters["weight"] = weight


@pytest.mark.parametrize(
    ("mode", "words"),
    [("network", "set gradient_mode to decoder"), ("decoder", "fewer cutouts"), ("latent", "smaller batch")],
)
def test_too_little_memory_names_what_would_fit(engine, tiny, make_condition, mode, words):
    def greedy(x, sigma, d):
        raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(ValueError, match=words):
        sample(guide.attach(tiny, [guide.Term(Guidance(greedy, mode))]), engine, make_condition)
    assert bool(torch.isfinite(sample(tiny, engine, make_condition)).all())


def test_an_attention_without_backward_steps_aside_and_this_is_said(
    engine, tiny, make_condition, vae, image_text, monkeypatch
):
    module = engine.get("ldm.modules.attention")

    def attention_sage(*args, **kwargs):  # runs forward only, like the real one
        return module.attention_pytorch(*args, **kwargs).detach()

    monkeypatch.setattr(module, "optimized_attention", attention_sage)
    guided, said = clip(tiny, vae, image_text, gradient_mode=EXACT)
    assert "takes the place of attention_sage" in said
    assert "attention_sage" not in clip(tiny, vae, image_text)[1]
    through = sample(guided[0], engine, make_condition, steps=2)
    assert module.optimized_attention is attention_sage
    monkeypatch.undo()
    torch.testing.assert_close(through, sample(guided[0], engine, make_condition, steps=2), rtol=1e-3, atol=1e-3)


def guide_only_gradients(model, engine, make_condition):
    """The hook alone, as the sampler would call it: the int8 weights can't even run forward."""
    hook = guide._hook(model)
    x = torch.randn(1, 4, 8, 8)
    hook(
        {
            "input": x,
            "sigma": torch.tensor([2.0]),
            "denoised": x,
            "cond": [],
            "uncond": None,
            "cond_denoised": x,
            "uncond_denoised": None,
            "model": model.model,
            "model_options": {},
        }
    )
