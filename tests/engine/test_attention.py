"""Whose rows are whose: controllers on a real UNet of the engine, in every order and grouping that the engine
batches."""

import copy
from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import attention
from nulltext.engine.attention import as_read, attach, unet_places
from nulltext.engine.comfy import sigmas_of
from nulltext.engine.guider import filled_like, guider_class
from nulltext.engine.rows import Capture, WordEdit, moment_of
from nulltext.engine.run import sample_with
from nulltext.engine.words import shifted, words_of
from nulltext.samplers.attention.controllers import Reweight
from nulltext.samplers.attention.maps import LayerChoice, MapRecorder
from nulltext.samplers.window import SigmaWindow
from nulltext.tests.running import Traffic, sample

X = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def predictions(model, names, sigma=5.0, x=X, **conds):
    """D per condition in one batched call of the engine."""
    sigmas = torch.tensor([sigma, 0.0])
    with torch.inference_mode():
        return sample_with(model, conds, x / 0.18215, sigmas, lambda run: run.predictions(x, sigma, names))


def reweighting(conditioning, factor=5.0, prompts=1):
    return [WordEdit(Reweight([{3: factor, 4: factor}] * prompts), conditioning)]


def reweighted(model, *conditioning_and_more):
    return attach(model, reweighting(*conditioning_and_more))


def near(a, b):
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def test_places(tiny):
    places = unet_places(tiny)
    assert list(places) == [("input", 1, 0), ("input", 3, 0), ("middle", 0, 0), *[("output", i, 0) for i in range(4)]]
    assert [p.scale for p in places.values()] == [1, 2, 2, 2, 2, 1, 1]
    assert [p.index for p in places.values()] == list(range(7))
    assert places.scales == (1, 2) and places.scales is places.scales


def test_a_factor_of_one_is_the_unhooked_run_to_the_bit(tiny, make_condition):
    conds = {"positive": make_condition(1), "negative": make_condition(2)}
    plain = predictions(tiny, ["positive", "negative"], **conds)
    hooked = predictions(reweighted(tiny, conds["positive"], 1.0), ["positive", "negative"], **conds)
    assert all(torch.equal(a, b) for a, b in zip(plain, hooked))


def test_only_the_prompts_own_rows_change(tiny, make_condition):
    conds = {"positive": make_condition(1), "negative": make_condition(2)}
    model = reweighted(tiny, conds["positive"])
    plain, hooked = (predictions(m, ["positive", "negative"], **conds) for m in (tiny, model))
    assert near(hooked[1], plain[1])
    assert not near(hooked[0], plain[0])
    # the same in a call of its own, and behind another condition
    assert near(predictions(model, ["positive"], **conds)[0], hooked[0])
    ahead = predictions(model, ["positive", "negative", "negative"], **conds)
    assert near(ahead[0], hooked[0])
    # the prompt as a negative prompt is not asked for
    swapped = {"positive": conds["negative"], "negative": conds["positive"]}
    assert near(predictions(model, ["positive", "negative"], **swapped)[1], plain[0])


def test_combined_prompts_and_areas(tiny, make_condition):
    first, second = make_condition(1), make_condition(2)
    model = reweighted(tiny, first)
    alone, other = (
        predictions(model, ["positive"], positive=first)[0],
        predictions(model, ["positive"], positive=second)[0],
    )
    for order in (first + second, second + first):
        assert near(predictions(model, ["positive"], positive=order)[0], (alone + other) / 2)
    area, x = [[first[0][0], {**first[0][1], "area": (16, 8, 0, 8)}]], X.repeat(1, 1, 2, 2)
    plain, hooked = (predictions(m, ["positive"], x=x, positive=second + area)[0] for m in (tiny, model))
    assert near(hooked[..., :8], plain[..., :8])
    assert not near(hooked[..., 8:], plain[..., 8:])


@pytest.mark.parametrize("lengths", [(77, 154), (154, 77), (77, 231), (77, 77 * 7)])
def test_prompts_of_different_chunk_counts(tiny, make_condition, lengths):
    conds = {"positive": make_condition(1, lengths[0]), "negative": make_condition(2, lengths[1])}
    model = reweighted(tiny, conds["positive"])
    alone = predictions(model, ["positive"], **conds)[0]
    both = predictions(model, ["positive", "negative"], **conds)
    assert near(both[0], alone)
    assert near(both[1], predictions(tiny, ["negative"], **conds)[0])


