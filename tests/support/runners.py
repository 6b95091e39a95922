"""Runners and models of the tiny checkpoints, built once for the whole run."""

from functools import cache
from pathlib import Path

import torch

from model.formats import ComputeFormat, WeightFormat
from model.nn.minicpmv import MiniCPMV
from model.runtime.checkpoint import Progress
from model.runtime.loading import OpenedModel
from model.runtime.memory_plan import KvSetting, WeightSetting, Wishes
from model.runtime.runner import TorchRunner, build_runner
from tests.support.kernels import only

KV_CACHE_BYTES = 64 * 1024 * 1024
HOST_CACHE_BYTES = 4 * 1024 * 1024


def no_progress(_done_bytes: int, _total_bytes: int) -> None:
    pass


@cache
def tiny_runner(
    checkpoint: Path,
    device: str = "cpu",
    weights: WeightSetting = "fp32",
    kv: KvSetting = "auto",
    *,
    kernels: bool = True,
) -> TorchRunner:
    """A runner that was built with the CPU's kernels where there are any, or as if there were none."""
    wishes = Wishes(weights=weights, kv=kv, kv_cache_bytes=KV_CACHE_BYTES)
    with only(kernels=kernels):
        return make_runner(checkpoint, device=device, wishes=wishes)


@cache
def tiny_model(
    checkpoint: Path, device: str = "cpu", compute: ComputeFormat = "fp32", weights: WeightFormat | None = None
) -> MiniCPMV:
    return load_model(checkpoint, device, compute, weights)


def load_model(
    checkpoint: Path,
    device: str = "cpu",
    compute: ComputeFormat = "fp32",
    weights: WeightFormat | None = None,
    progress: Progress = no_progress,
) -> MiniCPMV:
    """The networks with their weights in the format that is computed in, unless told otherwise."""
    opened = OpenedModel.from_folder(checkpoint)
    return opened.load(device=torch.device(device), weights=weights or compute, compute=compute, progress=progress)


def make_runner(
    checkpoint: Path,
    *,
    device: str = "cpu",
    wishes: Wishes = Wishes(weights="fp32", kv_cache_bytes=KV_CACHE_BYTES),  # noqa: B008 - it is frozen
    max_context_tokens: int | None = None,
    max_num_sequences: int = 16,
) -> TorchRunner:
    return build_runner(
        checkpoint,
        device=device,
        # These sizes are too small to share: more threads only wait for each other.
        num_threads=1,
        wishes=wishes,
        max_context_tokens=max_context_tokens,
        max_num_sequences=max_num_sequences,
        max_step_tokens=2048,
        num_crop_slots=64,
        host_cache_bytes=HOST_CACHE_BYTES,
        pixel_buffer_bytes=0,
        progress=no_progress,
    )
