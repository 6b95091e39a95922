"""How numbers are stored, inside a kernel: 8-bit ones to float32 and back.

All of it is arithmetic on bits. Float8 in particular needs no instruction of the card, so one code serves Ampere, which
has none, and later ones. float8 e4m3 comes in as uint8: sign, four bits of exponent (bias 7), three of mantissa.
"""

import triton
import triton.language as tl

# 1.5 * 2^23: its float32 has one unit in the last place, so adding it rounds to a whole number, to even at the middle,
# and leaves that number in the low bits.
_ROUNDER = tl.constexpr(12582912.0)
_ROUNDER_BITS = tl.constexpr(0x4B400000)


@triton.jit
def to_float(stored):
    """What was loaded as float32, before any scale: int8, float8 as uint8, or any float."""
    if stored.dtype == tl.int8:
        result = _from_int8(stored)
    elif stored.dtype == tl.uint8:
        result = _from_fp8(stored)
    else:
        result = stored.to(tl.float32)
    return result


@triton.jit
def _from_int8(x):
    # On many cards conversions run at a fraction of the rate of additions, and this must keep up with the memory.
    return (x.to(tl.int32) + _ROUNDER_BITS).to(tl.float32, bitcast=True) - _ROUNDER


@triton.jit
def _from_fp8(x):
    # With the exponent at its place in a float16, whose bias is 15, the number is 2^8 times too small, also where both
    # are subnormal.
    wide = x.to(tl.uint16)
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.uint16).to(tl.float16, bitcast=True)
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


@triton.jit
def to_int8(x):
    """float32 from -127 to 127 rounded to the nearest, to even at the middle."""
    return ((x + _ROUNDER).to(tl.int32, bitcast=True) - _ROUNDER_BITS).to(tl.int8)


@triton.jit
def to_fp8(x):
    """float32 as float8 e4m3 in uint8, to the nearest, to even at the middle; beyond 448 it is 448."""
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.int32, bitcast=True)
    # Below 2^-6 steps are 2^-9: the last place of 2^14, whose bits are taken off again.
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    # Above, round the 20 bits that go, and move the exponent's bias from 127 to 7.
    large = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    code = tl.where(size < 0.015625, small, large)
    return (tl.where(x != x, 0x7F, code) | sign).to(tl.uint8)
