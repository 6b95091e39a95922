"""The Triton kernels compile for real cards, down to machine code: the interpreter takes more than a compiler does."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {"_rms_norm", "_silu_mul", "_rotate_and_store", "_attend_split", "_join_splits", "_attend_chunk", "_multiply"}


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("architecture", ["80"])
def test_kernels_compile_without_a_gpu(architecture, tmp_path):
    """For the oldest: it has the fewest instructions and the least shared memory but one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels", "bfloat16", architecture],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert {words[1] for words in lines} == KERNELS
    # What a program may have on the smallest cards of compute capability 8.6 and 8.9.
    assert max(int(words[2]) for words in lines) <= 99 * 1024
