"""Null-text optimisation and direct edits on tiny random models, on the engine at hand."""

import pytest
import torch
from nulltext.engine import record, training_memory
from nulltext.nodes import direct_edit, inverter, null_text
from nulltext.nodes.inversion import invert
from nulltext.nodes.replay import replay
from nulltext.tests.running import run

STEPS = 4


@pytest.fixture
def inverted(engine, latent, make_condition):
    """inverted(model) -> an INVERSION of `latent`, or of another one."""

    def made(model, pivot="ddim", latent=latent):
        conds, sigmas = {"positive": make_condition(1)}, engine.sigmas_of(model, "normal", STEPS)
        with torch.inference_mode():
            return invert(model, conds, {"samples": latent}, sigmas, pivot, cache=False)[0]

    return made


@pytest.fixture
def optimised(make_condition):
    def made(model, inversion, inner=10, **more):
        with torch.inference_mode():
            return null_text.optimise(model, inversion, None, make_condition(2), 7.5, inner=inner, cache=False, **more)

    return made


@pytest.fixture
def replayed(make_condition):
    """replayed(model, inversion) -> the way back; plain=True: at cfg 7.5 without any correction."""

    def made(model, inversion, plain=False):
        inversion = inverter.uncorrected(inversion, 7.5) if plain else inversion
        with torch.inference_mode():
            return replay(model, inversion, None, make_condition(2))

    return made


def test_the_cache_gives_back_the_optimisations_own_reconstruction(
    tiny, inverted, make_condition, tmp_path, monkeypatch
):
    """To the bit: the same graph draws the same picture, whether or not it ran before."""
    monkeypatch.setattr(null_text.files, "cache_folder", lambda kind="inversions": tmp_path)
    inversion, negative = inverted(tiny), make_condition(2)
    widgets = {"inner_steps": 3, "tolerance": 0.0, "checkpointing": False, "use_cache": True}

    def made():
        with torch.inference_mode():
            out = null_text.corrected(tiny, inversion, negative, 7.5, None, None, **widgets)
        return out["result"][1]["samples"], out["ui"]["text"][0]

    (first, said), (again, told) = made(), made()
    assert "found in the cache" in told and "found in the cache" not in said
    assert torch.equal(first, again)


def test_the_cache_changes_nothing_of_the_inversion_but_what_was_optimised(
    tiny, inverted, make_condition, tmp_path, monkeypatch
):
    """Inversions of equal paths may bear other words, another pivot's name and other notes."""
    monkeypatch.setattr(null_text.files, "cache_folder", lambda kind="inversions": tmp_path)
    first = inverted(tiny)
    words, notes = [{"text": "cat", "columns": [1]}], {**first.metadata, "schedule_steps": 9}
    other = first.replace(text="a cat", words=words, pivot="fixed_point", metadata=notes)
    with torch.inference_mode():
        made, _ = null_text.optimise(tiny, first, None, make_condition(2), 7.5, inner=1)
        found, result = null_text.optimise(tiny, other, make_condition(1), make_condition(2), 7.5, inner=1)
    assert result is None, "not found"
    assert (found.text, found.words, found.pivot) == (other.text, words, "fixed_point")
    optimised = {name: note for name, note in made.metadata.items() if name.startswith("null_")}
    assert optimised and found.metadata == {**notes, **optimised}
    assert torch.equal(found.null_embeddings, made.null_embeddings) and found.correction == "null_text"


def agree(a, b):
    return torch.allclose(a.samples, b.samples, rtol=1e-3, atol=1e-3 * float(b.samples.abs().max()))


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_optimisation_mends_guided_reconstruction(make_model, inverted, optimised, replayed, kind):
    model = make_model(kind)
    inversion = inverted(model)
    plain = replayed(model, inversion, plain=True)
    corrected, result = optimised(model, inversion)
    assert corrected.null_embeddings.shape == (STEPS, 2, 77, 64) and corrected.correction == "null_text"
    assert (result.error < 0.7 * plain.error).all()
    again = replayed(model, corrected)
    assert agree(again, result)
    assert result.calls == corrected.metadata["null_forwards"] <= null_text.most_calls(STEPS, 10)[0]
    assert corrected.metadata["null_backwards"] <= null_text.most_calls(STEPS, 10)[1]


