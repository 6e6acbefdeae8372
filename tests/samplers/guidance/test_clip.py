"""CLIP and semantic guidance on linear towers, where losses and gradients are known."""

import pytest
import torch
from nulltext.samplers.guidance.clip import ImageLoss, fit_mask, rank
from nulltext.samplers.guidance.cutouts import Cutouts
from nulltext.samplers.guidance.losses import contrastive, cosine, out_of_range, spherical, total_variation
from nulltext.samplers.guidance.semantic import Semantics
from nulltext.samplers.guidance.terms import Guidance, shift, with_guidance

G = torch.Generator().manual_seed(0)
W = torch.randn(3 * 8 * 8, 6, generator=G, dtype=torch.float64) / 8
TARGETS = torch.randn(2, 6, generator=G, dtype=torch.float64)
OTHERS = torch.randn(3, 6, generator=G, dtype=torch.float64)
IMAGE = torch.rand(3, 3, 8, 8, generator=G, dtype=torch.float64)
ONE = Cutouts(count=1, size=8)


def embed(x):
    return x.flatten(1).double() @ W


def loss(**changes):
    return ImageLoss(embed, TARGETS, (1.0, 3.0), cutouts=ONE, **changes)


def test_the_loss_is_the_weighted_mean_of_its_distances():
    u = embed(IMAGE).float()
    t = TARGETS.float()
    for name, distance in (
        ("spherical", spherical),
        ("cosine", cosine),
        ("contrastive", lambda a, b: contrastive(a, b, OTHERS.float(), 10.0)),
    ):
        made = loss(distance=name, distractors=OTHERS, temperature=10.0)(IMAGE, 1.0)
        torch.testing.assert_close(made, (distance(u, t[0]) + 3 * distance(u, t[1])) / 4)


def test_a_mask_judges_the_inside_only():
    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1
    changed = IMAGE.clone()
    changed[..., :2] = 0.9
    masked = loss(mask=mask)
    torch.testing.assert_close(masked(IMAGE, 1.0), masked(changed, 1.0))
    assert (loss()(IMAGE, 1.0) - loss()(changed, 1.0)).abs().max() > 1e-3
    assert fit_mask(torch.ones(len(IMAGE), 4, 4), IMAGE).shape == (len(IMAGE), 1, 8, 8)
    with pytest.raises(ValueError, match="2 masks for 3 pictures"):
        fit_mask(torch.ones(2, 4, 4), IMAGE)


def test_outside_a_mask_the_tower_sees_mid_grey():
    """As in Blended Diffusion, where the masked picture is 0 outside in -1..1; for the loss and for the ranking."""
    seen = []

    def spy(pictures):
        seen.append(pictures.detach().clone())
        return embed(pictures)

    mask = torch.zeros(8, 8)
    mask[2:6, 2:6], mask[2:6, 6:] = 1, 0.25
    ImageLoss(spy, TARGETS, (1.0, 1.0), cutouts=ONE, mask=mask)(IMAGE, 1.0)
    rank(spy, IMAGE, TARGETS[:1], (1.0,), mask)
    assert len(seen) == 2
    for pictures in seen:
        assert bool((pictures[..., mask == 0] == 0.5).all())
        torch.testing.assert_close(pictures[..., mask == 1], IMAGE[..., mask == 1])
        torch.testing.assert_close(pictures[..., mask == 0.25], 0.25 * IMAGE[..., mask == 0.25] + 0.75 * 0.5)


def test_cutouts_are_repeatable_per_level_and_the_batch_is_its_single_runs():
    many = ImageLoss(
        embed, TARGETS, (1.0, 1.0), cutouts=Cutouts(count=5, size=8, smallest=0.4), seed=3, tv=1.0, range=1.0
    )
    assert torch.equal(many(IMAGE, 1.0), many(IMAGE, 1.0))
    assert not torch.equal(many(IMAGE, 1.0), many(IMAGE, 0.5))
    torch.testing.assert_close(many(IMAGE, 1.0), torch.cat([many(i[None], 1.0) for i in IMAGE]))


