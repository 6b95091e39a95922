"""The compiled products against the formula in float64, at every level that this processor runs."""

import pytest
import torch

from model.native import linear as native
from model.native.library import LEVELS, is_available, library, status
from model.nn.quant import quantize_int8

pytestmark = pytest.mark.skipif(not is_available(), reason=status())
levels = pytest.mark.parametrize("level", library().levels if is_available() else ())

# Rows on both sides of every tile of 1 to 4 rows and of the switch to widened panels; outputs and inputs that fill
# panels, quads and vectors, and that do not.
ROWS = (1, 2, 3, 4, 5, 8, 9, 21)
SIZES = ((16, 128), (37, 21), (1, 3), (100, 130))

EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Half a unit of the last place of 1: the error of one rounding."""


def make(num_rows, num_outputs, num_inputs, dtype=torch.float32, seed=0):
    """Rows of very different size, an int8 weight with both extremes, scales and a bias."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_inputs, generator=generator) * torch.logspace(-3, 3, num_rows)[:, None]
    weight = torch.randint(-127, 128, (num_outputs, num_inputs), generator=generator, dtype=torch.int8)
    weight[0, 0], weight[-1, -1] = 127, -127
    scales = torch.rand(num_outputs, generator=generator) / 100 + 1e-3
    return x.to(dtype), weight, scales, torch.randn(num_outputs, generator=generator)


def assert_summed(result, x, weight, bias):
    """Equal to x @ weight.T + bias but for the roundings of a float32 sum of that many products, and of the result."""
    x, weight = x.double(), weight.double()
    wanted = x @ weight.T + bias.double()
    sizes = x.abs() @ weight.abs().T + bias.abs().double()
    bound = (x.shape[1] + 3) * EPS[torch.float32] * sizes + EPS[result.dtype] * wanted.abs()
    assert ((result.double() - wanted).abs() <= bound).all()


