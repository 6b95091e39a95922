"""Weights and keys in eight and four bits: how numbers are packed, and products with what is packed.

| format | a scale for | stored | scale | largest error |
|---|---|---|---|---|
| int8 | each row | whole numbers -127 .. 127 | max / 127 | half a scale |
| fp8 | each row | float8 e4m3, -448 .. 448 | max / 448 | 1/16 of the number, or 2^-10 scales |
| int4 | 128 inputs of a row | whole numbers -7 .. 7, plus 8, two a byte | max / 7 | half a scale |

All are symmetric: zero stays zero. A row of a weight is an output channel, so a fused weight can be filled row by row
from several tensors. Products here unpack a piece of the weight at a time and multiply in the format of the
activations: right on every device, and what every kernel is tested against. Kernels multiply by `PanelWeight` on a CPU
and by `TritonWeight` on a GPU. `packed_weight` chooses the class, by format and device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.formats import INT4_GROUP, INT8_PANEL, Packing
from model.gpu.support import is_available
from model.native.library import is_fast
from model.native.linear import linear_w8a16, pack_int8
from model.nn.linear import PackedWeight

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
_INT8_MAX = 127.0
_INT4_MAX = 7.0
_INT4_ZERO = 8
_QUADS = 4 * INT8_PANEL
"""Bytes of a panel's outputs for four inputs, and of their sums."""
_MAX_ROWS_OF_KERNEL = 128
"""At 64 rows the kernel takes three quarters of the time of unpacking and torch's float32 product, at 256 as long."""
_TINY = torch.finfo(torch.float32).tiny


