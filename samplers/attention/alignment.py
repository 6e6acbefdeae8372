"""Which source token a target token takes its attention from (Prompt-to-Prompt, Hertz et al. 2208.01626, section 3).

Words and tokens come as the Prompt node writes them, one dict per prompt:

    {"text": str, "words": [{"text": str, "tokens": [column, ...]}, ...], "ids": [token id per column], "chunks": int}

A column is the place of a token in the embedding: 77-token chunks one after the other, each with its begin token, so
that a prompt beyond 75 tokens goes on in the next chunk. Emphasis "(word:1.2)" scales embeddings, it is no part of
the words. Where several text encoders stand behind each other in the embedding (SD3: CLIP's 77 tokens, then T5's), the
dict says so by "sections": [[columns, chunks], ...]; a word then has tokens in each, and every rule below holds
section by section.

* `replace_map`: equal word counts; word i of the target looks where word i of the source looked. p tokens to q tokens:
  one to one where p = q, else every target token gets 1/q of the summed source columns.
* `refine_map`: Needleman-Wunsch on token ids (gap 0, match +1, mismatch -1); aligned tokens take the source's column,
  new ones keep their own.

Departure: the authors map everything behind the text by column number, so that with prompts of different length a
padding token may take the column of a word. Here begin, end and padding tokens take the source's token of the same
role.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .indices import constant

#: words that end a phrase: what stands before them does not describe what comes after
_FUNCTION = """
a an the this that these those its his her their my your of in on at by for from to with without and or but as into
onto over under above below behind before near next beside between around through across along down up off is are was
were be been has have had while who which
"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())
LONGEST_PAIR = 2000**2  #: words of one prompt times words of the other that are aligned: a second or two
_EDGE = string.punctuation + "“”‘’„…«»–—"


@dataclass(frozen=True)
class TokenMap:
    """Where each of a target's columns looks: a source column, nothing (-1), or a share of several (`spread`)."""

    columns: tuple[int, ...]
    #: (target columns, source columns): each target column gets 1/len(target columns) of the summed source columns
    spread: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()

    @property
    def identity(self) -> bool:
        return not self.spread and self.columns == tuple(range(len(self.columns)))

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """Edit(M_src, M_tgt): probabilities [..., source columns], [..., target columns] -> [..., target columns]."""
        index = constant(self.columns, source.device)
        # gathered, not multiplied by a matrix of ones: equal prompts stay equal to the bit on every device
        edited = torch.where(index < 0, target, source[..., index.clamp(min=0)])
        for to, of in self.spread:
            shared = source[..., constant(of, source.device)].sum(-1, keepdim=True) / len(to)
            edited[..., constant(to, source.device)] = shared
        return edited


def normal_word(text: str) -> str:
    """A word as it is compared: lower case, no punctuation at its edges ("Cat," is "cat")."""
    return text.strip().strip(_EDGE).lower()


def words_in(prompt: dict) -> list[str]:
    """The prompt's words, as they can be named in a field of a node, in order, without repeats."""
    return list(dict.fromkeys(w for w in (normal_word(word["text"]) for word in prompt["words"]) if w))


def columns_of(prompt: dict, phrase: str) -> list[int]:
    """Columns of a word or of several in a row ("red car"); a repeated word is hit at all its places.

    ValueError names the prompt's words when it is not there."""
    spoken = [(normal_word(w["text"]), w["tokens"]) for w in prompt["words"]]
    spoken = [(text, tokens) for text, tokens in spoken if text]
    wanted = [w for w in map(normal_word, phrase.split()) if w]
    found: list[int] = []
    for i in range(len(spoken) - len(wanted) + 1):
        run = spoken[i : i + len(wanted)]
        if wanted and [text for text, _ in run] == wanted:
            found += [t for _, tokens in run for t in tokens]
    if not found:
        raise ValueError(
            f'The word "{phrase.strip()}" is not in the prompt "{prompt["text"]}"; its words are: '
            + (", ".join(words_in(prompt)) or "none")
            + "."
        )
    return sorted(set(found))


