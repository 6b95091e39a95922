"""The store of uploaded pictures: time, budget, owners; and a random sequence of all of it."""

import contextlib
import random

import pytest

from server.api.file_store import FileStore, StorageFull, StoredFile
from server.request import ImageInput

A, B = b"a", b"b"


def add(store: FileStore, owner: bytes = A, *, size: int = 10, now_s: float = 0, lifetime_s: int = 100) -> StoredFile:
    def make(file_id: str) -> StoredFile:
        image = ImageInput(bytes(size), 1, 1)
        return StoredFile(file_id, owner, "f", "vision", image, int(now_s), int(now_s) + lifetime_s)

    file = store.add(make, now_s)
    store.check_invariants()
    return file


def test_a_file_is_its_owners_alone() -> None:
    store = FileStore(max_bytes=100, max_files=10)
    file = add(store)
    assert store.find(A, file.file_id, 1) is file
    assert store.find(B, file.file_id, 1) is None
    assert store.list(B, 1) == []
    assert not store.delete(B, file.file_id, 1)
    assert store.delete(A, file.file_id, 1)
    assert not store.delete(A, file.file_id, 1)
    assert store.num_bytes == 0


def test_a_file_expires_and_makes_room() -> None:
    store = FileStore(max_bytes=25, max_files=10)
    first = add(store, lifetime_s=100)
    add(store, now_s=50)
    with pytest.raises(StorageFull) as caught:
        add(store, now_s=60)
    assert caught.value.wait_s == 40
    assert store.find(A, first.file_id, 99.9) is first
    assert store.find(A, first.file_id, 100) is None
    add(store, now_s=100)


def test_the_number_of_files_has_a_limit_too() -> None:
    store = FileStore(max_bytes=1000, max_files=2)
    add(store)
    add(store, B)
    with pytest.raises(StorageFull):
        add(store)


def test_a_file_that_never_fits_is_refused_by_an_empty_store() -> None:
    with pytest.raises(StorageFull):
        add(FileStore(max_bytes=5, max_files=2))


def test_any_sequence_keeps_the_books() -> None:
    draw = random.Random(3)
    store = FileStore(max_bytes=200, max_files=8)
    ids = ["file-none"]
    for now_s in range(1000):
        owner = draw.choice([A, B])
        if draw.random() < 0.6:
            size, lifetime_s = draw.randrange(60), draw.randrange(1, 50)
            with contextlib.suppress(StorageFull):
                ids.append(add(store, owner, size=size, now_s=now_s, lifetime_s=lifetime_s).file_id)
        else:
            store.delete(owner, draw.choice(ids), now_s)
        store.check_invariants()
        assert all(file.owner == owner and file.expires_s > now_s for file in store.list(owner, now_s))
