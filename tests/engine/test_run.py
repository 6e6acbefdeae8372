"""Samplers, guiders, names, words and fingerprints of the bridge, on the engine at hand."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import files, folders, words
from nulltext.engine.run import sample_with
from nulltext.engine.sampler import core_sampler, is_euler, own_sampler, sample_latent, sampler_name
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.picture.disturbance import at_other_level
from nulltext.tests.running import SCALE, Control, normal, walk


def sigmas_for(model, engine, steps=4):
    return engine.sigmas_of(model, "normal", steps)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_our_loop_is_the_engines_euler(engine, make_model, ends, latent, kind):
    model = make_model(kind)
    args = (model, ends, 3.0, normal(*latent.shape, seed=1), sigmas_for(model, engine), latent)
    ours, core = walk(*args, own_sampler(sample_euler)), walk(*args, "euler")
    assert (ours - core).abs().max() / core.abs().max() < 1e-5


def test_a_given_start_is_taken_as_it_is(engine, make_model, ends, latent):
    """Flow at sigma 1 is where the engine's scaling would divide by 0 or drop the latent."""
    model, seen, start = make_model("FLOW"), [], torch.randn(latent.shape)

    def spy(denoise, x, sigmas, *, process, noise, callback):
        seen.append((x.clone(), process))
        return x

    def begun(start):
        sampler, nothing = own_sampler(spy, start=start), torch.zeros_like(latent)
        return walk(model, ends, 1.0, nothing, sigmas_for(model, engine), latent, sampler)

    assert torch.allclose(begun(start), start / SCALE)
    assert torch.equal(seen[0][0], start) and seen[0][1] is FLOW
    with pytest.raises(ValueError, match="start has shape"):
        begun(start[:1])


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_a_run_in_two_parts_is_one_run(engine, make_model, ends, latent, kind):
    """Split Sigmas: a part's result is scaled on its way out, and the next part, without noise, scales it back."""
    model, own, sigmas = make_model(kind), own_sampler(sample_euler), engine.sigmas_of(make_model(kind), "normal", 8)
    noise, mask = normal(*latent.shape, seed=1), torch.ones(1, 8, 8)
    mask[..., :3] = 0
    near = lambda a, b: bool((a - b).abs().max() < 1e-4 * b.abs().max())

    def part(sampler, sigmas, noise, latent, mask=None):
        return walk(model, ends, 3.0, noise, sigmas, latent, sampler, mask)

    whole = part("euler", sigmas, noise, latent)
    for first, second in ((own, "euler"), (own, own), ("euler", own)):
        half = part(first, sigmas[:5], noise, latent)
        assert near(part(second, sigmas[4:], torch.zeros_like(noise), half), whole)
    if kind == "FLOW":  # in the other kinds core starts a full run with a little more noise than its own known part
        assert near(*(part(sampler, sigmas[:5], noise, latent, mask) for sampler in (own, "euler")))


@pytest.mark.parametrize("seed", [0, 5, 2**64 - 1])
def test_a_loops_own_draws_are_not_the_start_noise(engine, tiny, ends, seed):
    """The same numbers twice would add up: a stochastic step from sigma s to s' would have too much noise."""
    drawn, seeds, shape = [], [], (1, 4, 32, 32)
    noise = engine.get("sample").prepare_noise(torch.zeros(shape), seed)

    def spy(denoise, x, sigmas, *, process, noise, callback, seed):
        drawn.extend([x.clone(), *(noise() for _ in range(3))])
        seeds.append(seed)  # for a loop that also chooses at random
        return x

    sigmas = sigmas_for(tiny, engine)
    sample_latent(tiny, *ends, 1.0, own_sampler(spy), sigmas, {"samples": torch.zeros(shape)}, seed)
    start, *drawn = (each.double().flatten() for each in drawn)
    assert torch.corrcoef(torch.stack([start, noise.double().flatten()]))[0, 1] > 0.999
    related = torch.corrcoef(torch.stack([start, *drawn])) - torch.eye(4)
    assert related.abs().max() < 5 / start.numel() ** 0.5
    assert all(0.9 < each.std() < 1.1 for each in drawn)
    chosen = normal(*shape, seed=seeds[0]).double().flatten()
    assert torch.corrcoef(torch.stack([chosen, start, *drawn]))[0, 1:].abs().max() < 5 / start.numel() ** 0.5


