"""The small fused steps against torch's, at every level of this processor."""

import pytest
import torch
import torch.nn.functional as F

from model.native.fused import rms_norm, rotate, silu_mul
from model.native.library import is_available, library, status
from model.nn.language import Rotary

pytestmark = pytest.mark.skipif(not is_available(), reason=status())
levels = pytest.mark.parametrize("level", library().levels if is_available() else ())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

# A bfloat16 that lies between two numbers may go either way when the float32 before it differs in its last place.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}


def numbers(*shape, dtype, seed=0):
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@levels
@dtypes
@pytest.mark.parametrize("width", [1, 37, 2304])
def test_rms_norm(level, dtype, width):
    x, weight = numbers(3, width, dtype=dtype), numbers(width, dtype=dtype, seed=1)
    exact = x.float()
    wanted = (exact * (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(dtype) * weight
    result = rms_norm(x, weight, 1e-5, level=level)
    assert result.dtype == dtype
    torch.testing.assert_close(result, wanted, rtol=TOLERANCE[dtype], atol=1e-6)


@levels
@dtypes
@pytest.mark.parametrize("width", [1, 37, 5760])
def test_silu_times_up(level, dtype, width):
    gate_up = numbers(3, 2 * width, dtype=dtype)
    gate_up[:, 0] = torch.tensor([-1000.0, 0.0, 1000.0])
    wanted = F.silu(gate_up[:, :width]) * gate_up[:, width:]
    result = silu_mul(gate_up, num_threads=2, level=level)
    assert result.dtype == dtype
    torch.testing.assert_close(result, wanted, rtol=TOLERANCE[dtype], atol=1e-6)


@levels
def test_what_is_not_a_number_shows(level):
    gate_up = torch.zeros(1, 8)
    gate_up[0, 1] = torch.nan
    assert silu_mul(gate_up, num_threads=1, level=level).isnan().tolist() == [[False, True, False, False]]


@levels
@dtypes
def test_rotation(level, dtype):
    angles = torch.rand(5, 1, 32, generator=torch.Generator().manual_seed(2)) * 6
    rotary = Rotary(angles.cos(), angles.sin())
    heads = numbers(5, 9, 64, dtype=dtype)[:, 2:6]  # a part of each token's heads, so the tokens are not dense
    result = rotate(heads, *rotary, level=level)
    torch.testing.assert_close(result, rotary.rotate(heads), rtol=TOLERANCE[dtype], atol=1e-6)
