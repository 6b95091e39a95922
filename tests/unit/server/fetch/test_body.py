"""Decompression in pieces, and budgets."""

import gzip
import os

import pytest

from server.fetch.body import ByteBudget, Gunzip
from server.fetch.refusal import FetchRefused, Reason

PIECE_BYTES = 256 * 1024


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * PIECE_BYTES, b"\0" * (3 * PIECE_BYTES + 7), os.urandom(600_000)])
@pytest.mark.parametrize("at_once", [7, 1000, 10**7])
def test_what_was_compressed_comes_back_in_bounded_pieces(data, at_once):
    compressed = gzip.compress(data)
    if at_once == 7 and len(compressed) > 10_000:
        compressed_pieces = [compressed[:7], compressed[7:]]
    else:
        compressed_pieces = [compressed[at : at + at_once] for at in range(0, len(compressed), at_once)]
    gunzip = Gunzip()
    pieces = [piece for part in compressed_pieces for piece in gunzip.feed(part)]
    gunzip.check_ended()
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


def test_a_bomb_is_opened_as_far_as_somebody_looks():
    pieces = Gunzip().feed(gzip.compress(b"\0" * 50 * 2**20))
    assert [len(next(pieces)) for _ in range(3)] == [PIECE_BYTES] * 3


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-8] + bytes(8), lambda data: data + b"x"]
)
def test_damage_is_seen(damage):
    def read(data):
        gunzip = Gunzip()
        list(gunzip.feed(data))
        gunzip.check_ended()

    with pytest.raises(FetchRefused) as caught:
        read(damage(gzip.compress(b"picture" * 100)))
    assert caught.value.reason is Reason.BROKEN


def test_data_after_the_end_is_seen_when_it_comes_later():
    gunzip = Gunzip()
    assert b"".join(gunzip.feed(gzip.compress(b"picture"))) == b"picture"
    with pytest.raises(FetchRefused):
        list(gunzip.feed(gzip.compress(b"another")))


def test_a_budget_is_spent_to_its_last_byte_and_not_further():
    budget = ByteBudget(10)
    budget.take(4)
    budget.take(6)
    with pytest.raises(FetchRefused) as caught:
        budget.take(1)
    assert caught.value.reason is Reason.REQUEST_SIZE
    assert "10 bytes" in caught.value.message