def test_a_batch_of_prompts(tiny, make_condition):
    batch = make_condition(1, batch=2)
    model = attach(tiny, [WordEdit(Reweight([{3: 5.0}, {7: -2.0}]), batch)])
    both = predictions(model, ["positive"], positive=batch)[0]
    for i, factors in enumerate(({3: 5.0}, {7: -2.0})):
        single = [[batch[0][0][i : i + 1], {"pooled_output": batch[0][1]["pooled_output"][i : i + 1]}]]
        one = attach(tiny, [WordEdit(Reweight([factors]), single)])
        assert near(both[i], predictions(one, ["positive"], positive=single)[0][i])


def test_split_calls(tiny, make_condition, monkeypatch, short_of_memory):
    conds = {"positive": make_condition(1), "negative": make_condition(2)}
    model = reweighted(tiny, conds["positive"])
    together = predictions(model, ["positive", "negative"], **conds)
    calls = []
    apply_model = type(tiny.model).apply_model
    monkeypatch.setattr(
        type(tiny.model), "apply_model", lambda *a, **k: calls.append(len(a[1])) or apply_model(*a, **k)
    )
    short_of_memory(tiny)
    apart = predictions(model, ["positive", "negative"], **conds)
    assert calls == [2, 2]
    assert all(near(a, b) for a, b in zip(apart, together))


def test_fp16_weights(make_model, make_condition):
    model, cond = make_model(dtype=torch.float16), make_condition(1)
    plain = predictions(model, ["positive"], positive=cond)[0]
    hooked = predictions(reweighted(model, cond), ["positive"], positive=cond)[0]
    assert torch.isfinite(hooked).all()
    assert not near(hooked, plain)


def test_edits_add_up_and_the_model_given_stays_as_it_was(tiny, make_condition):
    cond = make_condition(1)
    before = copy.copy(tiny.model_options["transformer_options"])
    record = MapRecorder([[[3]]], LayerChoice("all"))
    watching = attach(tiny, [Capture(record, cond)])
    both = attach(watching, [WordEdit(Reweight([{3: 5.0, 4: 5.0}]), cond)])
    assert tiny.model_options["transformer_options"] == before
    hooked = predictions(both.clone(), ["positive"], positive=cond)[0]  # a clone copies its options deeply
    assert near(hooked, predictions(reweighted(tiny, cond), ["positive"], positive=cond)[0])
    assert record.maps.images() == [0, 1]
    assert record.maps.maps(0).shape == (1, 8, 8)


def test_a_record_starts_anew_with_every_run(tiny, make_condition):
    cond = make_condition(1)
    record = MapRecorder([[[3]]], LayerChoice("all"))
    model = attach(tiny, [Capture(record, cond)])
    sigmas = sigmas_of(model, "normal", 3)

    def run(levels):
        with torch.inference_mode():
            sample_with(
                model, {"positive": cond}, X, levels, lambda r: [r.predictions(X, s, ["positive"]) for s in levels[:-1]]
            )

    for _ in range(2):
        run(sigmas)
        assert record.maps.sigmas() == pytest.approx(sigmas[:-1].tolist())
        counts = set(record.maps.counts.values())
        assert counts == {3.0, 4.0}  # three layers on the fine grid, four on the coarse one, each seen once


def test_the_layers_of_a_call_fetch_sigma_once(tiny, make_condition):
    cond = make_condition(1)
    recorder = MapRecorder([[[3]]], LayerChoice("output.3"))
    closed = WordEdit(Reweight([{3: 5.0}], SigmaWindow(0.1, 0.0)), cond)
    for edits, fetched in (([closed], 1), ([Capture(recorder, cond)], 2), ([*reweighting(cond), closed], 2)):
        model = attach(tiny, edits)
        predictions(model, ["positive"], positive=cond)
        with Traffic() as traffic:
            predictions(model, ["positive"], positive=cond)
        assert traffic.of("rows.py") == fetched, traffic.sites  # sigma, and which rows carry the prompt


