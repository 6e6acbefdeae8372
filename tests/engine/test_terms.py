"""Guidance on a MODEL inside the engine's own sampling run, with a tiny random model, decoder, towers and
classifier."""

import pytest
import torch
from nulltext.demo.image_text import IMAGE, TEXT, WORDS
from nulltext.engine import terms
from nulltext.nodes.rank import CLIPRank
from nulltext.samplers.guidance.terms import Guidance
from nulltext.samplers.networks.image_text import ImageText
from nulltext.samplers.networks.latent_classifier import LatentClassifier
from nulltext.tests.running import normal, run, walk

EXACT, DECODER, LATENT = ("through network and decoder (exact)", "through decoder only", "on the latent (no decoder)")


@pytest.fixture
def sample(engine, ends):
    """sample(model) -> two pictures of a few Karras steps."""

    def made(model, cfg=1.0, steps=3, sampler="euler"):
        return walk(
            model, ends, cfg, normal(2, 4, 8, 8, seed=1), engine.sigmas_of(model, "karras", steps), None, sampler
        )

    return made


def parameters(*modules):
    return [p for m in modules for p in m.parameters()]


def clip(model, vae, image_text, **changes):
    inputs = {"text": "a red circle", "distractors": "a blue square", "scale": 50.0, "gradient_mode": DECODER}
    inputs |= {"loss": "spherical", "cutouts": 2, "cut_power": 1.0, "smallest_cut": 0.7, "augment": True, "bound": 0.5}
    return run("CLIPGuidance", model=model, vae=vae, image_text=image_text, **{**inputs, **changes})


def semantic(model, image_text, **changes):
    inputs = {"gradient_mode": LATENT, "text": "", "scale": 1.0, "bound": 0.5, "layers": "0,1"}
    inputs |= dict.fromkeys(("text_weight", "content_weight", "structure_weight", "style_weight"), 0.0)
    return run("SemanticGuidance", model=model, image_text=image_text, **{**inputs, **changes})


def classify(model, classifier, **changes):
    inputs = {"class_name": "dog", "scale": 3.0, "gradient_mode": "automatic", "bound": 0.5}
    return run("ClassifierGuidance", model=model, classifier=classifier, **{**inputs, **changes})


def test_clip_guidance_says_how_many_cutouts_it_takes_and_that_a_latent_has_none(tiny, vae, image_text):
    assert "(spherical, 2 cutouts)" in clip(tiny, vae, image_text).text
    assert "(spherical, on the noisy latent)" in clip(tiny, vae, image_text, gradient_mode=LATENT).text


def test_a_span_that_holds_no_step_is_told(tiny, classifier):
    made = classify(tiny, classifier, start_percent=0.5, end_percent=0.5)
    assert made[0] is tiny and "start_percent and end_percent are the same" in made.text


def test_semantic_guidance_at_scale_0_asks_for_nothing(tiny, image_text):
    made = semantic(tiny, image_text, content_weight=100.0, scale=0.0)
    assert made[0] is tiny and "the scale is 0" in made.text


def test_semantic_guidance_takes_its_text_as_it_is(tiny, image_text, monkeypatch):
    asked = []
    monkeypatch.setattr(image_text, "embed_text", lambda texts: asked.extend(texts) or torch.ones(1, 8))
    semantic(tiny, image_text, text="a circle at 10:30\na red ring : 2", text_weight=5.0)
    assert asked == ["a circle at 10:30, a red ring : 2"]


def test_guidances_of_one_name_are_told_apart_in_the_trace(sample, tiny, classifier):
    model = tiny
    for scale in (1.0, 2.0, 3.0):
        model = classify(model, classifier, scale=scale)[0]
    sample(model)
    assert list(terms.trace_of(model).steps[0]["terms"]) == ["class dog", "class dog (2)", "class dog (3)"]


