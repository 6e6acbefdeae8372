"""The training nodes on a small random checkpoint: what comes out, what is kept, what is refused."""

import copy
import json
import types

import pytest
import torch
from nulltext.engine import comfy as bridge
from nulltext.engine import files, folders, tuning_set, weights
from nulltext.nodes import imagic, imagic_guider, train_embedding, train_lora, tuning_files, tuning_pictures
from nulltext.nodes.classifier import TrainLatentClassifier
from nulltext.samplers.tuning.loop import Loop
from nulltext.tests import stand_ins
from nulltext.tests.stand_ins import quantised
from safetensors.torch import load_file

CAPTION = "a photo of a small sks circle on the left"


pytestmark = pytest.mark.usefixtures("inference", "own_folders")


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    """MODEL, CLIP and VAE of a random checkpoint of the demo's family."""
    return stand_ins.demo_parts(engine, tmp_path_factory.mktemp("checkpoints"), seed=1)


def defaults(box, **own):
    """The node's inputs at their defaults, with these in their place."""
    out = {}
    for name, spec in box.INPUT_TYPES()["required"].items():
        if "default" in spec[1]:
            out[name] = spec[1]["default"]
    return out | own


def pictures(parts, n=2, caption=CAPTION, size=64, **own):
    images = torch.rand(n, 72, 80, 3, generator=torch.Generator().manual_seed(n))
    given = defaults(tuning_pictures.TuningPictures, vae=parts.vae, captions=caption, size=size, images=images, **own)
    return tuning_pictures.TuningPictures().run(**given)["result"][0]


def train(parts, subject, **own):
    given = {"steps": 2, "learning_rate": 1e-2, "rank": 2, "batch": 1, "sample_every": 0, "preset": "UniTune"}
    given = defaults(
        train_lora.TrainLora, model=parts.model, clip=parts.clip, pictures=subject, targets="attention", **given
    )
    return train_lora.TrainLora().run(**(given | own))


def texts(result):
    return result["ui"]["text"][0]


@pytest.fixture
def counted(parts):
    """How often the network was called."""
    calls = []
    hook = parts.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


# -- pictures


def test_pictures_keep_their_proportions_and_their_order(parts):
    made = pictures(parts, 3, "a sks one\na sks two\na sks three", size=128)
    assert made.captions == ("a sks one", "a sks two", "a sks three")
    assert [tuple(z.shape) for z in made.latents] == [(4, 16, 16)] * 3  # 80 x 72 is nearest to a square
    assert tuning_set.bucket(200, 100, 128) == (192, 96) and tuning_set.bucket(512, 512, 512) == (512, 512)


