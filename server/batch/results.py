"""The output of a batch: a line for each request that has ended, written at once: an interruption loses none."""

import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson


class OutputError(Exception):
    """A file of results cannot be read or written, or is something else."""


class ResultFile:
    """Lines of results, one for each custom_id. Opened where an earlier run left off."""

    def __init__(self, path: Path) -> None:
        """Raises OutputError."""
        self._path = path
        self._lines: dict[str, tuple[int, int]] = {}
        """Offset and length of each."""
        try:
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        except OSError as err:
            raise OutputError(f"cannot write {path}: {err.strerror}") from err
        try:
            self._end = self._look_through()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, custom_id: str) -> bool:
        return custom_id in self._lines

    def add(self, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> None:
        """Write a request's line.

        Args:
            response: status_code, request_id and body, where there was an answer.
            error: code and message, where there was none.

        Raises:
            OutputError: it cannot be written.
        """
        line = {
            "id": f"batch_req_{secrets.token_hex(12)}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        data = orjson.dumps(line) + b"\n"
        try:
            self._file.seek(self._end)
            self._file.write(data)
            self._file.flush()
        except OSError as err:
            raise OutputError(f"cannot write {self._path}: {err.strerror}") from err
        self._lines[custom_id] = (self._end, len(data))
        self._end += len(data)

    def clear(self) -> None:
        """Forget all results."""
        self._file.truncate(0)
        self._lines.clear()
        self._end = 0

    def sort(self, order: Sequence[str]) -> None:
        """Put the lines into this order of their ids; others stay behind them. The file is whole at any moment."""
        places = {custom_id: place for place, custom_id in enumerate(order)}
        wanted = sorted(self._lines, key=lambda custom_id: places.get(custom_id, len(places)))
        if wanted == list(self._lines):
            return
        beside = self._path.with_name(f".{self._path.name}.sorting")
        with beside.open("wb") as sorted_file:
            for custom_id in wanted:
                offset, num_bytes = self._lines[custom_id]
                self._file.seek(offset)
                sorted_file.write(self._file.read(num_bytes))
            sorted_file.flush()
            os.fsync(sorted_file.fileno())
        beside.replace(self._path)
        self._file.close()
        self._file = self._path.open("r+b")
        self._lines.clear()
        self._end = self._look_through()

    def remove_if_empty(self) -> None:
        """An empty file of errors tells nobody anything."""
        if not self._lines:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def _look_through(self) -> int:
        """Notes each line; returns where the next one goes. A last line that was cut off is no line."""
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                value = orjson.loads(line)
                custom_id = value["custom_id"]
                if not isinstance(custom_id, str):
                    raise TypeError
            except (orjson.JSONDecodeError, KeyError, TypeError) as err:
                raise OutputError(f"{self._path}, line {number}: not a line of batch results") from err
            self._lines[custom_id] = (offset, len(line))
            offset += len(line)
        self._file.truncate(offset)
        return offset
