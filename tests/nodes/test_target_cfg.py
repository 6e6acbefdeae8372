"""One law for the cfg of a run over an inversion, in every node that samples one."""

import pytest
import torch
from nulltext.engine import pair_guider as p2p_bridge
from nulltext.engine import words
from nulltext.engine.noise import source_latent
from nulltext.engine.sampler import own_way_back
from nulltext.nodes import edit_grid, inversion_sampling, prompt_to_prompt, replay
from nulltext.nodes.inversion import invert

STEPS, RECORD = 3, 3.5


@pytest.fixture
def prompts(make_condition):
    """A CONDITIONING that knows its words, as Prompt (with words) makes it, by seed."""

    def make(seed):
        said = [{"text": w, "tokens": [i + 1]} for i, w in enumerate(["a", "red", "cat"])]
        known = {"text": "a red cat", "words": said, "ids": [900, 1, 2, 3] + [901] * 73, "chunks": 1}
        return make_condition(seed, **{words.KEY: [known]})

    return make


@pytest.fixture
def inversion(tiny, engine, latent, prompts):
    """Edit-friendly noise at cfg 3.5, as its authors invert."""
    conds = {"positive": prompts(1), "negative": prompts(2)}
    with torch.inference_mode():
        return invert(
            tiny,
            conds,
            {"samples": latent},
            engine.sigmas_of(tiny, "normal", STEPS),
            "edit_friendly",
            cfg=RECORD,
            cache=False,
        )[0]


@pytest.fixture
def used(monkeypatch):
    """Every cfg that a guider of ours has run with."""
    from nulltext.engine import guider

    seen, ask = [], guider.guider_class().sample

    def sample(self, *args, **kwargs):
        seen.append(self.cfg)
        return ask(self, *args, **kwargs)

    monkeypatch.setattr(guider.guider_class(), "sample", sample)
    return seen


EDIT = {
    "edit": "auto",
    "cross_steps": 0.8,
    "self_steps": 0.4,
    "self_attention": "replace",
    "word_windows": "",
    "weights": "",
    "weights_act": "in the cross window",
    "blend_words": "",
    "keep_words": "",
    "blend_threshold": 0.3,
    "blend_start": 0.2,
    "blend_layers": "auto",
}


def sampler(model, inversion, prompts, cfg):
    inversion_sampling.Sampler().run(model, inversion, 1.0, prompts(4), prompts(2), target_cfg=cfg)


def guider(model, inversion, prompts, cfg):
    (made,) = inversion_sampling.Guider().run(model, inversion, prompts(4), prompts(2), target_cfg=cfg)
    walk(made, inversion)


def grid(model, inversion, prompts, cfg):
    edit_grid.EditGrid().run(model, prompts, None, inversion, "a blue cat", "1", prompts(2), target_cfg=cfg)


def p2p_guider(model, inversion, prompts, cfg):
    made = prompt_to_prompt.PromptToPromptGuider().run(
        model, prompts(4), prompts(2), cfg, False, source=prompts(1), inversion=inversion, **EDIT
    )["result"][0]
    walk(made, inversion)


def p2p(model, inversion, prompts, cfg):
    said = prompt_to_prompt.PromptToPrompt().run(
        model, prompts(4), prompts(2), cfg, 0, 20, "normal", source=prompts(1), inversion=inversion, **EDIT
    )
    assert f"{STEPS} steps at cfg {cfg or inversion.cfg:g}" in said["result"][3]


def walk(made, inversion):
    walker, sigmas = own_way_back(inversion)
    latent = source_latent(inversion)
    made.sample(torch.zeros_like(latent), latent, walker, sigmas, disable_pbar=True, seed=0)


NODES = pytest.mark.parametrize("node", [sampler, guider, grid, p2p_guider, p2p])


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, engine):
    """The grid without an autoencoder and a text encoder."""
    monkeypatch.setattr(edit_grid, "encode", lambda clip, text: clip(4))
    monkeypatch.setattr(edit_grid, "with_words", lambda conditioning, clip, text: conditioning)
    monkeypatch.setattr(edit_grid, "decode", lambda vae, samples: torch.zeros(len(samples), 16, 16, 3))
    with torch.inference_mode():
        yield


@NODES
def test_the_records_cfg_unless_a_target_is_set(tiny, inversion, prompts, used, node):
    for cfg, expected in ((0.0, RECORD), (RECORD, RECORD), (15.0, 15.0), (1.0, 1.0)):
        used.clear()
        node(tiny, inversion, prompts, cfg)
        assert used == [expected]


@NODES
@pytest.mark.parametrize("correction", ["null_text", "global_null"])
def test_null_embeddings_fit_one_cfg(tiny, inversion, prompts, used, node, correction):
    null = prompts(8)[0][0].clone().expand(STEPS, 2, -1, -1).clone()
    tied = inversion.replace(pivot="ddim", residuals=None, correction=correction, null_embeddings=null, cfg=5.0)
    for cfg in (0.0, 5.0):
        node(tiny, tied, prompts, cfg)
    assert used == [5.0, 5.0]
    tiny.model.apply_model = None  # refused before any call
    with pytest.raises(ValueError, match="optimised for cfg 5 and fit no other"):
        node(tiny, tied, prompts, 15.0)


@NODES
def test_the_source_prompt_in_the_null_branch_is_free(tiny, inversion, prompts, used, node):
    null = prompts(1)[0][0].clone().expand(STEPS, 2, -1, -1).clone()
    free = inversion.replace(pivot="ddim", residuals=None, correction="negative_prompt", null_embeddings=null, cfg=5.0)
    node(tiny, free, prompts, 15.0)
    assert used == [15.0]


def test_from_noise_a_cfg_must_be_set(tiny, prompts, engine):
    run = prompt_to_prompt.PromptToPrompt().run
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValueError, match="there is no inversion: set a cfg"):
        run(tiny, prompts(4), prompts(2), 0.0, 0, 2, "normal", latent=empty, source=prompts(1), **EDIT)


def test_the_sampler_says_that_another_cfg_gives_another_picture(tiny, inversion, prompts):
    def said(cfg, **changes):
        given = inversion.replace(**changes)
        return inversion_sampling.Sampler().run(tiny, given, 1.0, None, prompts(2), target_cfg=cfg)["result"][1]

    assert "its source does not come back" in said(15.0)
    assert "cfg 15" in said(15.0)
    assert "Notice" not in said(0.0)


def test_the_edit_of_the_authors_needs_one_run(tiny, inversion, prompts, engine):
    """Source cfg 3.5, target cfg 15, 36 of 100 steps skipped: here 1 of 3."""
    out = inversion_sampling.Sampler().run(tiny, inversion, 0.64, prompts(4), prompts(2), target_cfg=15.0)["result"][0]
    by_hand = replay.replay(tiny, inversion, prompts(4), prompts(2), cfg=15.0, first=1).samples
    assert torch.equal(out["samples"], by_hand)
    assert p2p_bridge.way_back(inversion, 1)[3]["residuals"].shape[0] == STEPS - 1
