"""The safetensors container: eight bytes of header length (little endian), a JSON header, then the tensors' bytes.

Our own reader, because the weights must go to the device through one small buffer: the library maps the file into
memory, and mapped pages count as resident beside the copy that is made of them.

Source of the format: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.runtime.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    num_bytes: int


def read_tensor_list(path: Path) -> list[StoredTensor]:
    """The tensors of a file in order of their offset; their bytes are not read.

    Raises:
        CheckpointError: the file cannot be read, or its header is malformed, or does not agree with its size.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or header_bytes > min(_MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(f"{path}: the header does not fit into the file's {file_bytes} bytes")
            header = json.loads(file.read(header_bytes), object_pairs_hook=_without_duplicates)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}") from err
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: the header is not valid JSON: {err}") from err
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    tensors = sorted(
        (_parse_entry(path, data_start, name, entry) for name, entry in header.items()),
        key=lambda tensor: (tensor.offset, tensor.num_bytes),
    )
    _check_layout(path, tensors, data_start, file_bytes)
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _parse_entry(path: Path, data_start: int, name: str, entry: Any) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype_name), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise CheckpointError(f"{path}: the header's entry for {name} is malformed")
    if dtype_name not in _DTYPES:
        raise CheckpointError(f"{path}: {name} is stored as {dtype_name}; {', '.join(_DTYPES)} are supported")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise CheckpointError(f"{path}: {name} has the shape {shape}")
    dtype = _DTYPES[dtype_name]
    num_bytes = math.prod(shape) * dtype.itemsize
    if not 0 <= first <= last or last - first != num_bytes:
        raise CheckpointError(f"{path}: {name} needs {num_bytes} bytes, but its offsets are {first} to {last}")
    return StoredTensor(name, path, dtype, tuple(shape), data_start + first, num_bytes)


def _check_layout(path: Path, tensors: Iterable[StoredTensor], data_start: int, file_bytes: int) -> None:
    """The tensors must follow each other without gap or overlap, to the end of the file."""
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            raise CheckpointError(f"{path}: {tensor.name} begins at byte {tensor.offset}, expected {end}")
        end += tensor.num_bytes
    if end != file_bytes:
        raise CheckpointError(f"{path}: the header describes {end} bytes, the file has {file_bytes}")
