import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.blocks import BlockPool


def named(pool, *hashes):
    """Blocks of one sequence, full and with these hashes."""
    block_ids = pool.allocate(len(hashes))
    for block_id, block_hash in zip(block_ids, hashes, strict=True):
        pool.set_hash(block_id, block_hash)
    return block_ids


def test_blocks_are_counted_and_come_back():
    pool = BlockPool(num_blocks=3, block_tokens=16)
    taken = pool.allocate(2)
    assert (pool.num_free, pool.num_used) == (1, 2)
    assert len(set(taken) | set(pool.allocate(1))) == 3
    pool.free(taken)
    assert (pool.num_free, pool.num_used) == (2, 1)
    pool.check_invariants()


def test_the_block_freed_last_is_taken_first():
    pool = BlockPool(num_blocks=8, block_tokens=16)
    first, second, _ = pool.allocate(3)
    pool.free([second])
    pool.free([first])
    assert pool.allocate(2) == [first, second]


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_blocks_for(num_tokens, num_blocks):
    assert BlockPool(num_blocks=1, block_tokens=16).blocks_for(num_tokens) == num_blocks


def test_more_than_there_is_and_freeing_twice_are_bugs():
    pool = BlockPool(num_blocks=2, block_tokens=16)
    taken = pool.allocate(2)
    with pytest.raises(AssertionError):
        pool.allocate(1)
    pool.free(taken)
    with pytest.raises(AssertionError):
        pool.free(taken[:1])
    with pytest.raises(AssertionError):
        pool.set_hash(taken[0], b"a")


def test_named_blocks_are_found_up_to_the_first_that_is_not_there():
    pool = BlockPool(num_blocks=4, block_tokens=16)
    first, second, third = named(pool, b"a", b"b", b"d")
    assert pool.find([b"a", b"b", b"c", b"d"]) == [first, second]
    assert pool.find([b"d"]) == [third]
    assert pool.find([b"c", b"d"]) == []


def test_a_shared_block_is_free_when_the_last_has_given_it_back():
    pool = BlockPool(num_blocks=4, block_tokens=16)
    blocks = named(pool, b"a", b"b")
    pool.share(blocks[:1])
    assert pool.references()[blocks[0]] == 2
    pool.free(blocks)
    assert (pool.num_used, pool.num_referenced(blocks)) == (1, 1)
    pool.free(blocks[:1])
    assert (pool.num_used, pool.num_free) == (0, 4)
    assert pool.find([b"a", b"b"]) == blocks  # free, but still what they were
    pool.share(blocks)
    assert (pool.num_used, pool.num_referenced(blocks)) == (2, 2)
    pool.check_invariants()


def test_empty_blocks_are_taken_before_cached_ones_and_of_these_the_longest_unused():
    pool = BlockPool(num_blocks=5, block_tokens=16)
    old, young, empty = named(pool, b"a", b"b"), named(pool, b"c", b"d"), pool.allocate(1)
    pool.free(old)
    pool.free(young)
    pool.free(empty)
    pool.share(old[:1])  # used again: now the youngest
    pool.free(old[:1])
    # Within a chain the end goes first: without its beginning it could not be found.
    assert pool.allocate(5) == [*empty, old[1], young[1], young[0], old[0]]
    assert pool.find([b"a"]) == pool.find([b"c"]) == []
    pool.check_invariants()


def test_a_second_block_with_the_same_content_stays_without_a_name():
    pool = BlockPool(num_blocks=4, block_tokens=16)
    (first,), (second,) = named(pool, b"a"), named(pool, b"a")
    pool.free([first, second])
    assert pool.find([b"a"]) == [first]
    assert pool.allocate(1) == [second]
    pool.check_invariants()


@settings(deadline=None)
@given(st.lists(st.integers(-3, 9), max_size=60), st.integers(1, 5))
def test_any_order_of_work_keeps_every_block(numbers, num_hashes):
    pool = BlockPool(num_blocks=12, block_tokens=4)
    held: list[list[int]] = []
    named_ids: dict[int, bytes] = {}
    for step, number in enumerate(numbers):
        hashes = [b"%d" % index for index in range(step % num_hashes + 1)]
        if number < 0 and held:
            pool.free(held.pop(number % len(held)))
        elif 0 <= number <= 4 and number <= pool.num_free:
            taken = pool.allocate(number)
            for block_id in taken:
                named_ids.pop(block_id, None)
            held.append(taken)
            for block_id, block_hash in zip(taken, hashes, strict=False):
                pool.set_hash(block_id, block_hash)
                named_ids[block_id] = block_hash
        elif number > 4:
            found = pool.find(hashes)
            assert [named_ids[block_id] for block_id in found] == hashes[: len(found)]
            pool.share(found)
            held.append(found)
        pool.check_invariants()
        ids = [block_id for taken in held for block_id in taken]
        assert [ids.count(block_id) for block_id in range(12)] == pool.references()
        assert len(set(ids)) == pool.num_used
