"""Networks where the engine wants them: loaded in inference mode, before gradients, on their own device, never by hand.

No second device is at hand: torch's meta device stands for it."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import comfy, image_text, terms
from nulltext.engine.gradients import bring, grad_mode
from nulltext.nodes import rank
from nulltext.nodes.guidance import DECODER
from nulltext.samplers.masks import composite
from nulltext.tests.running import run


def patcher(device: str, load_device: str) -> SimpleNamespace:
    return SimpleNamespace(model=torch.nn.Linear(2, 2, device=device), load_device=torch.device(load_device))


@pytest.fixture
def loaded(monkeypatch):
    """What the engine was asked to load, and whether in inference mode."""
    found = []

    def load_models_gpu(models, *_):
        found.append((list(models), torch.is_inference_mode_enabled()))

    monkeypatch.setattr(comfy.get("model_management"), "load_models_gpu", load_models_gpu)
    return found


def test_the_engine_loads_in_inference_mode_even_inside_gradients(engine, loaded):
    """Weights that moved outside of it have no version counter inside it: the next node that uses them would fail."""
    mine = patcher("cpu", "meta")
    with grad_mode(torch.nn.Linear(2, 2)):
        bring("meta", [mine])
    assert loaded == [([mine], True)]


def test_what_belongs_to_the_engine_is_moved_by_nobody_else(engine, loaded):
    """A VAE that was asked to stay on the CPU (--cpu-vae), beside a model on a GPU."""
    vae, ours = patcher("cpu", "cpu"), torch.nn.Linear(2, 2)
    bring("meta", [vae], [vae.model, ours])
    assert not loaded and vae.model.weight.device.type == "cpu" and ours.weight.device.type == "meta"


def test_a_network_of_which_a_part_stays_in_main_memory_is_not_loaded_again(engine, loaded):
    part = patcher("meta", "meta")
    part.model = torch.nn.Sequential(part.model, torch.nn.Linear(2, 2))
    bring("meta", [part], [part.model])
    assert not loaded and part.model[1].weight.device.type == "cpu"


def test_the_decoder_decodes_on_the_vaes_own_device(tiny, monkeypatch):
    monkeypatch.setattr(terms, "check_vae", lambda *_: None)
    seen = []

    class Stage(torch.nn.Linear):
        def decode(self, z):
            seen.append((z.device.type, z.dtype))
            return torch.zeros(1, 3, 8, 8)

    stage = Stage(2, 2, dtype=torch.float16)
    vae = SimpleNamespace(first_stage_model=stage, patcher=SimpleNamespace(load_device=torch.device("meta")))
    pictures = terms.decoder(tiny, vae)(torch.zeros(1, 4, 8, 8))
    assert seen == [("meta", torch.float16)] and pictures.device.type == "cpu" and float(pictures.mean()) == 0.5


def test_the_networks_of_guidance_are_loaded_with_the_model(tiny, vae, image_text, classifier, monkeypatch):
    """Loaded later, in the middle of a run, they could push the network that samples off the device."""
    told = {}
    if not hasattr(tiny, "set_additional_models"):  # the engine of 2024 has no place for them
        kind = type(tiny)
        monkeypatch.setattr(
            kind, "set_additional_models", lambda _, key, given: told.update({key: given}), raising=False
        )
        monkeypatch.setattr(kind, "get_nested_additional_models", lambda _: next(iter(told.values())), raising=False)
    inputs = {"text": "a red circle", "distractors": "a blue square", "loss": "spherical", "scale": 5.0}
    guided = run("CLIPGuidance", model=tiny, vae=vae, image_text=image_text, gradient_mode=DECODER, **inputs)[0]
    both = run("ClassifierGuidance", model=guided, classifier=classifier, class_name="dog", scale=3.0)[0]
    for model in (guided, both):
        assert [p.model for p in model.get_nested_additional_models()] == [vae.patcher.model]


def test_a_text_is_embedded_in_inference_mode_and_its_vector_can_be_differentiated(monkeypatch):
    modes = []

    def pooled(_clip, _text):
        modes.append(torch.is_inference_mode_enabled())
        return torch.ones(1, 3)

    monkeypatch.setattr(image_text, "_pooled", pooled)
    pair = object.__new__(image_text.ClipPair)
    pair.clip, pair._projection = None, torch.nn.Linear(3, 3, bias=False)
    with torch.inference_mode(False):
        rows = pair.embed_text(["a", "b"])
    assert modes == [True, True] and not rows.is_inference() and rows.shape == (2, 3)


class Tower(torch.nn.Module):
    """A model of pictures and texts: the mean of each colour."""

    image_size = 8

    def embed_image(self, image):
        return image.mean((2, 3))

    def embed_text(self, texts):
        return torch.eye(3)[: len(texts)]

    def unknown(self, _text):
        return []


def test_a_vision_model_is_brought_before_its_weights_are_exchanged(monkeypatch):
    """What is loaded while gradients are on would be undone at their end, and copied anew at every call."""
    order = []

    def noted(name, function):
        return lambda *args: order.append(name) or function(*args)

    monkeypatch.setattr(rank, "ready", noted("ready", rank.ready))
    monkeypatch.setattr(rank, "grad_mode", noted("grad_mode", rank.grad_mode))
    images = torch.rand(2, 8, 8, 3)
    result = rank.CLIPRank().run(images, Tower(), "red", 1)["result"]
    assert order == ["ready", "grad_mode"] and len(result[0]) == 1


def test_a_previewer_that_is_a_network_works_while_gradients_are_on(tiny, monkeypatch):
    """ComfyUI's TAESD: weights made in inference mode that ask for gradients."""
    with torch.inference_mode():
        net = torch.nn.Conv2d(4, 3, 1)

    class Previewer:
        def decode_latent_to_preview_image(self, kind, x0):
            return kind, net(x0).sum(), 8

    monkeypatch.setattr(comfy.get("latent_preview"), "get_previewer", lambda *_: Previewer())
    progress = comfy.Progress(2, tiny)
    with grad_mode(tiny.model):
        progress.tick(x0=torch.zeros(1, 4, 8, 8, requires_grad=True))
    assert progress.value == 1