def test_masked_part_stays_the_source(engine, tiny, ends, latent):
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    args = (tiny, ends, 2.0, torch.randn(latent.shape), sigmas_for(tiny, engine), latent)
    out, core = (walk(*args, sampler, mask) for sampler in (own_sampler(sample_euler), "euler"))
    assert torch.allclose(out[..., :3], latent[..., :3], atol=1e-4)
    assert (out[..., 4:] - latent[..., 4:]).abs().max() > 0.1
    assert torch.allclose(out, core, rtol=1e-4, atol=1e-3)


def test_body_sees_what_the_engine_would(engine, tiny, make_condition, latent):
    sigmas = sigmas_for(tiny, engine)
    conds = {"positive": make_condition(1), "negative": make_condition(2), "third": make_condition(3)}

    def body(run):
        x = run.latent
        c, u, t = run.predictions(x, 2.0, ["positive", "negative", "third"])
        guided = run.guided("positive", "negative", 5.0)(x, 2.0)
        alone = run.guided("third", None, 1.0)(x, 2.0)
        net = run.embedding_net("positive")(x, 2.0, conds["negative"][0][0])
        run.tick(3)
        return c, u, t, guided, alone, net, run.latent, run.process, run.progress.value, run.calls

    with torch.inference_mode():
        c, u, t, guided, alone, net, x0, process, value, calls = sample_with(tiny, conds, latent, sigmas, body, total=4)
    assert torch.allclose(guided, u + 5 * (c - u), atol=1e-4)
    assert torch.allclose(alone, t, atol=1e-4) and torch.allclose(net, u, atol=1e-4)
    assert torch.equal(x0, latent * 0.18215) and process is VE and (value, calls) == (3, 4)


def test_pooled_vectors_reach_the_embedding_net(engine, make_model, make_condition, latent):
    """SDXL-like: y comes from the condition, only the text embedding is replaced."""
    model = make_model(adm=64)
    model.model.encode_adm = lambda **kwargs: kwargs["pooled_output"]
    plain = make_condition(2)
    other = [[plain[0][0], {"pooled_output": torch.ones(1, 64)}]]

    def body(run):
        return [run.embedding_net(n)(run.latent, 2.0, plain[0][0]) for n in ("negative", "positive")] + run.predictions(
            run.latent, 2.0, ["negative", "positive"]
        )

    with torch.inference_mode():
        a, b, c, d = sample_with(model, {"positive": other, "negative": plain}, latent, sigmas_for(model, engine), body)
    assert torch.allclose(a, c, atol=1e-4) and torch.allclose(b, d, atol=1e-4)
    assert not torch.allclose(a, b, atol=1e-3)


def test_control_nets_are_cleaned_up_on_error(engine, tiny, make_condition, latent):
    control = Control()

    def body(run):
        raise engine.Interrupted()()

    with torch.inference_mode(), pytest.raises(engine.Interrupted()):
        sample_with(tiny, {"positive": make_condition(control=control)}, latent, sigmas_for(tiny, engine), body)
    assert control.cleaned >= 1


