"""A word on a linear encoder is a least-squares problem in one row; every other row keeps its bits."""

import pytest
import torch
from nulltext.samplers.core import VE
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.objective import Examples, Levels, Objective, denoising_step
from nulltext.samplers.tuning.textual_inversion import PRESETS, rms, start_vectors, with_word
from torch.nn import functional as F

F64 = torch.float64


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_a_word_on_a_linear_encoder_is_least_squares_in_one_row():
    """D = A (sum of the caption's rows): v = pinv(A) (mean x0 - A rest)."""
    table, a = rows(6, 4), rows(9, 4, seed=1)
    caption = torch.tensor([1, 5, 2])  # 5 is the new word
    pictures = [rows(1, 9, seed=s) for s in (2, 3)]
    before = table.clone()
    vectors = start_vectors(table, [3], 1).detach().double().requires_grad_()

    def net(x, sigma, conditions):
        read = torch.stack([with_word(F.embedding(ids, table), ids, [5], vectors).sum(0) for ids in conditions])
        return (read @ a.T)[:, None]

    for picture in pictures:  # one picture a step is drawn: train on each alone, where nothing is random
        with torch.no_grad():
            vectors.copy_(table[3:4])
        loop = Loop({"v": vectors}, Settings(steps=300, lr=0.3, schedule="cosine", weight_decay=0.0, clip=0.0))
        loop.run(
            denoising_step(net, Examples([picture], [caption]), Objective(VE, "constant"), Levels(table=torch.ones(1)))
        )
        want = torch.linalg.lstsq(a, picture[0] - a @ (table[1] + table[2])).solution
        torch.testing.assert_close(vectors.detach()[0], want, rtol=0, atol=1e-4)
    assert torch.equal(table, before)


def test_only_the_word_is_replaced():
    table, ids = rows(6, 4).float(), torch.tensor([[0, 5, 1], [2, 3, 4]])
    embedded, vectors = F.embedding(ids, table), start_vectors(table, [1, 2], 3)
    out = with_word(embedded, ids, [5, 3, 99], vectors)
    assert torch.equal(out[0, 1], vectors[0]) and torch.equal(out[1, 1], vectors[1])
    kept = ids.ne(5) & ids.ne(3)
    assert torch.equal(out[kept], embedded[kept])
    out.sum().backward()
    assert vectors.grad.sum(1).tolist() == [4.0, 4.0, 0.0]


def test_the_start_is_the_near_words_rows_in_turn():
    table = rows(6, 4).float()
    vectors = start_vectors(table, [1, 2], 3)
    assert torch.equal(vectors, table[[1, 2, 1]]) and vectors.requires_grad and vectors.is_leaf
    with torch.inference_mode():
        made = start_vectors(table.clone(), [0], 1)
    assert not made.is_inference()
    assert rms(torch.tensor([3.0, -4.0])) == pytest.approx((25 / 2) ** 0.5)


def test_refusals():
    table = rows(6, 4).float()
    for wrong in (([], 1), ([0], 0)):
        with pytest.raises(ValueError, match="at least one"):
            start_vectors(table, *wrong)
    with pytest.raises(ValueError, match="6 rows.*row 6"):
        start_vectors(table, [6], 1)
    with pytest.raises(ValueError, match="width 4"):
        with_word(table, torch.arange(6), [5], torch.zeros(1, 3))


def test_the_papers_rate_is_that_of_two_devices_with_four_pictures_each():
    """Section 4 of the paper: .005 times 2 devices times 4 pictures is .04, on a table of rms .014."""
    way = PRESETS["paper"]
    assert (way.batch, way.steps) == (8, 5000) and way.relative_lr * 0.014 == pytest.approx(0.04)
