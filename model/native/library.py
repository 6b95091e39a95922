"""Finds and loads the compiled kernels, and says why where there are none.

They are one shared library without Python or torch in it, built from `src/` when the package is installed and a C++
compiler is there (setup.py). It starts its threads through the OpenMP runtime that torch has loaded: a second runtime
would bring a second set of threads, each spinning on the cores that the other wants.
"""

import ctypes
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import torch  # noqa: F401, TID253 - brings the OpenMP runtime into the process

from model.native.structs import Attention, Linear, Rows, Store

LEVELS = ("portable", "avx2", "avx_vnni", "avx512_vnni")
"""Sets of processor instructions, from the plainest on; the order of `kLevels` in src/api.cpp."""

_VERSION = 1
"""`kVersion` of src/kernels.h."""

_FOLDER = Path(__file__).parent

_ROWS, _POINTER, _COUNT = ctypes.POINTER(Rows), ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS: dict[str, list[type]] = {
    "pack_int8": [_POINTER, _POINTER, _COUNT, _COUNT, _COUNT],
    "pack_int4": [_POINTER, _POINTER, _COUNT, _COUNT, _COUNT],
    "linear_w8a8": [_COUNT, ctypes.POINTER(Linear)],
    "linear_w8a16": [_COUNT, ctypes.POINTER(Linear)],
    "linear_w4a16": [_COUNT, ctypes.POINTER(Linear)],
    "linear_bf16": [_COUNT, ctypes.POINTER(Linear)],
    "attention": [_COUNT, ctypes.POINTER(Attention)],
    "store": [_COUNT, ctypes.POINTER(Store)],
    "rms_norm": [_COUNT, _ROWS, _ROWS, _POINTER, _COUNT, _COUNT, ctypes.c_float],
    "silu_mul": [_COUNT, _ROWS, _ROWS, _COUNT, _COUNT, _COUNT],
    "rotate": [_COUNT, _ROWS, _ROWS, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT],
}


class NativeUnavailableError(Exception):
    """There are no compiled kernels, or they cannot run here; the message says why."""


class Library:
    """The loaded kernels."""

    def __init__(self, path: Path) -> None:
        """Load them.

        Raises:
            NativeUnavailableError: the file cannot be loaded, or comes from other sources than this module.
        """
        try:
            _share_openmp()
            compiled = ctypes.CDLL(str(path))
            compiled.minicpmv_version.restype = _COUNT
            version = compiled.minicpmv_version()
        except (OSError, AttributeError) as err:
            raise NativeUnavailableError(f"{path.name} cannot be loaded ({err})") from err
        if version != _VERSION:
            raise NativeUnavailableError(f"{path.name} was built from other sources; install the package again")
        self._functions = {name: getattr(compiled, f"minicpmv_{name}") for name in _ARGUMENTS}
        for name, function in self._functions.items():
            function.argtypes, function.restype = _ARGUMENTS[name], None
        supports = compiled.minicpmv_supports
        supports.argtypes, supports.restype = [_COUNT], _COUNT
        self.levels = tuple(name for index, name in enumerate(LEVELS) if supports(index))
        """Those that this processor can run; the last is the best."""

    def call(self, name: str, *arguments: object) -> None:
        """Run a function that is the same at every level."""
        self._functions[name](*arguments)

    def call_level(self, name: str, level: str | None, *arguments: object) -> None:
        """Run a kernel at a level, None being the best.

        Raises:
            ValueError: this processor cannot run the level.
        """
        level = level or self.levels[-1]
        if level not in self.levels:
            raise ValueError(f"this processor runs {', '.join(self.levels)}, not {level}")
        self.call(name, LEVELS.index(level), *arguments)


@functools.cache
def _load() -> Library | NativeUnavailableError:
    built = sorted(_FOLDER.glob("_kernels*.so"))
    if not built:
        return NativeUnavailableError("they were not built when the package was installed, which takes a C++ compiler")
    try:
        return Library(built[0])
    except NativeUnavailableError as err:
        return err


def library() -> Library:
    """The kernels, loaded once a process.

    Raises:
        NativeUnavailableError: there are none; `is_available` asks first.
    """
    loaded = _load()
    if isinstance(loaded, NativeUnavailableError):
        raise loaded
    return loaded


def is_available() -> bool:
    """Whether the kernels can be called."""
    return isinstance(_load(), Library)


def is_fast() -> bool:
    """Whether they are more than the portable ones, which torch's own products outrun."""
    loaded = _load()
    return isinstance(loaded, Library) and loaded.levels[-1] != LEVELS[0]


def status() -> str:
    """One line for whoever starts the server: which kernels run, or why none do."""
    loaded = _load()
    if isinstance(loaded, NativeUnavailableError):
        return f"native kernels: none, torch's own are used instead: {loaded}"
    return f"native kernels: {loaded.levels[-1]}"


def _share_openmp() -> None:
    """Let the kernels find the OpenMP runtime of this process, or the system's where torch came without one.

    Raises:
        OSError: there is neither.
    """
    runtime = next(_loaded_openmp(), "libgomp.so.1")
    ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)


def _loaded_openmp() -> Iterator[str]:
    """Paths of OpenMP runtimes that this process has mapped."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        if re.search(r"/lib(gomp|iomp5|omp)[-.\w]*\.so", line):
            yield line.split(maxsplit=5)[5]
