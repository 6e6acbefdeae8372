"""The words a CONDITIONING of the Prompt node carries, so that later nodes can speak of words.

Every entry's dict holds under `KEY` a list with one item per prompt (row of the embedding):

    {"text": str,                       the prompt as typed, emphasis signs included
     "words": [{"text": str,            one word as the tokenizer cuts it, lower case
                "tokens": [int, ...]}], its positions in the embedding's token axis, start and padding tokens counted
     "ids": [int, ...],                 the token id at every position (-1 where an embedding file stands)
     "chunks": int,                     how many tokenizer windows (77 tokens each for CLIP) the prompt fills
     "sections": [[int, int], ...]}     only where encoders stand behind each other: columns and windows of each

samplers/attention/alignment.py reads it. Which of a model's text encoders stand in the embedding's token axis is told
by its length: CLIP-L (beside CLIP-G's tokens, at the same positions) in SD1, SDXL; T5 alone in Flux; both, CLIP
first, in SD3. An encoder whose first tokens are a template that the model cuts off (Qwen-Image) is read from its end;
of one that keeps it (Z-Image, FLUX.2) the template's words are no words of the prompt.
"""

from __future__ import annotations

import re

from ..samplers.attention.alignment import normal_word

KEY = "nulltext_words"
_BPE_END, _PIECE_STARTS = "</w>", ("\u2581", "\u0120")  # CLIP; T5 and LLaMA; Qwen
_SPECIAL = ("<|", "[")  # how a template's own tokens begin: Qwen's, Mistral's


def spans(pieces: list[str], real: list[bool]) -> list[dict]:
    """Words and their positions from vocabulary pieces (byte-pair pieces end words with </w>, others start them with a
    sign of their own)."""
    words: list[dict] = []
    starts = any(p.startswith(_PIECE_STARTS) for p in pieces)
    open_word = False
    for position, (piece, is_text) in enumerate(zip(pieces, real, strict=True)):
        if not is_text:
            continue  # a window's border may stand inside a word: what is open stays open
        if piece.startswith(_PIECE_STARTS):
            open_word = False
        text = piece.replace(_BPE_END, "").lstrip("".join(_PIECE_STARTS)).lower()  # the pip engine keeps capitals
        if open_word:
            words[-1]["text"] += text
            words[-1]["tokens"].append(position)
        else:
            words.append({"text": text, "tokens": [position]})
        open_word = starts or not piece.endswith(_BPE_END)
    return [w for w in words if re.search(r"\w", w["text"])]


def _present(clip, name: str) -> bool:
    """Whether the model has this encoder's weights: a checkpoint may bring one of three."""
    model = getattr(clip, "cond_stage_model", clip)
    return all(getattr(model, attribute, model) is not None for attribute in (name, f"clip_{name}"))


def _part(clip, name: str, chunks: list) -> dict:
    """The record of one encoder's tokens."""
    flat = [entry for chunk in chunks for entry in chunk]
    tokenizer = next(
        (t for t in (getattr(clip.tokenizer, f"clip_{name}", None), getattr(clip.tokenizer, name, None)) if t), None
    )
    names = getattr(tokenizer, "inv_vocab", {})
    ids = [int(entry[0]) if isinstance(entry[0], int) else -1 for entry in flat]
    pieces = [names.get(i, "embedding" + _BPE_END if i < 0 else "") for i in ids]
    return {
        "words": spans(pieces, [entry[2] != 0 for entry in flat]),
        "ids": ids,
        "chunks": len(chunks),
        "pieces": pieces,
    }


