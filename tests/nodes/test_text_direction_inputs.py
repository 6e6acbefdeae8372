"""What DiffusionCLIP's boxes and h-Space Train make of masks, weights and prompts."""

import dataclasses

import pytest
import torch
from nulltext.engine import files
from nulltext.engine.sampler import sample_latent
from nulltext.nodes import asyrp, diffusion_clip, h_training, tuning_chain
from nulltext.samplers.tuning.directional import EditLoss
from nulltext.samplers.tuning.h_direction import Direction
from nulltext.tests.nodes.text_pair import Tower, small_pictures, small_vae
from nulltext.tests.running import run as node
from nulltext.tests.stand_ins import quantised

PROMPTS = {"way": "two prompts", "steps": 6, "samples": 3}


@pytest.fixture(scope="module")
def vae(engine):
    return small_vae(engine)


@pytest.fixture
def pictures():
    return small_pictures()


@pytest.fixture
def given(tiny, make_condition, pictures, vae):
    """What both trainings are given."""
    wired = {"model": tiny, "positive": make_condition(), "latent": pictures, "vae": vae, "image_text": Tower()}
    return wired | {"source": "blue", "target": "red"}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Inversions are made anew, and no state is left between tests."""
    monkeypatch.setattr(files, "cache_key", lambda *a: None)


def test_outside_a_noise_mask_an_edited_picture_stays(tiny, make_condition, pictures, given):
    lora = node("DiffusionCLIPTune", **given, passes=2, lr=1e-2, inversion_steps=3, train_steps=2)[1]
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    edit = {"model": tiny, "positive": make_condition(), "lora_model": lora, "inversion_steps": 3, "steps": 3}
    for unseen in (0, 1):
        whole, masked = (
            node("DiffusionCLIPEdit", **edit, latent=pictures | more, unseen_passes=unseen, unseen_steps=2)[0][
                "samples"
            ]
            for more in ({}, {"noise_mask": mask})
        )
        own = pictures["samples"]
        assert torch.equal(masked[..., :2], own[..., :2]) and not torch.equal(whole[..., :2], own[..., :2])
        assert not torch.equal(masked[..., 2:], own[..., 2:])


def test_a_training_refuses_before_it_asks_the_network(tiny, make_condition, given):
    asked = []
    tiny.model.diffusion_model.register_forward_pre_hook(lambda *_: asked.append(1))
    each = [[make_condition()[0][0].repeat(2, 1, 1), {}]]
    for box in ("DiffusionCLIPTune", "HSpaceTrain"):
        with pytest.raises(ValueError, match="all of them 0"):
            node(box, **given | {"clip_weight": 0.0, "l1_weight": 0.0})
        with pytest.raises(ValueError, match="a text for each picture"):
            node(box, **given | {"positive": each})
        with quantised(tiny.model.diffusion_model), pytest.raises(ValueError, match="quantised"):
            node(box, **given)
    for more in ({"control": object()}, {"end_percent": 0.5}, {"area": (2, 2, 0, 0)}):
        with pytest.raises(ValueError, match="'positive' must be one plain prompt"):
            node("DiffusionCLIPTune", **given | {"positive": make_condition(**more)})
    with pytest.raises(ValueError, match="begins below t_edit"):
        node("HSpaceTrain", **given | {"t_edit": 1.0, "scheduler": "ddim_uniform"})
    assert not asked


def test_l1_counts_by_the_cosine_of_the_texts_and_the_rate_falls_every_third_pass(given, monkeypatch):
    made, loops, kept = [], [], h_training.trained
    monkeypatch.setattr(h_training, "EditLoss", lambda *a, **k: made.append((*a[2:], k)) or EditLoss(*a, **k))
    monkeypatch.setattr(h_training, "trained", lambda loop, *a: loops.append(loop) or kept(loop, *a))
    monkeypatch.setattr(h_training, "direction_of", lambda *a: (*tuning_chain.direction_of(*a)[:1], 0.25, []))
    node("HSpaceTrain", **given, steps=4, passes=1, clip_weight=2.0, form="printed")
    assert made == [(2.0, pytest.approx(3.0 * 0.25), {"form": "printed"})]
    (settings,), levels = [loop.settings for loop in loops], loops[0].settings.steps // 2
    assert settings.every == 3 * 2 * levels and settings.factor == 0.1


@pytest.fixture
def tunings(given, monkeypatch):
    """DiffusionCLIP Tune with these inputs: (loss weights and form, t0, settings) of its run, cut to one step."""
    losses, times, loops = [], [], []
    kept, ask = diffusion_clip.trained, diffusion_clip.schedule
    monkeypatch.setattr(diffusion_clip, "EditLoss", lambda *a: losses.append(a[2:6]) or EditLoss(*a))
    monkeypatch.setattr(diffusion_clip, "schedule", lambda m, t0, n: times.append(t0) or ask(m, t0, 3))

    def cut(loop, *more):
        loops.append(loop.settings)
        loop.settings = dataclasses.replace(loop.settings, steps=1)
        return kept(loop, *more)

    monkeypatch.setattr(diffusion_clip, "trained", cut)

    def tune(**own):
        for found in (losses, times, loops):
            found.clear()
        node("DiffusionCLIPTune", **given, **own)
        return losses[0], set(times), loops[0]

    return tune


def test_a_tuning_takes_its_losses_and_a_preset_those_of_the_authors(tunings):
    by_hand = {"t0": 0.3, "clip_weight": 2.0, "l1_weight": 0.5, "identity_weight": 0.25, "form": "printed"}
    assert tunings(**by_hand)[:2] == ((2.0, 0.5, 0.25, "printed"), {0.3})
    assert tunings(**by_hand, preset="README")[:2] == ((3.0, 1.0, 0.0, "log"), {0.5})
    assert tunings(**by_hand, preset="code")[:2] == ((3.0, 0.0, 0.0, "log"), {0.4})


def test_the_rate_grows_once_a_pass_also_where_every_sampling_step_is_a_step(tunings):
    for gradient, steps in ((diffusion_clip.WHOLE, 1), (diffusion_clip.SAVING, 3)):
        settings = tunings(gradient=gradient, passes=4)[2]
        assert (settings.every, settings.steps) == (2 * steps, 2 * 4 * steps)


def test_measured_levels_go_by_the_directions_own_texts(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(asyrp.h_space, "check_belongs", lambda *a: None)
    monkeypatch.setattr(asyrp, "check_inversion", lambda *a: None)
    monkeypatch.setattr(asyrp.h_space, "measured_levels", lambda *a: asked.append(a[3]))
    for cosine in (0.3, 0.9):
        direction = Direction(torch.tensor([1.0, 0.0]), torch.zeros(1, 2, 1, 1), metadata={"text_cosine": cosine})
        asyrp.measured(tiny, direction, "inversion", "vae")
    assert asked == [0.3, 0.9]


def test_the_map_edits_the_inverted_picture_and_down_to_t_edit(tiny, ends, pictures, vae):
    direction = node("HSpaceDirection", **PROMPTS, model=tiny, positive=ends[0], target=ends[1], latent=pictures)[0]
    picture = {"model": tiny, "positive": ends[0], "latent": pictures, "use_cache": False}
    inversion = node("InvertImage", **picture, steps=6)[0]
    given = {"model": tiny, "positive": ends[0], "negative": ends[1], "vae": vae, "direction": direction, "cfg": 1.0}
    given |= {"image_text": Tower(), "attributes": "red | blue", "strengths": "0, 3", "latent": pictures, "steps": 6}
    opened, held, further = (
        node("HSpaceMap", **given, **own)[2] for own in ({}, {"inversion": inversion}, {"t_edit": 0})
    )
    plain = node("AsyrpSampler", model=tiny, direction=direction, strength=0.0, inversion=inversion, t_boost=0.0)
    with torch.inference_mode():
        own = vae.decode(sample_latent(tiny, *ends, 1.0, *plain[:2], pictures, 3)["samples"])
    assert torch.allclose(held[0], own[0], atol=1e-5) and not torch.allclose(opened[0], own[0], atol=1e-2)
    assert torch.equal(opened[0], further[0]) and not torch.equal(opened[1], further[1])
