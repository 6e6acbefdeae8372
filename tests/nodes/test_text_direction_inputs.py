"""What DiffusionCLIP's boxes and h-Space Train make of masks, weights and prompts."""

import pytest
import torch
from nulltext.engine import files
from nulltext.nodes import h_training, tuning_chain
from nulltext.samplers.tuning.directional import EditLoss
from nulltext.tests.nodes.text_pair import Tower, small_pictures, small_vae
from nulltext.tests.running import run as node


@pytest.fixture(scope="module")
def vae(engine):
    return small_vae(engine)


@pytest.fixture
def pictures():
    return small_pictures()


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Inversions are made anew, and no state is left between tests."""
    monkeypatch.setattr(files, "cache_key", lambda *a: None)


def test_outside_a_noise_mask_an_edited_picture_stays(tiny, make_condition, pictures, vae):
    words = {"image_text": Tower(), "source": "blue", "target": "red"}
    tuned = {"model": tiny, "positive": make_condition(), "latent": pictures, "vae": vae, "passes": 2, "lr": 1e-2}
    lora = node("DiffusionCLIPTune", **tuned, **words, inversion_steps=3, train_steps=2)[1]
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    given = {"model": tiny, "positive": make_condition(), "lora_model": lora, "inversion_steps": 3, "steps": 3}
    for unseen in (0, 1):
        whole, masked = (
            node("DiffusionCLIPEdit", **given, latent=pictures | more, unseen_passes=unseen, unseen_steps=2)[0][
                "samples"
            ]
            for more in ({}, {"noise_mask": mask})
        )
        own = pictures["samples"]
        assert torch.equal(masked[..., :2], own[..., :2]) and not torch.equal(whole[..., :2], own[..., :2])
        assert not torch.equal(masked[..., 2:], own[..., 2:])


def test_a_training_refuses_before_it_asks_the_network(tiny, make_condition, pictures, vae):
    asked = []
    tiny.model.diffusion_model.register_forward_pre_hook(lambda *_: asked.append(1))
    given = {"model": tiny, "positive": make_condition(), "latent": pictures, "vae": vae, "image_text": Tower()}
    given |= {"source": "blue", "target": "red", "steps": 4}
    each = [[make_condition()[0][0].repeat(2, 1, 1), {}]]
    for box in ("DiffusionCLIPTune", "HSpaceTrain"):
        own = {k: v for k, v in given.items() if k != "steps" or box == "HSpaceTrain"}
        with pytest.raises(ValueError, match="all of them 0"):
            node(box, **own | {"clip_weight": 0.0, "l1_weight": 0.0})
        with pytest.raises(ValueError, match="a text for each picture"):
            node(box, **own | {"positive": each})
    with pytest.raises(ValueError, match="begins below t_edit"):
        node("HSpaceTrain", **given | {"t_edit": 1.0, "scheduler": "ddim_uniform"})
    assert not asked


def test_l1_counts_by_the_cosine_of_the_texts_and_the_rate_falls_every_third_pass(
    tiny, make_condition, pictures, vae, monkeypatch
):
    made, loops, kept = [], [], h_training.trained
    monkeypatch.setattr(h_training, "EditLoss", lambda *a, **k: made.append((*a[2:], k)) or EditLoss(*a, **k))
    monkeypatch.setattr(h_training, "trained", lambda loop, *a: loops.append(loop) or kept(loop, *a))
    monkeypatch.setattr(h_training, "direction_of", lambda *a: (*tuning_chain.direction_of(*a)[:1], 0.25, []))
    given = {"model": tiny, "positive": make_condition(), "latent": pictures, "vae": vae, "image_text": Tower()}
    node("HSpaceTrain", **given, source="blue", target="red", steps=4, passes=1, clip_weight=2.0, form="printed")
    assert made == [(2.0, pytest.approx(3.0 * 0.25), {"form": "printed"})]
    (settings,), levels = [loop.settings for loop in loops], loops[0].settings.steps // 2
    assert settings.every == 3 * 2 * levels and settings.factor == 0.1
