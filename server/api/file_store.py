"""Uploaded pictures in memory, each its owner's alone, for a time, under a budget."""

import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.api.caller import owner
from server.errors import NotFound
from server.request import ImageInput

NOT_ENABLED = "files are not enabled on this server, which --file-memory does"
_FILE_ID = re.compile(r"file-\w{1,100}", re.ASCII)


class StorageFull(Exception):
    """There is no room until something expires or is deleted."""

    def __init__(self, wait_s: float) -> None:
        """`wait_s`: until the next picture expires."""
        super().__init__()
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class StoredFile:
    file_id: str
    owner: bytes
    filename: str
    purpose: str
    image: ImageInput
    created_s: int
    """Unix time."""
    expires_s: int


class FileStore:
    """Nothing is given up before its time: a full store refuses, so that no id that was given out stops working."""

    def __init__(self, *, max_bytes: int, max_files: int) -> None:
        """`max_bytes`: of all files together; 0 for a store that is off."""
        self._max_bytes = max_bytes
        self._max_files = max_files
        # Requests with large bodies are understood in threads.
        self._lock = threading.RLock()
        self._num_bytes = 0
        self._files: dict[str, StoredFile] = {}
        """In the order in which they came."""

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    # The time is an argument everywhere.

    def add(self, make: Callable[[str], StoredFile], now_s: float) -> StoredFile:
        """The file that `make` makes of its new id, kept from now on.

        Raises:
            StorageFull: it finds no room.
        """
        # Not to be guessed: where no keys are set, the id is all that keeps a picture.
        file = make(f"file-{secrets.token_hex(16)}")
        size = len(file.image.data)
        with self._lock:
            self._drop_expired(now_s)
            if self._num_bytes + size > self._max_bytes or len(self._files) >= self._max_files:
                wait_s = min((known.expires_s for known in self._files.values()), default=now_s) - now_s
                raise StorageFull(wait_s)
            self._files[file.file_id] = file
            self._num_bytes += size
        return file

    def find(self, whose: bytes, file_id: str, now_s: float) -> StoredFile | None:
        """The owner's file of this id; None for one that is gone, never was, or is another's."""
        with self._lock:
            self._drop_expired(now_s)
            file = self._files.get(file_id)
        return file if file is not None and file.owner == whose else None

    def list(self, whose: bytes, now_s: float) -> list[StoredFile]:
        """The owner's files, the oldest first."""
        with self._lock:
            self._drop_expired(now_s)
            return [file for file in self._files.values() if file.owner == whose]

    def delete(self, whose: bytes, file_id: str, now_s: float) -> bool:
        """Whether there was such a file. Requests that already have it keep it until they end."""
        with self._lock:
            file = self.find(whose, file_id, now_s)
            if file is not None:
                self._drop(file)
        return file is not None

    def check_invariants(self) -> None:
        """The sum is right and within the limits."""
        assert self._num_bytes == sum(len(file.image.data) for file in self._files.values())
        assert self._num_bytes <= self._max_bytes
        assert len(self._files) <= self._max_files
        assert all(file_id == file.file_id for file_id, file in self._files.items())

    def _drop_expired(self, now_s: float) -> None:
        for file in [file for file in self._files.values() if file.expires_s <= now_s]:
            self._drop(file)

    def _drop(self, file: StoredFile) -> None:
        del self._files[file.file_id]
        self._num_bytes -= len(file.image.data)


class StoredPictures:
    """What requests see of the store: the caller's files, by their ids."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    @staticmethod
    def is_id(url: str) -> bool:
        """Whether what stands in the place of a URL is the id of a file."""
        return _FILE_ID.fullmatch(url) is not None

    def file(self, file_id: str, *, param: str) -> StoredFile:
        """Raises NotFound where the caller has no such file, or no longer."""
        file = self._store.find(owner(), file_id, time.time())
        if file is None:
            raise file_not_found(file_id, param)
        return file

    def find(self, file_id: str, *, param: str) -> ImageInput:
        """The picture of a file. Raises NotFound."""
        if not self._store.is_on:
            raise NotFound(f"{param}: {NOT_ENABLED}", param=param)
        return replace(self.file(file_id, param=param).image, param=param)


def file_not_found(file_id: str, param: str) -> NotFound:
    return NotFound(f"{param}: there is no file {file_id[:100]!r}, or no longer", param=param, code="file_not_found")
