"""The ControlNet nodes on a small random checkpoint: neutral at first, trained through core, saved, refused."""

import functools
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from nulltext.engine import comfy as bridge
from nulltext.engine import controlnet as engine_controlnet
from nulltext.engine import tuning_set
from nulltext.nodes import controlnet as boxes
from nulltext.nodes import controlnet_guess, tuning_pictures
from nulltext.samplers.tuning import controlnet as forms
from nulltext.tests import stand_ins

pytestmark = pytest.mark.usefixtures("inference", "own_folders")


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    made = stand_ins.demo_parts(engine, folder, seed=1)
    made.flow = stand_ins.flow_transformer(engine, folder)
    made.xl = stand_ins.xl(engine)
    return made


def defaults(box, **own):
    required = box.INPUT_TYPES()["required"]
    return (
        {name: spec[1]["default"] for name, spec in required.items() if "default" in spec[1]}
        | {
            name: spec[0][0]
            for name, spec in required.items()
            if isinstance(spec[0], list) and "default" not in spec[1]
        }
        | own
    )


IMAGES = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(3))


def made(parts, form=boxes.SMALL, **own):
    given = defaults(boxes.MakeControlNet, model=parts.model, rank=4) | {"form": form} | own
    return boxes.MakeControlNet().run(**given)["result"][0]


def trained(parts, control, **own):
    given = defaults(tuning_pictures.TuningPictures, vae=parts.vae, captions="a circle", size=64, images=IMAGES)
    pictures = tuning_pictures.TuningPictures().run(**given)["result"][0]
    hint = boxes.HintMaker().run(**defaults(boxes.HintMaker, image=IMAGES))[0]
    given = {"model": parts.model, "clip": parts.clip, "control_net": control, "pictures": pictures, "hints": hint}
    given |= {"steps": 4, "learning_rate": 1e-2, "batch": 2, "sample_every": 0}
    return boxes.TrainControlNet().run(**(defaults(boxes.TrainControlNet, **given) | own))


@pytest.fixture(scope="module")
def ready(parts):
    """ready(form) -> a CONTROL_NET trained four steps: one of each form for the tests that change nothing of it."""
    return functools.cache(lambda form=boxes.SMALL: trained(parts, made(parts, form))["result"][0])


def sampled(engine, parts, control=None, strength=1.0, start=0.0, end=1.0, negative_too=True, previous=None):
    positive, negative = (engine.encode(parts.clip, text) for text in ("a circle", ""))
    nodes = engine.get("nodes")
    hint = IMAGES[:1]
    for each in (previous, control):
        if each is not None:
            apply = nodes.ControlNetApplyAdvanced().apply_controlnet
            both = apply(positive, negative, each, hint, strength, start, end)[:2]
            positive, negative = both if negative_too else (both[0], negative)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return nodes.KSampler().sample(parts.model, 3, 4, 4.0, "euler", "normal", positive, negative, latent, 1.0)[0][
        "samples"
    ]


@pytest.mark.parametrize("form", [boxes.SMALL, boxes.FULL])
def test_untrained_and_at_strength_0_it_is_no_control_net_to_the_bit(engine, parts, form):
    plain = sampled(engine, parts)
    control = made(parts, form)
    assert torch.equal(sampled(engine, parts, control), plain)
    before = {k: v.clone() for k, v in parts.model.model.diffusion_model.state_dict().items()}
    after = trained(parts, control)["result"][0]
    assert torch.equal(sampled(engine, parts, after, strength=0.0), plain)
    assert not torch.equal(sampled(engine, parts, after), plain)
    assert torch.equal(sampled(engine, parts, control), plain)  # what was given is not trained in place
    now = parts.model.model.diffusion_model.state_dict()
    assert all(torch.equal(now[k], v) for k, v in before.items())


def test_the_default_form_is_the_papers_which_the_published_rate_is_for():
    given = defaults(boxes.MakeControlNet)
    assert given["form"] == boxes.FULL and defaults(boxes.TrainControlNet)["learning_rate"] == 1e-5


def test_an_ordinary_start_changes_the_picture(engine, parts):
    assert not torch.equal(sampled(engine, parts, made(parts, start=boxes.ORDINARY)), sampled(engine, parts))