def quantize_int8(x: Tensor, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x along its last axis as int8 of x's shape, and the scales, of the shape without that axis.

    Numbers are rounded by the scale as it is stored, whatever precision that has.
    """
    x = x.float()
    scales = _scales(x, _INT8_MAX, scale_dtype)
    return _steps(x, scales, _INT8_MAX).to(torch.int8), scales


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x along its last axis as float8 of x's shape, and the float32 scales, of the shape without that axis."""
    x = x.float()
    scales = _scales(x, FP8_MAX, torch.float32)
    return to_fp8(x / scales.clamp_min(_TINY)[..., None]), scales


def to_fp8(x: Tensor) -> Tensor:
    """x as float8 without a scale; what is too large becomes the largest, which torch does not promise."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantize_int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [R, inputs] as uint8 [R, groups * 64], and the float16 scales [R, groups].

    Byte j of a group holds input j in its lower half and input j + 64 in its upper half, so that each half unpacks to
    a run of neighbours.
    """
    padding = -rows.shape[1] % INT4_GROUP
    groups = F.pad(rows.float(), (0, padding)).view(rows.shape[0], -1, INT4_GROUP)
    scales = _scales(groups, _INT4_MAX, torch.float16)
    steps = (_steps(groups, scales, _INT4_MAX) + _INT4_ZERO).to(torch.uint8)
    low, high = steps.chunk(2, dim=-1)
    return (low | (high << 4)).flatten(1), scales


def _scales(x: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    return (x.abs().amax(-1) / largest).to(dtype)


def _steps(x: Tensor, scales: Tensor, largest: float) -> Tensor:
    # A row of zeros has the scale 0: its quotients stay 0. A scale that was rounded down may lift the largest over the
    # end of the range.
    return (x / scales.float().clamp_min(_TINY)[..., None]).round_().clamp_(-largest, largest)


class ChannelWeight(PackedWeight):
    """Eight bits a number and a scale for each output."""

    def __init__(
        self, num_outputs: int, num_inputs: int, dtype: torch.dtype, device: torch.device, values_dtype: torch.dtype
    ) -> None:
        super().__init__(num_outputs, num_inputs, dtype)
        self.values = _parameter(device, values_dtype, num_outputs, num_inputs)
        self.scales = _parameter(device, torch.float32, num_outputs)

    def fill(self, first_row: int, rows: Tensor) -> None:
        part = slice(first_row, first_row + len(rows))
        quantize = quantize_int8 if self.values.dtype == torch.int8 else quantize_fp8
        self.values[part], self.scales[part] = quantize(rows)

    def unpack(self, rows: slice | Tensor, out: Tensor) -> None:
        out.copy_(self.values[rows])
        out *= self.scales[rows][:, None]


class TritonWeight(ChannelWeight):
    """The same on a GPU, where Triton kernels multiply it as it is."""

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        from model.gpu.linear import MAX_ROWS, linear_8bit  # needs triton

        if x.numel() // x.shape[-1] > MAX_ROWS:
            return super().multiply(x, bias)
        return linear_8bit(x, self.values, self.scales, bias)


class PanelWeight(PackedWeight):
    """The numbers of an int8 `ChannelWeight` in the order of the CPU's kernels, which multiply them as they are."""

    def __init__(self, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
        super().__init__(num_outputs, num_inputs, dtype)
        cpu = torch.device("cpu")
        # What `pack_int8` makes: 16 outputs side by side by quads of inputs, and behind them 16 sums of 4 bytes.
        self.values = _parameter(cpu, torch.int8, -(-num_outputs // INT8_PANEL), (-(-num_inputs // 4) + 1) * _QUADS)
        self.scales = _parameter(cpu, torch.float32, num_outputs)
        self.values.zero_()  # `fill` packs whole panels, those that are not yet filled too

    def fill(self, first_row: int, rows: Tensor) -> None:
        end_row = first_row + len(rows)
        first_panel, end_panel = first_row // INT8_PANEL, -(-end_row // INT8_PANEL)
        steps = torch.empty((end_panel - first_panel) * INT8_PANEL, self.num_inputs, dtype=torch.int8)
        # Only at the ends may a panel hold other rows, too.
        for panel in {first_panel, end_panel - 1}:
            at = (panel - first_panel) * INT8_PANEL
            steps[at : at + INT8_PANEL] = self._steps(torch.arange(INT8_PANEL) + panel * INT8_PANEL)
        offset = first_row % INT8_PANEL
        steps[offset : offset + len(rows)], self.scales[first_row:end_row] = quantize_int8(rows)
        self.values[first_panel:end_panel] = pack_int8(steps, num_threads=torch.get_num_threads())

    def unpack(self, rows: slice | Tensor, out: Tensor) -> None:
        numbers = torch.arange(self.num_outputs)[rows] if isinstance(rows, slice) else rows
        out.copy_(self._steps(numbers))
        out *= self.scales[rows][:, None]

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.numel() // x.shape[-1] > _MAX_ROWS_OF_KERNEL:
            return super().multiply(x, bias)
        bias = None if bias is None else bias.float()
        return linear_w8a16(x, self.values, self.scales, bias, num_threads=torch.get_num_threads())

    def _steps(self, rows: Tensor) -> Tensor:
        """int8 [R, inputs] of the rows of these numbers."""
        panels = self.values[:, :-_QUADS].view(len(self.values), -1, INT8_PANEL, 4)
        return panels[rows // INT8_PANEL, :, rows % INT8_PANEL].flatten(1)[:, : self.num_inputs]


class Int4Weight(PackedWeight):
    """Four bits a number and a scale for each 128 inputs of an output."""

    def __init__(self, num_outputs: int, num_inputs: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(num_outputs, num_inputs, dtype)
        num_groups = -(-num_inputs // INT4_GROUP)
        self.values = _parameter(device, torch.uint8, num_outputs, num_groups * INT4_GROUP // 2)
        self.scales = _parameter(device, torch.float16, num_outputs, num_groups)

    def fill(self, first_row: int, rows: Tensor) -> None:
        part = slice(first_row, first_row + len(rows))
        self.values[part], self.scales[part] = quantize_int4(rows)

    def unpack(self, rows: slice | Tensor, out: Tensor) -> None:
        scales = self.scales[rows].float()
        packed = self.values[rows].view(*scales.shape, INT4_GROUP // 2)
        steps = torch.cat((packed & 15, packed >> 4), dim=-1).to(out.dtype) - _INT4_ZERO
        out.copy_((steps * scales[..., None]).flatten(1)[:, : self.num_inputs])


def _parameter(device: torch.device, dtype: torch.dtype, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def packed_weight(
    packing: Packing, num_outputs: int, num_inputs: int, *, dtype: torch.dtype, device: torch.device
) -> PackedWeight:
    """What takes the place of a parameter, still to be filled.

    Args:
        dtype: of activations.
        device: where it stays.
    """
    match packing:
        case "int8" if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and is_fast():
            return PanelWeight(num_outputs, num_inputs, dtype)
        case "int8" | "fp8":
            kind = TritonWeight if is_available(device) else ChannelWeight
            return kind(num_outputs, num_inputs, dtype, device, torch.int8 if packing == "int8" else FP8)
        case "int4":
            return Int4Weight(num_outputs, num_inputs, dtype, device)
