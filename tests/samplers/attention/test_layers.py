"""Controllers on bare attention layers: what each edit computes, and that nothing else changes."""

import pytest
import torch
from nulltext.samplers.attention import layers as attention
from nulltext.samplers.attention.alignment import TokenMap
from nulltext.samplers.attention.controllers import MutualSelf, ReplaceCross, ReplaceSelf, Reweight
from nulltext.samplers.attention.layers import (
    QKV,
    Controller,
    Layer,
    Moment,
    Needs,
    Rows,
    SigmaWindow,
    StepWindow,
    attend,
)

HEADS, SIDE, TOKENS, WIDTH = 2, 4, 6, 8
ALL = StepWindow(0, 1)


def layer(cross=True, step=0.0, steps=10, **changes):
    values = {"block": "output", "number": 0, "depth": 0, "index": 0, "count": 1, "cross": cross, "heads": HEADS}
    values |= {"grid": (SIDE, SIDE), "latent": (SIDE, SIDE), "moment": Moment(1.0, step, steps)}
    return Layer(**{**values, **changes})


def qkv(rows=3, tokens=TOKENS, seed=0, dtype=torch.float32, equal=()):
    g = torch.Generator().manual_seed(seed)
    made = QKV(*(torch.randn(rows, n, WIDTH, generator=g, dtype=dtype) for n in (SIDE * SIDE, tokens, tokens)))
    for a, b in equal:
        for t in made:
            t[b] = t[a]
    return made


def probabilities(call, row, length=None):
    q, k = (t[row].view(t.shape[1], HEADS, -1).transpose(0, 1) for t in (call.q, call.k[:, :length]))
    return (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)


def plain(call):
    """The engine's attention, row by row."""

    def one(row):
        v = call.v[row].view(call.v.shape[1], HEADS, -1).transpose(0, 1)
        return (probabilities(call, row) @ v).transpose(0, 1).flatten(1)

    return torch.stack([one(row) for row in range(len(call.q))])


def weighted(p, v):
    return (p @ v.view(v.shape[0], HEADS, -1).transpose(0, 1)).transpose(0, 1).flatten(1)


class Forbidden:
    def __call__(self, call):
        raise AssertionError("the backend must not be asked here")


PAIR = Rows(target=(2,), prompt=(0,), image=(0,), source=(0,))
IDENTITY = TokenMap(tuple(range(TOKENS)))


def test_with_nothing_asked_the_call_goes_through_untouched():
    call, seen = qkv(), []

    def backend(c):
        seen.append(c)
        return plain(c)

    out = attend(call, layer(), [(Controller(), PAIR), (Reweight([{1: 1.0}]), PAIR), (ReplaceSelf(ALL), PAIR)], backend)
    assert seen[0] is call
    assert torch.equal(out, plain(call))


def test_replace_takes_the_sources_probabilities_with_the_targets_values():
    call = qkv()
    out = attend(call, layer(), [(ReplaceCross([IDENTITY], ALL), PAIR)], plain)
    torch.testing.assert_close(out[2], weighted(probabilities(call, 0), call.v[2]))
    torch.testing.assert_close(out[:2], plain(call)[:2])


def test_equal_rows_stay_equal_to_the_bit():
    call = qkv(rows=4, equal=[(0, 3)])
    rows = Rows(target=(3,), prompt=(0,), image=(0,), source=(0,))
    for windows in (ALL, StepWindow(0, 0)):
        jobs = [(ReplaceCross([IDENTITY], windows), rows), (Reweight([{0: 1.0}]), rows)]
        out = attend(call, layer(), jobs, plain)
        assert torch.equal(out[0], out[3])
    self_call = qkv(rows=4, tokens=SIDE * SIDE, equal=[(0, 3)])
    for controller in (ReplaceSelf(ALL), MutualSelf(ALL, 0.0)):
        out = attend(self_call, layer(cross=False), [(controller, rows)], plain)
        assert torch.equal(out[0], out[3])


def test_a_window_per_column():
    call = qkv()
    maps = [TokenMap(tuple(range(TOKENS)))]
    controller = ReplaceCross(maps, StepWindow(0, 0.5), [{1: StepWindow(0, 1), 2: StepWindow(0, 0)}])
    source, target = torch.zeros(1, HEADS, 3, TOKENS), torch.ones(1, HEADS, 3, TOKENS)
    early = controller.edit(target, source, PAIR, layer(step=0.0))
    assert early[0, 0, 0].tolist() == [0, 0, 1, 0, 0, 0]
    late = controller.edit(target, source, PAIR, layer(step=7.0))
    assert late[0, 0, 0].tolist() == [1, 0, 1, 1, 1, 1]
    assert controller.needs(layer(step=7.0)) is Needs.PROBABILITIES
    assert ReplaceCross(maps, StepWindow(0, 0.5)).needs(layer(step=7.0)) is Needs.NOTHING
    assert torch.isfinite(attend(call, layer(), [(controller, PAIR)], plain)).all()