def in_some_prompt(prompts: list[dict], words: list[str]) -> list[list[list[int]]]:
    """Columns per prompt and word; a word may be missing in some prompts, not in all. ValueError names the words there
    are."""
    found = []
    for prompt in prompts:
        row = []
        for word in words:
            try:
                row.append(columns_of(prompt, word))
            except ValueError:
                row.append([])
        found.append(row)
    for i, word in enumerate(words):
        if not any(row[i] for row in found):
            if len(prompts) == 1:
                columns_of(prompts[0], word)  # says it in its own words
            names = dict.fromkeys(name for prompt in prompts for name in words_in(prompt))
            raise ValueError(
                f'The word "{word}" is in none of the prompts; their words are: {", ".join(names) or "none"}.'
            )
    return found


def _sections(prompt: dict) -> list[list[range]]:
    """The columns of each chunk of each text encoder."""
    found, start = [], 0
    for columns, chunks in prompt.get("sections") or [(len(prompt["ids"]), prompt["chunks"])]:
        length = columns // chunks
        found.append([range(start + c * length, start + (c + 1) * length) for c in range(chunks)])
        start += columns
    return found


def _content(prompt: dict, chunks: Sequence[range]) -> list[range]:
    """Of each chunk the columns between its begin token and its padding: words and the punctuation between them.

    Padding is the run of equal ids at a chunk's end; CLIP-L pads with its end token."""
    ids, spoken, found = prompt["ids"], {t for word in prompt["words"] for t in word["tokens"]}, []
    for chunk in chunks:
        last = chunk.stop
        while last > chunk.start + 1 and ids[last - 1] == ids[chunk.stop - 1]:
            last -= 1
        # a begin token is no part of a word; T5 has none
        found.append(range(chunk.start + (chunk.start not in spoken), last))
    return found


def _special_columns(source: dict, target: dict) -> list[int]:
    """A column map with begin, end and padding tokens in place and -1 at everything between."""
    columns = [-1] * len(target["ids"])
    for theirs, mine in zip(_sections(source), _sections(target)):
        frames = []
        for prompt, chunks in ((source, theirs), (target, mine)):
            within = _content(prompt, chunks)
            frames.append([[t for t in chunk if t not in words] for chunk, words in zip(chunks, within)])
        for c, special in enumerate(frames[1]):
            of = frames[0][min(c, len(theirs) - 1)]
            for k, column in enumerate(special):
                if of:
                    columns[column] = of[min(k, len(of) - 1)]
    return columns


def replace_map(source: dict, target: dict) -> TokenMap:
    """Word by word; punctuation as in `refine_map`. ValueError when the word counts differ: refine is the edit for
    that."""
    words_s, words_t = source["words"], target["words"]
    if len(words_s) != len(words_t):
        raise ValueError(f"Replace needs prompts of as many words; got {len(words_s)} and {len(words_t)}.")
    columns = list(refine_map(source, target).columns)
    spread = []
    reaches = [[range(part[0].start, part[-1].stop) for part in _sections(prompt)] for prompt in (source, target)]
    for word_s, word_t in zip(words_s, words_t, strict=True):
        for reach_s, reach_t in zip(*reaches):
            of = [t for t in word_s["tokens"] if t in reach_s]
            to = [t for t in word_t["tokens"] if t in reach_t]
            for k, column in enumerate(to):
                columns[column] = of[k] if len(of) == len(to) else -1
            if len(of) != len(to) and of and to:
                spread.append((tuple(to), tuple(of)))
    return TokenMap(tuple(columns), tuple(spread))


