"""The words a CONDITIONING of the Prompt node carries, so that later nodes can speak of words.

Every entry's dict holds under `KEY` a list with one item per prompt (row of the embedding):

    {"text": str,                       the prompt as typed, emphasis signs included
     "words": [{"text": str,            one word as the tokenizer cuts it, lower case
                "tokens": [int, ...]}], its positions in the embedding's token axis, start and padding tokens counted
     "ids": [int, ...],                 the token id at every position (-1 where an embedding file stands)
     "chunks": int}                     how many tokenizer windows (77 tokens each for CLIP) the prompt fills

samplers/attention/alignment.py reads it. Models with several text encoders are described by CLIP-L, whose positions are
the cross-attention's; a model without CLIP-L by its first encoder.
"""

from __future__ import annotations

import re

KEY = "nulltext_words"
_BPE_END, _PIECE_START = "</w>", "\u2581"


def spans(pieces: list[str], real: list[bool]) -> list[dict]:
    """Words and their positions from vocabulary pieces (byte-pair pieces end words with </w>, sentence pieces start
    them)."""
    words: list[dict] = []
    sentence_pieces = any(p.startswith(_PIECE_START) for p in pieces)
    open_word = False
    for position, (piece, is_text) in enumerate(zip(pieces, real, strict=True)):
        if not is_text:
            continue  # a window's border may stand inside a word: what is open stays open
        if piece.startswith(_PIECE_START):
            open_word = False
        text = piece.replace(_BPE_END, "").replace(_PIECE_START, "").lower()  # the pip engine keeps capitals
        if open_word:
            words[-1]["text"] += text
            words[-1]["tokens"].append(position)
        else:
            words.append({"text": text, "tokens": [position]})
        open_word = sentence_pieces or not piece.endswith(_BPE_END)
    return [w for w in words if re.search(r"\w", w["text"])]


def describe(clip, text: str) -> dict:
    """The record above for one prompt, from the CLIP object's own tokenizer."""
    tokens = clip.tokenize(text, return_word_ids=True)
    name = "l" if "l" in tokens else next(iter(tokens))
    chunks = tokens[name]
    flat = [entry for chunk in chunks for entry in chunk]
    tokenizer = next(
        (t for t in (getattr(clip.tokenizer, f"clip_{name}", None), getattr(clip.tokenizer, name, None)) if t), None
    )
    names = getattr(tokenizer, "inv_vocab", {})
    ids = [int(entry[0]) if isinstance(entry[0], int) else -1 for entry in flat]
    pieces = [names.get(i, "embedding" + _BPE_END if i < 0 else "") for i in ids]
    return {"text": text, "words": spans(pieces, [entry[2] != 0 for entry in flat]), "ids": ids, "chunks": len(chunks)}


def with_words(conditioning: list, clip, text: str) -> list:
    """The CONDITIONING with the prompt's words in every entry; the original is left alone."""
    record = [describe(clip, text)]
    return [[cond, {**extra, KEY: record}] for cond, extra in conditioning]


def words_of(conditioning: list) -> list[dict] | None:
    """What the Prompt node noted, or None for a plain CONDITIONING."""
    return next((extra[KEY] for _, extra in conditioning if extra.get(KEY)), None)


def text_of(conditioning: list) -> str:
    """The prompt's text ("" for a plain CONDITIONING)."""
    return " | ".join(record["text"] for record in words_of(conditioning) or [])
