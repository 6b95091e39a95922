"""Programs that check files and are no Python packages of ours: found in .tools (`make tools`) or on the path."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = (ROOT / ".tools" / "bin",)


def tool(name: str) -> str:
    """The program's path; skips the test where there is none (docs/development.md says where to get each)."""
    for place in PLACES:
        if (place / name).exists():
            return str(place / name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run_tool(name: str, *arguments: str, timeout_s: float = 250) -> str:
    """What it prints; fails the test, with that, when its exit status is not 0."""
    done = subprocess.run(
        [tool(name), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout
