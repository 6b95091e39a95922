"""Triton's module in C, compiled beforehand: an image without a compiler needs nothing else to run the kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
if shutil.which("gcc") is None and shutil.which("clang") is None:
    pytest.skip("there is no C compiler", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]

BUILD = """
import sys
from pathlib import Path
from model.gpu.driver_module import build
print(build(Path(sys.argv[1])))
"""

# As on a GPU, but for CUDA's driver, in whose place is the stand-in.
USE = """
import ctypes, os, sys
from pathlib import Path
from triton import knobs
from triton.backends.nvidia.driver import CudaUtils
from model.gpu.driver_module import compile_stand_in, use_prebuilt

folder = Path(sys.argv[1])
knobs.nvidia.libcuda_path = str(folder)
ctypes.CDLL(str(compile_stand_in(folder)), mode=ctypes.RTLD_GLOBAL)
os.environ["PATH"] = ""  # no compiler from here on
os.environ.pop("CC", None)
print(use_prebuilt(Path(sys.argv[2])))
print(callable(CudaUtils().launch))
"""


def python(script: str, *arguments: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton keeps the module that it has loaded, and its settings, for the whole process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def prebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prebuilt")
    done = python(BUILD, folder, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert [str(path) for path in folder.glob("*.so")] == done.stdout.split()
    return folder


def test_triton_takes_the_module_where_there_is_no_compiler(prebuilt, tmp_path):
    done = python(USE, tmp_path, prebuilt, cache=tmp_path / "cache")
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_without_it_triton_says_that_a_compiler_is_missing(tmp_path):
    done = python(USE, tmp_path, tmp_path / "nothing", cache=tmp_path / "cache")
    assert done.stdout.split() == ["False"]
    assert "C compiler" in done.stderr


def test_a_module_of_another_triton_is_not_taken(prebuilt, tmp_path):
    (made,) = prebuilt.glob("*.so")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(made, other / f"{'0' * 64}{made.name.removeprefix(made.name.partition('.')[0])}")
    done = python(USE, tmp_path, other, cache=tmp_path / "cache")
    assert done.stdout.split() == ["False"]
