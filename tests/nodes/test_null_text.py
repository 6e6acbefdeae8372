"""Null-text optimisation and direct edits on tiny random models, on the engine at hand."""

import pytest
import torch
from nulltext.engine import record
from nulltext.nodes import direct_edit, inverter, null_text
from nulltext.nodes.inversion import invert
from nulltext.nodes.replay import replay

STEPS = 4


def inverted(model, engine, latent, make_condition, pivot="ddim", seed=1):
    with torch.inference_mode():
        return invert(
            model,
            {"positive": make_condition(seed)},
            {"samples": latent},
            engine.sigmas_of(model, "normal", STEPS),
            pivot,
            cache=False,
        )[0]


def optimised(model, inversion, make_condition, cfg=7.5, inner=10, **options):
    with torch.inference_mode():
        return null_text.optimise(model, inversion, None, make_condition(2), cfg, inner=inner, cache=False, **options)


def replayed(model, inversion, make_condition):
    with torch.inference_mode():
        return replay(model, inversion, None, make_condition(2))


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_optimisation_mends_guided_reconstruction(engine, make_model, latent, make_condition, kind):
    model = make_model(kind)
    inversion = inverted(model, engine, latent, make_condition)
    plain = replayed(model, inverter.uncorrected(inversion, 7.5), make_condition)
    corrected, result = optimised(model, inversion, make_condition)
    assert corrected.null_embeddings.shape == (STEPS, 2, 77, 64) and corrected.correction == "null_text"
    assert (result.error < 0.7 * plain.error).all()
    again = replayed(model, corrected, make_condition)
    assert torch.allclose(again.samples, result.samples, rtol=1e-3, atol=1e-3 * float(result.samples.abs().max()))
    assert result.calls == corrected.metadata["null_forwards"] <= null_text.most_calls(STEPS, 10)[0]
    assert corrected.metadata["null_backwards"] <= null_text.most_calls(STEPS, 10)[1]


def test_a_batch_is_its_images(engine, tiny, latent, make_condition):
    """But for Adam's first steps, which take the sign even of a gradient that is all rounding."""
    (both, result), (one, alone) = (
        optimised(tiny, inverted(tiny, engine, x, make_condition), make_condition, inner=3)
        for x in (latent, latent[1:])
    )
    assert torch.allclose(result.error[1:], alone.error, rtol=1e-2)
    start = make_condition(2)[0][0]
    moved = [(n - start).flatten() for n in (both.null_embeddings[:, 1:], one.null_embeddings)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.98


def test_checkpointing_gives_the_same(engine, tiny, latent, make_condition):
    inversion = inverted(tiny, engine, latent, make_condition)
    plain = optimised(tiny, inversion, make_condition, inner=2)[1]
    lean = optimised(tiny, inversion, make_condition, inner=2, checkpoint=True)[1]
    assert torch.allclose(plain.error, lean.error, rtol=1e-2) and plain.calls == lean.calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(engine, make_model, latent, make_condition, dtype):
    model = make_model(dtype=dtype)
    inversion = inverted(model, engine, latent, make_condition)
    plain = replayed(model, inverter.uncorrected(inversion, 7.5), make_condition)
    corrected, result = optimised(model, inversion, make_condition)
    assert corrected.null_embeddings.dtype == torch.float32 and (result.error < 0.7 * plain.error).all()


def test_patched_models(engine, tiny, latent, make_condition):
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    patched, base = tiny.clone(), dict(tiny.model.named_parameters())[name].clone()
    patched.add_patches({name: (torch.randn(base.shape),)}, 1.0)
    inversion = inverted(patched, engine, latent, make_condition)
    plain = replayed(patched, inverter.uncorrected(inversion, 7.5), make_condition)
    assert (optimised(patched, inversion, make_condition)[1].error < 0.7 * plain.error).all()
    with pytest.raises(ValueError, match="LoRA"):
        optimised(tiny, inversion, make_condition)
    with torch.inference_mode():
        engine.get("model_management").unload_all_models()
    assert torch.equal(dict(tiny.model.named_parameters())[name], base)


def test_interrupt_inside_an_inner_step(engine, tiny, latent, make_condition, monkeypatch):
    inversion = inverted(tiny, engine, latent, make_condition)
    before = [(id(p), p.requires_grad) for p in tiny.model.parameters()]
    calls, apply = [], type(tiny.model).apply_model

    def counting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            engine.get("model_management").interrupt_current_processing(True)
        return apply(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny.model), "apply_model", counting)
    with pytest.raises(engine.Interrupted()):
        optimised(tiny, inversion, make_condition)
    assert len(calls) == 7
    assert before == [(id(p), p.requires_grad) for p in tiny.model.parameters()]
    assert not any(m._forward_pre_hooks for m in tiny.model.modules())
    monkeypatch.undo()
    optimised(tiny, inversion, make_condition, inner=1)