def test_interrupt_stops_any_loop(engine, tiny, ends, latent):
    manage, sigmas = engine.get("model_management"), sigmas_for(tiny, engine)
    # the second reports no step and is stopped at its network call
    loops = sample_euler, lambda denoise, x, sigmas, *, process, noise, callback: denoise(x, sigmas[0])
    for loop in loops:
        manage.interrupt_current_processing(True)
        with pytest.raises(engine.Interrupted()):
            walk(tiny, ends, 2.0, torch.zeros_like(latent), sigmas, latent, own_sampler(loop))
    manage.interrupt_current_processing(True)
    with torch.inference_mode(), pytest.raises(engine.Interrupted()):
        sample_with(tiny, {"positive": ends[0]}, latent, sigmas, lambda run: run.tick())
    manage.interrupt_current_processing(False)


def test_names_of_samplers(engine, tiny):
    assert is_euler(core_sampler("euler")) and is_euler(own_sampler(sample_euler))
    assert not is_euler(core_sampler("euler_ancestral")) and sampler_name(core_sampler("dpmpp_2m")) == "dpmpp_2m"
    churned = core_sampler("euler")
    churned.extra_options = {"s_churn": 1.0}
    assert not is_euler(churned)


def test_process_and_ranges(engine, make_model):
    assert engine.process_of(make_model("EPS")) is VE and engine.process_of(make_model("V_PREDICTION")) is VE
    flow = make_model("FLOW")
    assert engine.process_of(flow) is FLOW and engine.sigma_range(flow)[1] == pytest.approx(1.0)
    model = make_model()
    model.add_object_patch("model_sampling", torch.nn.Identity())
    with pytest.raises(ValueError, match="noise process"):
        engine.process_of(model)


@pytest.mark.parametrize(
    "kind, data", [("EPS", 1.0), ("V_PREDICTION", 1.0), ("V_PREDICTION_EDM", 1.0), ("EDM", 0.5), ("FLOW_COSMOS", 1.0)]
)
def test_a_process_scales_the_networks_input_as_the_model_does(engine, kind, data):
    """What the network sees at a level, from the latent of another one: EDM is Playground 2.5's and Cosmos', and
    Cosmos-Predict2 has one of its own."""
    base = engine.get("model_base")
    if not hasattr(base.ModelType, kind):
        pytest.skip(f"this engine knows no {kind}")
    settings = {"sigma_data": data, "sigma_min": 0.002, "sigma_max": 80.0}
    sampling = base.model_sampling(SimpleNamespace(sampling_settings=settings), base.ModelType[kind])
    process = engine.process_of(SimpleNamespace(get_model_object=lambda name: sampling))
    x, levels = normal(1, 4, 4, 4), [1e-6, 0.05, 0.3, 2.0, 40.0]
    for low, high in itertools.combinations(levels, 2):
        seen = sampling.calculate_input(torch.tensor([low]), x)
        at = at_other_level(x, low, high, process)
        torch.testing.assert_close(sampling.calculate_input(torch.tensor([high]), at), seen)


def test_latents_are_checked(engine, tiny):
    good = torch.randn(1, 4, 8, 8)
    assert torch.equal(engine.check_latent(tiny, {"samples": good}), good)
    assert engine.check_latent(tiny, {"samples": torch.zeros(1, 16, 8, 8)}).shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="4 channels"):
        engine.check_latent(tiny, {"samples": torch.randn(1, 16, 8, 8)})
    with pytest.raises(ValueError, match="NaN"):
        engine.check_latent(tiny, {"samples": good * float("nan")})
    assert torch.allclose(engine.latent_out(tiny, engine.latent_in(tiny, good)), good)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", "  ", ".", "C:\\..\\x", "a\\..\\b"])
def test_paths_stay_inside(engine, name):
    with pytest.raises(ValueError, match="file name"):
        folders.full_path("output", name)


@pytest.mark.parametrize("name", ["a?", "what: this", "con", "nul.safetensors", "ends.", "x/lpt1/y", 'a"b', "a\tb"])
def test_names_that_windows_does_not_take_are_refused_there(engine, monkeypatch, name):
    folders.full_path("output", name)
    monkeypatch.setattr(folders, "WINDOWS", True)
    for taken in ("ends.x", "a b", "console", "x/../y"):
        with pytest.raises(ValueError, match="without '..'") if ".." in taken else contextlib.nullcontext():
            folders.full_path("output", taken)
    with pytest.raises(ValueError, match="Windows takes no file called"):
        folders.full_path("output", name)


