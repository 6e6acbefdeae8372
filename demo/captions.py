"""Captions of scenes, as text and as token rows, made on the scene's own device: training never waits for a tokenizer.

A caption is a row of phrase indices; each phrase is a string and its CLIP BPE tokens (a test holds them against the
real tokenizer). Forms: "a photo of a small red circle on the left, striped blue background" and "a photo of a striped
blue background with a small red circle on the left"; parts are dropped and synonyms used at random in training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, STYLES, TEXTURES, Scenes

BOS, EOS, LENGTH = 49406, 49407, 77
ROWS = 192  # rows of the demo model's embedding table; row 0 is the unknown word

#: each word of the captions and its BPE tokens in CLIP's vocabulary
_TOKENS = """
a 320; of 539; on 525; the 518; at 536; in 530; and 537; , 267; with 593; background 5994; photo 1125; photograph
8853; picture 1674; drawing 3610; sketch 5269; illustration 6052; cartoon 7651; small 2442; little 1274; tiny 5591;
medium 8675; large 3638; big 1205; huge 2699; red 736; crimson 19437; scarlet 20389; green 1901; emerald 16980; blue
1746; azure 18514; yellow 4481; golden 3878; orange 4287; tangerine 42045; purple 5496; violet 16118; white 1579;
snowy 14191; black 1449; dark 3144; pink 3360; rosy 46705; brown 2866; chocolate 3820; gray 7048; grey 5046; teal
22821; turquoise 19899; circle 7117; disc 10712; ball 1069; square 3999; box 2063; triangle 14615; pyramid 18725;
star 1565; ring 2540; donut 18471; hoop 19573; cross 3417; plus 3097; left 1823; right 1155; top 1253; bottom 5931;
middle 3694; center 2119; plain 10709; solid 6148; striped 22192; checkered 1113 26690; checked 10387; mottled 44570
912; cloudy 13106
"""
#: what else a word may be called in training
_SYNONYMS = """
red crimson scarlet; green emerald; blue azure; yellow golden; orange tangerine; purple violet; white snowy; black
dark; pink rosy; brown chocolate; gray grey; teal turquoise; circle disc ball; square box; triangle pyramid; ring
donut hoop; cross plus; small little tiny; large big huge; plain solid; checkered checked; mottled cloudy
"""
TOKENS = {word: tuple(map(int, ids)) for word, *ids in map(str.split, _TOKENS.split(";"))}
SYNONYMS = {word: tuple(others) for word, *others in map(str.split, _SYNONYMS.split(";"))}
_PLACE = {p: f"{'at' if p in ('top', 'bottom') else 'in' if p == 'middle' else 'on'} the {p}" for p in PLACES}
_STYLE = {
    "photo": ("a photo of", "a photograph of", "a picture of"),
    "drawing": ("a drawing of", "a sketch of", "a cartoon of"),
}

PHRASES: list[str] = []
_KINDS: dict[str, Tensor] = {}  # kind -> [values, 3] phrase indices: the word itself and up to two synonyms


def _add(phrase: str) -> int:
    if phrase not in PHRASES:
        PHRASES.append(phrase)
    return PHRASES.index(phrase)


def _kind(name, values, spell):
    rows = []
    for value in values:
        said = tuple(spell(value))
        rows.append([_add(said[min(i, len(said) - 1)]) for i in range(3)])
    _KINDS[name] = torch.tensor(rows)


_VALUES = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "background": BACKGROUNDS}
_words = lambda v: (v, *SYNONYMS.get(v, ()))  # noqa: E731
_kind("style", STYLES, _STYLE.__getitem__)
for _name in ("size", "colour", "shape", "texture", "background"):
    _kind(_name, _VALUES[_name], _words)
_kind("place", PLACES, lambda v: (_PLACE[v],))
_A, _AND, _COMMA, _ON, _WITH, _BACKGROUND = (_add(p) for p in ("a", "and", ",", "on a", "with", "background"))


def tokens_of(phrase: str) -> tuple[int, ...]:
    return tuple(t for word in phrase.split() for t in TOKENS[word])


VOCABULARY = [-1, BOS, EOS] + sorted({t for tokens in TOKENS.values() for t in tokens})  # row -> BPE token id
#: words without a meaning for a subject to be taught; their rows, the table's last, are never trained
RARE = {"sks": 48136, "ohwx": 47993, "phol": 48140}
VOCABULARY += [-1] * (ROWS - len(VOCABULARY) - len(RARE)) + list(RARE.values())
_row = {t: i for i, t in enumerate(VOCABULARY) if t >= 0}
_width = max(len(tokens_of(p)) for p in PHRASES)
_PHRASE_ROWS = torch.tensor([[_row[t] for t in tokens_of(p)] + [-1] * (_width - len(tokens_of(p))) for p in PHRASES])

#: where colour and shape of the two objects stand in `phrases`' columns, for either form
_OBJECT = ["a", "size0", "colour0", "shape0", "place0", "and", "a1", "size1", "colour1", "shape1", "place1"]
_GROUND = ["join", "texture", "background", "end"]
_FORM = ("style", *_OBJECT, *_GROUND)
_FORM_B = ("style", *_GROUND, *_OBJECT)


def phrases(s: Scenes, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Phrase indices [B, 16], -1 where absent, and each row's form [B] (0 or 1).

    With a generator, training variety: parts dropped, synonyms, either form; without, the full caption in form 0."""
    n, device = len(s), s.count.device

    def chance(p):
        if generator is None:
            return torch.zeros(n, dtype=torch.bool, device=device)
        return torch.rand(n, generator=generator, device=device) < p

    def said(kind, value):
        word = torch.where(chance(0.2), 1 + chance(0.5).long(), torch.zeros_like(value))
        return _KINDS[kind].to(device)[value, word]

    def fixed(index):
        return torch.full((n,), index, device=device)

    none = fixed(-1)
    both, form = s.count == 2, chance(0.35).long()
    bare = chance(0.08)  # no background said at all
    parts = {"style": torch.where(chance(0.25), none, said("style", s.style)), "a": fixed(_A)}
    drop_size, drop_place = chance(0.4), chance(0.12) & ~both
    for i in range(2):
        there = both if i else ~chance(0)
        parts[f"size{i}"] = torch.where(there & ~drop_size, said("size", s.size[:, i]), none)
        for kind in ("colour", "shape"):
            parts[f"{kind}{i}"] = torch.where(there, said(kind, getattr(s, kind)[:, i]), none)
        parts[f"place{i}"] = torch.where(there & ~drop_place, said("place", s.place[:, i]), none)
    parts["and"], parts["a1"] = torch.where(both, _AND, none), torch.where(both, _A, none)
    parts["join"] = torch.where(form == 1, _A, torch.where(chance(0.3), _ON, _COMMA))
    parts["texture"] = torch.where(chance(0.1), none, said("texture", s.texture))
    parts["background"] = said("background", s.background)
    parts["end"] = fixed(_BACKGROUND)
    for name in ("join", "texture", "background", "end"):
        parts[name] = torch.where(bare, none, parts[name])
    a = torch.stack([parts[name] for name in _FORM], 1)
    # form 1 says "... background with a ...": its object article becomes "with a"
    b = torch.stack([parts[name] for name in _FORM_B], 1)
    form = torch.where(bare, 0, form)
    return torch.where(form[:, None] == 1, b, a), form