def test_a_batch_is_its_images(tiny, inverted, optimised, latent, make_condition):
    """But for Adam's first steps, which take the sign even of a gradient that is all rounding."""
    (both, result), (one, alone) = (optimised(tiny, inverted(tiny, latent=x), inner=3) for x in (latent, latent[1:]))
    assert torch.allclose(result.error[1:], alone.error, rtol=1e-2)
    start = make_condition(2)[0][0]
    moved = [(n - start).flatten() for n in (both.null_embeddings[:, 1:], one.null_embeddings)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.98


def test_checkpointing_gives_the_same(tiny, inverted, optimised):
    inversion = inverted(tiny)
    plain = optimised(tiny, inversion, inner=2)[1]
    lean = optimised(tiny, inversion, inner=2, checkpoint=True)[1]
    assert torch.allclose(plain.error, lean.error, rtol=1e-2) and plain.calls == lean.calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(make_model, inverted, optimised, replayed, dtype):
    model = make_model(dtype=dtype)
    inversion = inverted(model)
    plain = replayed(model, inversion, plain=True)
    corrected, result = optimised(model, inversion)
    assert corrected.null_embeddings.dtype == torch.float32 and (result.error < 0.7 * plain.error).all()


def test_patched_models(engine, tiny, inverted, optimised, replayed):
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    patched, base = tiny.clone(), dict(tiny.model.named_parameters())[name].clone()
    patched.add_patches({name: (torch.randn(base.shape),)}, 1.0)
    inversion = inverted(patched)
    plain = replayed(patched, inversion, plain=True)
    assert (optimised(patched, inversion)[1].error < 0.7 * plain.error).all()
    with pytest.raises(ValueError, match="LoRA"):
        optimised(tiny, inversion)
    with torch.inference_mode():
        engine.get("model_management").unload_all_models()
    assert torch.equal(dict(tiny.model.named_parameters())[name], base)


def test_interrupt_inside_an_inner_step(engine, tiny, inverted, optimised, monkeypatch):
    inversion = inverted(tiny)
    before = [(id(p), p.requires_grad) for p in tiny.model.parameters()]
    calls, apply = [], type(tiny.model).apply_model

    def counting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            engine.get("model_management").interrupt_current_processing(True)
        return apply(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny.model), "apply_model", counting)
    with pytest.raises(engine.Interrupted()):
        optimised(tiny, inversion)
    assert len(calls) == 7
    assert before == [(id(p), p.requires_grad) for p in tiny.model.parameters()]
    assert not any(m._forward_pre_hooks for m in tiny.model.modules())
    monkeypatch.undo()
    optimised(tiny, inversion, inner=1)


def test_refusals_before_any_call(tiny, inverted, make_condition):
    inversion = inverted(tiny)
    exact = inverted(tiny, "exact_pair")
    empty = inversion.replace(words=[{"text": " ", "words": [], "ids": [], "chunks": 1}], text=" ")
    tiny.model.apply_model = None
    for wrong, cfg, negative, words in (
        (inversion, 1.0, make_condition(2), "no null branch"),
        (exact, 7.5, make_condition(2), "exact pair"),
        (inversion, 7.5, [], "negative prompt is missing"),
        (empty, 7.5, make_condition(2), "source prompt is empty"),
        (inversion, 7.5, make_condition(2) + make_condition(3), "one plain prompt"),
    ):
        with pytest.raises(ValueError, match=words):
            null_text.optimise(tiny, wrong, None, negative, cfg, cache=False)


def test_negative_prompt_correction(tiny, inverted, replayed):
    """Both branches are the source prompt: guidance vanishes, whatever its scale."""
    inversion = inverted(tiny)
    at_1 = replayed(tiny, inversion)
    corrected = inverter.as_negative_prompt(inversion, 7.5)
    assert torch.allclose(replayed(tiny, corrected).samples, at_1.samples, rtol=1e-3, atol=1e-2)