def test_a_newer_engine_is_told_that_gradients_are_computed(engine, monkeypatch):
    """In training it takes kernels with a backward, and without streams no buffer is overwritten between the layers."""
    manage = comfy.get("model_management")
    monkeypatch.setattr(manage, "in_training", False, raising=False)
    monkeypatch.setattr(manage, "NUM_STREAMS", 2, raising=False)

    def inside():
        with grad_mode(torch.nn.Linear(2, 2)):
            assert manage.in_training is True and manage.NUM_STREAMS == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert manage.in_training is False and manage.NUM_STREAMS == 2


def test_an_engine_that_has_neither_gets_neither(engine, monkeypatch):
    manage = comfy.get("model_management")
    for name in ("in_training", "NUM_STREAMS"):
        monkeypatch.delattr(manage, name, raising=False)
    with grad_mode(torch.nn.Linear(2, 2)):
        pass
    assert not hasattr(manage, "in_training") and not hasattr(manage, "NUM_STREAMS")


def test_streamed_weights_are_refused_with_the_way_out(engine):
    """The newest engine marks a layer whose weights it pages in and out."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[1]._v = object()
    with pytest.raises(ValueError, match="--disable-dynamic-vram"), grad_mode(net):
        pass


def test_a_composite_of_pictures_on_two_devices_lies_with_the_edited_one():
    """As with --gpu-only: the loaded picture on the CPU, the decoded one on the GPU."""
    original, edited, mask = torch.zeros(1, 4, 4, 3), torch.ones(1, 4, 4, 3, device="meta"), torch.ones(1, 4, 4)
    assert composite(original, edited, mask).device.type == "meta"
