"""Controllers where text and picture attend together: the lower two blocks are edited, the text's own rows never."""

import pytest
import torch
from nulltext.samplers.attention.alignment import TokenMap
from nulltext.samplers.attention.controllers import MutualSelf, ReplaceCross, ReplaceSelf, Reweight
from nulltext.samplers.attention.joint import attend_jointly
from nulltext.samplers.attention.layers import QKV, Controller, Layer, Moment, Needs, Rows, StepWindow

HEADS, SIDE, TEXT, FURTHER, WIDTH = 2, 3, 4, 2, 8
PICTURE = SIDE * SIDE
ALL = StepWindow(0, 1)
PAIR = Rows(target=(1,), prompt=(0,), image=(0,), source=(0,))


def layer(cross: bool) -> Layer:
    where = {"block": "double", "number": 0, "depth": 0, "index": 0, "count": 1, "heads": HEADS}
    grid = (SIDE, SIDE)
    return Layer(**where, cross=cross, grid=grid, latent=grid, moment=Moment(1.0, 0.0, 10), text=TEXT * cross)


def call(rows=2, seed=0, equal=False) -> QKV:
    g = torch.Generator().manual_seed(seed)
    made = QKV(*(torch.randn(rows, TEXT + PICTURE + FURTHER, WIDTH, generator=g) for _ in range(3)))
    return QKV(*(t[:1].expand(rows, -1, -1).clone() for t in made)) if equal else made


def heads(t):
    return t.unflatten(-1, (HEADS, -1)).transpose(-3, -2)


def probabilities(qkv):
    q, k = heads(qkv.q), heads(qkv.k)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def weighted(p, v):
    return (p @ heads(v)).transpose(-3, -2).flatten(-2)


def plain(qkv):
    return weighted(probabilities(qkv), qkv.v)


def run(qkv, *controllers, source=None, rows=PAIR):
    return attend_jointly(qkv, layer(True), layer(False), [(c, rows) for c in controllers], plain, source)


PICTURED = slice(TEXT, TEXT + PICTURE)


def untouched(out, qkv, *, row=0):
    """The source row is the engine's own; of the target row the text and what follows the picture."""
    own = plain(qkv)
    torch.testing.assert_close(out[row], own[row])
    torch.testing.assert_close(out[1, :TEXT], own[1, :TEXT])
    torch.testing.assert_close(out[1, TEXT + PICTURE :], own[1, TEXT + PICTURE :])


def test_nothing_asked_is_the_engines_own_to_the_bit():
    qkv = call()
    assert torch.equal(run(qkv, Controller()), plain(qkv))


def test_an_edit_of_words_sees_the_texts_columns_and_writes_them():
    class Doubled(Controller):
        def needs(self, layer):
            return Needs.PROBABILITIES if layer.cross else Needs.NOTHING

        def edit(self, target, source, rows, layer):
            assert target.shape[-1] == source.shape[-1] == TEXT
            return 2 * target

    qkv = call()
    out, p = run(qkv, Doubled()), probabilities(qkv)[1, :, PICTURED]
    untouched(out, qkv)
    p = torch.cat([2 * p[..., :TEXT], p[..., TEXT:]], -1)
    torch.testing.assert_close(out[1, PICTURED], weighted(p, qkv.v[1]))


def test_replacing_words_takes_the_sources_columns():
    qkv = call()
    out, p = run(qkv, ReplaceCross([TokenMap(tuple(range(TEXT)))], ALL)), probabilities(qkv)[:, :, PICTURED]
    untouched(out, qkv)
    torch.testing.assert_close(
        out[1, PICTURED], weighted(torch.cat([p[0, ..., :TEXT], p[1, ..., TEXT:]], -1), qkv.v[1])
    )


def swapped(qkv, which):
    """Row 1 with the source's picture tokens in these of q, k, v."""
    mixed = QKV(*(t.clone() for t in qkv))
    for i in which:
        mixed[i][1, PICTURED] = qkv[i][0, PICTURED]
    return mixed


@pytest.mark.parametrize(
    "controller, which", [(ReplaceSelf(ALL), (0, 1)), (MutualSelf(ALL, 0.0), (1, 2))], ids=["replace", "mutual"]
)
def test_self_attention_takes_what_the_source_has_for_the_picture_alone(controller, which):
    qkv = call()
    out = run(qkv, controller)
    torch.testing.assert_close(out, plain(swapped(qkv, which)))
    assert not torch.allclose(out[1], plain(qkv)[1])


def test_equal_rows_of_one_call_stay_equal_to_the_bit():
    out = run(call(equal=True), ReplaceCross([TokenMap(tuple(range(TEXT)))], ALL), ReplaceSelf(ALL))
    assert torch.equal(out[0], out[1])


def test_the_source_may_come_from_an_earlier_call_with_a_text_of_another_length():
    both = call()
    longer = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(5))
    source, alone = QKV(*(torch.cat([longer, t[:1]], 1) for t in both)), QKV(*(t[1:] for t in both))
    rows = Rows(target=(0,), prompt=(0,), image=(0,), source=(0,))
    out = run(alone, ReplaceCross([TokenMap((3, 4, 5, 6))], ALL), source=source, rows=rows)
    p = torch.cat(
        [
            probabilities(source)[0, :, 3 + TEXT : 3 + TEXT + PICTURE, 3 : 3 + TEXT],
            probabilities(alone)[0, :, PICTURED, TEXT:],
        ],
        -1,
    )
    torch.testing.assert_close(out[0, PICTURED], weighted(p, alone.v[0]))


def test_a_weight_acts_on_its_column_and_weight_1_is_the_engines_own():
    qkv = call()
    assert torch.equal(run(qkv, Reweight([{1: 1.0}], ALL)), plain(qkv))
    p = probabilities(qkv)[1, :, PICTURED].clone()
    p[..., 1] *= 3
    torch.testing.assert_close(run(qkv, Reweight([{1: 3.0}], ALL))[1, PICTURED], weighted(p, qkv.v[1]))


def test_what_the_engine_gave_is_not_written_into():
    qkv = call()
    kept = [t.clone() for t in qkv]
    run(qkv, ReplaceSelf(ALL), ReplaceCross([TokenMap(tuple(range(TEXT)))], ALL))
    assert all(torch.equal(a, b) for a, b in zip(qkv, kept, strict=True))
