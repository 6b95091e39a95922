"""Loops of any length are found with the id that closes them, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.repetition import LoopWatch
from server.request import RepetitionLimit


def first_loop(ids, limit):
    """How many ids it took."""
    watch = LoopWatch(limit)
    return next((number for number, token_id in enumerate(ids, 1) if watch.is_loop(token_id)), None)


@pytest.mark.parametrize(
    ("ids", "limit", "number"),
    [
        ([7, 7, 7], RepetitionLimit(1, 1, 3), 3),
        ([1, 2, 3, 2, 3, 2, 3], RepetitionLimit(4, 1, 3), 7),
        ([1, 2, 3, 2, 3, 2], RepetitionLimit(4, 1, 3), None),
        ([7, 7, 7, 7], RepetitionLimit(4, 2, 2), 4),
        ([1, 2, 3, 1, 2, 3], RepetitionLimit(2, 1, 2), None),
        ([1, 1, 2, 1, 1, 2], RepetitionLimit(3, 3, 2), 6),
    ],
)
def test_examples(ids, limit, number):
    assert first_loop(ids, limit) == number


@given(
    ids=st.lists(st.integers(0, 2), max_size=40),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted),
    min_count=st.integers(2, 4),
)
def test_it_is_what_looking_back_finds(ids, sizes, min_count):
    least, most = sizes

    def loops(known):
        return any(
            known[-size * min_count :] == known[-size:] * min_count
            for size in range(least, most + 1)
            if len(known) >= size * min_count
        )

    expected = next((number for number in range(1, len(ids) + 1) if loops(ids[:number])), None)
    assert first_loop(ids, RepetitionLimit(most, least, min_count)) == expected