def test_a_folder_gives_pictures_with_the_texts_beside_them(parts, own_folders, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(folders, "folder", lambda kind: own_folders / kind)
    root = own_folders / "input" / "dog"
    root.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(root / "b.png")
    Image.new("RGB", (128, 64), "blue").save(root / "a.png")
    (root / "b.txt").write_text("a sks dog\nin red", encoding="utf-8-sig")  # as Windows writes it
    given = defaults(tuning_pictures.TuningPictures, vae=parts.vae, folder="dog", captions="a sks dog", size=64)
    made = tuning_pictures.TuningPictures().run(**given)["result"][0]
    assert made.names == ("a.png", "b.png") and made.captions == ("a sks dog", "a sks dog in red")
    assert len(made.sizes()) == 2  # two buckets
    cut = [found.picture.size for found in tuning_set.folder_pictures("dog", 32)]
    assert cut == [tuning_set.bucket(128, 64, 32), (32, 32)], "a thousand photos as they are fill any memory"
    before = tuning_pictures.TuningPictures.IS_CHANGED(folder="dog")
    (root / "b.txt").write_text("another caption")
    assert tuning_pictures.TuningPictures.IS_CHANGED(folder="dog") != before
    before = TrainLatentClassifier.IS_CHANGED(folder="dog")
    (root / "class").mkdir()
    (root / "class" / "d.png").write_bytes(b"another picture")
    assert TrainLatentClassifier.IS_CHANGED(folder="dog") != before, "its classes are sub-folders"
    (root / "c.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="c.png can't be read"):
        tuning_pictures.TuningPictures().run(**given)
    with pytest.raises(ValueError, match="'..'"):
        tuning_pictures.TuningPictures().run(**(given | {"folder": "../../etc"}))


def test_pictures_of_every_kind_are_taken_and_transparent_ones_told(parts, own_folders, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(folders, "folder", lambda kind: own_folders / kind)
    root = own_folders / "input" / "kinds"
    root.mkdir(parents=True)
    names = ["a.jfif", "b.tif", "c.gif", "d.avif", "e.png", "f.png"]
    for name in names:
        Image.new("RGBA" if name == "e.png" else "RGB", (64, 64), "red").save(
            root / name, "JPEG" if name == "a.jfif" else None
        )
    holed = Image.new("RGBA", (64, 64), "red")
    holed.putpixel((3, 3), (0, 0, 0, 0))
    holed.save(root / "f.png")
    given = defaults(tuning_pictures.TuningPictures, vae=parts.vae, folder="kinds", captions="a sks dog", size=64)
    done = tuning_pictures.TuningPictures().run(**given)
    assert done["result"][0].names == tuple(names)
    (notice,) = [line for line in texts(done).splitlines() if line.startswith("Notice")]
    assert "transparent parts of f.png are learnt" in notice


def test_pictures_are_refused_in_one_sentence(parts):
    with pytest.raises(ValueError, match="2 captions for 3 pictures"):
        pictures(parts, 3, "one\ntwo")
    given = defaults(tuning_pictures.TuningPictures, vae=parts.vae)
    with pytest.raises(ValueError, match="no pictures"):
        tuning_pictures.TuningPictures().run(**given)
    with pytest.raises(ValueError, match="black everywhere"):
        pictures(parts, 2, mask=torch.zeros(1, 72, 80))


def test_a_mask_lies_on_the_latents_grid(parts):
    mask = torch.zeros(1, 72, 80)
    mask[:, :, :40] = 1
    made = pictures(parts, 2, mask=mask)
    assert made.masks[0].shape == (1, 8, 8)
    torch.testing.assert_close(made.masks[0][0, :, :3], torch.ones(8, 3))
    torch.testing.assert_close(made.masks[1][0, :, 5:], torch.zeros(8, 3))


def test_prior_pictures_are_drawn_once(parts, counted, own_folders):
    given = defaults(
        tuning_pictures.PriorPictures,
        model=parts.model,
        clip=parts.clip,
        class_prompt="a photo of a circle\na drawing of a circle",
        count=3,
        width=64,
        height=64,
        steps=2,
        batch=2,
    )
    made = tuning_pictures.PriorPictures().run(**given)["result"][0]
    drawn = len(counted)
    assert drawn == 4 and made.captions == ("a photo of a circle", "a drawing of a circle", "a photo of a circle")
    again = tuning_pictures.PriorPictures().run(**given)["result"][0]
    assert len(counted) == drawn and all(torch.equal(a, b) for a, b in zip(made.latents, again.latents))
    # a picture's noise depends on its number, not on how they were batched
    next((own_folders / "user" / "tuning").glob("prior_*")).unlink()
    alone = tuning_pictures.PriorPictures().run(**(given | {"batch": 1}))["result"][0]
    torch.testing.assert_close(made.latents[2], alone.latents[2], rtol=1e-2, atol=1e-2)


def test_prior_pictures_of_another_negative_prompt_are_drawn_anew(parts, own_folders):
    """Also where it is one of the class prompts, and the other one the negative of before."""
    given = defaults(tuning_pictures.PriorPictures, model=parts.model, clip=parts.clip, width=64, height=64, steps=1)
    given |= {"class_prompt": "a circle\na square", "count": 2}
    first, second = (
        tuning_pictures.PriorPictures().run(**(given | {"negative_prompt": negative}))["result"][1]["samples"]
        for negative in ("a circle", "a square")
    )
    assert not torch.equal(first, second)


# -- Train LoRA


def test_a_training_moves_the_model_and_leaves_its_weights(parts):
    before = {k: v.clone() for k, v in parts.model.model.state_dict().items()}
    objects = list(map(id, parts.model.model.parameters()))
    done = train(parts, pictures(parts))
    model, clip, lora, loss, figure, report = done["result"]
    assert clip is parts.clip and len(loss["loss"]) == 2 and figure.shape[-1] == 3
    assert "Trained 2 steps" in report and done["ui"]["images"]
    assert list(map(id, parts.model.model.parameters())) == objects
    assert all(torch.equal(v, before[k]) for k, v in parts.model.model.state_dict().items())
    assert not any(m._forward_hooks for m in parts.model.model.diffusion_model.modules())
    ups = [v for k, v in lora.items() if k.endswith("lora_up.weight")]
    assert ups and all(v.abs().max() > 0 for v in ups) and model.patches


def test_the_file_is_a_lora_that_says_what_it_is(parts, own_folders):
    train(parts, pictures(parts), file_name="dogs/rex")
    path = own_folders / "loras" / "dogs" / "rex.safetensors"
    kohyas = ("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_")
    assert all(k.startswith(kohyas) for k in load_file(path))
    told = files.metadata(path)
    assert told[weights.TEXT_PATCHES] == "none"
    assert told["ss_steps"] == "2" and told["ss_network_dim"] == "2" and told["nulltext_word"] == "sks"
    assert json.loads(told["nulltext_captions"]) == [CAPTION]
    weights.check_base(told, parts.model)


def test_the_same_graph_again_trains_nothing(parts, counted):
    subject = pictures(parts)
    first = train(parts, subject)
    calls = len(counted)
    again = train(parts, subject, sample_prompt="a red square", sample_every=1)
    assert len(counted) == calls and "nothing was trained" in texts(again)
    assert all(torch.equal(v, again["result"][2][k]) for k, v in first["result"][2].items())
    train(parts, subject, training_seed=1)
    assert len(counted) > calls


def test_more_steps_go_on_and_equal_a_training_in_one_go(parts, own_folders):
    subject = pictures(parts)
    train(parts, subject, steps=2)
    on = train(parts, subject, steps=4)
    assert "going on from step 2" in texts(on)
    for path in (own_folders / "user" / "tuning").iterdir():
        path.unlink()
    whole = train(parts, subject, steps=4)
    assert "going on" not in texts(whole)
    assert all(torch.equal(v, on["result"][2][k]) for k, v in whole["result"][2].items())


def test_an_interrupt_keeps_what_was_trained(parts, engine, own_folders, monkeypatch):
    manage, seen = engine.get("model_management"), []
    objects = list(map(id, parts.model.model.parameters()))
    subject, one = pictures(parts), Loop._one

    def stop_after_two(self, *args):
        report = one(self, *args)
        seen.append(1)
        if len(seen) == 2:
            manage.interrupt_current_processing(True)
        return report

    monkeypatch.setattr(Loop, "_one", stop_after_two)
    with pytest.raises(engine.Interrupted()):
        train(parts, subject, steps=4)
    manage.interrupt_current_processing(False)
    monkeypatch.setattr(Loop, "_one", one)
    assert list(map(id, parts.model.model.parameters())) == objects
    path = own_folders / "loras" / "nulltext" / "subject.safetensors"
    assert files.metadata(path)["ss_steps"] == "2" and weights.load(path)
    assert not any(m._forward_hooks for m in parts.model.model.diffusion_model.modules())
    on = train(parts, subject, steps=4)
    assert "Trained 2 steps" in texts(on) and "going on from step 2" in texts(on)
    assert files.metadata(path)["ss_steps"] == "4"  # its own file is written anew, no second one
    assert len(list(path.parent.iterdir())) == 1


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(parts, monkeypatch):
    one = Loop._gradients
    monkeypatch.setattr(
        Loop, "_gradients", lambda self, *a: one(self, *a) | ({"loss": float("nan")} if self.step == 2 else {})
    )
    done = train(parts, pictures(parts), steps=4)
    assert texts(done).startswith("Notice: The loss of step 3 is not finite")
    assert all(torch.isfinite(v).all() for v in done["result"][2].values())


def test_prior_and_text_encoder_train_too(parts):
    subject, prior = pictures(parts), pictures(parts, 3, "a photo of a circle")
    done = train(
        parts, subject, prior=prior, prior_weight=1.0, text_encoder=train_lora.TRAIN, sample_every=1, vae=parts.vae
    )
    _, clip, lora, *_ = done["result"]
    assert clip is not parts.clip and any(k.startswith("lora_te_") for k in lora)
    assert all(v.abs().max() > 0 for k, v in lora.items() if k.startswith("lora_te_") and k.endswith("up.weight"))
    assert "3 prior pictures" not in texts(done)  # UniTune's source uses none
    without = train(parts, subject, prior_weight=0.0, text_encoder=train_lora.TRAIN)
    assert any(not torch.equal(v, lora[k]) for k, v in without["result"][2].items())


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"word": "zwx"}, "lacks the word 'zwx'"),
        ({"rank": 200}, "Rank 200 does not fit"),
        ({"file_name": "../outside"}, "'..'"),
        ({"file_name": ""}, "must name a file"),
    ],
)
def test_what_can_not_be_trained_is_refused_before_any_work(parts, counted, own, words):
    with pytest.raises(ValueError, match=words):
        train(parts, pictures(parts), **own)
    assert not counted