def _behind(first: dict, second: dict) -> dict:
    """Two encoders of one prompt, one behind the other: a word has tokens in both where both cut it alike."""
    start, words = len(first["ids"]), [{**word, "tokens": list(word["tokens"])} for word in first["words"]]
    texts, others = ([normal_word(word["text"]) for word in part["words"]] for part in (first, second))
    at = 0
    for text, word in zip(others, second["words"], strict=True):
        if text in texts[at:]:
            at = texts.index(text, at)
            words[at]["tokens"] += [start + t for t in word["tokens"]]
            at += 1
    sections = [[len(part["ids"]), part["chunks"]] for part in (first, second)]
    ids, chunks = first["ids"] + second["ids"], first["chunks"] + second["chunks"]
    return {"words": words, "ids": ids, "chunks": chunks, "sections": sections}


def _without_template(part: dict, length: int) -> dict:
    """The last `length` tokens, less what a template sets behind the prompt."""
    cut = len(part["ids"]) - length
    ends = next((i for i in range(cut, len(part["ids"])) if part["pieces"][i].startswith("<|")), len(part["ids"]))
    words = spans(part["pieces"][cut:ends], [True] * (ends - cut))
    return {"words": words, "ids": part["ids"][cut:], "chunks": 1}


def _inside_template(clip, name: str, part: dict) -> dict:
    """The part with the words of the prompt alone, of an encoder that reads a template around it (Z-Image, FLUX.2): the
    template is what an empty prompt has too."""
    empty = _part(clip, name, clip.tokenize("", return_word_ids=True)[name])
    ids, blank = part["ids"], empty["ids"]
    first = next((i for i, (a, b) in enumerate(zip(ids, blank)) if a != b), len(blank))
    if first < 2 or not any(piece.startswith(_SPECIAL) for piece in part["pieces"][:first]):
        return part  # CLIP's start token alone is no template
    last = next((i for i in range(first, len(ids)) if i and ids[i] == blank[min(first, len(blank) - 1)]), len(ids))
    inside = [first <= i < last for i in range(len(ids))]
    return {**part, "words": spans(part["pieces"], inside)}


def describe(clip, text: str, length: int | None = None) -> dict:
    """The record above for one prompt, from the CLIP object's own tokenizer; length: of the embedding's token axis."""
    tokens = clip.tokenize(text, return_word_ids=True)
    present = [name for name in tokens if _present(clip, name)] or list(tokens)
    name = "l" if "l" in present else present[0]
    behind = [other for other in present if other not in ("l", "g", name)]
    found = _part(clip, name, tokens[name])
    if length not in (None, len(found["ids"])):
        others = [_part(clip, other, tokens[other]) for other in behind]
        alone = next((other for other in others if len(other["ids"]) == length), None)
        both = next((other for other in others if len(found["ids"]) + len(other["ids"]) == length), None)
        if both or alone:
            found = _behind(found, both) if both else alone
        elif not others and found["chunks"] == 1 and length < len(found["ids"]):
            found = _without_template(found, length)
    elif len(present) == 1:
        found = _inside_template(clip, name, found)
    return {"text": text, **{key: value for key, value in found.items() if key != "pieces"}}


def with_words(conditioning: list, clip, text: str) -> list:
    """The CONDITIONING with the prompt's words in every entry; the original is left alone."""
    record = [describe(clip, text, conditioning[0][0].shape[1])] if conditioning else []
    return [[cond, {**extra, KEY: record}] for cond, extra in conditioning]


def shifted(record: dict, places: int) -> dict:
    """The record of a prompt that has so many more tokens in front."""
    words = [{**word, "tokens": [t + places for t in word["tokens"]]} for word in record["words"]]
    moved = {**record, "words": words, "ids": [-1] * places + list(record["ids"])}
    if "sections" in record:
        (length, chunks), *rest = record["sections"]
        moved["sections"] = [[length + places, chunks], *rest]
    return moved


def words_of(conditioning: list) -> list[dict] | None:
    """What the Prompt node noted, or None for a plain CONDITIONING."""
    return next((extra[KEY] for _, extra in conditioning if extra.get(KEY)), None)


def text_of(conditioning: list) -> str:
    """The prompt's text ("" for a plain CONDITIONING)."""
    return " | ".join(record["text"] for record in words_of(conditioning) or [])
