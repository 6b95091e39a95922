"""What the machine offers, and the refusal of what it does not."""

import os

import pytest
import torch

from model.runtime import device
from model.runtime.device import choose_device, describe, free_memory_bytes, usable_cores
from model.runtime.errors import DeviceError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_unknown_device_is_refused_by_name(name):
    with pytest.raises(DeviceError, match=f"'{name}'"):
        choose_device(name)


def test_device_that_is_not_there():
    with pytest.raises(DeviceError, match="cuda:64"):
        choose_device("cuda:64")


def test_cpu_is_taken_when_asked_for():
    assert choose_device("cpu") == CPU


@pytest.fixture
def control_group(tmp_path, monkeypatch):
    """Sets the files of this process's control group."""
    monkeypatch.setattr(device, "_CGROUP_ROOT", tmp_path)

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text + "\n")

    return write


def test_without_control_groups_the_affinity_decides(control_group):
    assert usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("199999 100000", 1)])
def test_quota_of_the_control_group_bounds_the_cores(control_group, quota, cores):
    control_group(cgroup__controllers="cpu memory", cpu__max=quota)
    assert usable_cores() == cores


def test_no_quota(control_group):
    control_group(cgroup__controllers="cpu memory", cpu__max="max 100000")
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_limit_of_the_control_group_bounds_the_memory(control_group):
    unlimited = free_memory_bytes(CPU)
    assert unlimited > 0
    control_group(
        cgroup__controllers="cpu memory",
        memory__max="50000000",
        memory__current="30000000",
        memory__stat="anon 25000000\ninactive_file 4000000",
    )
    assert free_memory_bytes(CPU) == 24_000_000
    control_group(memory__current="60000000")
    assert free_memory_bytes(CPU) == 0


def test_share_of_a_host_is_a_share_of_what_the_control_group_allows(control_group):
    assert describe(CPU).total_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    control_group(cgroup__controllers="cpu memory", memory__max="50000000", memory__current="0")
    assert describe(CPU).total_bytes == 50_000_000
    control_group(memory__max="max")
    assert describe(CPU).total_bytes > 50_000_000


def test_this_host():
    found = describe(CPU)
    assert (found.name, found.kind, found.half) == ("cpu", "cpu", "bf16")
    assert 0 < found.free_bytes < found.total_bytes