@pytest.mark.parametrize("mode", ["network", "decoder"])
def test_guiding_lowers_the_loss(mode):
    judge = loss()
    decode = lambda d: d / 4 + 0.5  # noqa: E731
    x = torch.randn(2, 3, 8, 8, generator=G, dtype=torch.float64)
    term = Guidance(judge.log_likelihood(decode), mode, 20.0, bound=0.5)
    plain = lambda x, s: x / (1 + s**2)  # noqa: E731 - the denoiser of a unit Gaussian
    before, after = judge(decode(plain(x, 1.0)), 1.0), judge(decode(with_guidance(plain, [term])(x, 1.0)), 1.0)
    assert bool((after < before).all())


def test_refusals():
    for bad, words in (({"distance": "l2"}, "not one of"), ({"distance": "contrastive"}, "distractor")):
        with pytest.raises(ValueError, match=words):
            loss(**bad)
    with pytest.raises(ValueError, match="zero"):
        ImageLoss(embed, TARGETS, (1.0, -1.0))
    with pytest.raises(ValueError, match="at least one target"):
        ImageLoss(embed, TARGETS[:0], ())


def test_rank_puts_the_nearest_first():
    order, score = rank(embed, IMAGE, embed(IMAGE[1:2]), (1.0,))
    assert order[0] == 1 and score[1] == pytest.approx(1.0, abs=1e-5)
    order, _ = rank(embed, IMAGE, embed(IMAGE[1:2]), (-1.0,))
    assert order[-1] == 1


def test_smoothness_and_range_are_added_with_their_weights():
    wide = 3 * IMAGE - 1
    extra = loss(tv=2.0, range=3.0)(wide, 1.0) - loss()(wide, 1.0)
    torch.testing.assert_close(extra, 2 * total_variation(wide) + 3 * out_of_range(wide), rtol=1e-5, atol=1e-6)


def test_a_rank_by_a_mask_judges_the_inside_on_mid_grey():
    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1
    grey = IMAGE * mask + 0.5 * (1 - mask)
    inside, shown = rank(embed, IMAGE, TARGETS, (1.0, 3.0), mask)[1], rank(embed, grey, TARGETS, (1.0, 3.0))[1]
    torch.testing.assert_close(inside, shown)


def test_the_loss_is_a_mean_over_cutouts_and_a_noisy_tower_gives_its_negative():
    same = Cutouts(count=5, size=8, smallest=1.0)
    many = ImageLoss(embed, TARGETS, (1.0, 3.0), cutouts=same)
    torch.testing.assert_close(many(IMAGE, 1.0), loss()(IMAGE, 1.0))
    noisy = many.noisy_log_likelihood(lambda x, sigma: embed(x))
    torch.testing.assert_close(noisy(IMAGE, 0.7, None), -loss()(IMAGE, 1.0))


# ------------------------------------------------------------------------------------------------- semantic

K = torch.randn(4, 3, 3, 3, generator=G, dtype=torch.float64)


def features(x):
    return [torch.nn.functional.conv2d(x.double(), K, padding=1), torch.nn.functional.avg_pool2d(x.double(), 2)]


def terms(**weights):
    goal = Semantics(TARGETS[0], layers=(0, 1), **weights)
    return goal.of_estimate(lambda d: d, embed, features, IMAGE[:1])


def test_the_reference_itself_has_the_highest_value_and_no_gradient():
    for name, best in (("content_weight", 1.0), ("structure_weight", 0.0), ("style_weight", 0.0)):
        image = IMAGE[:1].clone().requires_grad_()
        value = terms(**{name: 1.0})(None, 1.0, image)
        assert value.item() == pytest.approx(best, abs=1e-6)
        assert torch.autograd.grad(value.sum(), image)[0].abs().max() < 1e-5
        assert terms(**{name: 1.0})(None, 1.0, IMAGE[1:2]).item() < best - 1e-3


def test_style_forgets_places_and_structure_does_not():
    turned = IMAGE[:1].flip(-1)
    own = Semantics(style_weight=1.0, layers=(1,)).of_estimate(lambda d: d, embed, features, IMAGE[:1])
    assert own(None, 1.0, turned).abs().max() < 1e-6
    assert terms(structure_weight=1.0)(None, 1.0, turned).item() < -1e-2


def test_gradients_of_the_parts_add_up():
    weights = {"text_weight": 2.0, "content_weight": 3.0, "structure_weight": 0.5, "style_weight": 0.7}
    x = IMAGE[1:]
    push = lambda w: shift([Guidance(terms(**w), "decoder")], x, 1.0, x)  # noqa: E731
    torch.testing.assert_close(push(weights), sum(push({k: v}) for k, v in weights.items()), rtol=1e-4, atol=1e-6)
