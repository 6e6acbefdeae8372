"""The encoder's parts by hand: how the noise level enters, what the attention pool adds up, which maps it gives."""

import math

import pytest
import torch
from nulltext.samplers.networks.encoder import AttentionPool, Encoder, ResBlock, SelfAttention, level_embedding
from torch.nn import functional as F


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(module, seed=1):
    """Random weights everywhere: branches that start at 0 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return module


def test_the_level_is_told_in_sinusoids_of_a_quarter_of_its_logarithm():
    rows = level_embedding(torch.tensor([math.exp(4.0), 1.0, 0.0]), width=6)
    want = [[math.sin(f) for f in (1, 10, 100)] + [math.cos(f) for f in (1, 10, 100)], [0.0] * 3 + [1.0] * 3]
    torch.testing.assert_close(rows[:2], torch.tensor(want), rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(rows).all())


def test_the_level_scales_and_shifts_what_the_second_norm_gives():
    block, x, level = fill(ResBlock(16, 16, 4)), normal(2, 16, 5, 5), normal(2, 4, seed=2)
    with torch.no_grad():
        a, b = block.film(F.silu(level))[:, :, None, None].chunk(2, 1)
        h = block.norm2(block.conv1(F.silu(block.norm1(x)))) * (1 + a) + b
        torch.testing.assert_close(block(x, level), x + block.conv2(F.silu(h)))
        assert (block(x, level) - block(x, 2 * level)).abs().max() > 1e-3


def test_new_blocks_pass_their_input_on():
    x = normal(2, 16, 4, 4)
    assert torch.equal(ResBlock(16, 16)(x, None), x)
    assert torch.equal(SelfAttention(16, 2)(x), x)
    assert ResBlock(16, 32)(x, None).shape == (2, 32, 4, 4)


def test_self_attention_without_questions_adds_the_mean_of_the_values():
    layer, x = fill(SelfAttention(16, 2)), normal(2, 16, 3, 3)
    with torch.no_grad():
        layer.qkv.weight[:16], layer.qkv.bias[:16] = 0, 0
        values = layer.qkv(layer.norm(x)).view(2, 3, 16, 3, 3)[:, 2].mean((-2, -1), keepdim=True)
        torch.testing.assert_close(layer(x), x + layer.out(values.expand_as(x)), rtol=1e-4, atol=1e-5)


def test_self_attention_moves_with_the_places():
    layer, x = fill(SelfAttention(16, 2)), normal(1, 16, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x.flip(-1)), layer(x).flip(-1), rtol=1e-4, atol=1e-5)


def test_the_pool_without_a_question_is_the_mean_over_the_grid_and_the_mean_token():
    pool, x = fill(AttentionPool(8, 3, grid=2)), normal(2, 8, 2, 2)
    with torch.no_grad():
        pool.q.weight.zero_()
        pool.q.bias.zero_()
        mean = x.mean((-2, -1)) + pool.mean_place[0, 0]
        tokens = torch.cat([mean[:, None], (x + pool.place).flatten(2).transpose(1, 2)], 1)
        values = pool.kv(tokens)[..., 8:]
        torch.testing.assert_close(pool(x), pool.out(values.mean(1)), rtol=1e-4, atol=1e-5)


def test_only_the_learned_places_tell_the_pool_where_things_are():
    pool, x = fill(AttentionPool(8, 3, grid=4)), normal(2, 8, 4, 4)
    with torch.no_grad():
        assert (pool(x) - pool(x.flip(-1))).abs().max() > 1e-3
        pool.place.zero_()
        torch.testing.assert_close(pool(x), pool(x.flip(-1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride, sides", [(1, [16, 8, 4]), (2, [8, 4, 2])])
def test_maps_halve_from_level_to_level_finest_first(stride, sides):
    net = Encoder(3, 5, widths=(8, 16, 24), size=16, stem_stride=stride)
    maps = net.features(normal(2, 3, 16, 16))
    assert [m.shape for m in maps] == [(2, c, s, s) for c, s in zip((8, 16, 24), sides, strict=True)]
    assert net(normal(2, 3, 32, 16)).shape == (2, 5)  # another size than it was made for


def test_each_sample_has_its_own_level():
    net = fill(Encoder(2, 3, widths=(8, 16), size=8, noise_aware=True)).eval()
    x, sigma = normal(2, 2, 8, 8), torch.tensor([0.1, 5.0])
    with torch.no_grad():
        both = net(x, sigma)
        for i in range(2):
            torch.testing.assert_close(net(x[i : i + 1], float(sigma[i])), both[i : i + 1], rtol=1e-4, atol=1e-5)
        assert (net(x[:1], 5.0) - both[:1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="needs the noise level"):
        net(x)
