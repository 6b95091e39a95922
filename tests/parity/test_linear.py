"""Products in half precision: on the processor's own instructions, by way of float32, and by the kernel."""

import pytest
import torch

from model.nn import linear as linear_module
from model.nn.linear import linear
from tests.support.kernels import only, with_and_without

NO_DTYPES: frozenset[torch.dtype] = frozenset()
HALVES = frozenset({torch.bfloat16, torch.float16})


@with_and_without
@pytest.mark.parametrize("converted", [NO_DTYPES, HALVES], ids=["direct", "by-float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [(1,), (11,), (12,), (2, 70)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_product_is_exact_up_to_the_rounding_of_its_result(monkeypatch, converted, dtype, rows, has_bias, kernels):
    monkeypatch.setattr(linear_module, "SLOW_ON_CPU", converted)
    # Seven rows of the weight at a time, which does not divide their number.
    monkeypatch.setattr(linear_module, "SCRATCH_BYTES", 7 * 4 * 96)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator).to(dtype) for size in ((*rows, 96), (50, 96), (50,)))
    with only(kernels=kernels):
        result = linear(x, weight, bias if has_bias else None)
    wanted = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    assert result.dtype == dtype
    assert result.shape == wanted.shape
    # One rounding of a sum of 96 products of values near 1; the sum itself is taken in float32 at least.
    torch.testing.assert_close(result.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