@pytest.mark.parametrize("form", [boxes.SMALL, boxes.FULL])
def test_the_file_is_what_was_trained(engine, parts, own_folders, form):
    result = trained(parts, made(parts, form), file_name="mine/edges")
    assert "Trained 4 steps" in result["ui"]["text"][0]
    saved = boxes.SaveControlNet().run(
        **defaults(boxes.SaveControlNet, control_net=result["result"][0], precision="fp32")
    )
    path = own_folders / "controlnet" / saved["result"][0]
    again = engine_controlnet.loaded(path)
    a, b = sampled(engine, parts, result["result"][0]), sampled(engine, parts, again)
    assert float((a - b).abs().max()) <= 1e-5 * float(a.abs().max())
    half = engine_controlnet.loaded(own_folders / "controlnet" / "mine" / "edges.safetensors")
    change = (a - sampled(engine, parts)).abs().max()
    assert float((a - sampled(engine, parts, half)).abs().max()) < 0.02 * float(change)


def test_what_trains_is_what_the_loader_draws(engine, parts):
    """The loss through the live weights is the loss through core's own object: one more step of rate ~0 sees it."""
    first = trained(parts, made(parts))
    control = first["result"][0]
    held = lambda result: float(result["ui"]["text"][0].split("fixed levels and noises ")[1].split(" ")[0])  # noqa: E731
    after = float(first["ui"]["text"][0].split("before, ")[1].split(" after")[0])
    assert held(trained(parts, control, steps=1, learning_rate=1e-7)) == pytest.approx(after, rel=1e-3)


def test_the_same_training_is_found_again_and_more_steps_go_on(parts):
    control = made(parts)
    trained(parts, control)
    assert "nothing was trained" in trained(parts, control)["ui"]["text"][0]
    assert "going on from step 4" in trained(parts, control, steps=5)["ui"]["text"][0]


def test_start_end_and_branches_are_cores(engine, parts, ready):
    control, plain = ready(), sampled(engine, parts)
    whole = sampled(engine, parts, control)
    part = sampled(engine, parts, control, start=0.5)
    assert torch.equal(sampled(engine, parts, control, start=1.0, end=1.0), plain)
    assert not torch.equal(part, whole) and not torch.equal(part, plain)
    assert not torch.equal(sampled(engine, parts, control, negative_too=False), whole)


def test_several_controls_add_up(engine, parts, ready):
    control = ready()
    one, two = sampled(engine, parts, control), sampled(engine, parts, control, previous=control)
    assert not torch.equal(one, two)
    untrained = made(parts)
    torch.testing.assert_close(sampled(engine, parts, control, previous=untrained), one, rtol=1e-5, atol=1e-5)


def test_strength_is_monotone(engine, parts):
    control, plain = trained(parts, made(parts), learning_rate=1e-3)["result"][0], sampled(engine, parts)
    away = [float((sampled(engine, parts, control, s) - plain).norm()) for s in (0.0, 0.25, 0.5, 1.0)]
    assert away == sorted(away) and away[0] == 0 and away[-1] > 0


def test_hints(parts):
    mask = torch.zeros(2, 64, 64)
    mask[:, 10:30] = 1
    hint = boxes.HintMaker().run(**defaults(boxes.HintMaker, image=IMAGES, kind="mask", mask=mask))[0]
    assert torch.equal(hint, mask[..., None].expand(-1, -1, -1, 3))
    assert boxes.HintMaker().run(**defaults(boxes.HintMaker, image=IMAGES))[0].shape == IMAGES.shape


@pytest.mark.parametrize("kind", boxes.hints.KINDS)
def test_hints_of_the_nodes_defaults_are_made_with_the_kinds_own_settings_one_by_one(kind, monkeypatch):
    made_of, hint = [], boxes.hints.hint
    monkeypatch.setattr(boxes.hints, "hint", lambda images, *more: made_of.append(len(images)) or hint(images, *more))
    batch = boxes.HintMaker().run(**defaults(boxes.HintMaker, image=IMAGES, kind=kind))[0]
    assert made_of == [1, 1] and batch.is_contiguous()
    for one, picture in zip(batch, IMAGES.movedim(-1, 1)):
        assert torch.equal(one.movedim(-1, 0), getattr(boxes.hints, kind)(picture[None])[0])


