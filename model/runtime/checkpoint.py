"""Weights from the files of an official checkpoint onto the device.

Bytes go file -> one small buffer -> parameter, packed on the way where the plan says so, so that loading takes no more
host memory than the buffer beside the weights themselves, and on a GPU nothing but the buffer.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import FileIO
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.nn.attention.base import Attention
from model.nn.linear import PackedWeight
from model.nn.minicpmv import MiniCPMV
from model.runtime.errors import CheckpointError
from model.runtime.safetensors_file import StoredTensor, read_tensor_list
from model.runtime.weight_names import HEAD, IGNORED, Target, weight_names

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

# Large enough for the disk and the bus to run at full speed, small beside any budget.
_BUFFER_BYTES = 16 * 1024 * 1024
# Packed at a time: float32 copies of it are made on the way.
_MAX_PACKED_NUMBERS = 2 * 1024 * 1024

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes there are to read."""


def list_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name, but for those that are never used.

    Raises:
        CheckpointError: a file is missing or malformed, or the index and the files disagree.
    """
    index = folder / _INDEX
    if index.exists():
        weight_map = _read_index(index)
        tensors = [tensor for file in sorted(set(weight_map.values())) for tensor in read_tensor_list(folder / file)]
        listed = {(name, folder / file) for name, file in weight_map.items()}
        found = {(tensor.name, tensor.path) for tensor in tensors}
        if listed != found:
            wrong = ", ".join(sorted(f"{name} in {path.name}" for name, path in listed ^ found))
            raise CheckpointError(f"{index} and the files it names disagree: {wrong}")
    elif (folder / _SINGLE).exists():
        tensors = read_tensor_list(folder / _SINGLE)
    else:
        raise CheckpointError(f"{folder} holds neither {_INDEX} nor {_SINGLE}")
    return {tensor.name: tensor for tensor in tensors if not IGNORED.fullmatch(tensor.name)}


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{path} is not valid JSON: {err}") from err
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path} holds no weight_map")
    for file in weight_map.values():
        # A file beside the index, nowhere else.
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path} names the file {file!r}, which is not a plain file name")
    return weight_map


def empty_model(config: ModelConfig, stored: dict[str, StoredTensor], attention: Attention) -> MiniCPMV:
    """The networks without memory behind their parameters, once it is certain that the checkpoint fills them.

    Where the file has no head, the embedding takes its place: if the configuration says so, and in release 1.0, whose
    file lacks one.

    Raises:
        CheckpointError: with every tensor that is missing, unexpected or of another shape.
    """
    may_tie = config.language.tied_head or config.release == "1.0"
    language = replace(config.language, tied_head=may_tie and HEAD not in stored)
    config = replace(config, language=language)
    with torch.device("meta"):
        model = MiniCPMV(config, attention)
    problems = list(_problems(weight_names(config), model, stored))
    if problems:
        raise CheckpointError(f"the checkpoint does not fit its config.json ({len(problems)}): " + "; ".join(problems))
    return model


def _problems(names: dict[str, Target], model: MiniCPMV, stored: dict[str, StoredTensor]) -> Iterable[str]:
    for name in sorted(names.keys() - stored.keys()):
        yield f"{name} is missing"
    for name in sorted(stored.keys() - names.keys()):
        yield f"{name} is not expected"
    for name in sorted(names.keys() & stored.keys()):
        expected = tuple(_part(model.get_parameter(names[name].parameter), names[name]).shape)
        if stored[name].shape != expected:
            yield f"{name} has the shape {list(stored[name].shape)}, expected {list(expected)}"


def _part(parameter: Tensor, target: Target) -> Tensor:
    return parameter if target.rows is None else parameter[slice(*target.rows)]


def load_weights(model: MiniCPMV, stored: dict[str, StoredTensor], progress: Progress) -> None:
    """Fill the model's parameters, converting to their dtype or packing on the way.

    Args:
        model: from `empty_model`, since given memory on the device where the weights stay.
        stored: where each tensor lies.

    Raises:
        CheckpointError: a file cannot be read, or has become shorter.
    """
    names = weight_names(model.config)
    in_order = sorted(stored.values(), key=lambda tensor: (tensor.path, tensor.offset))
    total_bytes = sum(tensor.num_bytes for tensor in in_order)
    # Page-locked memory, so that the copy to a GPU needs no second buffer in the driver.
    buffer = torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=model.device.type == "cuda")
    done_bytes = 0
    for path, tensors in groupby(in_order, key=lambda tensor: tensor.path):
        try:
            with path.open("rb", buffering=0) as file:
                for tensor in tensors:
                    _fill(model, names[tensor.name], tensor, file, buffer)
                    done_bytes += tensor.num_bytes
                    progress(done_bytes, total_bytes)
        except OSError as err:
            raise CheckpointError(f"{path} cannot be read: {err.strerror}") from err


def _fill(model: MiniCPMV, target: Target, tensor: StoredTensor, file: FileIO, buffer: Tensor) -> None:
    module, _, name = target.parameter.rpartition(".")
    weight = getattr(model.get_submodule(module), name)
    file.seek(tensor.offset)
    if isinstance(weight, PackedWeight):
        row = 0 if target.rows is None else target.rows[0]
        for piece in _pieces(tensor, file, buffer, multiple=weight.num_inputs, most=_MAX_PACKED_NUMBERS):
            rows = piece.view(-1, weight.num_inputs)
            weight.fill(row, rows.to(model.device))
            row += len(rows)
    else:
        flat = _part(weight, target).view(-1)
        first = 0
        for piece in _pieces(tensor, file, buffer, multiple=1, most=len(flat)):
            flat[first : first + len(piece)].copy_(piece)
            first += len(piece)


def _pieces(tensor: StoredTensor, file: FileIO, buffer: Tensor, *, multiple: int, most: int) -> Iterator[Tensor]:
    """The numbers of a tensor in the dtype of the file, some at a time, in a buffer that is used again.

    Args:
        multiple: what the size of each piece is a multiple of: at most what fits into the buffer.
        most: numbers in a piece, but for one `multiple`.
    """
    item_bytes = tensor.dtype.itemsize
    size = max(1, min(len(buffer) // item_bytes, most) // multiple) * multiple
    left = tensor.num_bytes // item_bytes
    while left:
        piece = buffer[: min(size, left) * item_bytes]
        _read_exactly(file, piece.numpy().data, tensor)
        yield piece.view(tensor.dtype)
        left -= min(size, left)


def _read_exactly(file: FileIO, into: memoryview, tensor: StoredTensor) -> None:
    while into:
        num_read = file.readinto(into)
        if not num_read:
            raise CheckpointError(f"{tensor.path} ends inside {tensor.name}")
        into = into[num_read:]
