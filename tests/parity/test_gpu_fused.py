"""The small Triton kernels against torch's own steps, and the arithmetic on bits against torch's formats.

Tolerance: what torch rounds on the way is rounded here too; a sum in another order may move a result to the number next
to it in its format, and again where that is multiplied and rounded a second time.
"""

import pytest
import torch

from model.nn.attention.reference import reference_attention
from model.nn.kernels import TorchKernels
from model.nn.quant import to_fp8
from tests.support.gpu import devices

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from model.gpu import numbers
from model.gpu.fused import add_rms_norm, rms_norm, silu_mul

REFERENCE = TorchKernels(reference_attention)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def values(*shape, dtype, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul_(3).to(dtype).to(device)


def assert_next(result, wanted):
    eps = torch.finfo(wanted.dtype).eps
    torch.testing.assert_close(result, wanted, rtol=(3 if eps > 1e-6 else 16) * eps, atol=1e-6)


@devices
@dtypes
@pytest.mark.parametrize("width", [1, 64, 100, 2304])
def test_rms_norm(device, dtype, width):
    h, branch, weight = (values(*shape, dtype=dtype, device=device) for shape in ((3, width), (3, width), (width,)))
    assert_next(rms_norm(h, weight, 1e-5), REFERENCE.rms_norm(h, weight, 1e-5))
    results = add_rms_norm(h, branch, 0.22, weight, 1e-5)
    for result, wanted in zip(results, REFERENCE.add_rms_norm(h, branch, 0.22, weight, 1e-5), strict=True):
        assert_next(result, wanted)


@devices
@dtypes
def test_rows_that_are_not_dense(device, dtype):
    wide = values(4, 300, dtype=dtype, device=device)
    weight = values(100, dtype=dtype, device=device)
    assert_next(rms_norm(wide[:, 50:150], weight, 1e-5), REFERENCE.rms_norm(wide[:, 50:150], weight, 1e-5))
    assert_next(silu_mul(wide[:, 100:]), REFERENCE.silu_mul(wide[:, 100:]))


@devices
@dtypes
@pytest.mark.parametrize("width", [1, 1023, 1024, 1025])
def test_silu_mul(device, dtype, width):
    gate_up = values(2, 2 * width, dtype=dtype, device=device)
    gate_up[0, :1], gate_up[1, :1] = -300, 300  # beyond what an exponential can take
    assert_next(silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


@devices
def test_no_rows(device):
    nothing = torch.empty(0, 64, device=device)
    assert rms_norm(nothing, torch.ones(64, device=device), 1e-5).shape == (0, 64)
    assert silu_mul(nothing).shape == (0, 32)


@triton.jit
def _through(source, floats, bytes_, SIZE: tl.constexpr, IS_FP8: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = numbers.to_float(tl.load(source + at))
    tl.store(floats + at, x)
    tl.store(bytes_ + at, numbers.to_fp8(x) if IS_FP8 else numbers.to_int8(x))


@devices
def test_every_int8_there_and_back(device):
    every = torch.arange(-127, 129, device=device).clamp(max=127).to(torch.int8)
    floats, back = torch.empty(256, device=device), torch.empty_like(every)
    _through[(1,)](every, floats, back, SIZE=256, IS_FP8=False)
    assert torch.equal(floats, every.float())
    assert torch.equal(back, every)


@devices
def test_every_float8_there_and_back(device):
    every = torch.arange(256, device=device).to(torch.uint8)
    floats, back = torch.empty(256, device=device), torch.empty_like(every)
    _through[(1,)](every, floats, back, SIZE=256, IS_FP8=True)
    wanted = every.view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(floats, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(back[~wanted.isnan()], every[~wanted.isnan()])
    assert back[wanted.isnan()].view(torch.float8_e4m3fn).float().isnan().all()


@devices
def test_rounding_to_float8(device):
    """Every middle between two neighbours, what lies next to it, and what is too small or too large."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    infinity = torch.full_like(middles, torch.inf)
    ends = torch.tensor([0.0, 2.0**-10, 2.0**-11, 447.9, 448.1, 463.9, 464.1, 1e30])
    x = torch.cat([middles, middles.nextafter(infinity), middles.nextafter(-infinity), ends])
    x = torch.nn.functional.pad(torch.cat([x, -x]), (0, 1024 - 2 * len(x))).to(device)
    floats, codes_of = torch.empty_like(x), torch.empty(1024, dtype=torch.uint8, device=device)
    _through[(1,)](x, floats, codes_of, SIZE=1024, IS_FP8=True)
    assert torch.equal(codes_of.view(torch.float8_e4m3fn).float(), to_fp8(x).float())