def test_quantised_weights_are_refused(parts, counted):
    with quantised(parts.model.model.diffusion_model), pytest.raises(ValueError, match="quantised"):
        train(parts, pictures(parts))
    assert not counted


def test_a_lora_of_another_model_is_refused(parts, make_model, own_folders):
    train(parts, pictures(parts), file_name="x")
    given = {"clip": None, "file": "x.safetensors", "strength": 1.0, "same_model": True}
    patched, _, lora = tuning_files.LoadLora().run(model=parts.model, **given)["result"]
    assert patched.patches and lora.metadata["ss_steps"] == "2"
    with pytest.raises(ValueError, match="another architecture"):
        tuning_files.LoadLora().run(model=make_model(), **given)
    name = tuning_files.SaveLora().run(lora, "copy/y")["result"][0]
    assert name == "copy/y.safetensors"
    saved = load_file(own_folders / "loras" / name)
    assert all(torch.equal(v, saved[k]) for k, v in lora.items())


# -- Train Embedding


def test_a_word_is_learnt_and_its_file_read_by_a_prompt(parts, own_folders):
    given = defaults(
        train_embedding.TrainEmbedding,
        model=parts.model,
        clip=parts.clip,
        pictures=pictures(parts),
        start_word="circle",
        steps=2,
        batch=1,
        vectors=2,
        sample_every=1,
    )
    done = train_embedding.TrainEmbedding().run(**given, vae=parts.vae)
    name, conditioning, loss, _, report = done["result"]
    assert name == "embedding:nulltext_word" and len(loss["loss"]) == 2 and "Trained 2 steps" in report
    vectors = load_file(own_folders / "embeddings" / "nulltext_word.safetensors")
    assert vectors["clip_l"].shape == (2, 128)
    start = train_embedding.begun(parts.clip, "circle", 2)[0]["clip_l"]
    assert not torch.equal(vectors["clip_l"], start.detach())
    parts.clip.tokenizer.clip_l.embedding_directory = str(own_folders / "embeddings")
    read = bridge.encode(parts.clip, CAPTION.replace("sks", name))[0][0]
    torch.testing.assert_close(read, conditioning[0][0])
    again = train_embedding.TrainEmbedding().run(**given)
    assert "nothing was trained" in texts(again)
    with pytest.raises(ValueError, match="lacks the word"):
        train_embedding.TrainEmbedding().run(**(given | {"word": "zwx"}))


