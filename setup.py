"""Builds the kernels for CPUs (model/native), where a C++ compiler is present. All else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("model/native/src")

kernels = Extension(
    "model.native._kernels",
    sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
    depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
    language="c++",
    # Without a compiler the package is installed without them; `model.native.library.status` says so at run time.
    optional=True,
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-g0",  # Python's own flags ask for debugging symbols, ten times the size
        # Compiled for OpenMP but not linked with it: the runtime is the one that torch loads (model/native/library.py).
        "-fopenmp",
        "-fvisibility=hidden",
        "-fno-exceptions",
        "-fno-rtti",
        # Neither changes a result. Without them no loop with a square root or a comparison is vectorized, lest errno or
        # the processor's exception flags, which nobody reads, come out differently.
        "-fno-math-errno",
        "-fno-trapping-math",
        # A product and a sum are one operation only where the source says so: the same numbers from every tile size.
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Wconversion",
    ],
)

setup(ext_modules=[kernels])
