"""Triton's one module in C, compiled when an image is built, so that the image needs no compiler.

Triton talks to CUDA's driver through a small module in C (its backends/nvidia/driver.c), which it compiles where it is
first used. The kernels themselves need no C compiler: Triton's own code and the assembler in its wheel make them.

    python -m model.gpu.driver_module      where a C compiler is, and Triton; neither a GPU nor CUDA's driver

leaves the module beside this file, under the hash of its source; `use_prebuilt` lets Triton take it from there. It
belongs to that very Triton and that very Python, and is not used with others.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

PREBUILT = Path(__file__).resolve().parent / "prebuilt"

_STAND_IN = "libcuda.so.1"


def use_prebuilt(folder: Path = PREBUILT) -> bool:
    """Lets Triton load the module from `folder`; False, and nothing changed, where it is not there."""
    from triton import knobs

    ready = prebuilt_path(folder)
    if not ready.exists():
        return False

    def find(name: str, source: str, *_options: object) -> str:
        if _hash_of(Path(source)) != ready.name.partition(".")[0]:
            raise RuntimeError(f"{name} was not compiled when this image was built, and there is no C compiler")
        return str(ready)

    knobs.build.impl = find
    return True


def prebuilt_path(folder: Path) -> Path:
    """Where the module of the installed Triton and the running Python is, or would be."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return folder / f"{_hash_of(_driver_source())}{suffix}"


def build(folder: Path) -> Path:
    """Compiles the module into `folder` and loads it once, against a stand-in for CUDA's driver; returns its path.

    Raises:
        RuntimeError: there is no C compiler.
        subprocess.CalledProcessError: it failed.
    """
    from triton import knobs
    from triton.backends.nvidia.driver import CudaUtils

    with tempfile.TemporaryDirectory() as scratch:
        knobs.cache.dir = str(Path(scratch) / "cache")
        knobs.nvidia.libcuda_path = scratch
        # Loaded before the module, so that the loader does not look for the real one.
        ctypes.CDLL(str(compile_stand_in(Path(scratch))), mode=ctypes.RTLD_GLOBAL)
        CudaUtils()
        (made,) = Path(scratch).glob(f"cache/*/*{sysconfig.get_config_var('EXT_SUFFIX')}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, prebuilt_path(folder))
    return prebuilt_path(folder)


def compile_stand_in(folder: Path) -> Path:
    """A libcuda.so.1 that has the functions which the module names, each returning an error; returns its path."""
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", _driver_source().read_text(encoding="utf-8"))))
    source = folder / "stand_in.c"
    source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in names), encoding="utf-8")
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("there is no C compiler: neither gcc nor clang is on the path")
    library = folder / _STAND_IN
    # The same as Triton itself does with its source: a compiler from the path, no shell.
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{_STAND_IN}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)  # noqa: S603
    return library


def _driver_source() -> Path:
    from triton.backends.nvidia import driver

    return Path(driver.__file__).with_name("driver.c")


def _hash_of(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


if __name__ == "__main__":
    print(build(PREBUILT))
