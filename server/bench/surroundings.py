"""Where and when a result was made: without these, figures cannot be compared."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = ("minicpmv", "httptools", "orjson", "pillow", "uvloop")
"""What the client's own speed depends on."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    date: str
    """UTC, ISO 8601."""
    hardware: str
    """Of the machine that asks, on one line; the servers' own belongs beside the result."""
    python: str
    versions: dict[str, str]


def surroundings() -> Surroundings:
    return Surroundings(
        datetime.now(UTC).isoformat(timespec="seconds"),
        f"{_processor()}, {len(os.sched_getaffinity(0))} usable cores, {_memory_gib():.0f} GiB, {platform.platform()}",
        platform.python_version(),
        {name: metadata.version(name) for name in _PACKAGES},
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()  # Arm's has no names


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