def test_paths_inside(engine):
    path = folders.full_path("output", "inversions/scene.safetensors")
    assert path.is_relative_to(folders.folder("output"))
    assert files.cache_folder().is_relative_to(folders.folder("user"))


def test_links_out_of_the_folder_are_refused(engine, tmp_path):
    folders.folder("output").mkdir(parents=True, exist_ok=True)
    link = folders.folder("output") / "link"
    if not link.exists():
        link.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="file name"):
        folders.full_path("output", "link/x")


class Clip:
    """The engine's own tokenizer, without an encoder."""

    def __init__(self):
        import comfy.sd1_clip

        self.tokenizer = comfy.sd1_clip.SD1Tokenizer()

    def tokenize(self, text, return_word_ids=False):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)


def test_words(engine):
    record = words.describe(Clip(), "A (photorealistic:1.3) cat, a cat!")
    assert [w["text"] for w in record["words"]] == ["a", "photorealistic", "cat", "a", "cat"]
    tokens = [w["tokens"] for w in record["words"]]
    assert tokens[0] == [1] and all(len(t) == 1 for t in tokens[2:])
    assert [i for t in tokens for i in t] == sorted({i for t in tokens for i in t})
    assert record["chunks"] == 1 and len(record["ids"]) == 77 and record["text"].startswith("A (photo")
    assert record["ids"][tokens[2][0]] == record["ids"][tokens[4][0]]


def test_words_beyond_one_window(engine):
    record = words.describe(Clip(), " ".join(["red"] * 80) + " star")
    assert record["chunks"] == 2 and len(record["words"]) == 81
    assert record["words"][-1] == {"text": "star", "tokens": [record["words"][-1]["tokens"][0]]}
    assert record["words"][-1]["tokens"][0] > 77 and record["words"][75]["tokens"][0] == 78


def test_words_travel_with_the_conditioning(engine):
    plain = [[torch.zeros(1, 77, 4), {"pooled_output": None}]]
    told = words.with_words(plain, Clip(), "a ring")
    assert words.words_of(plain) is None and words.text_of(plain) == ""
    assert words.words_of(told)[0]["words"][1]["text"] == "ring" and words.text_of(told) == "a ring"


def test_sentence_pieces_and_split_words():
    assert words.spans(["▁a", "▁str", "ange", "▁", "cat", ".", "</s>"], [True] * 6 + [False]) == [
        {"text": "a", "tokens": [0]},
        {"text": "strange", "tokens": [1, 2]},
        {"text": "cat.", "tokens": [3, 4, 5]},
    ]
    assert words.spans(["<s>", "pho", "to</w>", ",</w>"], [False, True, True, True]) == [
        {"text": "photo", "tokens": [1, 2]}
    ]


class Stacked:
    """Two of the engine's own tokenizers behind each other; `cut`: only the second is in the embedding, as in Flux."""

    def __init__(self, present=("l", "t5xxl")):
        import comfy.sd1_clip

        tokenizer = comfy.sd1_clip.SDTokenizer

        class T5(tokenizer):
            """No begin token, and padding of its own, as T5's."""

            def tokenize_with_weights(self, text, return_word_ids=False):
                ((_, *content),) = super().tokenize_with_weights(text, return_word_ids)
                content = [
                    (0, 1.0, 0) if entry[2] == 0 and i > text.count(" ") + 1 else entry
                    for i, entry in enumerate(content)
                ]
                return [content + [(0, 1.0, 0)] * 4]

        self.clip_l, self.t5xxl = tokenizer(), T5()
        self.tokenizer = self
        self.cond_stage_model = type("Model", (), {n: 1 if n in present else None for n in ("l", "t5xxl")})

    def tokenize(self, text, return_word_ids=False):
        return {
            "l": self.clip_l.tokenize_with_weights(text, return_word_ids),
            "t5xxl": self.t5xxl.tokenize_with_weights(text, return_word_ids),
        }