def align(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Global alignment (Needleman-Wunsch; gap 0, match +1, mismatch -1): for each place in b, its place in a or -1.

    ValueError beyond `LONGEST_PAIR`: the work grows with the product of the lengths."""
    if len(a) * len(b) > LONGEST_PAIR:
        raise ValueError(
            f"Prompts of {len(a)} and {len(b)} words are too long to be compared word by word: shorten one."
        )
    score = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            diagonal = score[i - 1][j - 1] + (1 if a[i - 1] == b[j - 1] else -1)
            score[i][j] = max(diagonal, score[i - 1][j], score[i][j - 1])
    places, i, j = [-1] * len(b), len(a), len(b)
    while i and j:
        if score[i][j] == score[i - 1][j - 1] + (1 if a[i - 1] == b[j - 1] else -1):
            i, j = i - 1, j - 1
            places[j] = i if a[i] == b[j] else -1
        elif score[i][j] == score[i][j - 1]:
            j -= 1
        else:
            i -= 1
    return places


def refine_map(source: dict, target: dict) -> TokenMap:
    """Token by token, for prompts of any lengths: what both say stays where the source had it."""
    columns = _special_columns(source, target)
    for theirs, mine in zip(_sections(source), _sections(target)):
        content_s = [t for words in _content(source, theirs) for t in words]
        content_t = [t for words in _content(target, mine) for t in words]
        places = align([source["ids"][t] for t in content_s], [target["ids"][t] for t in content_t])
        for column, place in zip(content_t, places, strict=True):
            columns[column] = content_s[place] if place >= 0 else -1
    return TokenMap(tuple(columns))


def token_map(source: dict, target: dict, edit: str = "auto") -> tuple[TokenMap, str]:
    """The map of an edit ("replace", "refine", or "auto" by the word counts), and what was done, in words."""
    counts = len(source["words"]), len(target["words"])
    if counts[0] == counts[1] and edit != "refine":
        return replace_map(source, target), "replace"
    why = f" ({counts[0]} and {counts[1]} words)" if counts[0] != counts[1] else ""
    if edit == "replace":
        why = f", as replace needs prompts of as many words{why}"
    return refine_map(source, target), "refine" + why


def differing_words(source: dict, target: dict) -> tuple[list[dict], list[dict]]:
    """The words of each prompt that the other does not have at that place, in order: what an edit replaces, and by
    what. Either may be empty (words only added, or only taken out)."""
    a, b = ([normal_word(word["text"]) for word in prompt["words"]] for prompt in (source, target))
    names = {word: i for i, word in enumerate(dict.fromkeys([*a, *b]))}
    places = align([names[word] for word in a], [names[word] for word in b])
    return (
        [word for i, word in enumerate(source["words"]) if i not in places],
        [word for word, place in zip(target["words"], places, strict=True) if place < 0],
    )


def spoken_of(prompt: dict, words: list[dict]) -> list[dict]:
    """The words and, after each, those that it describes: as far as the next function word or sign, two at most. The
    place of "red" is its circle's, of "striped" in "striped blue background" the background's."""
    every, found = prompt["words"], set()
    places = {tuple(word["tokens"]): at for at, word in enumerate(every)}
    for at in (places[tuple(word["tokens"])] for word in words):
        found.add(at)
        for k, (last, following) in enumerate(zip(every[at : at + 2], every[at + 1 : at + 3]), at + 1):
            name = normal_word(following["text"])
            apart = following["tokens"][0] != last["tokens"][-1] + 1  # a comma stands between
            if apart or normal_word(last["text"]) in FUNCTION_WORDS or name in FUNCTION_WORDS or name.endswith("ing"):
                break
            found.add(k)
    return [every[at] for at in sorted(found)]


def factor_columns(prompts: list[dict], factors: dict[str, float]) -> list[dict[int, float]]:
    """Per prompt {column: factor}; a word must be in one of the prompts at least."""
    found = in_some_prompt(prompts, list(factors))
    return [{t: c for c, word in zip(factors.values(), row) for t in word} for row in found]
