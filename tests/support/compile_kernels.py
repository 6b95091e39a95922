"""Compiles the GPU kernels to machine code for some architectures, without a GPU.

    python -m tests.support.compile_kernels DTYPE ARCHITECTURE [ARCHITECTURE ...]        bfloat16 80 89 90

The wrappers are called as ever, on a CPU's tensors of the full-size model's shapes, but where they would launch a
kernel it is compiled alone. Prints a line for each kernel; an error of Triton's or of its assembler ends the program.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from model.gpu.attention import attend_one_token_rows, attend_rows
from model.gpu.fused import add_rms_norm, rms_norm, silu_mul
from model.gpu.linear import linear_8bit
from model.gpu.pools import Pools, rotate_and_store, store

NUM_TOKENS, NUM_HEADS, SIZE, WIDTH = 4, 36, 64, 2304


class NoDriver:
    """Stands where Triton asks which card it compiles for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def compile_only(function: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
    def call(*arguments: Any, **constants: Any) -> None:
        kernel = function.run(*arguments, grid=grid, warmup=True, **constants)
        assert kernel.asm["cubin"]
        print(driver.active.architecture, function.__name__, f"{kernel.metadata.shared} bytes shared", flush=True)

    return call


def small_steps(dtype: torch.dtype) -> None:
    x, weight = torch.empty(NUM_TOKENS, WIDTH, dtype=dtype), torch.empty(WIDTH, dtype=dtype)
    rms_norm(x, weight, 1e-5)
    add_rms_norm(x, x, 0.2, weight, 1e-5)
    silu_mul(x)


def attention(dtype: torch.dtype, kind: torch.dtype) -> None:
    data = torch.empty(2, NUM_HEADS, 8, 16, SIZE, dtype=kind)
    scales = torch.empty(data.shape[:-1], dtype=torch.float16) if kind == torch.int8 else (None, None)
    pools = Pools.of(data[0], data[1], scales[0], scales[1])
    q, k, v = torch.empty(NUM_TOKENS, 3 * NUM_HEADS, SIZE, dtype=dtype).split(NUM_HEADS, dim=1)
    slots = torch.zeros(NUM_TOKENS, dtype=torch.int64)
    angles = torch.empty(NUM_TOKENS, 1, SIZE // 2)
    store(k, v, slots, pools)
    q = rotate_and_store(q, k, v, (angles, angles), slots, pools)
    out = torch.empty_like(q)
    rows = {
        "block_table": torch.zeros(NUM_TOKENS, 8, dtype=torch.int32),
        "num_keys": torch.full((NUM_TOKENS,), 100, dtype=torch.int32),
    }
    for num_splits in (1, 2):
        attend_one_token_rows(q, pools, **rows, num_rows=NUM_TOKENS, max_keys=1000, out=out, num_splits=num_splits)
    first_tokens = torch.arange(NUM_TOKENS + 1, dtype=torch.int32)
    for max_new in (1, 100):
        attend_rows(q, pools, **rows, first_tokens=first_tokens, first_row=0, max_new=max_new, out=out)


def products(dtype: torch.dtype, kind: torch.dtype) -> None:
    weight, scales = torch.empty(WIDTH, WIDTH, dtype=kind), torch.empty(WIDTH)
    for num_rows in (1, 100):
        linear_8bit(torch.empty(num_rows, WIDTH, dtype=dtype), weight, scales, num_splits=2 if num_rows == 1 else 1)
    bias = torch.empty(64, dtype=dtype)
    linear_8bit(torch.empty(1, 4304, dtype=dtype), torch.empty(64, 4304, dtype=kind), scales[:64], bias, num_splits=1)


def main() -> None:
    JITFunction.__getitem__ = compile_only
    dtype = getattr(torch, sys.argv[1])
    for architecture in map(int, sys.argv[2:]):
        driver.set_active(NoDriver(architecture))
        small_steps(dtype)
        for kind in (torch.int8, torch.float8_e4m3fn):
            products(dtype, kind)
        for kind in (torch.int8, torch.float8_e4m3fn, dtype):
            attention(dtype, kind)


if __name__ == "__main__":
    main()
