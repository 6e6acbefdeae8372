"""DiffusionCLIP's and Asyrp's training boxes on a small random model: they train, repeat, go on, and refuse."""

import copy
import dataclasses

import pytest
import torch
from nulltext.engine import files, h_space, run, sampler, training_store, weights
from nulltext.engine.comfy import sigma_to_time
from nulltext.engine.sampler import sample_latent
from nulltext.nodes import asyrp, diffusion_clip, diffusion_clip_edit, h_training, inversion, tuning_chain
from nulltext.nodes import h_space as h_space_nodes
from nulltext.nodes.tuning_chain import TEMPLATES
from nulltext.samplers.tuning import lora
from nulltext.tests.nodes.text_pair import Tower, small_pictures, small_vae
from nulltext.tests.running import fails_and_is_interrupted

WHOLE, SAVING = diffusion_clip.WHOLE, diffusion_clip.SAVING


@pytest.fixture(scope="module")
def vae(engine):
    return small_vae(engine)


class Weighed(Tower):
    """The same words, read from pictures by a weight of its own."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight), requires_grad=False)

    def embed_image(self, pictures):
        return super().embed_image(self.weight * pictures)


CACHE_KEY = files.cache_key


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Inversions are made anew, and no state is left between tests."""
    monkeypatch.setattr(files, "cache_key", lambda *a: None)


@pytest.fixture
def pictures():
    return small_pictures()


def tuned(
    model, positive, pictures, vae, passes=2, gradient=WHOLE, lr=1e-2, seed=3, target="red", l1=0.0, keep=0.0,
    layers="attention", preset=diffusion_clip.BY_HAND, identity=None, tower=None, file="", steps=2, checkpointing=False,
):  # fmt: skip
    """What the node returns."""
    with torch.inference_mode():
        return diffusion_clip.DiffusionCLIPTune().run(
            model, positive, pictures, vae, tower or Tower(), "blue", target, 0.5, 3, steps, passes, lr, 1.0, 3.0, l1,
            keep, "log", gradient, layers, 2, seed, TEMPLATES, file, preset, identity, checkpointing,
        )  # fmt: skip


def tune(*args, **own):
    return tuned(*args, **own)["result"]


def agreement(report):
    before, after = report.split("words ")[1].split(".\n")[0].split(" -> ")
    return float(before), float(after.rstrip("."))


@pytest.mark.parametrize("gradient", [WHOLE, SAVING])
def test_tuning_turns_the_pictures_towards_the_words(tiny, make_condition, pictures, vae, gradient):
    before = [p.clone() for p in tiny.model.parameters()]
    patched, found, report = tune(tiny, make_condition(), pictures, vae, passes=6, gradient=gradient)
    first, last = agreement(report)
    assert last > first
    assert any(float(v.abs().sum()) > 0 for k, v in found.items() if "lora_up" in k)
    assert patched is not tiny and patched.patches and not tiny.patches
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.model.parameters()))
    assert not any(m._forward_hooks for m in tiny.model.diffusion_model.modules())
    again = tune(tiny, make_condition(), pictures, vae, passes=6, gradient=gradient)[1]
    assert all(torch.equal(again[k], v) for k, v in found.items())


@pytest.mark.parametrize(("gradient", "step"), [(WHOLE, "chain_step"), (SAVING, "saving_step")])
def test_checkpointing_keeps_less_and_trains_alike(tiny, make_condition, vae, monkeypatch, gradient, step):
    """Of the whole chain one call's memory, whatever its length, and the same bits."""
    make, kept = getattr(diffusion_clip, step), {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    def counted(*args, **more):
        inner = make(*args, **more)

        def first(generator):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                return inner(generator)

        return first

    monkeypatch.setattr(diffusion_clip, step, counted)
    one = {"samples": torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3)) / 0.18215}

    def trained(steps, checkpointing):
        kept.clear()
        more = {"passes": 1, "gradient": gradient, "steps": steps, "checkpointing": checkpointing}
        found = tune(tiny, make_condition(), one, vae, **more)[1]
        return sum(storage.nbytes() for storage in kept.values()), found

    (plain_2, _), (plain_6, found) = trained(2, False), trained(6, False)
    (least_2, _), (least_6, again) = trained(2, True), trained(6, True)
    if gradient == WHOLE:
        assert all(torch.equal(again[key], value) for key, value in found.items())
        assert least_6 < 1.5 * least_2 and least_6 - least_2 < (plain_6 - plain_2) / 100
    else:
        assert least_6 < 0.8 * plain_6
        for key, value in found.items():
            torch.testing.assert_close(again[key], value, rtol=0, atol=1e-4 * float(value.abs().max()))


