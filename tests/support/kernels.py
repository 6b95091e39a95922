"""With the compiled kernels, and as if they had not been built."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from model.gpu import support
from model.native import library

with_and_without = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(True, id="kernels", marks=pytest.mark.skipif(not library.is_fast(), reason=library.status())),
        pytest.param(False, id="torch"),
    ],
)


@contextmanager
def only(kernels: bool) -> Iterator[None]:
    """What is built and run meanwhile uses the kernels of this processor and of the GPU, or none."""
    if kernels:
        yield
        return
    none = library.NativeUnavailableError("switched off")
    with (
        mock.patch.object(library, "_load", return_value=none),
        mock.patch.object(support, "reason_against", return_value="switched off"),
    ):
        yield
