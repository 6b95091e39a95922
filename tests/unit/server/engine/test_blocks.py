import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.blocks import BlockPool


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


@settings(deadline=None)
@given(st.lists(st.integers(-3, 4), max_size=40))
def test_any_order_of_work_keeps_every_block(counts):
    pool = BlockPool(num_blocks=12, block_tokens=4)
    held: list[list[int]] = []
    for count in counts:
        if count < 0 and held:
            pool.free(held.pop(count % len(held)))
        elif 0 <= count <= pool.num_free:
            held.append(pool.allocate(count))
        pool.check_invariants()
        ids = [block_id for taken in held for block_id in taken]
        assert len(set(ids)) == len(ids) == pool.num_used
