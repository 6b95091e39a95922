"""Runners and models of the tiny checkpoints, built once for the whole run."""

from functools import cache
from pathlib import Path

import torch

from model.nn.minicpmv import MiniCPMV
from model.runtime.loading import load_model
from model.runtime.runner import TorchRunner, build_runner


def no_progress(_done_bytes: int, _total_bytes: int) -> None:
    pass


@cache
def tiny_runner(checkpoint: Path, device: str = "cpu", dtype: str = "float32") -> TorchRunner:
    return make_runner(checkpoint, device=device, dtype=dtype)


@cache
def tiny_model(checkpoint: Path, device: str = "cpu", dtype: str = "float32") -> MiniCPMV:
    return load_model(checkpoint, device=torch.device(device), dtype=dtype, progress=no_progress)


def make_runner(
    checkpoint: Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    kv_cache_bytes: int | None = 64 * 1024 * 1024,
    max_context_tokens: int | None = None,
    max_num_sequences: int = 16,
) -> TorchRunner:
    return build_runner(
        checkpoint,
        device=device,
        dtype=dtype,
        # These sizes are too small to share: more threads only wait for each other.
        num_threads=1,
        kv_cache_bytes=kv_cache_bytes,
        max_context_tokens=max_context_tokens,
        max_num_sequences=max_num_sequences,
        max_step_tokens=2048,
        num_crop_slots=64,
        progress=no_progress,
    )
