"""Where the engine says that it streams a model's weights, gradients get one whose weights lie still."""

import json

import pytest
import torch
from nulltext.benchmarks.families.stand_ins import streamed
from nulltext.engine.gradients import bring, grad_mode
from nulltext.engine.image_text import ClipPair, modules_of, patchers_of
from nulltext.engine.run import sample_with
from nulltext.engine.streamed import is_streamed, settled
from nulltext.engine.terms import decoder
from nulltext.tests.running import run
from nulltext.tests.stand_ins import demo_parts, streaming


@pytest.fixture
def model(tiny, make_model):
    """The tiny MODEL, streamed; `loads` counts how often its weights were asked for anew."""
    loads = []

    def again():
        loads.append(1)
        return make_model().model

    made = streamed(tiny.model, (tiny.load_device, tiny.offload_device), again)
    made.loads = loads
    return made


def test_what_is_not_streamed_is_itself(tiny, vae):
    assert settled(tiny) is tiny and settled(vae) is vae


def test_a_model_keeps_its_options_and_patches(model):
    model.model_options["transformer_options"]["mark"] = 3
    name, weight = next((n, p) for n, p in model.model.named_parameters() if n.startswith("diffusion_model"))
    model.add_patches({name: (torch.ones_like(weight),)})
    still = settled(model)
    assert is_streamed(model) and not is_streamed(still) and still.model is not model.model
    assert still.model_options["transformer_options"]["mark"] == 3 and list(still.patches) == [name]
    with pytest.raises(ValueError, match="streams"), grad_mode(model.model):
        pass
    with grad_mode(still.model):
        pass


@pytest.mark.parametrize("gradients", [False, True])
def test_a_run_takes_it_where_it_differentiates(model, engine, ends, latent, gradients):
    def body(run):
        return run.patcher, run.model, run.predictions(run.latent, run.sigmas[0], ["positive"])[0].cpu()

    given = {"positive": ends[0]}, latent, engine.sigmas_of(model, "normal", 2), body
    with torch.inference_mode():
        patcher, network, _ = sample_with(model, *given, gradients=gradients)
    assert is_streamed(patcher) is not gradients and len(model.loads) == gradients
    assert network is patcher.model


def test_a_vae(model, vae):
    given = streaming(vae, "first_stage_model")
    still = settled(given)
    z = torch.randn(1, 4, 8, 8)
    assert is_streamed(given.patcher) and not is_streamed(still.patcher)
    with pytest.raises(ValueError, match="streams"), grad_mode(given.first_stage_model):
        pass
    with grad_mode(still.first_stage_model):
        leaf = z.clone().requires_grad_()
        pictures = decoder(model, still)(leaf)
        pictures.sum().backward()
    assert leaf.grad.abs().sum() > 0
    with torch.inference_mode():
        torch.testing.assert_close(pictures.detach(), decoder(model, vae)(z))


def test_a_clip(engine, tmp_path):
    clip = demo_parts(engine, tmp_path, 0).clip
    given = streaming(clip, "cond_stage_model")
    still = settled(given)
    with torch.inference_mode():
        torch.testing.assert_close(
            engine.encode(still, "a red circle")[0][0], engine.encode(clip, "a red circle")[0][0]
        )
    assert still.patcher.model is still.cond_stage_model is not given.cond_stage_model
    with grad_mode(still.cond_stage_model):
        pass


def test_an_image_encoder(engine, tmp_path):
    from nulltext.tests.engine.test_image_text import VISION, Text

    (tmp_path / "vision.json").write_text(json.dumps(VISION))
    with torch.inference_mode():
        vision = engine.get("clip_vision").ClipVisionModel(str(tmp_path / "vision.json"))
        for p in vision.model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    vision.config = str(tmp_path / "vision.json")
    given = streaming(vision, "model")
    pair, still = (ClipPair(each, Text(torch.randn(12, 12))) for each in (vision, settled(given)))
    for each in (pair, still):
        each.image_size = 32
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="streams"), grad_mode(given.model):
        pass
    bring("cpu", patchers_of(still))
    with grad_mode(*modules_of(still)):
        leaf = image.clone().requires_grad_()
        found = still.embed_image(leaf)
        found.sum().backward()
    assert leaf.grad.abs().sum() > 0
    with torch.inference_mode():
        torch.testing.assert_close(found.detach(), pair.embed_image(image))


def test_a_loader_that_can_not_be_asked_again_is_refused_with_the_way_out(model):
    def unknown(**_):
        raise RuntimeError("Cannot create non-dynamic delegate")

    model.clone = unknown
    with pytest.raises(ValueError, match="--disable-dynamic-vram"):
        settled(model)


def test_a_classifier_of_pictures_asks_it_of_the_decoder(tiny, vae, euler, latent):
    class Reds(torch.nn.Module):
        labels = ["red", "other"]

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, image):
            return self.weight * torch.stack([image[:, 0].mean((1, 2)), image[:, 1].mean((1, 2))], 1)

    acts = {"class_name": "red", "gradient_mode": "automatic", "scale": 50.0, "start_percent": 0.0, "end_percent": 1.0}
    acts |= {"bound": 0.0, "every": 1}
    guided = [
        run("ClassifierGuidance", model=tiny, classifier=Reds(), vae=each, **acts)[0]
        for each in (vae, streaming(vae, "first_stage_model"))
    ]
    plain, whole, streamed_too = (euler(model, latent[:1], steps=2) for model in (tiny, *guided))
    assert not torch.equal(plain, whole)
    torch.testing.assert_close(whole, streamed_too)