def test_windows_cut_where_the_authors_cut():
    # 50 steps, 0.8: cross-attention until int(0.8 * 51) = 40, self-attention 0.4 until int(0.4 * 50) = 20
    def inside(window, steps=50):
        return [k for k in range(steps) if Moment(1.0, float(k), steps) in window]

    assert inside(StepWindow(0, 0.8)) == list(range(40))
    assert inside(StepWindow(0, 0.4, points=0)) == list(range(20))
    assert inside(StepWindow(0.2, 1.0)) == list(range(10, 50))
    assert inside(StepWindow(0, 0)) == []
    assert inside(StepWindow(0, 0.29, points=0), 100) == list(range(29))
    assert Moment(1.0, 19.99999, 50) not in StepWindow(0, 0.4, points=0)  # a level told in fp32 is its own step
    assert Moment(1.0, 19.5, 50) in StepWindow(0, 0.4, points=0)
    assert Moment(2.0) in SigmaWindow(3.0, 1.0)
    assert Moment(4.0) not in SigmaWindow(3.0, 1.0)
    with pytest.raises(ValueError, match="schedule"):
        assert Moment(1.0) in StepWindow(0, 1)


def test_cross_attention_counts_a_point_more_than_self_attention():
    inside = lambda window: [k for k in range(5) if Moment(1.0, float(k), 5) in window]  # noqa: E731
    assert inside(StepWindow(0, 0.5)) == [0, 1, 2]  # int(.5 * 6)
    assert inside(StepWindow(0, 0.5, points=0)) == [0, 1]  # int(.5 * 5)


def test_a_reweight_asks_for_nothing_outside_its_window_or_without_a_factor():
    at = lambda sigma: layer(moment=Moment(sigma))  # noqa: E731
    window = SigmaWindow(3.0, 1.0)
    asked = [Reweight([{1: 2.0}], window).needs(at(sigma)) for sigma in (4.0, 2.0, 0.5)]
    assert asked == [Needs.NOTHING, Needs.PROBABILITIES, Needs.NOTHING]
    assert Reweight([{1: 1.0}], window).needs(at(2.0)) is Needs.NOTHING


def test_reweight_scales_columns_without_normalising():
    call, rows = qkv(), Rows(target=(1,), prompt=(0,), image=(0,))
    out = attend(call, layer(), [(Reweight([{2: -3.0, 4: 0.5}]), rows)], plain)
    p = probabilities(call, 1)
    p[..., 2] *= -3
    p[..., 4] *= 0.5
    torch.testing.assert_close(out[1], weighted(p, call.v[1]))
    torch.testing.assert_close(out[[0, 2]], plain(call)[[0, 2]])


def test_controllers_compose_in_their_order():
    call = qkv()
    jobs = [(ReplaceCross([IDENTITY], ALL), PAIR), (Reweight([{3: 2.0}]), PAIR)]
    p = probabilities(call, 0)
    p[..., 3] *= 2
    torch.testing.assert_close(attend(call, layer(), jobs, plain)[2], weighted(p, call.v[2]))


def test_several_edits_and_images_in_one_call():
    call = qkv(rows=6)  # two sources, two edits of each
    shifted = TokenMap((0, 2, 1, 3, 4, 5))
    rows = Rows(target=(2, 3, 4, 5), prompt=(0, 0, 1, 1), image=(0, 1, 0, 1), source=(0, 1, 0, 1))
    out = attend(call, layer(), [(ReplaceCross([IDENTITY, shifted], ALL), rows)], Forbidden())
    torch.testing.assert_close(out[3], weighted(probabilities(call, 1), call.v[3]))
    torch.testing.assert_close(out[4], weighted(probabilities(call, 0)[..., list(shifted.columns)], call.v[4]))


def test_a_repeated_prompt_is_read_at_its_own_length():
    call = qkv(rows=2, tokens=TOKENS)
    twice = QKV(call.q, call.k.repeat(1, 2, 1), call.v.repeat(1, 2, 1))
    rows = Rows(target=(1,), prompt=(0,), image=(0,), length=TOKENS, source=(0,), source_length=TOKENS)
    jobs = [(ReplaceCross([IDENTITY], ALL), rows), (Reweight([{3: 2.0}]), rows)]
    torch.testing.assert_close(attend(twice, layer(), jobs, plain), attend(call, layer(), jobs, plain))


def test_source_and_target_of_different_length():
    call = qkv(rows=2, tokens=12)
    call = QKV(call.q, *(torch.cat([t[:1, :6].repeat(1, 2, 1), t[1:]]) for t in (call.k, call.v)))
    longer = TokenMap(tuple(range(6)) + (-1,) * 6)
    rows = Rows(target=(1,), prompt=(0,), image=(0,), length=12, source=(0,), source_length=6)
    out = attend(call, layer(), [(ReplaceCross([longer], ALL), rows)], Forbidden())
    p = probabilities(call, 1)
    p[..., :6] = probabilities(call, 0, 6)
    torch.testing.assert_close(out[1], weighted(p, call.v[1]))
    torch.testing.assert_close(out[0], plain(call)[0])