def test_it_starts_towards_the_source_prompt_where_asked(tiny, inverted, optimised, make_condition):
    inversion, (source, negative) = inverted(tiny), (make_condition(1)[0][0], make_condition(2)[0][0])
    for towards in (0.0, 0.25, 1.0):
        untouched, _ = optimised(tiny, inversion, inner=0, towards=towards)
        expected = (negative + towards * (source - negative)).expand(STEPS, 2, -1, -1)
        torch.testing.assert_close(untouched.null_embeddings, expected)
    widgets = {
        "inner_steps": 1,
        "tolerance": 0.0,
        "rate": 1e-9,
        "checkpointing": False,
        "use_cache": False,
        "towards_source": 1.0,
    }
    with torch.inference_mode():
        made = null_text.NullTextOptimise().run(tiny, inversion, make_condition(2), 7.5, **widgets)
    torch.testing.assert_close(made["result"][0].null_embeddings, source.expand(STEPS, 2, -1, -1))
    assert "started 1 of the way towards the source prompt" in made["ui"]["text"][0]


def test_a_start_that_lies_between_no_two_prompts_is_refused(tiny, inverted, make_condition, latent):
    inversion, long = inverted(tiny), make_condition(1)
    long[0][0] = long[0][0].repeat(1, 2, 1)
    tiny.model.apply_model = None
    for source in (long, make_condition(1) + make_condition(3)):
        with pytest.raises(ValueError, match="towards_source mixes"):
            null_text.optimise(tiny, inversion, source, make_condition(2), 7.5, towards=0.1, cache=False)
        with pytest.raises(ValueError, match="towards_source mixes"):  # before it inverts
            run("Inverter", model=tiny, positive=source, negative=make_condition(2), latent=latent, towards_source=0.1)


def test_one_embedding_for_all_steps(tiny, inverted, optimised, replayed):
    """The paper's ablation: better than none, worse than one per step at as many backwards."""
    inversion = inverted(tiny)
    plain = replayed(tiny, inversion, plain=True)
    best, per_step = optimised(tiny, inversion, tolerance=0.0)
    shared, result = optimised(tiny, inversion, one_for_all=True)
    assert shared.correction == "global_null" and shared.null_embeddings.shape == (STEPS, 2, 77, 64)
    assert torch.equal(shared.null_embeddings[0], shared.null_embeddings[-1])
    assert not torch.equal(best.null_embeddings[0], best.null_embeddings[-1])
    assert (per_step.error < result.error).all() and (result.error < plain.error).all()
    forwards, backwards = shared.metadata["null_forwards"], shared.metadata["null_backwards"]
    assert (forwards, backwards) == null_text.most_calls(STEPS, 10, True) == (STEPS * 13, STEPS * 10)
    again = replayed(tiny, shared)
    assert agree(again, result)


def test_prompts_that_cannot_be_kept_are_asked_for(tiny, inverted):
    inversion = inverted(tiny)
    needy = inversion.replace(metadata={**inversion.metadata, "needs": ["control"]})
    with pytest.raises(ValueError, match="control.*wire that prompt again"):
        record.prompts(needy, None, None, 1.0)
    with pytest.raises(ValueError, match="no null embeddings"):
        record.prompts(inversion, None, None, 5.0)


def test_small_extras_of_both_prompts_travel_with_the_inversion(tiny, inverted, optimised):
    """Lumina 2's network asks for its text's attention_mask; what is too large is asked for again."""
    mask = torch.tensor([[1, 1, 0]])
    fields = record.conditioning_fields([[torch.zeros(1, 3, 64), {"attention_mask": mask, "guidance": 3.5}]])
    notes = {**fields["metadata"], **record.null_notes([[None, {"attention_mask": mask}]])}
    made, _ = optimised(tiny, inverted(tiny))
    made = made.replace(metadata={**made.metadata, **notes})
    for kept in (record.source_conditioning(made), record.null_conditioning(made)):
        assert torch.equal(kept[0][1]["attention_mask"], mask) and kept[0][1]["attention_mask"].dtype == mask.dtype
    assert record.source_conditioning(made)[0][1]["guidance"] == 3.5
    wired = [[torch.zeros(1, 3, 64), {"states": torch.ones(1, 5000)}]]
    large = made.replace(metadata={**made.metadata, **record.null_notes(wired)})
    with pytest.raises(ValueError, match="states, which an inversion can't keep: wire the negative prompt"):
        record.null_conditioning(large)
    ((embedding, extra),) = record.null_conditioning(large, wired)
    assert torch.equal(embedding, made.null_embeddings[0]) and torch.equal(extra["states"], wired[0][1]["states"])
    net = object()  # a control net on the negative prompt: without it the replay is another picture
    controlled = made.replace(metadata={**made.metadata, **record.null_notes([[None, {"control": net}]])})
    with pytest.raises(ValueError, match="control, which an inversion can't keep: wire the negative prompt"):
        record.null_conditioning(controlled)
    assert record.null_conditioning(controlled, [[embedding, {"control": net}]])[0][1]["control"] is net


