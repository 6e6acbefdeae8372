"""Guidance through a real server: it changes what it should, leaves what it shouldn't, refuses in one sentence."""

from pathlib import Path

import pytest
import torch
from nulltext.demo.image_text import IMAGE, NOISY, TEXT, WORDS
from nulltext.samplers.networks.image_text import ImageText
from nulltext.samplers.networks.latent_classifier import LatentClassifier
from nulltext.tests.server.graph import far, pixels
from safetensors import safe_open
from safetensors.torch import save_file

DECODER, EXACT, LATENT = "through decoder only", "through network and decoder (exact)", "on the latent (no decoder)"


@pytest.fixture(scope="module", autouse=True)
def files(comfy):
    """Random stand-ins under names of their own: these tests ask whether things happen, not how well."""
    torch.manual_seed(0)
    classifier = LatentClassifier.new(["cat", "dog"], 4, 16, width=16)
    for p in classifier.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.05)
    towers = ImageText(WORDS, IMAGE, TEXT, NOISY)
    for name, model in (("classifiers/test_cats", classifier), ("image_text/test_towers", towers)):
        path = comfy.tree / "models" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, model.metadata())


@pytest.fixture
def start(comfy):
    """start() -> a graph with the empty prompt and an empty latent of two wired."""

    def start():
        graph = comfy.graph()
        nothing, graph.latent = graph.prompt(), graph.empty(batch=2)
        more = {"latent": graph.latent, "latent_image": graph.latent, "conditioning": nothing}
        return graph.wire(positive=nothing, negative=nothing, **more)

    return start


def by_class(graph, scale=5.0, label="dog", file="test_cats", **inputs):
    loaded = inputs.pop("classifier", None) or graph.add("NullText_LoadClassifier", file=f"{file}.safetensors")
    return graph.add("NullText_ClassifierGuidance", classifier=loaded, class_name=label, scale=scale, **inputs)


def by_text(graph, towers=None, **inputs):
    loaded = graph.add("NullText_LoadImageText", file="test_towers.safetensors", **(towers or {}))
    values = {"text": "a red circle", "loss": "contrastive", "distractors": "a blue square", "scale": 20.0}
    values |= {"gradient_mode": DECODER, "cutouts": 2, "smallest_cut": 0.7}
    return graph.add("NullText_CLIPGuidance", image_text=loaded, **{**values, **inputs})


@pytest.fixture
def draw(comfy, start):
    """draw(guidance, **inputs) -> the pictures under a guidance, a function that adds its nodes to the graph."""

    def draw(guidance=None, seed=3, **inputs):
        graph = start()
        model = guidance(graph) if guidance else graph.model
        values = {"cfg": 1.0, "steps": 3, "scheduler": "karras", **inputs}
        shown = graph.picture_of(graph.draw(model=model, seed=seed, **values))
        return pixels(comfy.run(graph).check(), shown)

    return draw


@pytest.mark.parametrize("mode", [DECODER, EXACT, LATENT])
def test_each_gradient_mode_changes_the_picture_and_the_model_stays(comfy, draw, mode):
    def guidance(graph):
        return by_text(graph, gradient_mode=mode)

    before = draw(seed=11)
    guided = draw(guidance, seed=11)
    other = comfy.graph()
    other.show(other.add("EmptyImage"))
    comfy.run(other).check()  # the engine's cache forgets the pictures
    assert (guided - before).abs().mean() > 0.5
    assert torch.equal(draw(guidance, seed=11), guided)
    comfy.free()
    assert torch.equal(draw(seed=11), before)


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral", "dpmpp_2m"])
def test_any_sampler_at_any_cfg(draw, sampler):
    how = {"sampler_name": sampler, "cfg": 3.0}
    for guidance in (by_class, by_text):
        assert (draw(guidance, **how) - draw(**how)).abs().mean() > 0.1


@pytest.mark.parametrize(
    "guidance",
    [lambda g: by_class(g, scale=0.0), lambda g: by_text(g, scale=0.0), lambda g: by_class(g, start_percent=1.0)],
)
def test_scale_0_is_the_unguided_picture(draw, guidance):
    assert torch.equal(draw(guidance, seed=5), draw(seed=5))


def trained(graph, **inputs):
    values = {"folder": "classes", "size": 128, "learning_rate": 0.001, "training_seed": 1, **inputs}
    return graph.add("NullText_TrainLatentClassifier", **values)


def test_training_writes_a_file_that_guides(comfy, start, draw):
    graph = start()
    train = trained(graph, train_steps=6, batch=8, mirror=True, file_name="from_test")
    drawn = graph.draw(
        model=by_class(graph, label="red circle", classifier=train), cfg=1.0, steps=3, scheduler="karras"
    )
    shown, curve = graph.picture_of(drawn), graph.show(train[1])
    result = comfy.run(graph).check()
    said = next(text for text in result.texts if "Saved as" in text)
    path = Path(said.split("Saved as ")[1].split(": 2 classes")[0])
    assert path.is_file() and path.is_relative_to(comfy.tree / "output") and len(pixels(result, curve)) == 1
    with safe_open(path, "pt") as f:
        assert f.metadata()["labels"] == '["blue square", "red circle"]' and f.metadata()["fingerprint"]
    loaded = draw(lambda graph: by_class(graph, label="red circle", file="from_test"))
    assert torch.equal(loaded, pixels(result, shown))


