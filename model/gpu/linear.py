"""Products with 8-bit weights as they are stored, activations as they are, summed in float32.

A weight's number goes into the matrix instructions as it is (a whole number or a float8, both exact in every activation
format); the scale of its output comes after the sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.gpu.numbers import to_float
from model.gpu.support import as_bytes, num_processors

FEW_ROWS = 16
"""Up to here one tile holds all rows: the weight is read once, by programs that also share its inputs."""
MAX_ROWS = 1024
"""From here on a product is limited by arithmetic so much that unpacking the weight first and torch's own product are
taken: see docs/decisions/gpu-kernels.md. Arithmetic, not measured."""

_PROGRAMS_A_PROCESSOR = 2
_LEAST_SPLIT_STEPS = 4
_PIECE = 512


def linear_8bit(
    x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, *, num_splits: int | None = None
) -> Tensor:
    """x @ (weight * scales).T + bias, [..., outputs] in x's dtype.

    Args:
        x: [..., inputs], float32, bfloat16 or float16.
        weight: int8 or float8 e4m3 [outputs, inputs], dense.
        scales: float32 [outputs].
        bias: [outputs].
        num_splits: parts of the inputs, for tests; None chooses, and not by the rows: up to `FEW_ROWS`, what a row
            gives does not depend on how many there are.
    """
    weight = as_bytes(weight)
    num_outputs, num_inputs = weight.shape
    assert x.shape[-1] == num_inputs
    assert weight.is_contiguous()
    rows = x.reshape(-1, num_inputs)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    num_rows = len(rows)
    out = x.new_empty(num_rows, num_outputs)
    if num_rows:
        _launch(rows, weight, scales, bias, out, num_splits)
    return out.view(*x.shape[:-1], num_outputs)


def _launch(
    rows: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor, num_splits: int | None
) -> None:
    num_rows, num_inputs = rows.shape
    num_outputs = len(weight)
    shape = _tile_shape(num_rows, rows.dtype)
    tiles = (triton.cdiv(num_rows, shape["ROWS"]), triton.cdiv(num_outputs, shape["OUTPUTS"]))
    num_steps = triton.cdiv(num_inputs, shape["INPUTS"])
    if num_splits is None:
        num_splits = _choose_splits(tiles, num_steps, num_processors(rows.device))
    split_steps = triton.cdiv(num_steps, num_splits)
    num_splits = triton.cdiv(num_steps, split_steps)
    partial = None
    if num_splits > 1:
        partial = torch.empty(num_splits, num_rows, num_outputs, dtype=torch.float32, device=rows.device)
    _multiply[(*tiles, num_splits)](
        *(rows, weight, scales, bias, out, partial),
        *(num_rows, num_outputs, num_inputs, rows.stride(0), split_steps, num_rows * num_outputs),
        **shape,
        IS_EVEN=num_inputs % shape["INPUTS"] == 0,
        num_warps=8 if shape["ROWS"] == 128 else 4,
        num_stages=2 if rows.dtype == torch.float32 else 3,
    )
    if partial is not None:
        _join_splits[(num_rows, triton.cdiv(num_outputs, _PIECE))](
            partial, scales, bias, out, num_outputs, num_splits, num_rows * num_outputs, PIECE=_PIECE, num_warps=4
        )


def _tile_shape(num_rows: int, dtype: torch.dtype) -> dict[str, int]:
    """Of a program: with three stages of it, in half precision, 72 KiB of shared memory at the most."""
    if num_rows <= FEW_ROWS:
        return {"ROWS": FEW_ROWS, "OUTPUTS": 32, "INPUTS": 128 if dtype != torch.float32 else 64}
    if num_rows <= 32 or dtype == torch.float32:
        return {"ROWS": 32, "OUTPUTS": 64, "INPUTS": 64}
    if num_rows <= 64:
        return {"ROWS": 64, "OUTPUTS": 64, "INPUTS": 64}
    return {"ROWS": 128, "OUTPUTS": 128, "INPUTS": 64}


def _choose_splits(tiles: tuple[int, int], num_steps: int, num_processors: int) -> int:
    row_tiles, output_tiles = tiles
    if row_tiles > 1:
        return 1
    wanted: int = triton.cdiv(_PROGRAMS_A_PROCESSOR * num_processors, output_tiles)
    return max(1, min(wanted, num_steps // _LEAST_SPLIT_STEPS))


@triton.jit(do_not_specialize=["num_rows", "split_steps", "partial_split"])
def _multiply(
    x,
    weight,
    scales,
    bias,
    out,
    partial,
    num_rows,
    num_outputs,
    num_inputs,
    x_row,
    split_steps,
    partial_split,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    IS_EVEN: tl.constexpr,
):
    """Program (tile of rows, tile of outputs, split of inputs); neighbours are tiles of rows, which share a weight."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    split = tl.program_id(2)
    at = tl.arange(0, INPUTS)
    x += row.to(tl.int64)[:, None] * x_row + at[None, :]
    weight += output.to(tl.int64)[:, None] * num_inputs + at[None, :]
    kind: tl.constexpr = x.dtype.element_ty
    has_row, has_output = (row < num_rows)[:, None], (output < num_outputs)[:, None]
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    first = split * split_steps * INPUTS
    end = tl.minimum(first + split_steps * INPUTS, num_inputs)
    for start in range(first, end, INPUTS):
        if IS_EVEN:
            some_x = tl.load(x + start, mask=has_row, other=0.0)
            numbers = tl.load(weight + start, mask=has_output, other=0)
        else:
            inside = (start + at < num_inputs)[None, :]
            some_x = tl.load(x + start, mask=has_row & inside, other=0.0)
            numbers = tl.load(weight + start, mask=has_output & inside, other=0)
        # To half precision a card converts whole numbers four at a time; `to_float` would go by float32.
        factors = numbers.to(kind) if numbers.dtype == tl.int8 else to_float(numbers).to(kind)
        total = tl.dot(some_x, tl.trans(factors), total, input_precision="ieee")
    place = row.to(tl.int64)[:, None] * num_outputs + output[None, :]
    inside = has_row & (output < num_outputs)[None, :]
    if partial is None:
        result = _finish(total, scales, bias, output, num_outputs)
        tl.store(out + place, result.to(kind), mask=inside)
    else:
        tl.store(partial + split.to(tl.int64) * partial_split + place, total, mask=inside)


@triton.jit(do_not_specialize=["num_splits", "partial_split"])
def _join_splits(partial, scales, bias, out, num_outputs, num_splits, partial_split, PIECE: tl.constexpr):
    """Program (row, piece of the outputs): splits are added in their order, so that equal inputs give equal sums."""
    output = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    place = tl.program_id(0).to(tl.int64) * num_outputs + output
    total = tl.zeros([PIECE], tl.float32)
    partial += place
    for _ in range(num_splits):
        total += tl.load(partial, mask=output < num_outputs, other=0.0)
        partial += partial_split
    result = _finish(total[None, :], scales, bias, output, num_outputs)
    tl.store(out + place[None, :], result.to(out.dtype.element_ty), mask=(output < num_outputs)[None, :])


@triton.jit
def _finish(total, scales, bias, output, num_outputs):
    """Sums [rows, outputs] times the scales of the outputs, plus the bias."""
    result = total * tl.load(scales + output, mask=output < num_outputs, other=0.0)[None, :]
    if bias is not None:
        result += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)[None, :]
    return result