@pytest.mark.parametrize(("height", "width"), [(128, 128), (132, 128), (40, 40)])
def test_a_hint_of_another_size_is_trained_as_core_draws_with_it(parts, height, width):
    hint = (torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(4)) > 0.9).float()
    control, given = made(parts, boxes.FULL), []
    apply, empty = bridge.get("nodes").ControlNetApplyAdvanced().apply_controlnet, bridge.encode(parts.clip, "")
    hook = control.control_model.register_forward_pre_hook(
        lambda _, args, named: given.append(named["hint"].clone()), with_kwargs=True
    )
    by_core(parts, apply(empty, empty, control, hint, 1.0, 0.0, 1.0)[0])
    hook.remove()
    pictures = tuning_set.TuningSet((torch.zeros(4, 8, 8),), ("a circle",))
    assert torch.equal(tuning_set.hints_for(pictures, hint)[0], given[0][0])


def test_the_report_names_the_size_that_hints_should_have(parts):
    notice = "Notice: the hints have 128 x 128 pixels and are trained at 64 x 64"
    said = trained(parts, made(parts), hints=torch.rand(2, 128, 128, 3))["ui"]["text"][0]
    assert notice in said
    assert "Notice: the hints" not in trained(parts, made(parts))["ui"]["text"][0]


def test_an_inpainting_network_is_refused(parts, monkeypatch):
    """It takes nine channels, and the engine gives a control net the latent's four."""
    control = made(parts)
    monkeypatch.setattr(parts.model.model.diffusion_model, "in_channels", 9)
    with pytest.raises(ValueError, match="inpainting model"):
        made(parts)
    with pytest.raises(ValueError, match="inpainting model"):
        trained(parts, control)


def test_refusals(parts):
    with pytest.raises(ValueError, match="no UNet"):
        made(SimpleNamespace(model=parts.flow))
    with pytest.raises(ValueError, match="no UNet"):
        trained(parts, made(parts), model=parts.flow)
    with pytest.raises(ValueError, match="3 hints for 2 pictures"):
        trained(parts, made(parts), hints=torch.rand(3, 64, 64, 3))
    with pytest.raises(ValueError, match="no copy of a UNet"):
        trained(parts, SimpleNamespace())
    with pytest.raises(ValueError, match="'..'"):
        trained(parts, made(parts), file_name="../away")
    control = made(parts)
    layer = next(m for m in parts.model.model.diffusion_model.modules() if isinstance(m, torch.nn.Linear))
    kept = layer.weight
    layer._parameters["weight"] = torch.nn.Parameter(kept.to(torch.int8), requires_grad=False)
    try:
        for refuse in (lambda: made(parts), lambda: trained(parts, control)):
            with pytest.raises(ValueError, match="quantised"):
                refuse()
    finally:
        layer._parameters["weight"] = kept


def test_a_unet_without_a_middle_block_is_refused(parts, monkeypatch):
    """KOALA's, which core's ControlNet can't copy."""
    monkeypatch.setitem(parts.model.model.diffusion_model._modules, "middle_block", None)
    with pytest.raises(ValueError, match="no middle block"):
        made(parts)


@pytest.mark.parametrize("form", [boxes.SMALL, boxes.FULL])
def test_a_net_of_another_model_is_refused_before_any_work(parts, monkeypatch, form):
    own, other = made(parts, form), made(SimpleNamespace(model=parts.xl[0]), form)
    weights = engine_controlnet.form_of(own)

    def stand_in(**changed):
        return SimpleNamespace(control_weights=weights | changed, global_average_pooling=False)

    stem = weights["input_hint_block.0.weight"]
    greys = stand_in(**{"input_hint_block.0.weight": stem[:, :1]})
    longer = stand_in(**{"more.weight": stem})
    monkeypatch.setattr(boxes.comfy, "encode", lambda *_: pytest.fail("captions were encoded"))
    for control in (other, greys, longer):
        with pytest.raises(ValueError, match="doesn't fit the model"):
            trained(parts, control)
    with pytest.raises(ValueError, match="doesn't fit the model"):
        trained(parts, own, model=parts.xl[0], clip=parts.xl[1])
    with pytest.raises(ValueError, match="several kinds of hint"):
        trained(parts, stand_in(task_embedding=stem))


def test_a_net_whose_outputs_core_averages_is_not_trained_and_told_when_saved(parts):
    """By the name of its file, *_shuffle, which the new file needs as well."""
    control = made(parts)
    control.global_average_pooling = True
    with pytest.raises(ValueError, match="rename the file"):
        trained(parts, control)
    save = functools.partial(boxes.SaveControlNet().run, control, precision="fp16")
    assert "ends in _shuffle too" in save(file_name="mine/copy")["ui"]["text"][0]
    assert "Notice" not in save(file_name="mine/copy_shuffle")["ui"]["text"][0]


