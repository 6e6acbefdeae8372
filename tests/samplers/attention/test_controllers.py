"""Re-weighting in prompt-to-prompt against the equations, written out once more for every step of a walk."""

import pytest
import torch
from nulltext.samplers.attention.layers import QKV, Layer, Moment, Rows, attend
from nulltext.samplers.attention.plan import plan

STEPS, PIXELS, TOKENS, WIDTH, HEADS = 10, 6, 9, 8, 2


def prompt(text):
    words = text.split()
    return {
        "text": text,
        "words": [{"text": w, "tokens": [i + 1]} for i, w in enumerate(words)],
        "ids": [900, *(sum(map(ord, w)) for w in words)] + [901] * (TOKENS - 1 - len(words)),
        "chunks": 1,
    }


SOURCE, SWAPPED, LONGER = prompt("a red cat"), prompt("a red dog"), prompt("a big red cat")
#: for each edit, the source's column that each of its columns looks at; None: its own
COLUMNS = {"swapped": [0, 1, 2, 3, 4, 5, 6, 7, 8], "longer": [0, 1, None, 2, 3, 4, 5, 6, 7]}
#: edit -> (factors by word, the same by column)
WEIGHTS = {
    "swapped": ({"red": 3.0, "dog": -0.5}, {2: 3.0, 3: -0.5}),
    "longer": ({"big": 2.0, "cat": 0.25}, {2: 2.0, 4: 0.25}),
}


def qkv(seed):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, WIDTH, generator=g, dtype=torch.float64) for n in (PIXELS, TOKENS, TOKENS))
    return QKV(q, k, v)


def heads(t):
    return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def maps(call):
    """M of row 0 (the edit) and row 1 (the source), [heads, pixels, tokens]."""
    return (heads(call.q) @ heads(call.k).mT * (WIDTH // HEADS) ** -0.5).softmax(-1)


def answer(call, controllers, step):
    """The edit's attention as the pack computes it, at step `step` of STEPS."""
    layer = Layer("output", 3, 0, 0, 1, True, HEADS, (2, 3), (2, 3), Moment(1.0, float(step), STEPS))
    rows = Rows((0,), (0,), (0,), source=(1,))
    plain = (maps(call) @ heads(call.v)).transpose(1, 2).flatten(2)
    return attend(call, layer, [(c, rows) for c in controllers], lambda _: plain)[0]


def taken(own, source, columns):
    """Edit(M_src, M_tgt), column by column."""
    return torch.stack([own[..., j] if i is None else source[..., i] for j, i in enumerate(columns)], -1)


@pytest.mark.parametrize("edit", ["swapped", "longer"])
@pytest.mark.parametrize("cross", [0.3, 0.8, 1.0])
def test_weights_act_in_the_window_on_the_sources_map(edit, cross):
    """alpha_k c Edit(M_src) + (1 - alpha_k) M_tgt, alpha_k = 1 for k < int(cross (N + 1)), as the authors run it."""
    words, factors = WEIGHTS[edit]
    controllers, _, _ = plan(
        SOURCE, [SWAPPED if edit == "swapped" else LONGER], cross_steps=cross, self_steps=0.0, weights=words
    )
    c = torch.tensor([factors.get(j, 1.0) for j in range(TOKENS)], dtype=torch.float64)
    for step in range(STEPS):
        call = qkv(step)
        own, source = maps(call)
        alpha = float(step < int(cross * (STEPS + 1)))
        edited = alpha * c * taken(own, source, COLUMNS[edit]) + (1 - alpha) * own
        expected = (edited @ heads(call.v)[0]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(answer(call, controllers, step), expected)


def test_a_words_own_window_is_its_weights_window():
    controllers, _, _ = plan(
        SOURCE,
        [SWAPPED],
        cross_steps=0.8,
        self_steps=0.0,
        weights={"red": 3.0, "dog": 2.0},
        word_windows={"red": (0.2, 0.5)},
    )
    for step in range(STEPS):
        call = qkv(step)
        own, source = maps(call)
        edited = torch.stack(
            [
                (3.0 if j == 2 else 2.0 if j == 3 else 1.0) * source[..., j]
                if (2 <= step < 5 if j == 2 else step < 8)
                else own[..., j]
                for j in range(TOKENS)
            ],
            -1,
        )
        expected = (edited @ heads(call.v)[0]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(answer(call, controllers, step), expected)


@pytest.mark.parametrize("edit", ["swapped", "longer"])
@pytest.mark.parametrize("cross", [0.0, 0.3])
def test_weights_at_every_step_act_on_whatever_map_stands_there(edit, cross):
    words, factors = WEIGHTS[edit]
    controllers, _, _ = plan(
        SOURCE,
        [SWAPPED if edit == "swapped" else LONGER],
        cross_steps=cross,
        self_steps=0.0,
        weights=words,
        weights_act="at every step",
    )
    c = torch.tensor([factors.get(j, 1.0) for j in range(TOKENS)], dtype=torch.float64)
    for step in range(STEPS):
        call = qkv(step)
        own, source = maps(call)
        stands = taken(own, source, COLUMNS[edit]) if step < int(cross * (STEPS + 1)) else own
        expected = (c * stands @ heads(call.v)[0]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(answer(call, controllers, step), expected)
