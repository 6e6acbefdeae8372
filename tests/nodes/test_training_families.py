"""The training nodes on further families, tiny: SDXL with both text encoders, a flow transformer, a flow UNet."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import comfy as bridge
from nulltext.engine import controlnet as engine_controlnet
from nulltext.engine import files, folders, tuning, weights
from nulltext.engine.tuning_set import TuningSet
from nulltext.nodes import controlnet, imagic, own_word, train_embedding, train_lora
from nulltext.tests import stand_ins
from safetensors.torch import load_file

CAPTION = "a photo of a sks dog"


pytestmark = pytest.mark.usefixtures("inference", "own_folders")


@pytest.fixture(scope="module")
def xl(engine):
    model, clip = stand_ins.xl(engine)
    return SimpleNamespace(model=model, clip=clip)


@pytest.fixture(scope="module")
def flow(engine, tmp_path_factory):
    """A flow transformer (of SD3's class), and a UNet that is a flow; CLIP is the demo's."""
    folder = tmp_path_factory.mktemp("flow")
    demo = stand_ins.demo_parts(engine, folder, seed=1)
    return SimpleNamespace(model=stand_ins.flow_transformer(engine, folder), clip=demo.clip, unet=demo.model)


def flowing(engine, model):
    """The MODEL as core's ModelSamplingSD3 makes a flow of it."""
    sampling, patched = engine.get("model_sampling"), model.clone()

    class Flow(sampling.ModelSamplingDiscreteFlow, sampling.CONST):
        pass

    made = Flow(model.model.model_config)
    made.set_parameters(shift=1.0)
    patched.add_object_patch("model_sampling", made)
    return patched


def defaults(box, **own):
    out = {}
    for name, spec in box.INPUT_TYPES()["required"].items():
        if isinstance(spec[0], list) or "default" in spec[1]:
            out[name] = spec[1].get("default", spec[0][0])
    return out | own


def pictures(channels=4, n=2):
    generator = torch.Generator().manual_seed(2)
    latents = tuple(torch.randn(channels, 8, 8, generator=generator) for _ in range(n))
    return TuningSet(latents, (CAPTION,) * n, (None,) * n, tuple(f"picture {i}" for i in range(n)))


def lora_of(parts, subject, **own):
    given = {"steps": 2, "learning_rate": 1e-2, "rank": 2, "batch": 2, "sample_every": 1, "targets": "attention"}
    given |= {"model": parts.model, "clip": parts.clip, "pictures": subject, "text_encoder": train_lora.TRAIN}
    return train_lora.TrainLora().run(**(defaults(train_lora.TrainLora, **given) | own))


def learn_word(parts, **own):
    given = defaults(train_embedding.TrainEmbedding, model=parts.model, clip=parts.clip, pictures=pictures())
    return train_embedding.TrainEmbedding().run(**(given | own))


def learn_both(parts, **own):
    return lora_of(parts, pictures(), word_vectors=1, text_encoder=train_lora.LEAVE, **own)


def reached(tensors, prefix):
    """Whether every factor under that name has moved from its start at 0; False where there is none."""
    ups = [v for k, v in tensors.items() if k.startswith(prefix) and k.endswith("lora_up.weight")]
    return bool(ups) and all(v.isfinite().all() and v.abs().max() > 0 for v in ups)


def test_sdxl_trains_the_network_and_both_text_encoders(engine, xl, own_folders):
    before = [p.clone() for m in (xl.model.model, xl.clip.cond_stage_model) for p in m.parameters()]
    _, clip, lora, loss, _, report = lora_of(xl, pictures(), prior=pictures(n=1), prior_weight=1.0)["result"]
    after = [p for m in (xl.model.model, xl.clip.cond_stage_model) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert len(loss["loss"]) == 2 and "Trained 2 steps" in report and "told before the start" in report
    # CLIP-L gives its last layer but one, so its last one (and CLIP-G's, but for the pooled vector) is not asked
    unused = {k: v for k, v in lora.items() if k.startswith("lora_te1_text_model_encoder_layers_2_")}
    for prefix in ("lora_unet_", "lora_te1_", "lora_te2_"):
        assert reached({k: v for k, v in lora.items() if k not in unused}, prefix)
    # core's own node finds every layer of the file
    path = own_folders / "loras" / "nulltext" / "subject.safetensors"
    count = {p: sum(k.startswith(p) and k.endswith("alpha") for k in lora) for p in ("lora_unet_", "lora_te")}
    read = engine.get("sd").load_lora_for_models(xl.model, xl.clip, load_file(path), 1.0, 1.0)
    assert [len(read[0].patches), len(read[1].patcher.patches)] == list(count.values())
    assert not torch.equal(bridge.encode(clip, CAPTION)[0][0], bridge.encode(xl.clip, CAPTION)[0][0])


def test_a_text_encoder_whose_weights_are_streamed_is_trained_too(flow):
    """On a copy whose weights lie still; the LoRA is laid on the given one."""
    parts = SimpleNamespace(model=flow.unet, clip=stand_ins.streaming(flow.clip, "cond_stage_model"))
    model, clip, lora, *_ = lora_of(parts, pictures(), sample_every=0)["result"]
    assert reached(lora, "lora_te")
    assert clip.patcher.model is parts.clip.patcher.model and clip.patcher.patches and model.patches


def test_sdxl_learns_a_word_in_both_encoders(xl, own_folders):
    given = defaults(
        train_embedding.TrainEmbedding,
        model=xl.model,
        clip=xl.clip,
        pictures=pictures(),
        steps=2,
        batch=1,
        vectors=2,
        sample_every=0,
    )
    name, conditioning, *_ = train_embedding.TrainEmbedding().run(**given)["result"]
    vectors = load_file(own_folders / "embeddings" / "nulltext_word.safetensors")
    assert {k: v.shape for k, v in vectors.items()} == {k: (2, w) for k, w in stand_ins.XL_WIDTHS.items()}
    start = train_embedding.begun(xl.clip, "dog", 2)[0]
    assert all(not torch.equal(v, start[k].detach()) for k, v in vectors.items())
    for part in (xl.clip.tokenizer.clip_l, xl.clip.tokenizer.clip_g):
        part.embedding_directory = str(own_folders / "embeddings")
    read = bridge.encode(xl.clip, CAPTION.replace("sks", name))[0]
    torch.testing.assert_close(read[0], conditioning[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read[1]["pooled_output"], conditioning[0][1]["pooled_output"], rtol=1e-4, atol=1e-5)


def test_a_words_own_vectors_train_beside_the_lora_and_core_reads_both(engine, xl, own_folders):
    subject = pictures()
    done = lora_of(xl, subject, word_vectors=2, text_encoder=train_lora.LEAVE, steps=2)
    report, lora = done["result"][-1], done["result"][2]
    assert "write embedding:nulltext/subject for it" in report and not any("word" in k for k in lora)
    vectors = load_file(own_folders / "embeddings" / "nulltext" / "subject.safetensors")
    start = train_embedding.begun(xl.clip, "sks", 2)[0]
    assert {k: v.shape for k, v in vectors.items()} == {k: (2, w) for k, w in stand_ins.XL_WIDTHS.items()}
    assert all(not torch.equal(v, start[k].detach()) for k, v in vectors.items())
    assert reached(lora, "lora_unet_")
    # what the trained net sees is what core reads from the two files
    for part in (xl.clip.tokenizer.clip_l, xl.clip.tokenizer.clip_g):
        part.embedding_directory = str(own_folders / "embeddings")
    own = own_word.OwnWord.of(xl.clip, "sks", 2, [CAPTION])
    with tuning.word_attached(xl.clip, own.own, vectors):
        seen = own.encode(CAPTION)[0]
    read = bridge.encode(xl.clip, CAPTION.replace("sks", "embedding:nulltext/subject"))[0][0]
    torch.testing.assert_close(read, seen, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(read, bridge.encode(xl.clip, CAPTION)[0][0], atol=1e-3)
    assert not any(m._forward_hooks for m in xl.clip.cond_stage_model.modules())
    # found again, gone on with, and another training than the one without a word of its own
    assert "nothing was trained" in lora_of(xl, subject, word_vectors=2, text_encoder=train_lora.LEAVE)["result"][-1]
    more = lora_of(xl, subject, word_vectors=2, text_encoder=train_lora.LEAVE, steps=3)["result"][-1]
    assert "going on from step 2" in more
    assert "Trained 2 steps" in lora_of(xl, subject, text_encoder=train_lora.LEAVE)["result"][-1]


def saved_word(xl, own_folders, widths=stand_ins.XL_WIDTHS, name="known"):
    """`embedding:name`, two vectors that the tokenizers find in the test's folder."""
    generator = torch.Generator().manual_seed(4)
    vectors = {name: torch.randn(2, width, generator=generator) for name, width in widths.items()}
    tuning.save_word(vectors, folders.model_file("embeddings", name))
    for part in (xl.clip.tokenizer.clip_l, xl.clip.tokenizer.clip_g):
        part.embedding_directory = str(own_folders / "embeddings")
    return f"embedding:{name}"


def test_a_shorter_training_leaves_the_longer_ones_file(xl, own_folders):
    for steps in (3, 2, 3, 4):
        learn_word(xl, steps=steps, batch=1, sample_every=0)
        found = sorted((own_folders / "embeddings").iterdir())
        told = {path.stem: files.metadata(path)["ss_steps"] for path in found}
        longest = "4" if steps == 4 else "3"
        assert told == {"nulltext_word": longest} | ({} if len(told) == 1 else {"nulltext_word_2": "2"})
    assert len(told) == 2


@pytest.mark.parametrize(
    ("learn", "other"),
    [
        *((learn_both, other) for other in ("a/nulltext/subject.safetensors", "subject.pt", "my.subject.bin")),
        (learn_word, "subject.pt"),
    ],
)
def test_another_embedding_that_a_prompt_may_read_is_told(xl, own_folders, learn, other):
    (own_folders / "embeddings" / other).parent.mkdir(parents=True, exist_ok=True)
    (own_folders / "embeddings" / other).touch()
    report = learn(xl, sample_every=0, steps=1, file_name="nulltext/subject")["result"][-1]
    notices = [line for line in report.splitlines() if "may read either" in line]
    told = {"a/nulltext/subject.safetensors": "embedding:nulltext/subject", "subject.pt": "embedding:subject"}
    assert len(notices) == (other in told) and all(f"{told[other]} in a prompt" in line for line in notices)


def test_the_text_encoder_trains_on_captions_with_a_saved_word(xl, own_folders, monkeypatch):
    word = saved_word(xl, own_folders)
    lora = lora_of(xl, pictures(), learned_word=word)["result"][2]
    assert reached(lora, "lora_unet_") and reached(lora, "lora_te2_text_model_encoder_layers_0_")
    network = xl.clip.cond_stage_model.clip_g.transformer
    plain, table = network.forward, network.get_input_embeddings()

    def interrupted(*args, **kwargs):
        if torch.is_grad_enabled():
            raise bridge.Interrupted()
        return plain(*args, **kwargs)

    monkeypatch.setattr(network, "forward", interrupted)
    with pytest.raises(bridge.Interrupted()):
        lora_of(xl, pictures(), learned_word=word, training_seed=1)
    assert network.get_input_embeddings() is table


NOT_SAID = ["a dog", "a\u00a0dog", "dog (mine)", "dog,", "{dog}", "my dogs/rex", "dog[1]", "<dog>"]


@pytest.mark.parametrize("name", NOT_SAID)
def test_an_embeddings_name_that_no_prompt_can_say_is_refused_before_any_work(engine, xl, name, monkeypatch):
    monkeypatch.setattr(engine, "encode", None)
    for learn in (learn_word, learn_both):
        with pytest.raises(ValueError, match=r"^A prompt can't say the embedding's file name [^.]*: take [^.]*\.$"):
            learn(xl, file_name=name)


@pytest.mark.parametrize("name", ["sks", "my_dogs/a-dog.v1.5", "käthe's"])
def test_an_embedding_of_another_name_is_read_by_a_prompt(xl, own_folders, name):
    saved_word(xl, own_folders, name=name)
    read = xl.clip.tokenize(f"a (embedding:{name}:1.1), asleep")
    assert all(sum(isinstance(entry[0], torch.Tensor) for entry in chunks[0]) == 2 for chunks in read.values())


def test_a_saved_word_of_another_width_is_refused_and_one_that_an_encoder_takes_is_not(xl, own_folders):
    saved_word(xl, own_folders, {"clip_l": 77})
    with pytest.raises(ValueError, match="finds no file for 'embedding:known' .* that fits it"):
        tuning.check_saved(xl.clip, "embedding:known")
    tuning.check_saved(xl.clip, saved_word(xl, own_folders, {"clip_l": stand_ins.XL_WIDTHS["clip_l"]}))


def test_before_the_first_step_an_own_word_is_the_word(xl):
    """As many vectors as the word has tokens, begun at its rows: the same embedding, to the bit."""
    count = len(tuning.word_tokens(xl.clip, "sks")["clip_l"])
    own = own_word.OwnWord.of(xl.clip, "sks", count, [CAPTION, "a photo of a dog"])
    plain = {text: bridge.encode(xl.clip, text)[0][0] for text in own.tokens}
    with own.attached(), torch.no_grad():
        assert all(torch.equal(own.encode(text)[0], plain[text]) for text in plain)


@pytest.mark.parametrize(
    ("caption", "word", "prompt"),
    [
        ("a photo of a (sks:1.4) dog", "sks", "a photo of a (embedding:known:1.4) dog"),
        (73 * "red " + "and SKS on a bed", "sks", 73 * "red " + "and embedding:known on a bed"),
        ("a <cat-toy>, on a table", "<cat-toy>", "a embedding:known, on a table"),
        ('a "sks" dog', "sks", 'a " embedding:known " dog'),
        ("red,sks,dog", "sks", "red, embedding:known , dog"),
        ("a\tsks\u00a0dog", "sks", "a embedding:known dog"),
    ],
)
def test_a_word_is_learnt_as_a_prompt_will_read_its_file(xl, own_folders, caption, word, prompt):
    saved_word(xl, own_folders)
    vectors = load_file(folders.model_file("embeddings", "known"))
    own = own_word.OwnWord.of(xl.clip, word, 2, [caption])
    with tuning.word_attached(xl.clip, own.own, vectors):
        seen, pooled = own.encode(caption)
    (read, more), *_ = bridge.encode(xl.clip, prompt)
    assert torch.equal(seen, read) and torch.equal(pooled, more["pooled_output"])


def test_a_caption_with_the_word_inside_another_is_left_alone(xl):
    text = "a photo of a caravan"
    assert own_word.tokens_of(xl.clip, [text], "van", tuning.own_ids(1))[text] == xl.clip.tokenize(text)


def test_an_encoder_of_another_kind_reads_a_caption_without_the_word(xl, own_folders):
    """SD3 and Flux have T5 beside CLIP; SD3 may come without one of its CLIPs."""
    word = saved_word(xl, own_folders, {"clip_l": stand_ins.XL_WIDTHS["clip_l"]})
    parts, networks = xl.clip.tokenizer, xl.clip.cond_stage_model
    mixed = SimpleNamespace(
        tokenizer=SimpleNamespace(clip_l=parts.clip_l, t5xxl=parts.clip_g),
        tokenize=lambda text: {
            "l": parts.clip_l.tokenize_with_weights(text),
            "t5xxl": parts.clip_g.tokenize_with_weights(text),
        },
        cond_stage_model=SimpleNamespace(clip_l=networks.clip_l, clip_g=None, t5xxl=networks.clip_g),
    )
    text, own = "a photo of a (sks:1.4) dog, (asleep:1.2)", tuning.own_ids(2)
    assert list(tuning.word_tokens(mixed, "dog")) == ["clip_l"]
    tokens = tuning.tokens_with_word(mixed, text, "sks", own)
    assert [entry for entry in tokens["l"][0] if entry[0] in own] == [(i, 1.4) for i in own]
    read = mixed.tokenize(text.replace("sks", word))
    as_core = networks.clip_g.encode_token_weights(read["t5xxl"])
    for seen, want in zip(networks.clip_g.encode_token_weights(tokens["t5xxl"]), as_core, strict=True):
        assert torch.equal(seen, want)
    assert all(isinstance(token, int) for token, _ in tokens["t5xxl"][0])


@pytest.mark.parametrize("learn", [learn_word, learn_both])
def test_a_text_encoder_without_clip_learns_no_word(xl, learn, monkeypatch):
    monkeypatch.setattr(bridge, "encode", None)
    other = SimpleNamespace(cond_stage_model=torch.nn.Linear(2, 2), patcher=xl.clip.patcher)
    other.tokenize = lambda text: {"t5xxl": [[(5, 1.0)]]}
    with pytest.raises(ValueError, match=r"^This text encoder is no CLIP[^.]*\.$"):
        learn(SimpleNamespace(model=xl.model, clip=other))


@pytest.mark.parametrize(("learn", "where"), [(learn_word, "start_word"), (learn_both, "learned_word")])
def test_a_word_does_not_begin_as_a_saved_one(xl, own_folders, learn, where):
    with pytest.raises(ValueError, match="saved embedding stands in a caption or start word"):
        learn(xl, **{where: saved_word(xl, own_folders)})


def test_imagic_on_sdxl(xl):
    given = defaults(
        imagic.ImagicOptimise,
        model=xl.model,
        target=bridge.encode(xl.clip, "a photo of a sitting dog"),
        negative=bridge.encode(xl.clip, ""),
        latent={"samples": pictures().latents[0][None]},
        embedding_steps=2,
        embedding_rate=1e-2,
        model_steps=2,
        model_rate=1e-2,
        rank=2,
        batch=1,
        sample_every=0,
    )
    words, lora, _, report = imagic.ImagicOptimise().run(**given)["result"]
    assert report.count("Trained 2 steps") == 2 and not torch.equal(words[0][0], given["target"][0][0])
    assert reached(lora, "lora_unet_")


def test_a_flow_transformer_trains_with_its_own_levels_and_weight(engine, flow):
    model, _, lora, loss, _, report = lora_of(flow, pictures(16))["result"]
    assert reached(lora, "lora_unet_") and reached(lora, "lora_te_") and "Trained 2 steps" in report
    assert len(model.patches) == sum(k.startswith("lora_unet_") and k.endswith("alpha") for k in lora)
    constant = lora_of(flow, pictures(16), loss_weight="constant", levels="uniform")["result"]
    assert constant[3] != loss
    with pytest.raises(ValueError, match="encoded to 4 channels and this model works on 16"):
        lora_of(flow, pictures(4))


def test_a_word_is_learnt_on_a_flow_transformer(flow):
    given = defaults(
        train_embedding.TrainEmbedding, model=flow.model, clip=flow.clip, pictures=pictures(16), start_word="circle"
    )
    given |= {"steps": 2, "batch": 1, "sample_every": 0}
    name, _, loss, *_ = train_embedding.TrainEmbedding().run(**given)["result"]
    assert name == "embedding:nulltext_word" and all(v == v for v in loss["loss"])


# -- ControlNet


HINTS = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(3))


def control_for(model, form):
    given = defaults(controlnet.MakeControlNet, model=model, rank=4)
    return controlnet.MakeControlNet().run(**(given | {"form": form}))["result"][0]


def trained_control(model, clip, control, **own):
    given = {"model": model, "clip": clip, "control_net": control, "pictures": pictures(), "hints": HINTS}
    given |= {"steps": 5, "learning_rate": 1e-2, "batch": 2, "sample_every": 0}
    return controlnet.TrainControlNet().run(**(defaults(controlnet.TrainControlNet, **given) | own))["result"]


def sampled(engine, model, clip, control=None):
    positive, negative = (engine.encode(clip, text) for text in ("a circle", ""))
    nodes = engine.get("nodes")
    if control is not None:
        apply = nodes.ControlNetApplyAdvanced().apply_controlnet
        positive, negative = apply(positive, negative, control, HINTS[:1], 1.0, 0.0, 1.0)[:2]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return nodes.KSampler().sample(model, 3, 3, 4.0, "euler", "normal", positive, negative, latent, 1.0)[0]["samples"]


@pytest.mark.parametrize("form", [controlnet.SMALL, controlnet.FULL])
@pytest.mark.parametrize("kind", ["xl", "flow UNet"])
def test_a_control_net_trains_five_steps_and_loads_in_core(engine, xl, flow, own_folders, kind, form):
    model, clip = (xl.model, xl.clip) if kind == "xl" else (flowing(engine, flow.unet), flow.clip)
    plain, untrained = sampled(engine, model, clip), control_for(model, form)
    assert torch.equal(sampled(engine, model, clip, untrained), plain)
    control, loss, _, report = trained_control(model, clip, untrained)
    assert len(loss["loss"]) == 5 and all(v == v for v in loss["loss"]) and "Trained 5 steps" in report
    start, now = engine_controlnet.form_of(untrained), engine_controlnet.form_of(control)
    moved = {engine_controlnet.forms.part(k) for k, v in now.items() if not torch.equal(v, start[k])}
    assert moved == set(engine_controlnet.forms.PARTS) and all(v.isfinite().all() for v in now.values())
    led = sampled(engine, model, clip, control)
    assert torch.isfinite(led).all() and not torch.equal(led, plain)
    path = own_folders / "controlnet" / "nulltext" / "control.safetensors"
    read = sampled(engine, model, clip, engine_controlnet.loaded(path))
    assert float((read - led).norm()) < 0.02 * float((led - plain).norm())  # the file is fp16
    assert files.metadata(path)["ss_steps"] == "5"
    weights.check_base(files.metadata(path), model)


def test_a_transformer_has_no_control_net_here(flow):
    with pytest.raises(ValueError, match=r"^This model is no UNet[^.]*\.$"):
        control_for(flow.model, controlnet.SMALL)