def test_words_of_two_encoders_behind_each_other(engine):
    from nulltext.samplers.attention.alignment import columns_of, refine_map, replace_map

    sd3 = [words.describe(Stacked(), text, 77 + 80) for text in ("a red circle", "a green circle", "a big red circle")]
    assert len(sd3[0]["ids"]) == 157 and sd3[0]["sections"] == [[77, 1], [80, 1]]
    assert columns_of(sd3[0], "circle") == [3, 77 + 2] and columns_of(sd3[2], "circle") == [4, 77 + 3]
    assert replace_map(sd3[0], sd3[1]).identity
    refined = refine_map(sd3[0], sd3[2]).columns
    assert refined[:5] == (0, 1, -1, 2, 3) and refined[77:81] == (77, -1, 78, 79)
    assert refined[156] >= 77 and 4 <= refined[76] < 77  # each keeps its own padding
    flux = words.describe(Stacked(), "a red circle", 80)
    assert "sections" not in flux and columns_of(flux, "circle") == [2] and len(flux["ids"]) == 80
    alone = words.describe(Stacked(present=("t5xxl",)), "a red circle", 80)
    assert alone == flux
    assert words.describe(Stacked(present=("l",)), "a red circle", 77)["ids"] == sd3[0]["ids"][:77]


def test_words_behind_a_template_that_the_model_cuts_off(engine):
    class Qwen:
        inv_vocab = dict(
            enumerate(["<|im_start|>", "\u0120user", "\u0120a", "\u0120red", "dish", "\u0120fox", "<|im_end|>"])
        )
        qwen = property(lambda self: self)
        tokenizer = qwen
        cond_stage_model = type("Model", (), {})

        def tokenize(self, text, return_word_ids=False):
            return {"qwen": [[(i, 1.0, 1) for i in (0, 1, 0, 2, 3, 4, 5, 6, 0, 1)]]}

    record = words.describe(Qwen(), "a reddish fox", 7)
    assert record["words"] == [
        {"text": "a", "tokens": [0]},
        {"text": "reddish", "tokens": [1, 2]},
        {"text": "fox", "tokens": [3]},
    ]
    assert record["ids"] == [2, 3, 4, 5, 6, 0, 1]


@pytest.mark.parametrize("behind", [0, 5])
def test_words_inside_a_template_that_the_model_keeps(engine, behind):
    """Z-Image's; FLUX.2's small one fills up behind it."""

    class Qwen:
        names = [
            "<|im_start|>",
            "user",
            "\u010a",
            "a",
            "\u0120red",
            "dish",
            "\u0120fox",
            "<|im_end|>",
            "assistant",
            "<pad>",
        ]
        inv_vocab = dict(enumerate(names))
        qwen3_4b = property(lambda self: self)
        tokenizer = qwen3_4b
        cond_stage_model = type("Model", (), {"qwen3_4b": 1})

        def tokenize(self, text, return_word_ids=False):
            inside = {"": [], "a reddish fox": [3, 4, 5, 6]}[text]
            ids = [0, 1, 2, *inside, 7, 2, 0, 8, 2]
            return {"qwen3_4b": [[(i, 1.0, 1) for i in ids + [-1] * behind * (1 + (not text))]]}

    record = words.describe(Qwen(), "a reddish fox", 12 + behind)
    assert [(word["text"], word["tokens"]) for word in record["words"]] == [
        ("a", [3]),
        ("reddish", [4, 5]),
        ("fox", [6]),
    ]
    assert len(record["ids"]) == 12 + behind
    assert words.describe(Qwen(), "", 8 + 2 * behind)["words"] == []