def test_a_source_from_an_earlier_call():
    call = qkv()
    earlier = QKV(*(t[:1] for t in call))
    later = QKV(*(t[1:] for t in call))
    rows = Rows(target=(1,), prompt=(0,), image=(0,), source=(0,))
    jobs = [(ReplaceCross([IDENTITY], ALL), rows), (Reweight([{1: 2.0}]), rows)]
    apart = attend(later, layer(), jobs, plain, source=earlier)
    together = attend(call, layer(), [(c, PAIR) for c, _ in jobs], plain)
    torch.testing.assert_close(apart, together[1:])
    pixels = qkv(tokens=SIDE * SIDE)
    earlier, later = (QKV(*(t[part] for t in pixels)) for part in (slice(1), slice(1, None)))
    apart = attend(later, layer(cross=False), [(MutualSelf(ALL, 0.0), rows)], plain, source=earlier)
    torch.testing.assert_close(apart, attend(pixels, layer(cross=False), [(MutualSelf(ALL, 0.0), PAIR)], plain)[1:])


def test_chunks_of_pixels_change_nothing(monkeypatch):
    call = qkv(dtype=torch.float64)

    class Watch(Controller):
        def __init__(self):
            self.seen = []

        def needs(self, layer):
            return Needs.PROBABILITIES

        def watch(self, target, source, rows, layer, pixels):
            self.seen.append((pixels, target.clone()))

    whole, parts = Watch(), Watch()
    jobs = [(ReplaceCross([IDENTITY], ALL), PAIR)]
    expected = attend(call, layer(), jobs + [(whole, PAIR)], plain)
    monkeypatch.setattr(attention, "PROBABILITY_BUDGET", 2 * HEADS * TOKENS * 3)
    got = attend(call, layer(), jobs + [(parts, PAIR)], plain)
    torch.testing.assert_close(got, expected)
    assert len(whole.seen) == 1
    assert [p.stop - p.start for p, _ in parts.seen] == [3, 3, 3, 3, 3, 1]
    torch.testing.assert_close(torch.cat([p for _, p in parts.seen], 2), whole.seen[0][1])


def test_self_attention_edits():
    call = qkv(tokens=SIDE * SIDE)
    out = attend(call, layer(cross=False), [(ReplaceSelf(ALL), PAIR)], plain)
    torch.testing.assert_close(out[2], weighted(probabilities(call, 0), call.v[2]))
    out = attend(call, layer(cross=False), [(MutualSelf(ALL, 0.0), PAIR)], plain)
    swapped = QKV(call.q[2:], call.k[:1], call.v[:1])
    torch.testing.assert_close(out[2], plain(swapped)[0])
    torch.testing.assert_close(out[:2], plain(call)[:2])


def test_self_attention_limits():
    big = {"cross": False, "grid": (64, 64), "latent": (64, 64)}
    assert ReplaceSelf(ALL).needs(layer(**big)) is Needs.NOTHING
    assert ReplaceSelf(ALL).needs(layer(**{**big, "grid": (32, 32)})) is Needs.EXCHANGE
    assert ReplaceSelf(ALL).needs(layer(**{**big, "grid": (64, 64), "latent": (128, 128)})) is Needs.EXCHANGE
    assert ReplaceSelf(ALL, 16**2).needs(layer(**{**big, "grid": (32, 32)})) is Needs.NOTHING
    assert ReplaceSelf(ALL).needs(layer()) is Needs.NOTHING
    asked = lambda index, step: MutualSelf().needs(layer(False, step, 50, index=index, count=16)) is Needs.EXCHANGE
    assert [k for k in range(50) if asked(12, float(k))] == list(range(4, 50))
    assert [i for i in range(16) if asked(i, 9.0)] == list(range(10, 16))


def test_inputs_are_left_alone_and_gradients_flow():
    call = qkv()
    kept = [t.clone() for t in call]
    jobs = [(ReplaceCross([IDENTITY], ALL), PAIR), (Reweight([{1: 2.0}]), PAIR)]
    attend(call, layer(), jobs, plain)
    assert all(torch.equal(a, b) for a, b in zip(kept, call))
    q = call.q.clone().requires_grad_()
    attend(QKV(q, call.k, call.v), layer(), jobs, plain).square().sum().backward()
    assert torch.isfinite(q.grad).all()
    assert float(q.grad[0].abs().sum()) > 0  # through the source's probabilities too


def test_half_precision_layers_are_made_in_fp32():
    call = qkv(dtype=torch.bfloat16)
    out = attend(call, layer(), [(ReplaceCross([IDENTITY], ALL), PAIR)], plain)
    assert out.dtype == torch.bfloat16
    exact = QKV(*(t.float() for t in call))
    torch.testing.assert_close(out[2].float(), weighted(probabilities(exact, 0), exact.v[2]), atol=0.01, rtol=0.01)
