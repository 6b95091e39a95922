"""The small steps between products, each one launch and one pass over memory.

What torch would round on the way is rounded here too. Rows are float32, bfloat16 or float16.
"""

import triton
import triton.language as tl
from torch import Tensor

_PIECE = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square (in float32, back to x's dtype), times the weight: [rows, width].

    Args:
        x: [rows, width].
        weight: [width], of x's dtype.
    """
    out = x.new_empty(x.shape)
    _launch_norm(x, None, 0.0, weight, eps, out, None)
    return out


def add_rms_norm(x: Tensor, branch: Tensor, scale: float, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + scale * branch, and its `rms_norm`; all [rows, width]."""
    added, out = x.new_empty(x.shape), x.new_empty(x.shape)
    _launch_norm(x, branch, scale, weight, eps, out, added)
    return added, out


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [rows, width], of rows that hold gate and up side by side, [rows, 2 * width]."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    if num_rows:
        grid = (num_rows, triton.cdiv(width, _PIECE))
        _silu_mul[grid](gate_up, out, gate_up.stride(0), width, PIECE=_PIECE, num_warps=4)
    return out


def _launch_norm(
    x: Tensor, branch: Tensor | None, scale: float, weight: Tensor, eps: float, out: Tensor, added: Tensor | None
) -> None:
    num_rows, width = x.shape
    padded = triton.next_power_of_2(width)
    strides = (x.stride(0), 0 if branch is None else branch.stride(0))
    if num_rows:
        _rms_norm[(num_rows,)](
            x,
            branch,
            weight,
            out,
            added,
            *strides,
            width,
            scale,
            eps,
            PADDED=padded,
            num_warps=8 if padded > 2048 else 4,
        )


@triton.jit
def _rms_norm(x, branch, weight, out, added, x_row, branch_row, width, scale, eps, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < width
    h = tl.load(x + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    if branch is not None:
        more = tl.load(branch + row * branch_row + at, mask=inside, other=0.0).to(tl.float32)
        kept = (h + more * scale).to(out.dtype.element_ty)
        tl.store(added + row * width + at, kept, mask=inside)
        h = kept.to(tl.float32)
    scaled = h * tl.rsqrt(tl.sum(h * h, axis=0) / width + eps)
    weights = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    result = scaled.to(out.dtype.element_ty).to(tl.float32) * weights
    tl.store(out + row * width + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul(gate_up, out, gate_up_row, width, PIECE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    inside = at < width
    gate = tl.load(gate_up + row * gate_up_row + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_row + width + at, mask=inside, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))  # never overflows, unlike exp(-gate)
    activated = gate * tl.where(gate >= 0, 1.0, small) / (1.0 + small)
    result = activated.to(out.dtype.element_ty).to(tl.float32) * up
    tl.store(out + row * width + at, result.to(out.dtype.element_ty), mask=inside)
