"""Matrix products: with packed weights, and in half precision on a processor that has no instructions for it."""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.native.library import is_fast
from model.native.linear import linear_bf16

# Without matrix instructions for a half precision, torch multiplies many rows by it at a fifth of the speed of
# float32 (20 against 100 GFLOP/s on two AVX2 cores); few rows are limited by memory and half the bytes win. From
# about twelve rows on it pays to convert the weight on the way.
_MIN_ROWS_TO_CONVERT = 12

# The compiled kernel reads bfloat16 weights as they are; up to here it beats converting them.
_MAX_ROWS_OF_KERNEL = 64

# Converted at a time: still in the third level cache when sgemm reads it back. A quarter of it was no faster on a
# quiet machine and three times slower on a busy one, because the threads meet after every piece.
SCRATCH_BYTES = 16 * 1024 * 1024

Unpack = Callable[[slice, Tensor], object]
"""(rows, out) -> writes these rows of a weight into `out`, [rows, inputs]."""


def _slow_on_this_cpu() -> frozenset[torch.dtype]:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch ships no type for it
        return frozenset((torch.bfloat16, torch.float16))
    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_native in native.items() if not is_native)


SLOW_ON_CPU = _slow_on_this_cpu()
"""Formats that this processor has no matrix instructions for."""


class PackedWeight(nn.Module):
    """A weight [outputs, inputs] in fewer bits; stands where the parameter stood. `model.nn.quant` has the formats."""

    def __init__(self, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: of activations, in which `lookup` answers.
        """
        super().__init__()
        self.num_outputs = num_outputs
        self.num_inputs = num_inputs
        self.dtype = dtype

    @abstractmethod
    def fill(self, first_row: int, rows: Tensor) -> None:
        """Pack some rows, [R, inputs] of any float format, as those from `first_row` on."""

    @abstractmethod
    def unpack(self, rows: slice | Tensor, out: Tensor) -> None:
        """Write the rows of a range, or those of these numbers, into `out`, [R, inputs] of any float format."""

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, in x's dtype; see `linear`."""
        return multiply_in_pieces(x, self.num_outputs, self.unpack, bias)

    def lookup(self, ids: Tensor) -> Tensor:
        """The rows of these numbers, [..., inputs]."""
        out = torch.empty(ids.numel(), self.num_inputs, dtype=self.dtype, device=ids.device)
        self.unpack(ids.flatten(), out)
        return out.view(*ids.shape, -1)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, in x's dtype.

    Args:
        x: [..., inputs], any number of rows.
        weight: [outputs, inputs], of x's dtype or packed.
        bias: [outputs].
    """
    if isinstance(weight, PackedWeight):
        return weight.multiply(x, bias)
    num_rows = x.numel() // x.shape[-1]
    if not weight.is_cpu or weight.dtype not in SLOW_ON_CPU:
        return F.linear(x, weight, bias)
    if weight.dtype == torch.bfloat16 and num_rows <= _MAX_ROWS_OF_KERNEL and weight.is_contiguous() and is_fast():
        bias = None if bias is None else bias.float()
        return linear_bf16(x, weight, bias, num_threads=torch.get_num_threads())
    if num_rows >= _MIN_ROWS_TO_CONVERT:
        return multiply_in_pieces(x, len(weight), lambda part, out: out.copy_(weight[part]), bias)
    return F.linear(x, weight, bias)


def lookup(ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """The rows of a weight by number, [..., inputs], in the dtype of activations."""
    return weight.lookup(ids) if isinstance(weight, PackedWeight) else F.embedding(ids, weight)


def multiply_in_pieces(x: Tensor, num_outputs: int, unpack: Unpack, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias, in x's dtype, some outputs at a time: there is never a second copy of the whole weight.

    Computed in x's dtype, but in float32 where the processor is slow in it. The pieces depend on the weight alone, so
    how many rows x has changes a row's result by no more than the order of its sums.

    Args:
        x: [..., inputs].
        num_outputs: rows of the weight.
        unpack: writes the weight's rows of a range into a tensor of the dtype that is computed in.
        bias: [outputs].
    """
    num_inputs = x.shape[-1]
    dtype = torch.float32 if x.is_cpu and x.dtype in SLOW_ON_CPU else x.dtype
    rows = x.reshape(-1, num_inputs).to(dtype)
    bias = None if bias is None else bias.to(dtype)
    result = x.new_empty(rows.shape[0], num_outputs)
    step = max(1, min(num_outputs, SCRATCH_BYTES // (dtype.itemsize * num_inputs)))
    scratch = x.new_empty(step, num_inputs, dtype=dtype)
    for first in range(0, num_outputs, step):
        part = slice(first, min(first + step, num_outputs))
        piece = scratch[: part.stop - first]
        unpack(part, piece)
        result[:, part] = F.linear(rows, piece, None if bias is None else bias[part])
    return result.view(*x.shape[:-1], num_outputs)


class Linear(nn.Module):
    """A weight [outputs, inputs] and, where the checkpoint has one, a bias."""

    def __init__(self, num_inputs: int, num_outputs: int, *, bias: bool) -> None:
        super().__init__()
        # Loading may put a PackedWeight in its place.
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        self.bias = nn.Parameter(torch.empty(num_outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
