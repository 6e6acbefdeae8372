"""Indices that are sent to a device once."""

import pytest
import torch
from nulltext.samplers.attention.indices import at, constant

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [(2,), (0, 1, 2), (1, 0), (0, 2, 3)])
def test_an_index_takes_the_rows_that_a_list_takes(rows):
    x = torch.arange(4)
    assert torch.equal(x[at(rows, CPU)], x[list(rows)])


def test_neighbours_are_taken_without_a_copy():
    x = torch.arange(4)
    assert x[at((1, 2), CPU)].data_ptr() == x[1:].data_ptr()


def test_equal_values_are_one_tensor_and_truth_values_are_no_columns():
    assert constant([1, 0], CPU) is constant((1, 0), CPU)
    mask = constant((True, False), CPU, torch.bool)
    assert mask.dtype == torch.bool and constant((True, False), CPU).tolist() == [1, 0]


def test_what_a_run_in_inference_mode_sent_serves_a_run_with_gradients():
    with torch.inference_mode():
        index = constant((3, 1), CPU)
    x = torch.ones(4, requires_grad=True)
    (x * x)[index].sum().backward()
    assert x.grad.tolist() == [0, 2, 0, 2]
