"""The extent of a tensor's numbers, and whether all are finite, in every precision that files and models hold."""

import math

import pytest
import torch
from nulltext.samplers.finite import all_finite, extent

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def test_the_smallest_and_the_largest():
    assert extent(torch.tensor([[2.0, -3.5], [0.0, 1.0]])) == (-3.5, 2.0)
    assert extent(torch.tensor([3, -1])) == (-1, 3) and extent(torch.tensor([True, False])) == (0, 1)
    assert extent(torch.tensor([448.0, -2.0]).to(torch.float8_e4m3fn)) == (-2.0, 448.0)
    assert all(map(math.isnan, extent(torch.tensor([1.0, math.nan, math.inf]))))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("place", [0, 137, 999])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(dtype, place):
    for bad in (math.nan, math.inf, -math.inf):
        if dtype == torch.float8_e4m3fn and math.isinf(bad):
            continue  # it has no infinity
        values = torch.linspace(-3, 3, 1000)
        assert all_finite(values.to(dtype))
        values[place] = bad
        assert not all_finite(values.to(dtype)) and not all_finite(values.to(dtype).reshape(20, 50).t())


@pytest.mark.filterwarnings("error")
def test_what_has_no_numbers_or_needs_gradients():
    assert all_finite(torch.zeros(0, 4)) and all_finite(torch.tensor([1, 2])) and all_finite(torch.tensor([True]))
    assert all_finite(torch.zeros(3, requires_grad=True))
    with torch.inference_mode():
        assert all_finite(torch.zeros(3))