@pytest.fixture
def edited(engine, latent, make_condition):
    """edited(model) -> a direct edit of `latent` from prompt 1 to prompt 5, or to another one, and why nothing was
    done."""

    def made(model, method="FlowEdit", target=5, **options):
        given = {"source_cfg": 1.5, "target_cfg": 1.5, "strength": 0.5, "average": 1, "plain_steps": 0, "seed": 3}
        conds = {"source": make_condition(1), "target": make_condition(target), "negative": make_condition(2)}
        conds |= {name: options.pop(name) for name in conds.keys() & options.keys()}
        sigmas = engine.sigmas_of(model, "normal", STEPS)
        with torch.inference_mode():
            return direct_edit.edit(
                model, conds, {"samples": latent}, sigmas, method, **{**given, "mask": None, **options}
            )

    return made


@pytest.mark.parametrize("method", ["FlowEdit", "InfEdit"])
@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_direct_edit(edited, make_model, latent, kind, method, monkeypatch):
    model = make_model(kind)
    result, why = edited(model, method, 1)
    assert "ask for the same" in why and result.samples is latent and result.calls == 0
    monkeypatch.setattr(direct_edit, "equal", lambda a, b: False)  # and if it is walked all the same: exact too
    result, why = edited(model, method, 1)
    assert why is None and torch.allclose(result.samples, latent, rtol=1e-6) and result.error.max() == 0
    result, why = edited(model, method)
    assert why is None and result.error.min() > 1e-3 and result.calls == direct_edit.calls(method, 2, 1, 0) == 4
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    result, _ = edited(model, method, mask=mask)
    assert torch.allclose(result.samples[..., :4], latent[..., :4], rtol=1e-5)
    assert not torch.allclose(result.samples[..., 4:], latent[..., 4:], rtol=1e-2)


def test_direct_edit_with_nothing_to_do_or_nonsense(edited, tiny):
    tiny.model.apply_model = None
    assert "samples no step" in edited(tiny, strength=0.0)[1]
    assert "mask is empty" in edited(tiny, mask=torch.zeros(1, 8, 8))[1]
    with pytest.raises(ValueError, match="plain steps don't fit"):
        edited(tiny, plain_steps=3)
    with pytest.raises(ValueError, match="null branch"):
        edited(tiny, negative=None)


@pytest.mark.parametrize("checkpoint, words", [(False, "turn checkpointing on, or"), (True, "gradient: use a smaller")])
def test_too_little_memory_names_what_would_fit(tiny, inverted, optimised, monkeypatch, checkpoint, words):
    def greedy(*_, **__):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(null_text, "optimise_null_text", greedy)
    with pytest.raises(ValueError, match=words):
        optimised(tiny, inverted(tiny), checkpoint=checkpoint)


def test_where_the_activations_do_not_fit_blocks_are_computed_again_and_the_result_is_the_same(
    tiny, inverted, optimised, monkeypatch, engine, caplog
):
    inversion = inverted(tiny)
    plain = optimised(tiny, inversion)
    monkeypatch.setattr(engine.get("model_management"), "free_memory", lambda *_, **__: None)
    monkeypatch.setattr(training_memory, "_SLACK", 1e12)  # no machine has as much
    monkeypatch.setattr(training_memory, "on_cpu", lambda device: False)
    again = optimised(tiny, inversion)
    assert "checkpointing is on" in caplog.text
    torch.testing.assert_close(plain[0].null_embeddings[0], again[0].null_embeddings[0], rtol=1e-4, atol=1e-4)