def test_an_interrupt_in_training_writes_nothing_and_the_server_lives(comfy, draw):
    graph = comfy.graph()
    train = trained(graph, train_steps=5000, batch=32, mirror=False, file_name="interrupted")
    graph.show(train[1])
    comfy.interrupted(graph, train, ticks=20)
    assert not (comfy.tree / "output" / "classifiers" / "interrupted.safetensors").exists()
    assert draw(seed=9).any()


def test_trace_and_rank(comfy, start):
    graph = start()
    model = by_class(graph)
    drawn = graph.draw(model=model, cfg=1.0, steps=3, scheduler="karras")
    trace = graph.show(graph.add("NullText_GuidanceTrace", model=model, latent=drawn, pictures=3, item=2))
    towers, pictures = graph.add("NullText_LoadImageText", file="test_towers.safetensors"), graph.decode(drawn)
    rank = graph.add("NullText_CLIPRank", images=pictures, image_text=towers, text="a red circle", keep=1)
    nodes = graph.show(pictures), graph.show(rank)
    result = comfy.run(graph).check()
    text = "\n".join(result.texts)
    assert "class dog" in text and "3 steps" in text and "The best 1 of 2" in text
    (strip,) = pixels(result, trace)
    assert strip.shape[1] >= 512
    drawn, (best,) = (pixels(result, node) for node in nodes)
    assert any(torch.equal(best, picture) for picture in drawn)


def test_a_trace_stays_until_its_run_or_its_widgets_change(comfy, start):
    graph = start()
    drawn = graph.draw(model=by_class(graph), cfg=1.0, steps=3, scheduler="karras", seed=61)
    trace = graph.add("NullText_GuidanceTrace", latent=drawn, model=graph[drawn.key]["inputs"]["model"], pictures=3)
    graph.show(trace)

    def ran(**inputs):
        graph[trace.key]["inputs"].update(inputs)
        return {drawn.key, trace.key} - set(comfy.run(graph).check().cached)

    assert ran(item=1) == {drawn.key, trace.key}
    assert ran() == set()
    assert ran(item=2) == {trace.key}  # of the run that was kept


def test_start_noise_again_by_the_core_sampler(comfy, start):
    graph = start()
    inputs = {"seed": 4, "steps": 3, "scheduler": "karras", "cfg": 1.0, "iterations": 3, "learning_rate": 0.05}
    made = graph.add("NullText_OptimiseStartNoise", model=by_class(graph), prior=1.0, **inputs)
    again = graph.sample(made[1], graph.add("BasicGuider"), "euler", made[2], graph.latent)
    nodes = graph.picture_of(made), graph.picture_of(again)
    result = comfy.run(graph).check()
    assert far(*(pixels(result, node) for node in nodes)) <= 2
    said = next(text for text in result.texts if text.startswith("Loss"))
    first, best = (float(v) for v in said.split("Loss ")[1].split(" (")[0].split(" -> "))
    assert best <= first


def test_the_papers_w(comfy, start, draw):
    graph = start()
    model = graph.add("NullText_CFGConvention", w=2.0, shape="constant", start_percent=0.0, end_percent=1.0)
    shown = graph.picture_of(graph.draw(model=model, cfg=1.0, steps=3, scheduler="karras", seed=6))
    result = comfy.run(graph).check()
    assert "cfg 3" in "\n".join(result.texts)
    assert far(pixels(result, shown), draw(cfg=3.0, seed=6)) <= 2


def by_colour(graph, **inputs):
    loaded = graph.add("NullText_LoadImageClassifier", file="nulltext_colours.safetensors", architecture="auto")
    return by_class(graph, 2.0, "red", classifier=loaded, **inputs)


@pytest.mark.parametrize(
    "guidance, words",
    [
        (lambda g: by_class(g, label="horse"), ("no class 'horse'", "cat, dog")),
        (lambda g: by_colour(g, gradient_mode=LATENT), ("clean pictures", "not latents")),
        (lambda g: by_colour(g, gradient_mode="automatic"), ("wire the VAE",)),
        (lambda g: by_text(g, distractors=""), ("distractor",)),
        (lambda g: by_text(g, text="zebra"), ("knows no word",)),
        (lambda g: by_text(g, towers={"clip": g.clip}), ("two halves",)),
        (lambda g: by_class(g, file="gone"), ("no file",)),
        (lambda g: by_class(g, file="../../x"), ("'..'",)),
        (lambda g: by_class(g, file="broken"), ("can't be read",)),
        (lambda g: by_class(g, file="nulltext_colours"), ("not a latent classifier",)),
    ],
)
def test_refusals(comfy, start, temporary_file, guidance, words):
    temporary_file("models/classifiers/broken.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    graph = start()
    graph.picture_of(graph.draw(model=guidance(graph), cfg=1.0, steps=3))
    comfy.refuses(graph, *words)
