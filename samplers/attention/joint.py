"""Attention edits where text and picture attend together (the transformers of Stable Diffusion 3 and Flux).

One attention reads the keys of both: with [text, picture] in that order on both axes

    softmax(Q K^T / sqrt d) = [ text to text      text to picture    ]
                              [ picture to text   picture to picture ]

and of the four blocks the lower two are what a U-Net has in two layers (Shin et al. 2508.07519, section 3): the
picture's queries on the text's keys play cross-attention's part, on the picture's own keys self-attention's. So the
same controllers work here, asked twice per layer:

* about cross-attention: they see M[picture, text] and write it. M is a softmax over text and picture together; what a
  controller writes is not normalised again, as Prompt-to-Prompt does not (2208.01626);
* about self-attention: they exchange the picture's queries, keys or values before the softmax. With the source's q and
  k this is the authors' replacement (their section 4: "q_i, k_i" and never the text's), and the row is normalised.

The text's own queries, and further pictures behind the first (a reference), are left as they are.

Departure: the authors replace no M[picture, text]; here it is Prompt-to-Prompt's edit of words, with its own window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .indices import at
from .layers import QKV, Controller, Layer, Needs, Rows, rows_of, with_probabilities


def _part(qkv: QKV, tokens: slice) -> QKV:
    return QKV(*(t[:, tokens] for t in qkv))


def attend_jointly(
    qkv: QKV,
    cross: Layer,
    own: Layer,
    jobs: Sequence[tuple[Controller, Rows]],
    backend: Callable[[QKV], Tensor],
    source: QKV | None = None,
) -> Tensor:
    """One joint attention [rows, text + picture, heads*dim] under its controllers; `attend` of layers.py for keys of
    two kinds.

    qkv: [rows, cross.text text tokens, cross.tokens picture tokens, further tokens; heads*dim]. cross, own: the layer
    as controllers of cross- and of self-attention are asked about it. source: as in `attend`; its text may be of
    another length."""
    origin = source or qkv
    text, of_source = cross.text, cross.text_of(source, qkv)
    picture, picture_of_source = (slice(start, start + cross.tokens) for start in (text, of_source))
    for controller, rows in jobs:
        if rows.target and controller.needs(own) is Needs.EXCHANGE:
            mine, theirs = rows_of(qkv, rows.target), rows_of(origin, rows.source)
            new = controller.exchange(_part(mine, picture), _part(theirs, picture_of_source), own)
            qkv = QKV(*(_written(old, rows.target, picture, t) for old, t in zip(qkv, new, strict=True)))
    dear = [(c, rows) for c, rows in jobs if rows.target and c.needs(cross) is Needs.PROBABILITIES]
    out = backend(qkv)
    if not dear:
        return out
    looking = QKV(qkv.q[:, picture], qkv.k, qkv.v)
    if source is not None:
        source = QKV(source.q[:, picture_of_source], source.k, source.v)
    written = with_probabilities(out[:, picture].clone(), looking, cross, dear, source)
    return torch.cat([out[:, :text], written, out[:, picture.stop :]], 1)


def _written(whole: Tensor, rows: Sequence[int], tokens: slice, value: Tensor) -> Tensor:
    whole = whole.clone()  # what the engine gave stays as it was
    whole[at(rows, whole.device), tokens] = value
    return whole