def test_a_file_that_can_not_be_written_loses_no_training(tiny, make_condition, pictures, vae, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(0, "writing failed")

    monkeypatch.setattr(diffusion_clip, "free_path", lambda *_: tmp_path / "mine.safetensors")
    monkeypatch.setattr(diffusion_clip.weights, "save", full)
    patched, found, report = tune(tiny, make_condition(), pictures, vae, file="mine")
    assert patched.patches and found and "mine.safetensors could not be written" in report and "Save LoRA" in report


def test_whole_weights_are_trained_as_patches_and_mixed_by_degree(tiny, make_condition, pictures, vae):
    positive = make_condition()
    before = [p.clone() for p in tiny.model.parameters()]
    patched, found, report = tune(tiny, positive, pictures, vae, passes=6, lr=1e-4, layers=diffusion_clip.EVERY)
    first, last = agreement(report)
    assert last > first and {key.rsplit(".", 1)[1] for key in found} == {"diff", "diff_b"}
    assert len(patched.patches) == len(found) == len(list(tiny.model.diffusion_model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.model.parameters()))

    def edit(degree):
        with torch.inference_mode():
            return diffusion_clip_edit.DiffusionCLIPEdit().run(
                tiny, positive, pictures, found, degree, 0.5, 3, 4, 0, 2, 1
            )["result"][0]["samples"]

    back = edit(0.0)
    assert 0 < float((edit(0.5) - back).norm()) < float((edit(1.0) - back).norm())


def test_a_preset_is_the_authors_run(tiny, make_condition, pictures, vae, monkeypatch):
    """Their numbers in place of the box's own, with whole weights."""
    own, seen = diffusion_clip.PRESETS["code"], []
    monkeypatch.setattr(diffusion_clip, "PRESETS", {"code": dataclasses.replace(own, passes=1, inversion=4, train=3)})
    kept = diffusion_clip.trained
    monkeypatch.setattr(diffusion_clip, "trained", lambda loop, *a: seen.append(loop) or kept(loop, *a))
    found = tune(tiny, make_condition(), pictures, vae, l1=7.0, preset="code")[1]
    (loop,) = seen
    assert loop.settings.steps == 2 and loop.settings.lr == 2e-6 and loop.settings.factor == 1.3
    assert all(key.endswith((".diff", ".diff_b")) for key in found)
    by_hand = tune(tiny, make_condition(), pictures, vae, passes=1, preset=diffusion_clip.BY_HAND)[1]
    assert not any(key.endswith(".diff") for key in by_hand)


class GreenTower(Tower):
    """Reads the mean green and red."""

    def embed_image(self, pictures):
        return super().embed_image(pictures[:, [1, 2, 0]])


def test_the_identity_loss_takes_a_model_of_its_own(tiny, make_condition, pictures, vae):
    args = (tiny, make_condition(), pictures, vae)
    none, own, other = (
        tune(*args, passes=1, **given)[1] for given in ({}, {"keep": 9.0}, {"keep": 9.0, "identity": GreenTower()})
    )
    same = tune(*args, passes=1, keep=9.0, identity=Tower())[1]
    assert all(torch.equal(own[k], same[k]) for k in own)
    assert not all(torch.equal(own[k], none[k]) for k in own) and not all(torch.equal(own[k], other[k]) for k in own)


def test_the_curve_is_shown_while_it_trains_and_at_the_end(tiny, make_condition, pictures, vae, monkeypatch):
    shown = []
    monkeypatch.setattr(tuning_chain, "_SHOW_SECONDS", 0.0)
    monkeypatch.setattr(run.Progress, "show", lambda self, image: shown.append(image.shape))
    made = tuned(tiny, make_condition(), pictures, vae)
    assert len(shown) == 4 and len(set(shown)) == 1 and len(made["ui"]["images"]) == 1


def test_an_edit_of_degree_0_is_the_models_own_walk_and_more_goes_further(tiny, make_condition, pictures, vae):
    positive = make_condition()
    found = tune(tiny, positive, pictures, vae)[1]

    def edit(degree, unseen=0, steps=4):
        with torch.inference_mode():
            return diffusion_clip_edit.DiffusionCLIPEdit().run(
                tiny, positive, pictures, found, degree, 0.5, 3, steps, unseen, 2, 1
            )["result"][0]["samples"]

    back, half, whole = edit(0.0), edit(0.5), edit(1.0)
    far = [float((e - back).norm()) for e in (half, whole)]
    assert 0 < far[0] < far[1]
    assert not torch.allclose(edit(0.0, unseen=1), back, rtol=1e-2)
    finer = edit(0.0, steps=3)  # the steps of the inversion: the picture comes back about as DDIM does
    own = pictures["samples"]
    assert float((finer - own).norm()) < 0.7 * float((edit(0.0, unseen=1) - own).norm())


def test_the_mixing_box_takes_up_to_three(tiny, make_condition, pictures, vae):
    found = tune(tiny, make_condition(), pictures, vae, passes=1)[1]
    guider = diffusion_clip_edit.MixModels().run(
        tiny, make_condition(), make_condition(2), 2.0, found, 0.4, 0.0, 0.5,
        lora_model_3=found, weight_3=0.2, start_percent_3=0.5, end_percent_3=1.0,
    )["result"][0]  # fmt: skip
    assert len(guider.tuned) == 2
    assert [s.at(0.02) for s in guider.shares] == pytest.approx([0.8, 0.0, 0.2])
    assert [s.at(14.0) for s in guider.shares] == pytest.approx([0.6, 0.4, 0.0])


def test_many_pictures_are_inverted_in_parts(tiny, make_condition, vae, monkeypatch):
    many = torch.randn(20, 4, 4, 4, generator=torch.Generator().manual_seed(3)) / 0.18215
    rows, asked, ask = [], [], run.sample_with
    tiny.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    sigmas = diffusion_clip.schedule(tiny, 0.5, 3)
    for module in (inversion, diffusion_clip):
        monkeypatch.setattr(
            module,
            "sample_with",
            lambda m, c, latent, *a, **more: asked.append(len(latent)) or ask(m, c, latent, *a, **more),
        )

    def inverted(latent, positive=None):
        with torch.inference_mode():
            return tuning_chain.inverted(tiny, positive or make_condition(), {"samples": latent}, sigmas, cache=False)[
                0
            ]

    found = inverted(many)
    assert rows == [8] * 3 + [8] * 3 + [4] * 3 and asked == [8, 8, 4]
    torch.testing.assert_close(found.trajectory[:, 17:], inverted(many[17:]).trajectory, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.source, inverted(many).source, rtol=0, atol=0)
    each = [[make_condition()[0][0].repeat(20, 1, 1), make_condition()[0][1]]]  # a text for each picture
    rows.clear()
    torch.testing.assert_close(inverted(many, each).trajectory, found.trajectory, rtol=1e-4, atol=1e-4)
    assert max(rows) == 20
    asked.clear()
    tune(tiny, make_condition(), {"samples": many[:2]}, vae, passes=1)
    assert asked == [2, 1]  # and trained one at a time


def train(
    model, positive, pictures, vae, what=h_training.NETWORK, passes=2, t_edit=0.5, lr=0.05, optimiser="Adam", tower=None
):
    with torch.inference_mode():
        return h_training.HSpaceTrain().run(
            model, positive, pictures, vae, tower or Tower(), "blue", "red", what, 4, "normal", t_edit, passes,
            optimiser, lr, 1.0, 0.0, "log", 0, 5, TEMPLATES,
        )["result"]  # fmt: skip


@pytest.mark.parametrize("what", [h_training.NETWORK, h_training.FREE])
def test_training_in_h_turns_the_predictions_towards_the_words(tiny, make_condition, pictures, vae, what):
    before = [p.clone() for p in tiny.model.parameters()]
    direction, report = train(tiny, make_condition(), pictures, vae, what, passes=8)
    first, last = agreement(report)
    assert last > first
    assert direction.kind == ("block" if what == h_training.NETWORK else "steps") and direction.target == "red"
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.model.parameters()))
    again, _ = train(tiny, make_condition(), pictures, vae, what, passes=8)
    h = torch.randn(1, 64, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(direction.at(14.0)(h), again.at(14.0)(h))
    assert direction.edit > 0 and direction.at(direction.edit * 0.9) is None
    with torch.inference_mode():
        asyrp.AsyrpSampler().run(tiny, direction, 1.0, asyrp.ASYMMETRIC, 0.0, 0.0, True, True, asyrp.ONE_CALL)


@pytest.mark.usefixtures("inference")
def test_the_levels_can_be_measured_on_the_pictures(tiny, make_condition, pictures, vae):
    """In training, and of the very picture that is edited; the sampler then is the one with these levels by hand."""
    positive = make_condition()
    direction, report = train(tiny, positive, pictures, vae, passes=1, t_edit=0.0)

    def inverted(latent):
        with torch.inference_mode():
            return tuning_chain.inverted(tiny, positive, latent, direction.sigmas, cache=False)[0]

    inversion, other = inverted(pictures), inverted({"samples": 40 * pictures["samples"]})
    edit, boost = h_space.measured_levels(tiny, vae, inversion, direction.metadata["text_cosine"])
    assert (direction.edit, direction.metadata["boost"]) == (edit, boost) and f"sigma {edit:.3g}" in report
    assert float(direction.sigmas[-2]) <= edit <= float(direction.sigmas[0]) and boost >= 0

    def made_for(given, levels=asyrp.MEASURED, **more):
        return asyrp.AsyrpSampler().run(
            tiny, given, 1.0, asyrp.ASYMMETRIC, 0.9, 0.0, True, True, asyrp.ONE_CALL, levels=levels, **more
        )

    def sampled(made):
        with torch.inference_mode():
            return sample_latent(tiny, positive, positive, 1.0, *made, pictures, 3)["samples"]

    own = h_space.measured_levels(tiny, vae, other, direction.metadata["text_cosine"])
    made = made_for(direction, inversion=other, vae=vae)
    by_hand = asyrp.sampler_of(tiny, [(direction, 1.0)], inversion=other, levels=own)
    assert torch.equal(sampled(made["result"]), sampled((by_hand, other.sigmas)))
    times = [sigma_to_time(tiny)(s) for s in own]
    assert "Measured: t_edit {:.2f}, t_boost {:.2f}.".format(*times) in made["ui"]["text"][0]
    by_hand = asyrp.sampler_of(tiny, [(direction, 1.0)], levels=(edit, boost))
    trained = made_for(direction)["result"]  # no picture: the levels of training
    assert torch.equal(sampled(trained), sampled((by_hand, direction.sigmas)))
    with pytest.raises(ValueError, match="wire vae"):
        made_for(direction, inversion=inversion)
    with pytest.raises(ValueError, match="wire inversion and vae"):
        made_for(train(tiny, positive, pictures, vae, passes=1)[0])


def test_what_has_no_defined_result_is_refused(tiny, make_condition, pictures, vae):
    with pytest.raises(ValueError, match="tells apart"):
        tune(tiny, make_condition(), pictures, vae, target="blue too")
    with pytest.raises(ValueError, match="raise them"):
        diffusion_clip.schedule(tiny, 0.0, 6)
    with pytest.raises(ValueError, match="empty"):
        tune(tiny, make_condition(), {"samples": torch.zeros(1, 4, 4, 4)}, vae)


def test_a_stopped_training_is_not_taken_up_by_another_image_text_model_or_vae(
    tiny, make_condition, pictures, vae, monkeypatch
):
    keys = []
    monkeypatch.setattr(tuning_chain, "run_resumable", lambda loop, step, key, note: keys.append(key) or 0)
    monkeypatch.setattr(
        files, "cache_key", lambda *given: CACHE_KEY(*given) if isinstance(given[-1], list) else None
    )  # not of inversions

    def key_of(make, decoder=vae, **own):
        make(tiny, make_condition(), pictures, decoder, **own)
        return keys[-1]

    def towers(tower, identity):
        return {"keep": 1.0, "tower": Weighed(tower), "identity": Weighed(identity)}

    other = copy.copy(vae)
    other.first_stage_model = copy.deepcopy(vae.first_stage_model)
    with torch.inference_mode():
        next(other.first_stage_model.parameters()).add_(0.1)
    own = key_of(tune, **towers(1.0, 2.0))
    assert own and own == key_of(tune, **towers(1.0, 2.0))
    assert own not in (key_of(tune, **towers(1.0, 3.0)), key_of(tune, **towers(4.0, 2.0)))
    assert own not in (key_of(tune, keep=1.0, tower=Weighed(1.0)), key_of(tune, other, **towers(1.0, 2.0)))
    own = key_of(train, tower=Weighed(1.0))
    assert own and own == key_of(train, tower=Weighed(1.0))
    assert own not in (key_of(train, tower=Weighed(2.0)), key_of(train, other, tower=Weighed(1.0)))


def tuned_with(**options):
    return lambda *args: {k: v.clone() for k, v in tune(*args, **options)[1].items()}


def h_trained(*args):
    return train(*args)[0].block


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (tuned_with(gradient=WHOLE), 3 + 6),  # after the inversion, in the third step of the optimiser
        (tuned_with(gradient=SAVING), 3 + 6),
        (tuned_with(gradient=WHOLE, layers=diffusion_clip.EVERY, lr=1e-4), 3 + 6),
        (h_trained, 4 + 1 + 3 * 5),  # after the inversion and a look at h, between the second and the third picture
    ],
    ids=["whole chain", "saving", "whole weights", "h-space"],
)
def test_a_stopped_training_goes_on_with_the_same_bits(
    tiny, engine, make_condition, pictures, vae, tmp_path, monkeypatch, make, calls
):
    monkeypatch.setattr(training_store, "cache_folder", lambda kind: tmp_path)
    args = (tiny, make_condition(), pictures, vae)
    whole = make(*args)  # not kept: without a key
    monkeypatch.setattr(files, "cache_key", lambda model, *given: "key" if isinstance(given[-1], list) else None)
    manage, seen, said, kept = engine.get("model_management"), [], [], tuning_chain.curve_line

    def stop(module, given):
        seen.append(1)
        if len(seen) == calls:
            manage.interrupt_current_processing(True)

    for module in (diffusion_clip, h_training):
        monkeypatch.setattr(module, "curve_line", lambda *a: said.append(kept(*a)) or said[-1])
    hook, options = tiny.model.diffusion_model.register_forward_pre_hook(stop), repr(tiny.model_options)
    try:
        with pytest.raises(engine.Interrupted()):
            make(*args)
    finally:
        hook.remove()
        manage.interrupt_current_processing(False)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert (
        not any(m._forward_hooks for m in tiny.model.diffusion_model.modules()) and repr(tiny.model_options) == options
    )
    again = make(*args)
    assert "Went on" in said[-1]
    found = make(*args)
    assert "Found again" in said[-1]
    assert tuning_chain.curve_shown([]) == {"images": []}, "of a list ComfyUI takes the first item's names for all"
    for made in (again, found):
        assert made.keys() == whole.keys() and all(torch.equal(made[k], v) for k, v in whole.items())


