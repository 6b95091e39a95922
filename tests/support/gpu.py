"""Where tests of the GPU kernels run: on a CUDA device, or without one in Triton's interpreter."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from model.gpu import support
from model.native import library

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

needs_interpreter = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(not IS_INTERPRETED, reason="compiled kernels, on a CUDA device"),
]

devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param(torch.device("cpu"), id="interpreter", marks=needs_interpreter),
        pytest.param(torch.device("cuda:0"), id="cuda", marks=[pytest.mark.gpu, needs_cuda]),
    ],
)


def mend_interpreter() -> None:
    """Give Triton's interpreter bfloat16 as cards have it.

    Its own conversions cut off where a card rounds, and read whole numbers as bits; its matrix product multiplies the
    bits. It keeps bfloat16 as uint16.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

    plain_cast, plain_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast(self: Any, source: Any, wanted: Any) -> Any:
        if tl.bfloat16 not in (source.dtype.scalar, wanted.scalar):
            return plain_cast(self, source, wanted)
        numbers = _widened(source.data) if source.dtype.scalar == tl.bfloat16 else source.data.astype(np.float32)
        is_target = wanted.scalar == tl.bfloat16
        return TensorHandle(_narrowed(numbers) if is_target else numbers.astype(_get_np_dtype(wanted)), wanted.scalar)

    def dot(self: Any, a: Any, b: Any, *more: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (TensorHandle(_widened(x.data), tl.float32) for x in (a, b))
        return plain_dot(self, a, b, *more)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast, dot


def _widened(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _narrowed(numbers: Any) -> Any:
    """To the nearest, to even at the middle; the bits as uint16."""
    rounded = torch.from_numpy(np.array(numbers, dtype=np.float32)).bfloat16().view(torch.int16)
    return rounded.numpy().view(np.uint16)


@contextmanager
def as_if_on_a_gpu() -> Iterator[None]:
    """What is built meanwhile, on a CPU, takes the GPU's kernels, which then run in the interpreter."""
    none = library.NativeUnavailableError("switched off")
    with (
        mock.patch.object(library, "_load", return_value=none),
        mock.patch.object(support, "reason_against", return_value=None),
        mock.patch.object(torch.cuda, "set_device"),
    ):
        yield
