"""What the machine offers: devices, number formats, cores, free memory. Linux only: /proc and control groups."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from model.formats import ComputeFormat
from model.nn.linear import SLOW_ON_CPU
from model.runtime.errors import DeviceError
from model.runtime.memory_plan import Machine, MemoryPlan

_CGROUP_ROOT = Path("/sys/fs/cgroup")

DTYPES: dict[ComputeFormat, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device called "auto" (CUDA where there is one), "cpu", "cuda" (the first) or "cuda:N".

    Raises:
        DeviceError: no such name, or no such device in this machine.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if name in ("auto", "cuda"):
        name = "cuda:0"
    kind, _, index = name.partition(":")
    if kind != "cuda" or not index.isdecimal():
        raise DeviceError(f"the device {name!r} is none of auto, cpu, cuda, cuda:N")
    if int(index) >= count:
        raise DeviceError(f"there is no device {name}: torch {torch.__version__} sees {count} CUDA devices")
    return torch.device("cuda", int(index))


def describe(device: torch.device) -> Machine:
    """The device as the memory plan sees it, with what is free now."""
    on_cuda = device.type == "cuda"
    half: ComputeFormat = "bf16"
    if on_cuda and torch.cuda.get_device_capability(device) < (8, 0):
        half = "fp16"
    return Machine(
        name=str(device),
        kind="cuda" if on_cuda else "cpu",
        total_bytes=_total_memory_bytes(device),
        free_bytes=free_memory_bytes(device),
        half=half,
        fast_half=on_cuda or DTYPES[half] not in SLOW_ON_CPU,
    )


def hold_to(plan: MemoryPlan, device: torch.device) -> None:
    """Let torch take no more of a GPU than the plan gives it: beyond that a step fails, and nobody else's program."""
    if device.type == "cuda":
        share = (plan.budget_bytes - plan.runtime_bytes) / _total_memory_bytes(device)
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)


def usable_cores() -> int:
    """Cores this process may keep busy: its affinity, and the quota of its control groups rounded down."""
    cores = len(os.sched_getaffinity(0))
    for group in _control_groups():
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal():
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def free_memory_bytes(device: torch.device) -> int:
    """Bytes that may still be taken: of the GPU, or of the host within the limits of the control groups."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 1024 * _field(_read(Path("/proc/meminfo")), "MemAvailable:")
    for group in _control_groups():
        limit = _read(group / "memory.max")
        if limit.isdecimal():
            # Cached files that were not read lately are counted as used, but make way at once.
            reclaimable = _field(_read(group / "memory.stat"), "inactive_file")
            free = min(free, int(limit) - int(_read(group / "memory.current")) + reclaimable)
    return max(0, free)


def _total_memory_bytes(device: torch.device) -> int:
    """Of the GPU, or what the host has and the control groups allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = [_read(group / "memory.max") for group in _control_groups()]
    host = 1024 * _field(_read(Path("/proc/meminfo")), "MemTotal:")
    return min([host, *(int(limit) for limit in limits if limit.isdecimal())])


def _control_groups() -> Iterator[Path]:
    """The folders of this process's version 2 control groups, innermost first; none where version 1 is in use."""
    own = next((line[3:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), None)
    if own is None or not (_CGROUP_ROOT / "cgroup.controllers").exists():
        return
    group = _CGROUP_ROOT / own.strip("/")
    while group != _CGROUP_ROOT.parent:
        yield group
        group = group.parent


def _read(path: Path) -> str:
    """The file's text; nothing where it does not exist, as limits do not at the root of the groups."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def _field(text: str, name: str) -> int:
    """The number behind `name` in lines of "name number ..."; 0 where there is none."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    return 0