def refused_embedding(parts, **own):
    given = {"model": parts.model, "clip": parts.clip, "pictures": pictures(parts), "start_word": "circle"}
    return train_embedding.TrainEmbedding().run(**(defaults(train_embedding.TrainEmbedding, **given) | own))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"word": "zwx"}, "lacks the word 'zwx'"),
        ({"start_word": " "}, "start word is empty"),
        ({"file_name": "../outside"}, "'..'"),
        ({"file_name": ""}, "must name a file"),
    ],
)
def test_a_word_that_can_not_be_learnt_is_refused_before_any_work(parts, counted, own, words):
    with pytest.raises(ValueError, match=words):
        refused_embedding(parts, **own)
    assert not counted


def test_pictures_that_are_none_are_refused(parts):
    given = defaults(tuning_pictures.TuningPictures, vae=parts.vae, captions=CAPTION, size=64)
    with pytest.raises(ValueError, match="NaN or infinite"):
        tuning_pictures.TuningPictures().run(**given, images=torch.full((1, 64, 64, 3), float("nan")))
    with pytest.raises(ValueError, match="is empty"):
        tuning_pictures.TuningPictures().run(**given, images=torch.zeros(0, 64, 64, 3))


def test_quantised_weights_are_refused_by_every_training(parts, counted):
    network, encoder = parts.model.model.diffusion_model, parts.clip.cond_stage_model
    given, _ = optimised(parts)
    counted.clear()
    for module, training in (
        (network, lambda: refused_embedding(parts)),
        (encoder, lambda: refused_embedding(parts)),
        (encoder, lambda: train(parts, pictures(parts), text_encoder=train_lora.TRAIN)),
        (encoder, lambda: train(parts, pictures(parts), word_vectors=1)),
        (network, lambda: imagic.ImagicOptimise().run(**given)),
    ):
        with quantised(module), pytest.raises(ValueError, match="quantised"):
            training()
    assert not counted


