"""The structs of src/kernels.h, and how tensors get into them. Field by field the same order; see there."""

import ctypes

import torch  # noqa: TID253 - tensors are what the kernels work on
from torch import Tensor  # noqa: TID253

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class Rows(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("kind", ctypes.c_int64), ("stride", ctypes.c_int64))


class Linear(ctypes.Structure):
    _fields_ = (
        ("x", Rows),
        ("out", Rows),
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs", "threads")),
    )


class Pools(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_int64) for name in ("kind", "heads", "blocks", "block_tokens", "size")),
    )


class Attention(ctypes.Structure):
    _fields_ = (
        ("q", Rows),
        ("out", Rows),
        ("pools", Pools),
        *((name, ctypes.c_void_p) for name in ("block_table", "first_tokens", "num_keys")),
        *((name, ctypes.c_int64) for name in ("table_width", "sequences", "query_heads", "threads")),
        ("scale", ctypes.c_float),
    )


class Store(ctypes.Structure):
    _fields_ = (
        ("keys", Rows),
        ("values", Rows),
        ("pools", Pools),
        ("slots", ctypes.c_void_p),
        ("tokens", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


def rows_of(x: Tensor) -> Rows:
    """A tensor as rows along its first axis; the other axes must lie dense in each row.

    Raises:
        ValueError: they do not, it is not on the CPU, or its dtype is none of the activations'.
    """
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"rows are float32 or bfloat16, not {x.dtype}")
    if not x.is_cpu or (len(x) and not x[0].is_contiguous()):
        raise ValueError("rows lie in the CPU's memory, each of them dense")
    return Rows(x.data_ptr(), KINDS[x.dtype], x.stride(0))


def address(x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> int:
    """Where a dense tensor of the CPU begins.

    Raises:
        ValueError: it is another kind of tensor than the kernel reads.
    """
    if x.dtype != dtype or tuple(x.shape) != shape or not x.is_contiguous() or not x.is_cpu:
        raise ValueError(f"{name} must be a dense {dtype} tensor {list(shape)}, not {x.dtype} {list(x.shape)}")
    return x.data_ptr()
