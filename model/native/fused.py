"""The small steps between products, each one call and one pass over memory.

Rows are float32 or bfloat16; what torch would round on the way is rounded here too. `level`: see `linear`.
"""

from ctypes import byref

import torch  # noqa: TID253 - tensors are what the kernels work on
from torch import Tensor  # noqa: TID253

from model.native.library import library
from model.native.structs import address, rows_of


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, level: str | None = None) -> Tensor:
    """x over its root mean square (in float32, back to x's dtype), times the weight: [rows, width].

    Args:
        x: [rows, width].
        weight: [width], of x's dtype.

    Raises:
        ValueError: tensors that do not fit together.
    """
    num_rows, width = x.shape
    out = x.new_empty(num_rows, width)
    weights = address(weight, x.dtype, (width,), "weight")
    library().call_level("rms_norm", level, byref(rows_of(x)), byref(rows_of(out)), weights, num_rows, width, eps)
    return out


def silu_mul(gate_up: Tensor, *, num_threads: int, level: str | None = None) -> Tensor:
    """silu(gate) * up, [rows, width], of rows that hold gate and up side by side, [rows, 2 * width]."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    arguments = (byref(rows_of(gate_up)), byref(rows_of(out)), num_rows, width, num_threads)
    library().call_level("silu_mul", level, *arguments)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, level: str | None = None) -> Tensor:
    """Heads turned by their tokens' angles, the two halves of a head being the two axes of each plane: [T, N, H].

    Args:
        x: [T, N, H], each token dense.
        cos, sin: float32 [T, 1, H / 2].

    Raises:
        ValueError: tensors that do not fit together.
    """
    num_tokens, num_heads, size = x.shape
    out = x.new_empty(x.shape)
    angles = [address(table, torch.float32, (num_tokens, 1, size // 2), "angles") for table in (cos, sin)]
    arguments = (byref(rows_of(x)), byref(rows_of(out)), *angles, num_tokens, num_heads, size)
    library().call_level("rotate", level, *arguments)
    return out