def test_the_trace_of_a_masked_clip_guidance_judges_what_it_judges(sample, tiny, vae, image_text):
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    masked, seen = clip(tiny, vae, image_text, mask=mask, loss="contrastive")[0], []
    sample(masked)
    with pytest.MonkeyPatch.context() as patch:
        whole = image_text.embed_image
        patch.setattr(image_text, "embed_image", lambda image: seen.append(image) or whole(image))
        terms.probabilities_of(masked)
    assert len(seen) == 3
    for image in seen:
        hidden = image[:, :, image.shape[2] // 2 :]
        assert (hidden == 0.5).all() and not (image == 0.5).all()


# ----------------------------------------------------------------------------------------- gradients in the engine


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("mode", ["network", "decoder", "latent"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_push_is_the_gradient_by_finite_differences(make_model, ends, vae, kind, mode, cfg):
    """One Euler step from sigma to 0 returns D'. Its change against the unguided one is f k g, and g is taken
    numerically along one direction of x (or D) through the very same engine calls."""
    model = make_model(kind)
    decode = terms.decoder(model, vae)

    def likelihood(x, sigma, d):
        return -10 * (decode(d) - 0.3).pow(2).flatten(1).mean(1) - 0.05 * (x / 4).tanh().pow(2).flatten(1).sum(1)

    s, k, v = (2.0, 1.5, 0.8) if kind == "EPS" else (0.7, 1.5, 0.8)
    sigmas = torch.tensor([s, 0.0])
    term = terms.Term(Guidance(likelihood, mode, k, variance=v), (vae.first_stage_model,))
    guided = terms.attach(model, [term])

    def denoised(m, x):
        return m.get_model_object("latent_format").process_in(walk(m, ends, cfg, x / s, sigmas))

    x = s * normal(1, 4, 8, 8, seed=7)
    d = denoised(model, x)
    push = denoised(guided, x) - d
    way = normal(*x.shape, seed=8)
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


def test_encoders_of_noisy_latents_judge_a_flows_latents_too(engine, tiny, make_model, vae, image_text, classifier):
    """What is trained on x0 + r n judges (1 - s) x0 + s n as the same latent, r = s / (1 - s)."""
    x, s = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)), torch.tensor(0.6)
    for attach in (
        lambda m: classify(m, classifier),
        lambda m: clip(m, vae, image_text, gradient_mode=LATENT),
        lambda m: semantic(m, image_text, text="a red circle", text_weight=5.0),
    ):
        (ours,), (theirs,) = (terms.terms_of(attach(m)[0]) for m in (make_model("FLOW"), tiny))
        value = ours.guidance.log_likelihood(x, s, x)
        torch.testing.assert_close(value, theirs.guidance.log_likelihood(x / (1 - s), s / (1 - s), x))
        if ours.probabilities is not None and ours.guidance.name.startswith("class"):
            mine, other = ours.probabilities(x, s, x)[1], theirs.probabilities(x / (1 - s), s / (1 - s), x)[1]
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_unguided_branches_are_untouched_to_the_bit(sample, tiny, vae, image_text, classifier, cfg):
    want = sample(tiny, cfg)
    for out in (
        clip(tiny, vae, image_text, scale=0.0),
        classify(tiny, classifier, scale=0.0),
        semantic(tiny, image_text),
        semantic(tiny, image_text, text="a red circle", text_weight=5.0, scale=0.0),
    ):
        assert out[0] is tiny and "Notice" in out.text
    closed = clip(tiny, vae, image_text, start_percent=1.0)[0]
    assert torch.equal(sample(closed, cfg), want)


@pytest.mark.parametrize("mode", [DECODER, EXACT])
def test_the_model_is_left_as_it_was(sample, tiny, vae, image_text, mode):
    def weights():
        kept = parameters(tiny.model, vae.first_stage_model)
        return [(id(p), p.is_inference(), p._version if not p.is_inference() else 0) for p in kept]

    before, plain = weights(), sample(tiny, 3.0)
    out = clip(tiny, vae, image_text, gradient_mode=mode)
    guided = sample(out[0], 3.0)
    assert (guided - plain).abs().max() > 0.01 and "Cost" in out.text
    assert torch.equal(guided, sample(out[0], 3.0))
    assert torch.equal(plain, sample(tiny, 3.0))
    assert before == weights() and not tiny.model_options.get("sampler_post_cfg_function")


def test_an_error_or_interrupt_inside_leaves_everything(engine, sample, tiny, vae):
    before = [id(p) for p in parameters(tiny.model, vae.first_stage_model)]

    def broken(x, sigma, d):
        raise engine.Interrupted()()

    term = terms.Term(Guidance(broken, "network"), (vae.first_stage_model,))
    with pytest.raises(engine.Interrupted()):
        sample(terms.attach(tiny, [term]))
    assert before == [id(p) for p in parameters(tiny.model, vae.first_stage_model)]


def test_terms_of_two_nodes_add_up(sample, tiny, vae, image_text, classifier):
    one, two = clip(tiny, vae, image_text, bound=0.0)[0], classify(tiny, classifier, bound=0.0)[0]
    both = classify(clip(tiny, vae, image_text, bound=0.0)[0], classifier, bound=0.0)[0]
    assert [t.guidance.name for t in terms.terms_of(both)] == ["spherical: a red circle", "class dog"]
    assert len(both.model_options["sampler_post_cfg_function"]) == 1
    plain, a, b, ab = (sample(m, steps=1) for m in (tiny, one, two, both))
    torch.testing.assert_close(ab - plain, (a - plain) + (b - plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("every", [1, 2])
def test_every_other_step_by_the_schedules_place(sample, tiny, classifier, every):
    model = classify(tiny, classifier, every=every)[0]
    sample(model, steps=4, sampler="heun")
    acted = [bool(s["terms"]) for s in terms.trace_of(model).steps]
    assert acted == ([True] * 4 if every == 1 else [True, False, True, False])


# ------------------------------------------------------------------------------------------------------ the nodes


def test_all_kinds_of_losses_run(sample, tiny, vae, image_text):
    picture = torch.rand(1, 64, 64, 3)
    plain = sample(tiny)
    seen = [plain]
    for changes in (
        {"loss": "contrastive"},
        {"loss": "cosine"},
        {"loss": "cosine", "gradient_mode": LATENT},
        {"text": "", "image": picture},
        {"mask": torch.ones(64, 64).triu()[None]},
        {"smoothness": 10.0, "range_weight": 10.0},
    ):
        out = sample(clip(tiny, vae, image_text, **changes)[0])
        assert bool(torch.isfinite(out).all()) and all((out - s).abs().max() > 1e-4 for s in seen)
        seen.append(out)
    for changes in (
        {"text": "a red circle", "text_weight": 160.0},
        {"content_weight": 100.0},
        {"structure_weight": 50.0},
        {"style_weight": 50.0},
        {"style_weight": 50.0, "gradient_mode": DECODER},
    ):
        out = sample(semantic(tiny, image_text, reference=picture, vae=vae, **changes)[0])
        assert bool(torch.isfinite(out).all()) and all((out - s).abs().max() > 1e-4 for s in seen)
        seen.append(out)


def test_a_batch_equals_its_single_runs(tiny, ends, vae, image_text):
    model, noise = clip(tiny, vae, image_text, scale=5.0)[0], normal(3, 4, 8, 8, seed=1)
    go = lambda noise: walk(model, ends, 1.0, noise, torch.tensor([4.0, 1.0, 0.0]))
    torch.testing.assert_close(go(noise), torch.cat([go(n[None]) for n in noise]), rtol=1e-3, atol=1e-3)


def test_trace_shows_the_last_run(sample, tiny, vae, classifier):
    model = classify(tiny, classifier)[0]

    def trace(out, item=1, model=model):
        return run("GuidanceTrace", model=model, latent=out, vae=vae, pictures=3, item=item)

    with pytest.raises(ValueError, match="not been sampled"):
        trace(torch.zeros(1, 4, 8, 8))
    for steps in (5, 3):
        out = sample(model, steps=steps)
    made = trace(out, 2)
    image, table = made
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[2] >= 512
    assert len(table.splitlines()) == 1 + 3 and "class dog" in table and "3 steps" in made.text
    names, told = terms.probabilities_of(model)["class dog"]
    assert names == ["cat", "dog", "owl"] and len(told) == 3
    last = terms.trace_of(model).steps[-1]
    want = classifier(last["x"].float(), last["sigma"]).softmax(1)
    torch.testing.assert_close(told[-1], want, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="choose item"):
        trace(out, 3)
    with pytest.raises(ValueError, match="no guidance of this pack"):
        trace(out, model=tiny)


def test_rank_orders_by_similarity(image_text):
    target = torch.rand(1, 64, 64, 3)
    batch = torch.cat([torch.rand(1, 64, 64, 3), target, 1 - target])
    ranked = {"images": batch, "image_text": image_text, "text": "", "keep": 2}
    best, table, latent = run("CLIPRank", target_image=target, latent=torch.arange(3.0).view(3, 1, 1, 1), **ranked)
    assert torch.equal(best[0], target[0]) and len(best) == 2 and "picture   2" in table.splitlines()[0]
    assert latent["samples"].flatten()[0] == 1
    wired = {"samples": torch.arange(3.0).view(3, 1, 1, 1), "batch_index": [5, 6, 7]}
    for mask in (torch.arange(3.0).view(3, 1, 1) / 2, torch.ones(1, 4, 4)):
        made = CLIPRank().run(**ranked, target_image=target, latent={**wired, "noise_mask": mask})["result"][2]
        order = made["samples"].flatten().int()
        assert made["batch_index"] == (5 + order).tolist() and order[0] == 1
        assert torch.equal(made["noise_mask"].flatten(), order / 2 if len(mask) == 3 else torch.ones(16))
    with pytest.raises(ValueError, match="no target"):
        run("CLIPRank", **ranked)


def test_start_noise_is_optimised_and_reproduces_its_result(tiny, ends, classifier):
    inputs = {"positive": ends[0], "negative": ends[1], "latent": torch.zeros(2, 4, 8, 8), "seed": 4, "steps": 3}
    inputs |= {"scheduler": "karras", "cfg": 1.0, "iterations": 6, "learning_rate": 0.1, "prior": 1.0}
    made = run("OptimiseStartNoise", model=classify(tiny, classifier)[0], **inputs)
    latent, noise, sigmas, chart = made
    first, best = (float(v) for v in made.text.split("Loss ")[1].split(" (")[0].split(" -> "))
    assert best < first and chart.shape[0] == 1
    again = walk(tiny, ends, 1.0, noise.generate_noise({"samples": torch.zeros(2, 4, 8, 8)}), sigmas)
    torch.testing.assert_close(again, latent["samples"], rtol=1e-3, atol=2e-3)
    assert "noise mask" not in made.text
    inputs["latent"] = {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.ones(1, 8, 8)}
    masked = run("OptimiseStartNoise", model=classify(tiny, classifier)[0], **inputs | {"iterations": 1})
    assert "noise mask is not read" in masked.text
    both = classify(classify(tiny, classifier)[0], classifier, class_name="cat", scale=-3.0)[0]
    led = run("OptimiseStartNoise", model=both, **inputs | {"latent": torch.zeros(2, 4, 8, 8)})
    first, best = (float(v) for v in led.text.split("Loss ")[1].split(" (")[0].split(" -> "))
    assert best < first, "towards one class and away from another"
    with pytest.raises(ValueError, match="no loss"):
        run("OptimiseStartNoise", model=tiny, **inputs)
    with pytest.raises(ValueError, match="shape"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8)})


def test_cfg_convention_is_1_plus_w(sample, tiny):
    def made(**inputs):
        return run("CFGConvention", model=tiny, **{"shape": "constant", "start_percent": 0.0, "w_end": 0.0, **inputs})

    out, alone, falling = made(w=2.5), made(w=0.0)[0], made(w=4.0, shape="linear")[0]
    model, cfg, _ = out
    assert cfg == 3.5 and "3.5" in out.text
    torch.testing.assert_close(sample(model), sample(tiny, cfg=3.5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(alone, cfg=9.0), sample(tiny), rtol=1e-4, atol=1e-4)
    assert (sample(falling) - sample(model)).abs().max() > 1e-3


def test_a_negative_that_has_the_span_of_w_is_asked_there_alone(tiny, engine, ends):
    """What the help page says of ConditioningSetTimestepRange."""
    span, rows = {"start_percent": 0.4, "end_percent": 0.6}, []
    model = run("CFGConvention", model=tiny, w=4.0, **span)[0]
    negatives = ends[1], [[ends[1][0][0], {**ends[1][0][1], **span}]]
    hook = tiny.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        given = (1.0, normal(1, 4, 8, 8, seed=1), engine.sigmas_of(tiny, "normal", 10))
        whole, limited = (walk(model, (ends[0], negative), *given) for negative in negatives)
    finally:
        hook.remove()
    assert rows == [2] * 10 + [1] * 4 + [2] * 2 + [1] * 4
    torch.testing.assert_close(limited, whole, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- refusals


def test_refusals_come_before_sampling(tiny, make_model, vae, image_text, classifier):
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
            lambda: semantic(tiny, ImageText(WORDS, IMAGE, TEXT), text="a red ring", text_weight=5.0),
            "no encoder for this model's noisy latents",
        ),
        (lambda: semantic(tiny, image_text, text="a red circle", text_weight=5.0, layers="x"), "Layers are numbers"),
        *(
            (
                lambda given=given: semantic(tiny, image_text, layers="0,7", vae=vae, **given),
                f"feature map 7, and this image-text model has those from 0 to {len(image_text.image.stages) - 1}",
            )
            for given in (
                {"structure_weight": 1.0, "reference": torch.rand(1, 64, 64, 3), "gradient_mode": DECODER},
                {"style_weight": 1.0, "reference": torch.rand(1, 64, 64, 3)},
            )
        ),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()


def test_weights_without_a_backward_are_refused_in_one_sentence(tiny, vae, image_text):
    model = clip(tiny, vae, image_text, gradient_mode=EXACT)[0]
    name, weight = next(((n, p) for n, p in tiny.model.named_parameters() if p.ndim == 2))
    owner = tiny.model.get_submodule(name.rpartition(".")[0])
    with torch.inference_mode():
        owner._parameters["weight"] = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    try:
        with pytest.raises(ValueError, match="quantised"):
            guide_only_gradients(model)
    finally:
        owner._parameters["weight"] = weight


@pytest.mark.parametrize(
    ("mode", "words"),
    [("network", "set gradient_mode to decoder"), ("decoder", "fewer cutouts"), ("latent", "smaller batch")],
)
@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("no room"), RuntimeError("MPS backend out of memory")])
def test_too_little_memory_names_what_would_fit(sample, tiny, mode, words, error):
    def greedy(x, sigma, d):
        raise error

    with pytest.raises(ValueError, match=words):
        sample(terms.attach(tiny, [terms.Term(Guidance(greedy, mode))]))
    assert bool(torch.isfinite(sample(tiny)).all())


def test_an_attention_without_backward_steps_aside_and_this_is_said(engine, sample, tiny, vae, image_text, monkeypatch):
    module = engine.get("ldm.modules.attention")

    def attention_sage(*args, **kwargs):  # runs forward only, like the real one
        return module.attention_pytorch(*args, **kwargs).detach()

    monkeypatch.setattr(module, "optimized_attention", attention_sage)
    guided = clip(tiny, vae, image_text, gradient_mode=EXACT)
    assert "takes the place of attention_sage" in guided.text
    assert "attention_sage" not in clip(tiny, vae, image_text).text
    through = sample(guided[0], steps=2)
    assert module.optimized_attention is attention_sage
    monkeypatch.undo()
    torch.testing.assert_close(through, sample(guided[0], steps=2), rtol=1e-3, atol=1e-3)


def guide_only_gradients(model):
    """The hook alone, as the sampler would call it: the int8 weights can't even run forward."""
    x = torch.randn(1, 4, 8, 8)
    args = {"input": x, "denoised": x, "cond_denoised": x, "cond": [], "uncond": None, "uncond_denoised": None}
    terms._hook(model)({**args, "sigma": torch.tensor([2.0]), "model": model.model, "model_options": {}})