def test_a_file_named_afterwards_is_written_without_training(
    tiny, make_condition, pictures, vae, tmp_path, monkeypatch
):
    monkeypatch.setattr(training_store, "cache_folder", lambda kind: tmp_path)
    monkeypatch.setattr(files, "cache_key", lambda *given: CACHE_KEY(*given) if isinstance(given[-1], list) else None)
    monkeypatch.setattr(diffusion_clip, "model_file", lambda *_: None)
    monkeypatch.setattr(diffusion_clip, "free_path", lambda kind, name, key: tmp_path / f"{name}.lora")
    args = (tiny, make_condition(), pictures, vae)
    made = tune(*args, tower=Weighed(1.0))[1]
    _, found, report = tune(*args, tower=Weighed(1.0), file="mine")
    assert "Found again" in report and (tmp_path / "mine.lora").is_file()
    assert all(torch.equal(found[key], value) for key, value in made.items())


def test_every_bar_ends_full(tiny, make_condition, pictures, vae, monkeypatch):
    """What the page shows: as many calls as were told before the start."""
    bars, kept = [], run.Progress
    monkeypatch.setattr(run, "Progress", lambda *a: bars.append(kept(*a)) or bars[-1])
    monkeypatch.setattr(sampler, "Progress", lambda *a: bars.append(kept(*a)) or bars[-1])
    positive = make_condition()

    def totals(work):
        bars.clear()
        found = work()
        assert [bar.value for bar in bars] == [bar.total for bar in bars]
        return [bar.total for bar in bars], found

    # an inversion of 3 steps, then 2 passes over 2 pictures of 2 steps each
    assert totals(lambda: tune(tiny, positive, pictures, vae))[0] == [3, 8]
    found, made = totals(lambda: tune(tiny, positive, pictures, vae, gradient=SAVING))
    assert found == [3, 8]

    def edit():
        with torch.inference_mode():
            return diffusion_clip_edit.DiffusionCLIPEdit().run(
                tiny, positive, pictures, made[1], 0.5, 0.5, 3, 5, 2, 4, 1
            )

    assert totals(edit)[0] == [2 * 4, 3, 5]  # two passes of 4 steps, the inversion, the way back
    (_, total), (direction, _) = totals(lambda: train(tiny, positive, pictures, vae, passes=1))
    levels = int((direction.sigmas >= direction.edit * (1 - 1e-6)).sum())
    assert total == 3 * 2 * levels and 0 < levels < 4


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("what", ["tune", "whole weights", "edit", "unseen", "train", "direction"])
def test_an_error_and_an_interrupt_leave_nothing(tiny, engine, make_condition, pictures, vae, what):
    """Weights, options and hooks are as before, and the next run gives what it gave."""
    positive, net = make_condition(), tiny.model.diffusion_model
    factors = lora.low_rank_all(weights.layers(tiny).items(), 2, seed=0)
    for factor in factors.values():
        with torch.no_grad():
            factor.up.fill_(0.05)
    given = weights.to_lora_model(factors)

    def edit(unseen=0):
        return diffusion_clip_edit.DiffusionCLIPEdit().run(
            tiny, positive, pictures, given, 0.5, 0.5, 3, 3, unseen, 2, 1
        )

    def direction():
        return h_space_nodes.HSpaceDirection().run(
            tiny, positive, pictures, h_space_nodes.COMPONENT, 3, "normal", 3, 1, 0, 5
        )

    work = {
        "tune": lambda: tune(tiny, positive, pictures, vae)[1],
        "whole weights": lambda: tune(tiny, positive, pictures, vae, layers=diffusion_clip.EVERY, lr=1e-4)[1],
        "edit": lambda: edit()["result"][0],
        "unseen": lambda: edit(2)["result"][0],
        "train": lambda: train(tiny, positive, pictures, vae)[0].block,
        "direction": lambda: {"shifts": direction()["result"][0].shifts},
    }[what]

    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
        return hooks, repr(tiny.model_options), [id(p) for p in net.parameters()]

    first, before, values = work(), state(), [p.clone() for p in net.parameters()]
    fails_and_is_interrupted(engine, net, work)
    assert state() == before and all(torch.equal(a, b) for a, b in zip(values, net.parameters()))
    again = work()
    assert again.keys() == first.keys() and all(torch.equal(again[k], v) for k, v in first.items())
