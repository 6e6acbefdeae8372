"""Gradients that fp16 would lose on the way."""

import torch
from nulltext.samplers.core import recomputed
from nulltext.samplers.underflow import keep_from_underflow, keep_trained_from_underflow


def half_net(x, w):
    return (x.half() * w.half()).float()


def test_a_gradient_below_fp16s_smallest_comes_through_as_fp32_would_have_it():
    x, w = (torch.tensor(v, requires_grad=True) for v in ([1.5, -2.0], [0.5, 4.0]))
    tiny = torch.tensor([3e-10, -1e-9])
    lost = torch.autograd.grad((half_net(x, w) * tiny).sum(), (x, w))
    assert not any(g.any() for g in lost)
    kept = torch.autograd.grad((keep_from_underflow(half_net)(x, w) * tiny).sum(), (x, w))
    torch.testing.assert_close(kept, (tiny * w.detach(), tiny * x.detach()), rtol=1e-3, atol=0.0)


def test_values_no_gradient_and_inputs_without_one_are_left_alone():
    x, w = torch.tensor([1.5, -2.0]), torch.tensor([0.5, 4.0], requires_grad=True)
    out = keep_from_underflow(half_net)(x, w)
    assert torch.equal(out, half_net(x, w))
    assert torch.equal(torch.autograd.grad((out * 0.0).sum(), w)[0], torch.zeros(2))


def test_weights_inside_a_chain_of_calls_are_reached_as_in_fp32():
    """Each call's own part of a weight's gradient has one scale, so that their sum is right; a second run is alike."""
    w, tiny = torch.tensor([0.5, 1.5], requires_grad=True), torch.tensor([3e-10, -1e-9])

    def chain(net):
        x = torch.tensor([1.5, -2.0])
        for _ in range(3):
            x = x + 0.5 * net(x)
        return (x * tiny).sum()

    want = torch.autograd.grad(chain(lambda x: x * w), w)[0]
    assert not torch.equal(want, torch.autograd.grad(chain(lambda x: half_net(x, w)), w)[0])
    for _ in range(2):
        with keep_trained_from_underflow([w]) as wrap:
            got = torch.autograd.grad(chain(wrap(lambda x: half_net(x, w))), w)[0]
            torch.testing.assert_close(got, want, rtol=3e-3, atol=0.0)
            got = torch.autograd.grad(chain(wrap(lambda x: half_net(x, w))) * 1e6, w)[0]  # of another size
            torch.testing.assert_close(got, want * 1e6, rtol=3e-3, atol=0.0)
            again = torch.autograd.grad(chain(wrap(recomputed(lambda x: half_net(x, w)))) * 1e6, w)[0]
            assert torch.equal(again, got)
    assert not w._backward_hooks
