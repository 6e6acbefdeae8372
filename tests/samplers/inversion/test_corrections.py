"""What a pivot's correction puts in the null branch's place, by hand."""

import pytest
import torch
from nulltext.samplers.inversion.corrections import negative_prompt, null_guided

SIGMAS = torch.tensor([8.0, 4.0, 1.0, 0.0])
EMBEDDINGS = torch.arange(3.0).view(3, 1, 1, 1) + 1  # 1, 2, 3: told apart by value
X = torch.tensor([[[[2.0]]], [[[-1.0]]]])


def net(x, sigma, embedding):
    """D_u = embedding * x."""
    return embedding.mean() * x


@pytest.mark.parametrize("sigma, step", [(9.0, 0), (8.0, 0), (6.0, 0), (4.0, 1), (2.0, 1), (1.0, 2), (0.5, 2)])
def test_the_null_branch_has_the_embedding_of_sigmas_step(sigma, step):
    guided = null_guided(net, lambda x, s: 10 * x, SIGMAS, EMBEDDINGS, 3.0)
    u = step + 1.0
    torch.testing.assert_close(guided(X, torch.tensor(sigma)), (u + 3 * (10 - u)) * X)


def test_at_cfg_1_the_null_branch_is_not_asked():
    def never(*_):
        raise AssertionError("asked")

    assert torch.equal(null_guided(never, lambda x, s: 10 * x, SIGMAS, EMBEDDINGS, 1.0)(X, torch.tensor(4.0)), 10 * X)


def test_there_is_one_embedding_a_step():
    with pytest.raises(ValueError, match="3 steps need as many null embeddings; got 2"):
        null_guided(net, lambda x, s: x, SIGMAS, EMBEDDINGS[1:], 3.0)


def test_a_negative_prompt_is_the_source_prompt_at_every_step():
    words = torch.randn(1, 5, 4)
    rows = negative_prompt(words, 3, 2)
    assert rows.shape == (3, 2, 5, 4) and bool((rows == words).all())
    own = torch.randn(2, 5, 4)  # a prompt for each picture
    assert torch.equal(negative_prompt(own, 3, 2)[1], own)
