"""Packed numbers lie within the bound that follows from their format, and products are those of the unpacked weight."""

import pytest
import torch
import torch.nn.functional as F

from model.native.library import is_fast, status
from model.nn import linear as linear_module
from model.nn.linear import linear, lookup
from model.nn.quant import packed_weight, quantize_fp8, quantize_int4, quantize_int8, to_fp8
from tests.support.kernels import only, with_and_without

PACKINGS = ["int8", "int4", "fp8"]
HALF_ULP = {torch.float32: 2**-24, torch.bfloat16: 2**-9, torch.float16: 2**-12}


def rows(*shape, dtype=torch.float32):
    """Rows of very different sizes, one with an outlier and one of zeros."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x *= torch.logspace(-6, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    x[1, ..., 3] *= 1000
    x[2] = 0
    return x.to(dtype)


def pack(weight, packing, *, pieces=1):
    packed = packed_weight(packing, *weight.shape, dtype=weight.dtype, device=torch.device("cpu"))
    for part in torch.arange(len(weight)).chunk(pieces):
        packed.fill(int(part[0]), weight[part])
    return packed


def unpacked(packed):
    out = torch.empty(packed.num_outputs, packed.num_inputs)
    packed.unpack(slice(None), out)
    return out


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16])
def test_int8_errs_by_half_a_step(scale_dtype):
    x = rows(40, 3, 64) / 8  # within float16's range
    values, scales = quantize_int8(x, scale_dtype)
    assert values.shape == x.shape
    assert scales.shape == x.shape[:-1]
    assert values.abs().max() == 127
    step = x.abs().amax(-1, keepdim=True) / 127
    # A scale that is rounded moves the largest value, 127 steps, by as many roundings; the least number of float16
    # is where rounding is no longer relative.
    rounding = 127 * (2 * HALF_ULP[scale_dtype] * step + (2**-25 if scale_dtype == torch.float16 else 0))
    error = (values.float() * scales.float()[..., None] - x).abs()
    assert (error <= step / 2 * 1.0001 + rounding).all()


def test_int8_is_exact_for_whole_steps():
    x = torch.tensor([[-127.0, 0, 5, 126]]) * 0.25
    values, scales = quantize_int8(x)
    assert values.tolist() == [[-127, 0, 5, 126]]
    assert scales.tolist() == [0.25]


def test_fp8_errs_by_a_sixteenth_of_the_number():
    x = rows(40, 64)
    values, scales = quantize_fp8(x)
    error = (values.float() * scales[:, None] - x).abs()
    # Three bits after the leading one; below 2^-6 steps are equal, 2^-9 scales.
    assert (error <= torch.maximum(x.abs() / 16, scales[:, None] * 2**-10) * 1.0001).all()


def test_fp8_without_a_scale_keeps_what_is_too_large_at_its_largest():
    assert to_fp8(torch.tensor([1e6, -500.0, 449, 17, 0])).float().tolist() == [448, -448, 448, 16, 0]


def test_int4_errs_by_half_a_step_of_its_group():
    x = rows(40, 300) / 8
    packed = pack(x, "int4")
    groups = F.pad(x, (0, 84)).view(40, 3, 128)
    step = (groups.abs().amax(-1, keepdim=True) / 7).expand_as(groups).flatten(1)[:, :300]
    rounding = 7 * (2 * HALF_ULP[torch.float16] * step + 2**-25)
    assert ((unpacked(packed) - x).abs() <= step / 2 * 1.0001 + rounding).all()


def test_int4_puts_two_numbers_into_a_byte():
    x = torch.zeros(1, 128)
    x[0, 0], x[0, 64], x[0, 63] = 7.0, -7.0, 3.0
    values, scales = quantize_int4(x)
    assert scales.tolist() == [[1.0]]
    assert values.shape == (1, 64)
    assert values[0, 0] == (7 + 8) | (-7 + 8) << 4
    assert values[0, 63] == (3 + 8) | 8 << 4


@with_and_without
@pytest.mark.parametrize("packing", PACKINGS)
def test_weight_that_is_filled_in_parts_is_the_same(packing, kernels):
    weight = rows(50, 198) / 8
    with only(kernels=kernels):
        assert torch.equal(unpacked(pack(weight, packing, pieces=7)), unpacked(pack(weight, packing)))


@pytest.mark.skipif(not is_fast(), reason=status())
def test_kernels_hold_the_same_numbers():
    weight = rows(50, 198)
    with only(kernels=False):
        wanted = pack(weight, "int8")
    assert torch.equal(unpacked(pack(weight, "int8")), unpacked(wanted))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [1, 40, 140])
@pytest.mark.parametrize("has_bias", [True, False])
@with_and_without
def test_product_is_that_of_the_unpacked_weight(monkeypatch, packing, dtype, num_rows, has_bias, kernels):
    # Seven rows of the weight at a time, which does not divide their number.
    monkeypatch.setattr(linear_module, "SCRATCH_BYTES", 7 * 4 * 192)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*size, generator=generator).to(dtype) for size in ((num_rows, 192), (50, 192), (50,))
    )
    with only(kernels=kernels):
        packed = pack(weight, packing)
    result = linear(x, packed, bias if has_bias else None)
    wanted = x.double() @ unpacked(packed).double().T + (bias.double() if has_bias else 0)
    assert result.dtype == dtype
    # The weight is rounded to the format that is multiplied in, and so is the result.
    size = x.double().abs() @ unpacked(packed).double().abs().T
    bound = 2 * HALF_ULP[dtype] * (size + wanted.abs()) + 1e-4
    assert ((result.double() - wanted).abs() <= bound).all()


@with_and_without
@pytest.mark.parametrize("packing", PACKINGS)
def test_row_of_a_product_does_not_depend_on_the_others(packing, kernels):
    x = torch.randn(30, 192, generator=torch.Generator().manual_seed(0))
    with only(kernels=kernels):
        packed = pack(torch.randn(50, 192, generator=torch.Generator().manual_seed(1)), packing)
    alone = torch.cat([linear(row, packed) for row in x[:, None]])
    torch.testing.assert_close(linear(x, packed), alone, rtol=0, atol=1e-4)


@with_and_without
@pytest.mark.parametrize("packing", PACKINGS)
def test_looked_up_rows_are_those_of_the_weight(packing, kernels):
    with only(kernels=kernels):
        packed = pack(rows(50, 192, dtype=torch.bfloat16), packing)
    ids = torch.tensor([[3, 49], [0, 3]])
    found = lookup(ids, packed)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), unpacked(packed)[ids], rtol=2**-8, atol=0)
