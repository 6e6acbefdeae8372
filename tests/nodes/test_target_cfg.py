"""One law for the cfg of a run over an inversion, in every node that samples one."""

import pytest
import torch
from nulltext.engine import pair_guider
from nulltext.engine.noise import source_latent
from nulltext.engine.sampler import own_way_back
from nulltext.nodes import edit_grid
from nulltext.nodes.inversion import invert
from nulltext.nodes.replay import replay
from nulltext.tests.running import run

STEPS, RECORD = 3, 3.5


@pytest.fixture
def texts(prompt):
    """Source, edited and negative prompt."""
    return prompt("a red cat"), prompt("a blue cat"), prompt("")


@pytest.fixture
def inversion(tiny, engine, latent, texts):
    """Edit-friendly noise at cfg 3.5, as its authors invert."""
    conds, sigmas = {"positive": texts[0], "negative": texts[2]}, engine.sigmas_of(tiny, "normal", STEPS)
    with torch.inference_mode():
        return invert(tiny, conds, {"samples": latent}, sigmas, "edit_friendly", cfg=RECORD, cache=False)[0]


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


def sampler(model, inversion, texts, cfg):
    ends = {"positive": texts[1], "negative": texts[2]}
    return run("Sampler", model=model, inversion=inversion, strength=1.0, target_cfg=cfg, **ends)


def guider(model, inversion, texts, cfg):
    ends = {"positive": texts[1], "negative": texts[2]}
    (made,) = run("Guider", model=model, inversion=inversion, target_cfg=cfg, **ends)
    walk(made, inversion)


class Clip(tuple):
    """Stands for a CLIP: the prompts that it would encode."""

    tokenize = None


class Vae:
    decode = None


def grid(model, inversion, texts, cfg):
    more = {"vae": Vae(), "strengths": "1", "prompts": "a blue cat", "negative": texts[2], "target_cfg": cfg}
    run("EditGrid", model=model, clip=Clip(texts), inversion=inversion, **more)


def p2p_guider(model, inversion, texts, cfg):
    prompts = dict(zip(("source", "edited", "negative"), texts))
    made = run("PromptToPromptGuider", model=model, cfg=cfg, keep_source=False, inversion=inversion, **prompts)
    walk(made[0], inversion)


def p2p(model, inversion, texts, cfg):
    prompts = dict(zip(("source", "edited", "negative"), texts))
    said = run("PromptToPrompt", model=model, cfg=cfg, inversion=inversion, **prompts)
    assert f"{STEPS} steps at cfg {cfg or inversion.cfg:g}" in said[3]


def walk(made, inversion):
    walker, sigmas = own_way_back(inversion)
    latent = source_latent(inversion)
    made.sample(torch.zeros_like(latent), latent, walker, sigmas, disable_pbar=True, seed=0)


NODES = pytest.mark.parametrize("node", [sampler, guider, grid, p2p_guider, p2p])


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, engine):
    """The grid without an autoencoder and a text encoder."""
    monkeypatch.setattr(edit_grid, "worded", lambda clip, text: clip[1])
    monkeypatch.setattr(edit_grid, "decode", lambda vae, samples: torch.zeros(len(samples), 16, 16, 3))
    with torch.inference_mode():
        yield


@NODES
def test_the_records_cfg_unless_a_target_is_set(tiny, inversion, texts, used, node):
    for cfg, expected in ((0.0, RECORD), (RECORD, RECORD), (15.0, 15.0), (1.0, 1.0)):
        used.clear()
        node(tiny, inversion, texts, cfg)
        assert used == [expected]


@NODES
@pytest.mark.parametrize("correction", ["null_text", "global_null"])
def test_null_embeddings_fit_one_cfg(tiny, inversion, texts, make_condition, used, node, correction):
    null = make_condition(8)[0][0].clone().expand(STEPS, 2, -1, -1).clone()
    tied = inversion.replace(pivot="ddim", residuals=None, correction=correction, null_embeddings=null, cfg=5.0)
    for cfg in (0.0, 5.0):
        node(tiny, tied, texts, cfg)
    assert used == [5.0, 5.0]
    tiny.model.apply_model = None  # refused before any call
    with pytest.raises(ValueError, match="optimised for cfg 5 and fit no other"):
        node(tiny, tied, texts, 15.0)


@NODES
def test_the_source_prompt_in_the_null_branch_is_free(tiny, inversion, texts, used, node):
    null = texts[0][0][0].clone().expand(STEPS, 2, -1, -1).clone()
    free = inversion.replace(pivot="ddim", residuals=None, correction="negative_prompt", null_embeddings=null, cfg=5.0)
    node(tiny, free, texts, 15.0)
    assert used == [15.0]


def test_the_sampler_says_that_another_cfg_gives_another_picture(tiny, inversion, texts):
    def said(cfg):
        return sampler(tiny, inversion, (None, None, texts[2]), cfg)[1]

    assert "its source does not come back" in said(15.0)
    assert "cfg 15" in said(15.0)
    assert "Notice" not in said(0.0)


def test_the_edit_of_the_authors_needs_one_run(tiny, inversion, texts):
    """Source cfg 3.5, target cfg 15, 36 of 100 steps skipped: here 1 of 3."""
    ends = {"positive": texts[1], "negative": texts[2]}
    out = run("Sampler", model=tiny, inversion=inversion, strength=0.64, target_cfg=15.0, **ends)
    by_hand = replay(tiny, inversion, texts[1], texts[2], cfg=15.0, first=1).samples
    assert torch.equal(out.samples, by_hand)
    assert pair_guider.way_back(inversion, 1)[3]["residuals"].shape[0] == STEPS - 1