# -- DreamBooth on a word that was learned first


def test_a_word_learned_first_stands_in_the_captions(parts, own_folders):
    clip = parts.clip.clone()
    clip.tokenizer = copy.deepcopy(clip.tokenizer)
    clip.tokenizer.clip_l.embedding_directory = str(own_folders / "embeddings")
    (own_folders / "embeddings").mkdir()
    learned = types.SimpleNamespace(model=parts.model, clip=clip, vae=parts.vae)
    with pytest.raises(ValueError, match="finds no file"):
        train(learned, pictures(parts), learned_word="embedding:nulltext_word")
    subject = pictures(parts)
    told = {"sample_every": 0, "steps": 1, "batch": 1, "start_word": "circle", "learning_rate": 1.0}
    given = defaults(train_embedding.TrainEmbedding, model=parts.model, clip=clip, pictures=subject, **told)
    name = train_embedding.TrainEmbedding().run(**given)["result"][0]
    made = train(learned, subject, learned_word=name, sample_prompt="a SKS, alone", file_name="nulltext/learned")
    bare = train(learned, subject, file_name="nulltext/bare")
    by_hand = pictures(parts, caption=CAPTION.replace("sks", name))
    same = train(learned, by_hand, word=name, file_name="nulltext/same")
    values = [out["result"][2] for out in (made, bare, same)]
    assert subject.captions[0] == CAPTION  # the wired set is left as it was
    assert all(torch.equal(values[0][k], values[2][k]) for k in values[0])
    assert any(not torch.equal(values[0][k], values[1][k]) for k in values[0])


# -- Imagic


