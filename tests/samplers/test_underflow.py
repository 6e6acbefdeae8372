"""Gradients that fp16 would lose on the way."""

import torch
from nulltext.samplers.underflow import keep_from_underflow


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