def test_a_call_is_told_its_own_sigma():
    """Whatever an earlier one left: a tensor of its place, or the same tensor with other values."""
    order, sigmas = [0], torch.tensor([2.0, 2.0])
    assert moment_of({"cond_or_uncond": order, "sigmas": sigmas}).sigma == 2
    assert moment_of({"cond_or_uncond": order, "sigmas": torch.tensor([1.0, 1.0])}).sigma == 1
    sigmas.fill_(3.0)
    assert moment_of({"cond_or_uncond": [0], "sigmas": sigmas}).sigma == 3


def test_probabilities_are_what_the_maps_hold(tiny, make_condition):
    """All columns together make 1: the rows found are whole prompts, whatever they were repeated to."""
    cond = make_condition(1)
    record = MapRecorder([[list(range(77))]], LayerChoice("all"))
    predictions(
        attach(tiny, [Capture(record, cond)]), ["positive", "negative"], positive=cond, negative=make_condition(2, 154)
    )
    torch.testing.assert_close(record.maps.maps(1), torch.ones(1, 8, 8))


def test_a_prompt_is_found_wherever_a_guider_asks_for_it(engine, tiny, make_condition):
    """DiffEdit Mask has its target second, ComfyUI's DualCFGGuider its first prompt third."""
    cond, other = make_condition(1), make_condition(2)
    calc = engine.get("samplers").calc_cond_batch

    class Dual(guider_class()):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            negative, middle, positive = (self.conds[name] for name in ("negative", "middle", "positive"))
            return sum(calc(self.inner_model, [negative, middle, positive], x, timestep, model_options))

    def dual(model):
        guider = Dual(model)
        guider.inner_set_conds({"negative": other, "middle": make_condition(3), "positive": cond})
        return sample(guider, X, torch.tensor([2.0, 0.0]))

    second = lambda model: predictions(model, ["source", "positive"], source=other, positive=cond)[1]
    for asked in (second, dual):
        assert not near(asked(reweighted(tiny, cond)), asked(tiny))


def test_a_layer_of_somebody_elses_is_refused(tiny, make_condition):
    def foreign_patch(q, k, v, extra):
        return q

    for args in (("output", 2), ("output", 2, 0)):
        theirs = tiny.clone()
        theirs.set_model_attn2_replace(foreign_patch, *args)
        with pytest.raises(ValueError, match=r"cross-attention of layer output 2 already belongs .*foreign_patch"):
            reweighted(theirs, make_condition(1))
    unused = tiny.clone()
    unused.set_model_attn2_replace(foreign_patch, "output", 11)  # SD-wide registration: no such layer here
    unused.set_model_attn1_replace(foreign_patch, "output", 2)  # and self-attention is not what re-weight edits
    reweighted(unused, make_condition(1))


def test_networks_that_edits_cannot_reach_are_refused(tiny):
    class Other:
        class model:
            diffusion_model = torch.nn.Linear(1, 1)

    with pytest.raises(
        ValueError, match=r"SD1, SD2 and SDXL.*SD3, Flux, FLUX.2, Chroma.* and Z-Image; not on .*Linear"
    ):
        attach(Other(), [])


def test_merged_tokens_are_refused(tiny, make_condition):
    cond = make_condition(1)
    model = reweighted(tiny, cond)
    model.set_model_attn2_patch(lambda n, context, value, extra: (n[:, ::2], context, value))
    with pytest.raises(ValueError, match="can't be combined"):
        predictions(model, ["positive"], positive=cond)


def test_a_patch_that_changes_the_embedding_stands_in_front_or_behind(tiny, make_condition):
    """A hypernetwork, for one: its rows are still found, and re-weighted as it made them."""
    cond = make_condition(1)

    def changed(model):
        model = model.clone()
        model.set_model_attn2_patch(lambda n, context, value, extra: (n, context + 0.1, 2 * value))
        return model

    bare, front, behind = changed(tiny), reweighted(changed(tiny), cond), changed(reweighted(tiny, cond))
    plain, front, behind = (predictions(model, ["positive"], positive=cond)[0] for model in (bare, front, behind))
    assert torch.equal(front, behind) and not near(front, plain)


