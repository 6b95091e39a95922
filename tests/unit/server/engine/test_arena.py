import asyncio
import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.arena import Arena, ArenaClosed, ArenaView, RangeAllocator, create_shared_memory, padded

LINE = 64


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("allocate"), st.lists(st.integers(1, 5 * LINE), min_size=1, max_size=4)),
            st.tuples(st.just("free"), st.integers(0, 100)),
        ),
        max_size=60,
    )
)
def test_ranges_never_overlap_and_always_come_back(operations):
    allocator = RangeAllocator(16 * LINE)
    given_out: dict[int, int] = {}
    for operation, argument in operations:
        if operation == "allocate":
            before = allocator.num_free_bytes
            offsets = allocator.allocate(argument)
            if offsets is None:
                assert allocator.num_free_bytes == before
            else:
                given_out |= dict(zip(offsets, argument, strict=True))
        elif given_out:
            offset = sorted(given_out)[argument % len(given_out)]
            del given_out[offset]
            allocator.free(offset)
        allocator.check_invariants()
        taken = sorted((offset, offset + size) for offset, size in given_out.items())
        assert all(left[1] <= right[0] for left, right in pairwise(taken))
        assert allocator.num_free_bytes == 16 * LINE - sum(map(padded, given_out.values()))
    for offset in given_out:
        allocator.free(offset)
    assert allocator.allocate([16 * LINE]) == [0]


def test_what_fits_an_empty_allocator_by_size_is_given_in_any_order():
    allocator = RangeAllocator(10 * LINE)
    assert allocator.allocate([1, 3 * LINE, LINE + 1, 4 * LINE]) == [0, LINE, 4 * LINE, 6 * LINE]
    assert allocator.allocate([1]) is None


def test_freeing_what_was_not_given_is_an_error():
    allocator = RangeAllocator(10 * LINE)
    with pytest.raises(KeyError):
        allocator.free(LINE)


def make_arena(num_lines):
    descriptor = create_shared_memory(num_lines * LINE)
    arena = Arena(descriptor, num_lines * LINE)
    os.close(descriptor)
    return arena


async def settle():
    """Lets every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def run(test):
    asyncio.run(asyncio.wait_for(test, 10))


def test_the_engine_sees_what_was_written():
    async def scenario():
        descriptor = create_shared_memory(10 * LINE)
        arena, view = Arena(descriptor, 10 * LINE), ArenaView(descriptor, 10 * LINE)
        os.close(descriptor)
        first, second = await arena.allocate([5, 70])
        arena.write(first, memoryview(b"pixel"))
        arena.write(second, memoryview(bytes(range(70))))
        assert view.view(first, 5) == b"pixel"
        assert view.view(second, 70) == bytes(range(70))
        with pytest.raises(TypeError, match="read-only"):
            view.view(0, 1)[0] = 1

    run(scenario())


def test_memory_without_memfd(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    descriptor = create_shared_memory(LINE)
    Arena(descriptor, LINE).write(0, memoryview(b"x"))
    assert ArenaView(descriptor, LINE).view(0, 1) == b"x"
    os.close(descriptor)


def test_who_waits_is_served_in_order_and_all_at_once():
    async def scenario():
        arena = make_arena(4)
        held = await arena.allocate([2 * LINE, LINE])
        large = asyncio.create_task(arena.allocate([2 * LINE, LINE]))
        small = asyncio.create_task(arena.allocate([LINE]))
        await settle()
        # One line is free, but the small one does not overtake, and the large one takes nothing yet.
        assert not large.done()
        assert not small.done()
        arena.check_invariants()
        arena.free([held[0]])
        arena.check_invariants()
        assert await large == [0, 3 * LINE]
        assert not small.done()
        arena.free([held[1]])
        assert await small == [2 * LINE]
        arena.check_invariants()
        assert arena.num_free_bytes == 0

    run(scenario())


def test_one_who_gives_up_lets_the_next_one_through():
    async def scenario():
        arena = make_arena(4)
        await arena.allocate([2 * LINE])
        large = asyncio.create_task(arena.allocate([3 * LINE]))
        small = asyncio.create_task(arena.allocate([2 * LINE]))
        await settle()
        large.cancel()
        await small
        arena.check_invariants()
        assert large.cancelled()
        assert arena.num_free_bytes == 0

    run(scenario())


@pytest.mark.parametrize("cancel_first", [True, False])
def test_cancelled_in_the_moment_of_the_grant(cancel_first):
    async def scenario():
        arena = make_arena(2)
        held = await arena.allocate([LINE])
        waiting = asyncio.create_task(arena.allocate([2 * LINE]))
        await settle()
        for act in (waiting.cancel, lambda: arena.free(held))[:: 1 if cancel_first else -1]:
            act()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert arena.num_free_bytes == 2 * LINE
        arena.check_invariants()

    run(scenario())


def test_what_never_fits_is_refused_at_once():
    async def scenario():
        with pytest.raises(ValueError, match="193 bytes never fit an arena of 192"):
            await make_arena(3).allocate([193])

    run(scenario())


def test_closing_turns_everybody_away():
    async def scenario():
        arena = make_arena(2)
        await arena.allocate([LINE])
        waiting = [asyncio.create_task(arena.allocate([2 * LINE])) for _ in range(2)]
        await settle()
        waiting[0].cancel()
        arena.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        with pytest.raises(ArenaClosed):
            await waiting[1]
        with pytest.raises(ArenaClosed):
            await arena.allocate([LINE])

    run(scenario())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4 * LINE), st.integers(0, 3)), max_size=30))
def test_random_users_all_get_their_turn(users):
    """Each user takes a range, gives the loop some turns, and returns it; every third is cancelled on the way."""

    async def use(arena, size, turns):
        offsets = await arena.allocate([size, 1])
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            arena.free(offsets)
            arena.check_invariants()

    async def scenario():
        arena = make_arena(6)
        tasks = [asyncio.create_task(use(arena, size, turns)) for size, turns in users]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        assert arena.num_free_bytes == 6 * LINE
        arena.check_invariants()

    run(scenario())
