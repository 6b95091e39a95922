"""Finding and loading the compiled kernels, and what is said where there are none."""

import shutil
from pathlib import Path

import pytest

from model.native import library as native
from model.native.library import Library, NativeUnavailableError, is_available, is_fast, library, status

needs_kernels = pytest.mark.skipif(not is_available(), reason=status())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which kernels are looked for, instead of the package's."""
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    native._load.cache_clear()
    yield tmp_path
    native._load.cache_clear()


def test_kernels_that_were_not_built_are_announced(folder):
    assert not is_available()
    assert not is_fast()
    assert "none" in status()
    assert "C++ compiler" in status()
    with pytest.raises(NativeUnavailableError, match="not built"):
        library()


def test_a_damaged_file_is_announced(folder):
    (folder / "_kernels.so").write_bytes(b"no library")
    assert not is_available()
    assert "_kernels.so cannot be loaded" in status()


@needs_kernels
def test_kernels_of_other_sources_are_refused(monkeypatch, tmp_path):
    (built,) = native._FOLDER.glob("_kernels*.so")
    monkeypatch.setattr(native, "_VERSION", native._VERSION + 1)
    with pytest.raises(NativeUnavailableError, match="other sources"):
        Library(Path(shutil.copy(built, tmp_path)))


@needs_kernels
def test_the_best_level_is_named():
    assert library().levels[0] == "portable"
    assert status() == f"native kernels: {library().levels[-1]}"
    assert is_fast() == (len(library().levels) > 1)
