"""The text side: unknown words, emphasis, long prompts, textual inversion, and what is saved."""

import logging

import pytest
import torch
from nulltext.demo import captions, weights
from safetensors.torch import load_file, save_file

TEXT = "a photo of a small red circle on the left , striped blue background"


def test_unknown_words_share_row_zero_and_are_reported_once(core, trainer_nets, caplog):
    clip = core.load("demo.safetensors").clip
    with caplog.at_level(logging.WARNING):
        first = core.encode(clip, "a red zeppelin")[0][0]
        core.encode(clip, "a red (locomotive:1.0) zeppelin, zeppelin")
        core.encode(clip, "a red zeppelin")
    said = [r.getMessage() for r in caplog.records if "vocabulary" in r.getMessage()]
    assert len(said) == 2 and said[0].endswith(": zeppelin.") and said[1].endswith(": locomotive.")
    ids = [entry[0] for entry in clip.tokenize("a red zeppelin")["l"][0]][1:-1]
    ids = ids[: ids.index(captions.EOS)]
    assert not set(ids[2:]) & set(captions.VOCABULARY)
    core.close(first, trainer_nets.text(core.rows_of(320, 736, *[-5] * len(ids[2:]))))  # -5: no row has it


def test_every_token_has_its_own_row(demo):
    table = demo.clip.cond_stage_model.clip_l.transformer.get_input_embeddings()
    named = torch.tensor([t for t in captions.VOCABULARY if t >= 0])
    rows = table.rows(named)
    assert rows.tolist() == [captions.VOCABULARY.index(t) for t in named.tolist()]
    # by a remainder these would meet a known row; by the table they are unknown
    others = named + len(captions.VOCABULARY)
    others = others[~torch.isin(others, named)]
    assert (table.rows(others) == 0).all() and (table.rows(torch.tensor([0, 191, 49405])) == 0).all()


def test_emphasis(core, demo):
    plain = core.encode(demo.clip, TEXT)[0][0]
    weighted = core.encode(demo.clip, TEXT.replace("red", "(red:1.5)"))[0][0]
    empty = core.encode(demo.clip, "")[0][0]
    at = 1 + captions.tokens_of(TEXT).index(736)
    expected = plain.clone()
    expected[0, at] = empty[0, at] + 1.5 * (plain[0, at] - empty[0, at])
    core.close(weighted, expected)
    assert (weighted - plain).abs().max() > 0.05


def test_long_prompts_are_chunked(core, demo, trainer_nets):
    cond = core.encode(demo.clip, " ".join(["red"] * 80))[0][0]
    assert cond.shape == (1, 154, 128)
    core.close(cond[:, :77], trainer_nets.text(core.rows_of(*[736] * 75)))
    core.close(cond[:, 77:], trainer_nets.text(core.rows_of(*[736] * 5)))


def test_textual_inversion(core, demo, folder, trainer_nets):
    table = trainer_nets.text.embeddings["token_embedding"].weight
    row = {t: i for i, t in enumerate(captions.VOCABULARY)}
    # the vectors of two known words: the embedding must read exactly as those words
    save_file({"emb_params": torch.stack([table[row[736]], table[row[7117]]]).clone()}, folder / "mine.safetensors")
    save_file({"emb_params": table[row[1746]][None].clone()}, folder / "bluish.safetensors")
    cond = core.encode(demo.clip, "a embedding:mine and a embedding:bluish embedding:mine")[0]
    expected = trainer_nets.text(core.rows_of(320, 736, 7117, 537, 320, 1746, 736, 7117))
    core.close(cond[0], expected)
    core.close(cond[1]["pooled_output"], expected[:, 9])
    after = core.encode(demo.clip, TEXT)[0][0]
    core.close(after, trainer_nets.text(core.rows_of(*captions.tokens_of(TEXT))))  # nothing is left behind


def test_textual_inversion_of_another_width_is_left_out(core, demo, folder, caplog):
    save_file({"emb_params": torch.randn(1, 768)}, folder / "wide.safetensors")
    with caplog.at_level(logging.WARNING):
        cond = core.encode(demo.clip, "a embedding:wide red circle")[0][0]
    assert torch.isfinite(cond).all() and "768" in caplog.text
    core.close(cond[:, :4], core.encode(demo.clip, "a red circle")[0][0][:, :4])


def test_what_the_engine_saves_loads_again(core, demo, folder, engine):
    with torch.inference_mode():
        engine.get("sd").save_checkpoint(str(folder / "saved.safetensors"), demo.model, demo.clip, demo.vae)
    assert load_file(folder / "saved.safetensors")[weights.TOKEN_IDS].tolist() == captions.VOCABULARY
    again = core.load("saved.safetensors")
    assert again.model.model.model_type == demo.model.model.model_type
    core.close(core.encode(again.clip, TEXT)[0][0], core.encode(demo.clip, TEXT)[0][0])


def test_vocabulary_is_checked(core, folder):
    from nulltext.engine.demo_text import text_target

    state = load_file(folder / "demo.safetensors")
    del state[weights.TOKEN_IDS]
    save_file(state, folder / "wordless.safetensors")
    with pytest.raises(ValueError, match="no vocabulary"):
        core.load("wordless.safetensors")
    for broken in ([-1, 49406, 49407, 320, 320], [320, 49406, 49407], [-1, 49406, 320]):
        with pytest.raises(ValueError, match="token_ids"):
            text_target(torch.tensor(broken))
