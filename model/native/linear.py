"""Products with packed 8-bit and 4-bit weights, and with bfloat16 weights for a few rows.

Each returns x @ weight.T + bias as [..., outputs] in x's dtype (float32 or bfloat16). A row's result depends neither on
the other rows nor on the number of threads. `level` names one of `library.LEVELS`; None is the best that runs here.
"""

from ctypes import byref

import torch  # noqa: TID253 - tensors are what the kernels work on
from torch import Tensor  # noqa: TID253

from model.native.library import library
from model.native.structs import Linear, address, rows_of

_PANEL = 16
"""Outputs that are stored together."""

GROUP_INPUTS = 128
"""Inputs that share a scale in 4-bit weights."""


def pack_int8(weight: Tensor, *, num_threads: int) -> Tensor:
    """The weight in the order in which `linear_w8a8` and `linear_w8a16` read it, for the life of the model.

    Args:
        weight: int8 [outputs, inputs], from -127 to 127 (-128 would overflow on processors without VNNI).

    Returns:
        int8 [panels, bytes of a panel]; it takes as much memory as the weight, and 64 bytes a panel.

    Raises:
        ValueError: a number is -128, or the weight is no such tensor.
    """
    outputs, inputs = weight.shape
    source = address(weight, torch.int8, (outputs, inputs), "weight")
    if weight.numel() and int(weight.min()) < -127:
        raise ValueError("8-bit weights are symmetric: from -127 to 127")
    packed = torch.empty(_packed_shape(outputs, inputs), dtype=torch.int8)
    library().call("pack_int8", source, packed.data_ptr(), outputs, inputs, num_threads)
    return packed


def linear_w8a8(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None, *, num_threads: int, level: str | None = None
) -> Tensor:
    """The product with activations rounded to 8 bits row by row: scale = max |x| / 127, integer = round(x / scale).

    The sum over the inputs is taken in integers, exactly, so all levels agree bit for bit. For any number of rows.

    Args:
        x: [..., inputs].
        packed: from `pack_int8`.
        scales: float32 [outputs], the value of a weight's 1.
        bias: float32 [outputs].

    Raises:
        ValueError: tensors that do not fit together.
    """
    return _int8("linear_w8a8", x, packed, scales, bias, num_threads, level)


def linear_w8a16(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None, *, num_threads: int, level: str | None = None
) -> Tensor:
    """The product with activations as they are, summed in float32; only the weights are rounded. For a few rows.

    Args and Raises: as for `linear_w8a8`.
    """
    return _int8("linear_w8a16", x, packed, scales, bias, num_threads, level)


def pack_int4(weight: Tensor, scales: Tensor, *, num_threads: int) -> tuple[Tensor, Tensor]:
    """The weight and its scales in the order in which `linear_w4a16` reads them.

    Args:
        weight: int8 [outputs, inputs], from -8 to 7; inputs a multiple of 128.
        scales: float32 [outputs, inputs / 128], the value of a weight's 1 in each group of inputs.

    Raises:
        ValueError: the weight is no such tensor.
    """
    outputs, inputs = weight.shape
    source = address(weight, torch.int8, (outputs, inputs), "weight")
    groups, odd_inputs = divmod(inputs, GROUP_INPUTS)
    address(scales, torch.float32, (outputs, groups), "scales")
    if odd_inputs or int(weight.min()) < -8 or int(weight.max()) > 7:
        raise ValueError(f"4-bit weights are from -8 to 7, their inputs a multiple of {GROUP_INPUTS}")
    panels = -(-outputs // _PANEL)
    packed = torch.empty(panels, inputs * _PANEL // 2, dtype=torch.int8)
    library().call("pack_int4", source, packed.data_ptr(), outputs, inputs, num_threads)
    padded = scales.new_zeros(panels * _PANEL, groups)
    padded[:outputs] = scales
    return packed, padded.view(panels, _PANEL, groups).transpose(1, 2).contiguous()


def linear_w4a16(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    num_outputs: int,
    bias: Tensor | None = None,
    *,
    num_threads: int,
    level: str | None = None,
) -> Tensor:
    """The product with 4-bit weights and activations as they are, summed in float32. For a few rows.

    Args:
        x: [..., inputs].
        packed, scales: from `pack_int4`.
        bias: float32 [outputs].

    Raises:
        ValueError: tensors that do not fit together.
    """
    inputs, panels = x.shape[-1], -(-num_outputs // _PANEL)
    weight = address(packed, torch.int8, (panels, inputs * _PANEL // 2), "packed")
    scale = address(scales, torch.float32, (panels, inputs // GROUP_INPUTS, _PANEL), "scales")
    return _run("linear_w4a16", x, weight, scale, num_outputs, bias, num_threads, level)


def linear_bf16(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_threads: int, level: str | None = None
) -> Tensor:
    """The product with a weight that is not packed, summed in float32. For a few rows.

    Args:
        x: [..., inputs].
        weight: bfloat16 [outputs, inputs].
        bias: float32 [outputs].

    Raises:
        ValueError: tensors that do not fit together.
    """
    outputs, inputs = weight.shape
    if x.shape[-1] != inputs:
        raise ValueError(f"x has {x.shape[-1]} inputs, the weight {inputs}")
    source = address(weight, torch.bfloat16, (outputs, inputs), "weight")
    return _run("linear_bf16", x, source, None, outputs, bias, num_threads, level)


def _packed_shape(outputs: int, inputs: int) -> tuple[int, int]:
    """Panels of 16 outputs; quads of 4 inputs, and the sums of the weights, 64 bytes each."""
    return -(-outputs // _PANEL), (-(-inputs // 4) + 1) * 4 * _PANEL


def _int8(
    name: str, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, num_threads: int, level: str | None
) -> Tensor:
    outputs = scales.shape[0]
    weight = address(packed, torch.int8, _packed_shape(outputs, x.shape[-1]), "packed")
    scale = address(scales, torch.float32, (outputs,), "scales")
    return _run(name, x, weight, scale, outputs, bias, num_threads, level)


def _run(
    name: str,
    x: Tensor,
    weight: int,
    scales: int | None,
    outputs: int,
    bias: Tensor | None,
    num_threads: int,
    level: str | None,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    out = rows.new_empty(rows.shape[0], outputs)
    arguments = Linear(
        x=rows_of(rows),
        out=rows_of(out),
        weight=weight,
        scales=scales,
        bias=None if bias is None else address(bias, torch.float32, (outputs,), "bias"),
        rows=rows.shape[0],
        inputs=rows.shape[1],
        outputs=outputs,
        threads=num_threads,
    )
    library().call_level(name, level, byref(arguments))
    return out.view(*x.shape[:-1], outputs)