def test_a_patch_that_adds_tokens_is_refused_where_an_edit_asks(tiny, make_condition):
    cond = make_condition(1)

    def longer(model):
        model = model.clone()
        model.set_model_attn2_patch(
            lambda n, context, value, extra: (n, *(torch.cat([t, t[:, :4]], 1) for t in (context, value)))
        )
        return model

    for model in (longer(reweighted(tiny, cond)), reweighted(longer(tiny), cond)):
        with pytest.raises(ValueError, match="gives the cross-attention 81 tokens where the prompt has 77"):
            predictions(model, ["positive"], positive=cond)
    silent = longer(reweighted(tiny, cond, 1.0))
    assert torch.equal(*(predictions(model, ["positive"], positive=cond)[0] for model in (silent, longer(tiny))))


def test_the_hook_holds_no_sampling_state(tiny, make_condition):
    model = reweighted(tiny, make_condition(1))
    hook = next(iter(model.model_options["transformer_options"]["patches_replace"]["attn2"].values())).__self__
    assert isinstance(hook, attention.Hook)
    assert (
        copy.deepcopy(model.model_options)["transformer_options"]["patches_replace"]["attn2"]["input", 1].__self__
        is hook
    )


def test_sdxl_shaped_networks(make_model, make_condition, monkeypatch):
    """Cross-attention at the lower level only, two transformers deep: every depth is served and told apart."""
    shape = {"transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2], "transformer_depth_middle": 2}
    for name, value in shape.items():
        monkeypatch.setitem(make_model.__globals__["UNET"], name, value)
    model, cond = make_model(), make_condition(1)
    places = unet_places(model)
    assert {key[2] for key in places} == {0, 1}
    assert {p.scale for p in places.values()} == {2}
    assert [p.index for p in places.values()] == list(range(8))
    record = MapRecorder([[[3]]], LayerChoice("output.0.1"))
    predictions(attach(model, [Capture(record, cond)]), ["positive"], positive=cond)
    assert set(record.maps.counts.values()) == {1.0}  # one depth of one block
    assert record.maps.maps(0).shape == (1, 4, 4)
    plain, hooked = (predictions(m, ["positive"], positive=cond)[0] for m in (model, reweighted(model, cond)))
    assert not near(hooked, plain)

    def foreign_patch(q, k, v, extra):
        return q

    model.set_model_attn2_replace(foreign_patch, "output", 1, 1)
    with pytest.raises(ValueError, match="layer output 1 already belongs"):
        reweighted(model, cond)


def test_a_network_that_fills_short_texts_in_front_has_its_words_behind(prompt, tiny):
    """FLUX.2: 512 tokens, zeros first."""
    conditioning = prompt("a red circle")
    length = conditioning[0][0].shape[1]
    assert as_read(tiny, conditioning) is conditioning
    filling = SimpleNamespace(model=type("Flux2", (), {})())
    ((embedding, extra),) = as_read(filling, conditioning)
    missing = 512 - length
    assert embedding.shape[1] == 512 and not embedding[:, :missing].any()
    assert torch.equal(embedding[:, missing:], conditioning[0][0])
    (record,) = words_of([[embedding, extra]])
    (before,) = words_of(conditioning)
    assert [w["tokens"] for w in record["words"]] == [[t + missing for t in w["tokens"]] for w in before["words"]]
    assert len(record["ids"]) == 512 and as_read(filling, [[embedding, extra]])[0][0] is embedding
    moved = shifted({**before, "sections": [[length, 1], [3, 1]]}, 2)
    assert moved["sections"] == [[length + 2, 1], [3, 1]]


def test_a_text_embedding_is_filled_as_the_one_before_it():
    short, long = torch.ones(1, 3, 2), torch.cat([torch.zeros(1, 4, 2), torch.ones(1, 3, 2)], 1)
    assert torch.equal(filled_like(long, short), long) and filled_like(short, short) is short
    assert filled_like(torch.ones(1, 7, 2), short) is short  # a text of seven tokens, not a filled one