def test_refusals_before_any_call(engine, tiny, latent, make_condition):
    inversion = inverted(tiny, engine, latent, make_condition)
    exact = inverted(tiny, engine, latent, make_condition, "exact_pair")
    tiny.model.apply_model = None
    for wrong, cfg, negative, words in (
        (inversion, 1.0, make_condition(2), "no null branch"),
        (exact, 7.5, make_condition(2), "exact pair"),
        (inversion, 7.5, [], "negative prompt is missing"),
        (
            inversion.replace(words=[{"text": " ", "words": [], "ids": [], "chunks": 1}], text=" "),
            7.5,
            make_condition(2),
            "source prompt is empty",
        ),
        (inversion, 7.5, make_condition(2) + make_condition(3), "one plain prompt"),
    ):
        with pytest.raises(ValueError, match=words):
            null_text.optimise(tiny, wrong, None, negative, cfg, cache=False)


def test_negative_prompt_correction(engine, tiny, latent, make_condition):
    """Both branches are the source prompt: guidance vanishes, whatever its scale."""
    inversion = inverted(tiny, engine, latent, make_condition)
    at_1 = replayed(tiny, inversion, make_condition)
    corrected = inverter.as_negative_prompt(inversion, 7.5)
    assert torch.allclose(replayed(tiny, corrected, make_condition).samples, at_1.samples, rtol=1e-3, atol=1e-2)


def test_one_embedding_for_all_steps(engine, tiny, latent, make_condition):
    """The paper's ablation: better than none, worse than one per step at as many backwards."""
    inversion = inverted(tiny, engine, latent, make_condition)
    plain = replayed(tiny, inverter.uncorrected(inversion, 7.5), make_condition)
    best, per_step = optimised(tiny, inversion, make_condition, tolerance=0.0)
    shared, result = optimised(tiny, inversion, make_condition, one_for_all=True)
    assert shared.correction == "global_null" and shared.null_embeddings.shape == (STEPS, 2, 77, 64)
    assert torch.equal(shared.null_embeddings[0], shared.null_embeddings[-1])
    assert not torch.equal(best.null_embeddings[0], best.null_embeddings[-1])
    assert (per_step.error < result.error).all() and (result.error < plain.error).all()
    forwards, backwards = shared.metadata["null_forwards"], shared.metadata["null_backwards"]
    assert (forwards, backwards) == null_text.most_calls(STEPS, 10, True) == (STEPS * 13, STEPS * 10)
    again = replayed(tiny, shared, make_condition)
    assert torch.allclose(again.samples, result.samples, rtol=1e-3, atol=1e-3 * float(result.samples.abs().max()))


def test_prompts_that_cannot_be_kept_are_asked_for(engine, tiny, latent, make_condition):
    inversion = inverted(tiny, engine, latent, make_condition)
    needy = inversion.replace(metadata={**inversion.metadata, "needs": ["control"]})
    with pytest.raises(ValueError, match="control.*wire that prompt again"):
        record.prompts(needy, None, None, 1.0)
    with pytest.raises(ValueError, match="no null embeddings"):
        record.prompts(inversion, None, None, 5.0)


def edited(model, source, target, negative, latent, sigmas, method="FlowEdit", **options):
    given = {
        "source_cfg": 1.5,
        "target_cfg": 1.5,
        "strength": 0.5,
        "average": 1,
        "plain_steps": 0,
        "seed": 3,
        "mask": None,
        **options,
    }
    conds = {"source": source, "target": target, "negative": negative}
    with torch.inference_mode():
        return direct_edit.edit(model, conds, {"samples": latent}, sigmas, method, **given)


@pytest.mark.parametrize("method", ["FlowEdit", "InfEdit"])
@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_direct_edit(engine, make_model, latent, make_condition, kind, method, monkeypatch):
    model = make_model(kind)
    sigmas, same = engine.sigmas_of(model, "normal", STEPS), make_condition(1)
    args = (model, same, make_condition(1), make_condition(2), latent, sigmas, method)
    result, why = edited(*args)
    assert "ask for the same" in why and result.samples is latent and result.calls == 0
    monkeypatch.setattr(direct_edit, "equal", lambda a, b: False)  # and if it is walked all the same: exact too
    result, why = edited(*args)
    assert why is None and torch.allclose(result.samples, latent, rtol=1e-6) and result.error.max() == 0
    result, why = edited(model, same, make_condition(5), make_condition(2), latent, sigmas, method)
    assert why is None and result.error.min() > 1e-3 and result.calls == direct_edit.calls(method, 2, 1, 0) == 4
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    result, _ = edited(model, same, make_condition(5), make_condition(2), latent, sigmas, method, mask=mask)
    assert torch.allclose(result.samples[..., :4], latent[..., :4], rtol=1e-5)
    assert not torch.allclose(result.samples[..., 4:], latent[..., 4:], rtol=1e-2)


def test_direct_edit_with_nothing_to_do_or_nonsense(engine, tiny, latent, make_condition):
    tiny.model.apply_model = None
    sigmas = engine.sigmas_of(tiny, "normal", STEPS)
    args = (tiny, make_condition(1), make_condition(5), make_condition(2), latent, sigmas)
    assert "samples no step" in edited(*args, strength=0.0)[1]
    assert "mask is empty" in edited(*args, mask=torch.zeros(1, 8, 8))[1]
    with pytest.raises(ValueError, match="plain steps don't fit"):
        edited(*args, plain_steps=3)
    with pytest.raises(ValueError, match="null branch"):
        edited(*args[:3], None, *args[4:])