def columns(kind: str, form: Tensor) -> Tensor:
    """Where `phrases` says "size", "colour", "shape" or "place" of either object: [B, 16] bool for forms [B]."""
    where = torch.tensor([[name in (f"{kind}0", f"{kind}1") for name in names] for names in (_FORM, _FORM_B)])
    return where.to(form.device)[form]


def text(indices: Tensor, form: Tensor) -> list[str]:
    """The captions as strings."""
    out = []
    for row, f in zip(indices.tolist(), form.tolist(), strict=True):
        said = [(PHRASES[i], column) for column, i in enumerate(row) if i >= 0]
        joined = " ".join(("with " if f == 1 and column == 5 else "") + phrase for phrase, column in said)
        out.append(joined.replace(" ,", ","))
    return out


def captions(s: Scenes) -> list[str]:
    return text(*phrases(s))


def token_rows(indices: Tensor, form: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the embedding table [B, 77] (begin, caption, end, padded with end) and the position [B, 2, 2] of each
    object's colour and shape word's last token (object, colour / shape; 0 where absent)."""
    n, device = len(indices), indices.device
    table = _PHRASE_ROWS.to(device)
    words = torch.where(indices[..., None] >= 0, table[indices.clamp(min=0)], -1)  # [B, 16, width]
    with_ = torch.full((n, 16, 1), -1, device=device)
    with_[:, 5, 0] = torch.where(form == 1, _row[TOKENS["with"][0]], -1)
    flat = torch.cat([with_, words], 2)
    there = flat >= 0
    place = there.flatten(1).cumsum(1).reshape(there.shape)  # 1-based position, BOS being 0
    rows = torch.full((n, LENGTH), _row[EOS], device=device)
    rows[:, 0] = _row[BOS]
    where = there.nonzero(as_tuple=True)
    rows[where[0], place[where]] = flat[where]
    last = torch.where(there, place, 0).amax(2)  # [B, 16]
    columns = torch.tensor(
        [
            [[_FORM.index(f"{k}{i}") for k in ("colour", "shape")] for i in range(2)],
            [[_FORM_B.index(f"{k}{i}") for k in ("colour", "shape")] for i in range(2)],
        ],
        device=device,
    )
    return rows, last.gather(1, columns[form].flatten(1)).reshape(n, 2, 2)