def optimised(parts, **own):
    latent = {"samples": pictures(parts, 1).latents[0][None]}
    given = defaults(
        imagic.ImagicOptimise,
        model=parts.model,
        target=bridge.encode(parts.clip, "a photo of a circle on the right"),
        negative=bridge.encode(parts.clip, ""),
        latent=latent,
        embedding_steps=2,
        embedding_rate=1e-2,
        model_steps=2,
        model_rate=1e-2,
        rank=2,
        batch=1,
        sample_every=0,
    )
    return given, imagic.ImagicOptimise().run(**(given | own))


def guided(guider, engine, model, rows=1):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas, sampler = engine.sigmas_of(model, "normal", 3), engine.get("samplers").sampler_object("euler")
    return guider.sample(noise, torch.zeros(1, 4, 8, 8), sampler, sigmas, disable_pbar=True)


def test_imagic_moves_text_and_model_and_walks_between_them(parts, engine):
    given, done = optimised(parts)
    words, lora, _, report = done["result"]
    target, negative, model = given["target"], given["negative"], parts.model
    assert not torch.equal(words[0][0], target[0][0]) and report.count("Trained 2 steps") == 2
    _, again = optimised(parts)
    assert texts(again).count("nothing was trained") == 2
    box = imagic_guider.ImagicGuider()

    def sampled(eta, more="", strength=1.0, high=1.0, low=0.0, **wired):
        guider = box.run(model, target, negative, eta, more, 3.0, strength, high, low, **wired)["result"][0]
        return guided(guider, engine, model)

    strip = sampled(0.0, "0.5, 1", optimised=words, lora=lora)
    assert strip.shape[0] == 3
    torch.testing.assert_close(strip[:1], sampled(0.0, optimised=words, lora=lora), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(strip[2:], sampled(1.0, optimised=words, lora=lora), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(strip[:1], strip[2:], atol=1e-3)
    # eta 1 without the LoRA is the plain target picture, to the bit; so is strength 0
    core = engine.get("samplers").CFGGuider(model)
    core.set_conds(target, negative)
    core.set_cfg(3.0)
    plain = guided(core, engine, model)
    assert torch.equal(sampled(1.0, optimised=words), plain)
    assert torch.equal(sampled(1.0, strength=0.0, optimised=words, lora=lora), plain)
    # eta 0 without the LoRA is the optimised text's own picture, to the bit
    core.set_conds(words, negative)
    assert torch.equal(sampled(0.0, optimised=words), guided(core, engine, model))
    # the window: one that no step lies in is no LoRA, half of it is neither
    whole, half = sampled(1.0, lora=lora), sampled(1.0, lora=lora, high=0.6)
    assert not torch.equal(whole, plain) and not torch.equal(half, whole) and not torch.equal(half, plain)
    assert not any(m._forward_hooks for m in model.model.diffusion_model.modules())


def test_imagic_refuses(parts, make_model, make_condition):
    given, done = optimised(parts)
    for name, said in (("../away", "'..'"), ("", "must name a file")):
        with pytest.raises(ValueError, match=said):
            imagic.ImagicOptimise().run(**(given | {"file_name": name}))
    with pytest.raises(ValueError, match="Rank 200 does not fit"):
        imagic.ImagicOptimise().run(**(given | {"rank": 200, "targets": "attention"}))
    with pytest.raises(ValueError, match="single encoded picture"):
        imagic.ImagicOptimise().run(**(given | {"latent": {"samples": torch.zeros(1, 4, 8, 8)}}))
    ends = (make_condition(1), make_condition(2), 0.7)
    with pytest.raises(ValueError, match="another architecture"):
        imagic_guider.ImagicGuider().run(make_model(), *ends, "", 3.0, 1.0, 1.0, 0.0, lora=done["result"][1])
    with pytest.raises(ValueError, match="no list of numbers"):
        imagic_guider.ImagicGuider().run(make_model(), *ends, "half", 3.0, 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="lora_from above"):
        imagic_guider.ImagicGuider().run(make_model(), *ends, "", 3.0, 1.0, 0.2, 0.5)
