"""Matrix products, also in half precision on a processor that has no instructions for it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Without matrix instructions for a half precision, torch multiplies many rows by it at a fifth of the speed of
# float32 (20 against 100 GFLOP/s on two AVX2 cores); few rows are limited by memory and half the bytes win. From
# about twelve rows on it pays to convert the weight on the way.
_MIN_ROWS_TO_CONVERT = 12

# Converted at a time: still in the third level cache when sgemm reads it back. A quarter of it was no faster on a
# quiet machine and three times slower on a busy one, because the threads meet after every piece.
_SCRATCH_BYTES = 16 * 1024 * 1024


def _slow_on_this_cpu() -> frozenset[torch.dtype]:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch ships no type for it
        return frozenset((torch.bfloat16, torch.float16))
    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_native in native.items() if not is_native)


_SLOW_ON_CPU = _slow_on_this_cpu()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, in x's dtype.

    Args:
        x: [..., inputs], any number of rows.
        weight: [outputs, inputs], of x's dtype.
        bias: [outputs].
    """
    num_rows = x.numel() // x.shape[-1]
    if weight.is_cpu and weight.dtype in _SLOW_ON_CPU and num_rows >= _MIN_ROWS_TO_CONVERT:
        return _multiply_in_float32(x, weight, bias)
    return F.linear(x, weight, bias)


def _multiply_in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    num_outputs, num_inputs = weight.shape
    rows = x.reshape(-1, num_inputs).float()
    bias = None if bias is None else bias.float()
    result = torch.empty(rows.shape[0], num_outputs, dtype=x.dtype)
    step = max(1, min(num_outputs, _SCRATCH_BYTES // (4 * num_inputs)))
    scratch = torch.empty(step, num_inputs)
    for first in range(0, num_outputs, step):
        part = slice(first, min(first + step, num_outputs))
        converted = scratch[: part.stop - first].copy_(weight[part])
        result[:, part] = F.linear(rows, converted, None if bias is None else bias[part])
    return result.view(*x.shape[:-1], num_outputs)


class Linear(nn.Module):
    """A weight [outputs, inputs] and, where the checkpoint has one, a bias."""

    def __init__(self, num_inputs: int, num_outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        self.bias = nn.Parameter(torch.empty(num_outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
