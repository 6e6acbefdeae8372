"""From what a user says of an edit to the controllers that make it: matching of the prompts, windows, weights, local
blend.

Defaults are the authors' notebook (2208.01626): cross-attention 0.8, self-attention 0.4 of the steps, a word's weight
inside the word's cross-attention window, on the source's map. PIE-Bench's runs use 0.4 and 0.6, a local blend on the
word that changes and a weight of 2 on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .alignment import differing_words, factor_columns, in_some_prompt, spoken_of, token_map, words_in
from .controllers import MutualSelf, ReplaceCross, ReplaceSelf, Reweight
from .layers import StepWindow
from .maps import LayerChoice, LocalBlend

#: in blend_words: the words in which the prompts differ
DIFFERING = "auto"

#: where a word's weight acts: as in the authors' code, or on the map that the word has at every step
WEIGHTS_ACT = ("in the cross window", "at every step")


def plan(
    source: dict,
    edits: list[dict],
    *,
    edit="auto",
    cross_steps=0.8,
    self_steps=0.4,
    self_attention="replace",
    word_windows: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    weights: Mapping[str, float] = MappingProxyType({}),
    weights_act=WEIGHTS_ACT[0],
    blend_words: Sequence[str] = (),
    keep_words: Sequence[str] = (),
    blend_threshold=0.3,
    blend_start=0.2,
    blend_layers: Sequence[str] = ("auto",),
):
    """The controllers of one edit, its blend or None, and a phrase for each decision: how the prompts were matched, and
    a notice where an edit has the source's own words, every window is closed, or a weight has no window to act in.
    word_windows: {word: (start, end) as fractions of the steps}; weights: {word: factor}; blend_layers: the names of a
    `LayerChoice`. blend_words: a word that is in no prompt is left out with a notice; where none is left, and for
    "auto", the words stand in that the prompts do not share, each with what it describes. ValueError for other words
    that are in no prompt."""
    maps, said = zip(*(token_map(source, prompt, edit) for prompt in edits))
    if len(edits) > 1:
        said = [f"edit {i + 1}: {done}" for i, done in enumerate(said)]
    factors = factor_columns(edits, weights)
    controllers, own = [], []
    for row in in_some_prompt(edits, list(word_windows)):
        own.append({t: StepWindow(*window) for window, word in zip(word_windows.values(), row) for t in word})
    weighted = any(c != 1 for row in factors for c in row.values())
    inside = weights_act == WEIGHTS_ACT[0]
    if cross_steps > 0 or any(start < end for start, end in word_windows.values()):
        within = factors if weighted and inside else ()
        controllers.append(ReplaceCross(maps, StepWindow(0.0, cross_steps), own, within))
    if self_attention != "replace":
        controllers.append(MutualSelf())
    elif self_steps > 0:
        controllers.append(ReplaceSelf(StepWindow(0.0, self_steps, points=0)))
    if weighted and not inside:
        controllers.append(Reweight(factors))
    blend, notices = None, []
    if blend_words or keep_words:
        of_source, of_edits, about = _blended(source, edits, blend_words)
        notices += about
        kept = [[t for word in row for t in word] for row in in_some_prompt([source, *edits], keep_words)]
        n = len(edits)
        blend = LocalBlend(
            of_source,
            of_edits,
            ([kept[0]] * n, kept[1:]),
            blend_threshold,
            blend_threshold,
            blend_start,
            LayerChoice(*blend_layers),
        )
        controllers.append(blend)
    notices += [
        f"Notice: edit {i + 1} equals the source prompt, so its words change nothing"
        for i, (prompt, row) in enumerate(zip(edits, factors))
        if _same(source, prompt) and all(c == 1 for c in row.values())
    ]
    opens = [{t: window.start < window.end for t, window in row.items()} for row in own]
    if inside and any(
        c != 1 and not row.get(t, cross_steps > 0) for f, row in zip(factors, opens) for t, c in f.items()
    ):
        notices.append(
            "Notice: a word's weight acts while the word's cross-attention follows the source, and for one of them "
            f'that window is closed: open it, or set weights_act to "{WEIGHTS_ACT[1]}"'
        )
    if not controllers:
        notices.append("Notice: every window is closed, so this is the plain prompt change")
    return controllers, blend, [*said, *notices]


def _blended(source: dict, edits: list[dict], blend_words: Sequence[str]):
    """Columns of the blend words in the source and in the edits, a list per edit, and what to say of them."""
    prompts, known, unknown = [source, *edits], [], []
    for word in blend_words:
        try:
            in_some_prompt(prompts, [word])
            known.append(word)
        except ValueError:
            if word != DIFFERING:
                unknown.append(word)
    said = []
    if unknown:
        names = ", ".join(dict.fromkeys(name for prompt in prompts for name in words_in(prompt)))
        instead = "it is left out" if known else "the words stand in that the prompts do not share"
        said.append(f'Notice: blend_words names "{unknown[0]}", which is in no prompt ({names}): {instead}')
    if known or not blend_words:
        found = [[t for word in row for t in word] for row in in_some_prompt(prompts, known)]
        return [found[0]] * len(edits), found[1:], said
    pairs = [differing_words(source, edit) for edit in edits]
    pairs = [(spoken_of(source, before), spoken_of(edit, after)) for (before, after), edit in zip(pairs, edits)]
    names = ["/".join(" ".join(w["text"] for w in words) or "-" for words in pair) for pair in pairs]
    said.append(f"local blend where these look: {', '.join(names)}")
    of_source, of_edits = ([[t for word in pair[i] for t in word["tokens"]] for pair in pairs] for i in (0, 1))
    return of_source, of_edits, said


def _same(source: dict, prompt: dict) -> bool:
    # the text too: emphasis such as (red:1.3) leaves the ids as they are and changes the embedding
    a, b = (p["text"].lower().split() for p in (source, prompt))
    return a == b and source["ids"] == prompt["ids"]