def test_nothing_is_rounded_between_the_nodes_where_core_rounds(engine, parts, own_folders, monkeypatch):
    """Core reads a full net as fp16 on most GPUs."""
    monkeypatch.setattr(engine.get("model_management"), "should_use_fp16", lambda *_, **__: True)
    start = engine_controlnet.fresh(parts.model, "full", seed=0)
    control = made(parts, boxes.FULL)
    assert control.control_model.dtype == torch.float16
    saved = boxes.SaveControlNet().run(**defaults(boxes.SaveControlNet, control_net=control, precision="fp32"))
    from_file = safetensors.torch.load_file(own_folders / "controlnet" / saved["result"][0])
    for found in (engine_controlnet.form_of(control), from_file):
        assert all(torch.equal(found[name], value) for name, value in start.items())
    engine_controlnet.form_of(control.copy())  # core's own copies have what core has


def guess(parts, control, way, strength=1.0, start=0.0, end=1.0):
    positive = bridge.encode(parts.clip, "")
    given = {"weights": way, "strength": strength, "start_percent": start, "end_percent": end}
    return controlnet_guess.ApplyGuessMode().run(positive, control, IMAGES[:1], **given)[0]


def by_core(parts, positive):
    nodes, negative = bridge.get("nodes"), bridge.encode(parts.clip, "")
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    sampled = nodes.KSampler().sample(parts.model, 3, 4, 4.0, "euler", "normal", positive, negative, latent, 1.0)
    return sampled[0]["samples"]


@pytest.mark.parametrize("form", [boxes.SMALL, boxes.FULL])
def test_guess_mode(parts, ready, form):
    """All alike is core's control in the positive prompt alone, to the bit; the other weights are not."""
    control = ready(form)
    plain, empty = by_core(parts, bridge.encode(parts.clip, "")), bridge.encode(parts.clip, "")
    apply = bridge.get("nodes").ControlNetApplyAdvanced().apply_controlnet
    alone = by_core(parts, apply(empty, empty, control, IMAGES[:1], 1.0, 0.0, 1.0)[0])
    ways = list(forms.GUESS_WEIGHTS)
    by_resolution, by_layer, alike = (by_core(parts, guess(parts, control, way)) for way in ways)
    assert torch.equal(alike, alone) and not torch.equal(alone, plain)
    assert not torch.equal(by_resolution, alone) and not torch.equal(by_layer, by_resolution)
    assert torch.equal(by_core(parts, guess(parts, control, ways[0], strength=0.0)), plain)
    late, untrained = guess(parts, control, ways[0], start=1.0, end=1.0), guess(parts, made(parts, form), ways[0])
    for silent in (late, untrained):  # two calls a step instead of one of two rows: no longer to the bit
        torch.testing.assert_close(by_core(parts, silent), plain, rtol=1e-4, atol=1e-4)
    # what was given is weighed in its copy alone
    assert torch.equal(by_core(parts, apply(empty, empty, control, IMAGES[:1], 1.0, 0.0, 1.0)[0]), alone)
    with pytest.raises(ValueError, match="no layers that guess mode"):
        guess(parts, SimpleNamespace(), ways[0])
    transformers = SimpleNamespace(control_model=torch.nn.Linear(2, 2), copy=lambda: control.copy())  # SD3's, Flux's
    with pytest.raises(ValueError, match="no layers that guess mode"):
        guess(parts, transformers, ways[0])


def test_guess_modes_weights_reach_the_networks_layers(parts, ready):
    """What the control hands to each layer, against the same control without weights."""
    control, given = ready(boxes.FULL), []
    network = parts.model.model.diffusion_model

    def seen(_, args, kwargs):
        told = kwargs.get("control")
        if told:
            given.append([x.clone() for x in [*told["output"], *told["middle"]]])

    handle = network.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        for way in forms.GUESS_WEIGHTS:
            by_core(parts, guess(parts, control, way))
    finally:
        handle.remove()
    steps = len(given) // 3
    by_resolution, by_layer, alike = given[0], given[steps], given[2 * steps]
    widths = [x.shape[-1] for x in alike]
    n = len(widths)
    for i, (a, b, c) in enumerate(zip(by_resolution, by_layer, alike)):
        torch.testing.assert_close(a, c * widths[0] / widths[i])
        torch.testing.assert_close(b, c * 0.825 ** (n - 1 - i))
    assert widths[0] > widths[-1] and alike[-1].abs().max() > 0