@levels
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("size", SIZES)
def test_8_bit_products_are_exact_in_integers(level, dtype, size):
    for num_rows in ROWS:
        x, weight, scales, bias = make(num_rows, *size, dtype)
        packed = native.pack_int8(weight, num_threads=1)
        result = native.linear_w8a8(x, packed, scales, bias, num_threads=2, level=level)
        integers, x_scales = quantize_int8(x)
        products = (integers.double() @ weight.double().T) * x_scales[:, None].double() * scales.double()
        wanted = products + bias.double()
        assert result.dtype == dtype
        # Integer sum to float32, two scales, the bias, and the result: a rounding each.
        bound = 4 * EPS[torch.float32] * (products.abs() + bias.abs()) + EPS[dtype] * wanted.abs()
        assert ((result.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("size", SIZES)
def test_all_levels_agree_on_8_bit_products(size):
    x, weight, scales, bias = make(21, *size)
    packed = native.pack_int8(weight, num_threads=1)
    results = [native.linear_w8a8(x, packed, scales, bias, num_threads=1, level=level) for level in library().levels]
    assert all(torch.equal(result, results[0]) for result in results)


@levels
def test_pairs_of_the_largest_products_do_not_saturate(level):
    # On AVX2 two neighbouring products are added in 16 bits: 2 * 127 * 127 must still fit, with either sign.
    weight = torch.tensor([[127] * 64, [-127] * 64, [127, -127] * 32], dtype=torch.int8)
    packed = native.pack_int8(weight, num_threads=1)
    x = torch.tensor([[1.0] * 64, [-1.0] * 64, [1.0, -1.0] * 32])
    result = native.linear_w8a8(x, packed, torch.ones(3), num_threads=1, level=level)
    assert torch.equal(result, x @ weight.float().T)


@levels
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("size", SIZES)
def test_8_bit_weights_with_float_activations(level, dtype, size):
    for num_rows in ROWS:
        x, weight, scales, bias = make(num_rows, *size, dtype)
        packed = native.pack_int8(weight, num_threads=2)
        result = native.linear_w8a16(x, packed, scales, bias, num_threads=2, level=level)
        assert_summed(result, x, weight.double() * scales.double()[:, None], bias)


@levels
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("size", [(16, 128), (37, 256), (100, 384)])
def test_4_bit_weights(level, dtype, size):
    for num_rows in ROWS:
        x, weight, _, bias = make(num_rows, *size, dtype)
        weight = (weight >> 4).clamp(-8, 7)
        scales = torch.rand(size[0], size[1] // 128) + 0.1
        packed = native.pack_int4(weight, scales, num_threads=2)
        result = native.linear_w4a16(x, *packed, size[0], bias, num_threads=2, level=level)
        assert_summed(result, x, weight.double() * scales.double().repeat_interleave(128, 1), bias)


@levels
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_weights(level, dtype, size):
    for num_rows in ROWS:
        x, weight, scales, bias = make(num_rows, *size, dtype)
        weight = (weight * scales[:, None]).bfloat16()
        result = native.linear_bf16(x, weight, bias, num_threads=2, level=level)
        assert_summed(result, x, weight, bias)


@levels
@pytest.mark.parametrize("kind", ["w8a8", "w8a16", "w4a16", "bf16"])
def test_a_row_depends_neither_on_the_others_nor_on_threads(level, kind):
    x, weight, scales, _ = make(21, 100, 256, seed=3)
    packed = native.pack_int8(weight, num_threads=1)
    packed_4 = native.pack_int4((weight >> 4).clamp(-8, 7), torch.rand(100, 2), num_threads=1)

    def product(rows, num_threads):
        match kind:
            case "w8a8":
                return native.linear_w8a8(rows, packed, scales, num_threads=num_threads, level=level)
            case "w8a16":
                return native.linear_w8a16(rows, packed, scales, num_threads=num_threads, level=level)
            case "w4a16":
                return native.linear_w4a16(rows, *packed_4, 100, num_threads=num_threads, level=level)
        return native.linear_bf16(rows, weight.bfloat16(), num_threads=num_threads, level=level)

    together = product(x, 2)
    assert torch.equal(together, product(x, 1))
    for first, end in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 21)):
        assert torch.equal(together[first:end], product(x[first:end].clone(), 1))


@levels
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row_and_shows(level, odd):
    x, weight, scales, bias = make(3, 20, 40)
    x[1, 7] = odd
    result = native.linear_w8a8(x, native.pack_int8(weight, num_threads=1), scales, bias, num_threads=1, level=level)
    assert result[1].isnan().all()
    assert result[[0, 2]].isfinite().all()


@levels
def test_a_row_of_zeros_gives_the_bias(level):
    _, weight, scales, bias = make(1, 20, 40)
    packed = native.pack_int8(weight, num_threads=1)
    result = native.linear_w8a8(torch.zeros(2, 40), packed, scales, bias, num_threads=1, level=level)
    assert torch.equal(result, bias.expand(2, -1))


def test_more_axes_and_strided_rows():
    x, weight, scales, _ = make(6, 20, 40)
    packed = native.pack_int8(weight, num_threads=1)
    wanted = native.linear_w8a16(x, packed, scales, num_threads=1)
    assert torch.equal(native.linear_w8a16(x.view(2, 3, 40), packed, scales, num_threads=1), wanted.view(2, 3, 20))
    wide = torch.full((6, 50), float("nan"))
    wide[:, 5:45] = x
    assert torch.equal(native.linear_w8a16(wide[:, 5:45], packed, scales, num_threads=1), wanted)


def test_tensors_that_do_not_fit_are_refused():
    x, weight, scales, bias = make(2, 20, 40)
    packed = native.pack_int8(weight, num_threads=1)
    for arguments in ((x[:, :36], packed, scales), (x, packed, scales[:2]), (x, packed, scales, bias[:3])):
        with pytest.raises(ValueError, match="must be a dense"):
            native.linear_w8a8(*arguments, num_threads=1)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        native.linear_w8a8(x.half(), packed, scales, num_threads=1)
    with pytest.raises(ValueError, match="symmetric"):
        native.pack_int8(torch.full((2, 2), -128, dtype=torch.int8), num_threads=1)
    with pytest.raises(ValueError, match="4-bit"):
        native.pack_int4(weight[:, :32].repeat(1, 4), torch.ones(20, 1), num_threads=1)
    with pytest.raises(ValueError, match="inputs"):
        native.linear_bf16(x, weight.bfloat16()[:, :8].contiguous(), num_threads=1)


def test_a_level_that_the_processor_lacks_is_refused():
    missing = next((level for level in LEVELS if level not in library().levels), "none")
    x, weight, scales, _ = make(1, 20, 40)
    with pytest.raises(ValueError, match="this processor runs"):
        native.linear_w8a8(x, native.pack_int8(weight, num_threads=1), scales, num_threads=1, level=missing)
