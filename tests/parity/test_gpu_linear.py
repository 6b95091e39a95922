"""Products of the Triton kernels with 8-bit weights, against those with the unpacked weight in float64.

Tolerance: one rounding of the result to its format. The sums are float32, of a few hundred products up to 30 times 3
that are exact: they err by some 1e-5.
"""

import pytest
import torch

from model.nn.quant import ChannelWeight, TritonWeight, packed_weight
from tests.support.gpu import devices, needs_cuda

pytest.importorskip("triton", reason="triton is not installed")

from model.gpu.linear import MAX_ROWS, linear_8bit

KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
kinds = pytest.mark.parametrize("kind", KINDS)


def packed(kind, outputs, inputs, device):
    """Rows of very different sizes, one of them zeros, as they are packed."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(2))
    weight *= torch.logspace(-2, 1, outputs)[:, None]
    weight[outputs // 2] = 0
    result = TritonWeight(outputs, inputs, torch.float32, device, KINDS[kind])
    result.fill(0, weight.to(device))
    return result


def product(x, weight, bias=None):
    unpacked = torch.empty(weight.num_outputs, weight.num_inputs, dtype=torch.float64, device=x.device)
    weight.unpack(slice(None), unpacked)
    return x.double() @ unpacked.T + (0 if bias is None else bias.double())


def assert_near(result, x, weight, bias=None):
    wanted = product(x, weight, bias)
    assert result.dtype == x.dtype
    assert result.shape == wanted.shape
    torch.testing.assert_close(result.double(), wanted, rtol=torch.finfo(x.dtype).eps, atol=2e-4)


def inputs_of(*shape, dtype, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype).to(device)


@devices
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 16, 17, 33, 65, 129])
def test_any_number_of_rows(device, kind, dtype, num_rows):
    """Around the sizes of the tiles; 70 outputs and 136 inputs are multiples of none."""
    weight = packed(kind, 70, 136, device)
    x = inputs_of(num_rows, 136, dtype=dtype, device=device)
    assert_near(weight.multiply(x), x, weight)


@devices
@kinds
@pytest.mark.parametrize(("num_splits", "num_inputs"), [(2, 512), (3, 500), (50, 512)])
def test_splits_of_the_inputs(device, kind, num_splits, num_inputs):
    weight = packed(kind, 40, num_inputs, device)
    x = inputs_of(3, num_inputs, dtype=torch.float32, device=device)
    result = linear_8bit(x, weight.values, weight.scales, num_splits=num_splits)
    assert_near(result, x, weight)
    # A row alone gives what it gives among others, bit by bit.
    alone = linear_8bit(x[1:2], weight.values, weight.scales, num_splits=num_splits)
    assert torch.equal(alone, result[1:2])


@devices
@kinds
@pytest.mark.parametrize("num_splits", [1, 2])
def test_bias_and_rows_that_are_not_dense(device, kind, num_splits):
    weight = packed(kind, 33, 128, device)
    x = inputs_of(2, 2, 256, dtype=torch.float16, device=device)[..., 64:192]
    bias = inputs_of(33, dtype=torch.float16, device=device)
    assert_near(linear_8bit(x, weight.values, weight.scales, bias, num_splits=num_splits), x, weight, bias)


@devices
def test_no_rows(device):
    weight = packed("int8", 8, 64, device)
    assert weight.multiply(torch.empty(0, 64, device=device)).shape == (0, 8)


@devices
def test_what_is_not_a_number_makes_its_row_none(device):
    weight = packed("int8", 8, 64, device)
    x = inputs_of(2, 64, dtype=torch.float32, device=device)
    x[1, 5] = float("nan")
    result = weight.multiply(x)
    assert not result[0].isnan().any()
    assert result[1].isnan().all()


@pytest.mark.gpu
@needs_cuda
@kinds
def test_packed_weights_on_a_gpu(kind):
    device = torch.device("cuda:0")
    weight = packed_weight(kind, 96, 256, dtype=torch.bfloat16, device=device)
    is_kernel = torch.cuda.get_device_capability(device) >= (8, 0)
    assert type(weight) is (TritonWeight if is_kernel else ChannelWeight)
    weight.fill(0, torch.randn(96, 256, device=device))
    for num_rows in (1, MAX_ROWS, MAX_ROWS + 1):
        x = inputs_of(num_rows, 256, dtype=torch.bfloat16, device=device)
        # Torch's product rounds the unpacked weight: 256 products, each off by 2^-9 of up to 4, in a random walk.
        torch.testing.assert_close(weight.multiply(x).double(), product(x, weight), rtol=2.0**-7, atol=0.5)


@pytest.mark.gpu
@needs_cuda
def test_offsets_beyond_two_to_the_31():
    device = torch.device("cuda:0")
    values = torch.zeros(2**31 // 4096 + 64, 4096, dtype=torch.int8, device=device)
    values[-1] = 1
    scales = torch.ones(len(values), device=device)
    x = torch.ones(1, 4096, dtype=torch.float16, device=device)
    result = linear_8bit(x, values, scales)
    assert result[0, -1] == 4096
    assert (result[0, :-1] == 0).all()
