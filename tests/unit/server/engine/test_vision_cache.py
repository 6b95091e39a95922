import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.vision_cache import VisionCache

NUM_VISION_BLOCKS = 3


def make_cache(num_slots: int) -> VisionCache:
    return VisionCache(num_slots, NUM_VISION_BLOCKS)


def hashes(*contents: int) -> list[bytes]:
    return [content.to_bytes(16) for content in contents]


def encode(cache: VisionCache, *contents: int) -> tuple[int, ...]:
    """Slots of crops that are now encoded and no longer referenced."""
    slots = cache.acquire(hashes(*contents))
    assert slots is not None
    for slot in slots:
        cache.advance(slot, NUM_VISION_BLOCKS)
    cache.release(slots)
    return slots


def test_each_crop_has_its_slot_and_equal_ones_share():
    cache = make_cache(4)
    first, second, again = cache.acquire(hashes(1, 2, 1))
    assert first == again != second
    assert cache.acquire(hashes(2)) == (second,)
    assert cache.num_referenced == 2
    assert (cache.num_queries, cache.num_hits) == (4, 2)


def test_progress_is_booked_block_by_block():
    cache = make_cache(1)
    (slot,) = cache.acquire(hashes(1))
    assert (cache.blocks_done(slot), cache.is_encoded(slot)) == (0, False)
    cache.advance(slot, 2)
    assert (cache.blocks_done(slot), cache.is_encoded(slot)) == (2, False)
    cache.advance(slot, 3)
    assert cache.is_encoded(slot)
    with pytest.raises(AssertionError):
        cache.advance(slot, 3)


def test_an_encoded_crop_stays_for_the_next_sequence():
    cache = make_cache(2)
    slots = encode(cache, 1)
    assert cache.num_referenced == 0
    assert cache.acquire(hashes(1)) == slots
    assert cache.is_encoded(slots[0])
    assert (cache.num_queries, cache.num_hits) == (2, 1)


def test_the_least_recently_used_crop_is_evicted():
    cache = make_cache(3)
    for content in (1, 2, 3):
        encode(cache, content)
    cache.release(cache.acquire(hashes(1)))  # now 2 is the one unused for longest
    (slot,) = cache.acquire(hashes(4))
    assert not cache.is_encoded(slot)
    cache.check_invariants()
    queries, hits = cache.num_queries, cache.num_hits
    cache.acquire(hashes(1, 3))
    assert (cache.num_queries, cache.num_hits) == (queries + 2, hits + 2)
    assert cache.acquire(hashes(2)) is None


def test_a_crop_that_is_asked_for_is_not_evicted_for_its_neighbour():
    cache = make_cache(2)
    encode(cache, 1)
    encode(cache, 2)
    slots = cache.acquire(hashes(3, 1))
    assert slots is not None
    assert [cache.is_encoded(slot) for slot in slots] == [False, True]


def test_too_few_slots_change_nothing():
    cache = make_cache(3)
    held = cache.acquire(hashes(1))
    encode(cache, 2)
    assert cache.acquire(hashes(2, 3, 4)) is None
    assert (cache.num_queries, cache.num_hits, cache.num_referenced) == (2, 0, 1)
    assert cache.is_encoded(cache.acquire(hashes(2))[0])
    assert held is not None
    cache.check_invariants()


@pytest.mark.parametrize("blocks_done", [0, 2])
def test_a_crop_is_forgotten_when_its_last_user_leaves_before_it_is_encoded(blocks_done):
    cache = make_cache(2)
    slots = cache.acquire(hashes(1))
    assert cache.acquire(hashes(1)) == slots
    if blocks_done:
        cache.advance(slots[0], blocks_done)
    cache.release(slots)
    assert cache.blocks_done(slots[0]) == blocks_done
    cache.release(slots)
    assert cache.acquire(hashes(2)) == slots  # last in, first out
    assert cache.blocks_done(slots[0]) == 0
    cache.check_invariants()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("acquire"), st.lists(st.integers(1, 7), min_size=1, max_size=5)),
            st.tuples(st.just("release"), st.integers(0, 9)),
            st.tuples(st.just("advance"), st.integers(0, 9)),
        ),
        max_size=60,
    )
)
def test_any_order_of_work_keeps_every_slot(work):
    cache = make_cache(5)
    held: list[tuple[list[int], tuple[int, ...]]] = []
    for name, argument in work:
        if name == "acquire":
            slots = cache.acquire(hashes(*argument))
            if slots is not None:
                held.append((argument, slots))
            else:
                assert len({content for contents, _ in held for content in contents} | set(argument)) > 5
        elif held and name == "release":
            cache.release(held.pop(argument % len(held))[1])
        elif held:
            for slot in set(held[argument % len(held)][1]):
                if not cache.is_encoded(slot):
                    cache.advance(slot, cache.blocks_done(slot) + 1)
        cache.check_invariants()
        pairs = {pair for contents, slots in held for pair in zip(contents, slots, strict=True)}
        assert len({content for content, _ in pairs}) == len({slot for _, slot in pairs}) == len(pairs)
        assert cache.num_referenced == len(pairs)
