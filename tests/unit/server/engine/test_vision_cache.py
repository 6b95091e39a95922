import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.step import CropCopy
from server.engine.host_tier import HostTier
from server.engine.vision_cache import VisionCache

NUM_VISION_BLOCKS = 3


def make_cache(num_slots: int, num_host_slots: int = 0) -> VisionCache:
    return VisionCache(num_slots, NUM_VISION_BLOCKS, HostTier(num_host_slots))


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


def test_an_evicted_crop_goes_to_the_host_and_comes_back_without_encoding():
    cache = make_cache(1, num_host_slots=2)
    encode(cache, 1)
    encode(cache, 2)
    assert cache.take_copies() == (CropCopy(0, 0, to_host=True),)
    assert [cache.has_begun(content_hash) for content_hash in hashes(1, 2, 3)] == [True, True, False]
    (slot,) = cache.acquire(hashes(1))
    assert cache.is_encoded(slot)
    # 2 makes room, and only then the slot is overwritten.
    assert cache.take_copies() == (CropCopy(0, 1, to_host=True), CropCopy(0, 0, to_host=False))
    assert cache.take_copies() == ()
    assert (cache.num_queries, cache.num_hits, cache.num_evictions) == (3, 0, 2)
    assert (cache.host.num_queries, cache.host.num_hits, cache.host.num_evictions) == (3, 1, 0)
    assert (cache.num_used, cache.host.num_used) == (1, 1)
    cache.check_invariants()


def test_a_crop_that_comes_back_is_not_pushed_out_by_the_one_that_leaves_for_it():
    cache = make_cache(2, num_host_slots=2)
    for content in (1, 2, 3, 4):  # 1 and 2 are on the host, 3 and 4 on the device
        encode(cache, content)
    cache.take_copies()
    slots = cache.acquire(hashes(1, 2))
    assert slots is not None
    assert [cache.is_encoded(slot) for slot in slots] == [True, True]
    # Both host slots are spoken for when 3 has to leave; 4 takes the one that 1 has left by then.
    assert cache.take_copies() == (
        CropCopy(slots[0], 0, to_host=False),
        CropCopy(slots[1], 0, to_host=True),
        CropCopy(slots[1], 1, to_host=False),
    )
    assert (cache.host.num_evictions, cache.has_begun(hashes(3)[0]), cache.has_begun(hashes(4)[0])) == (1, False, True)
    cache.check_invariants()


def test_without_host_memory_an_evicted_crop_is_gone():
    cache = make_cache(1)
    encode(cache, 1)
    encode(cache, 2)
    assert cache.take_copies() == ()
    assert not cache.has_begun(hashes(1)[0])
    assert (cache.num_evictions, cache.host.num_evictions, cache.host.num_queries) == (1, 0, 0)


def test_what_a_failed_step_was_to_copy_lies_nowhere():
    cache = make_cache(1, num_host_slots=2)
    encode(cache, 1)
    encode(cache, 2)
    cache.take_copies()
    slots = cache.acquire(hashes(1))
    cache.undo(cache.take_copies())
    cache.release(slots)
    assert not any(cache.has_begun(content_hash) for content_hash in hashes(1, 2))
    assert (cache.num_used, cache.host.num_used) == (0, 0)
    cache.check_invariants()


def test_a_crop_that_no_block_has_read_is_about_to_begin():
    cache = make_cache(1)
    (slot,) = cache.acquire(hashes(1))
    content_hash = hashes(1)[0]
    assert (cache.has_begun(content_hash), cache.is_about_to_begin(content_hash)) == (False, True)
    cache.advance(slot, 1)
    assert (cache.has_begun(content_hash), cache.is_about_to_begin(content_hash)) == (True, False)


class Tables:
    """What lies where on the device and on the host, as a runner would have it."""

    def __init__(self):
        self.device = {}
        self.host = {}

    def copy(self, copies):
        for copy in copies:
            if copy.to_host:
                self.host[copy.host_slot] = self.device[copy.crop_slot]
            else:
                self.device[copy.crop_slot] = self.host[copy.host_slot]


@settings(deadline=None)
@given(
    st.integers(0, 4),
    st.lists(
        st.one_of(
            st.tuples(st.just("acquire"), st.lists(st.integers(1, 9), min_size=1, max_size=5)),
            st.tuples(st.just("release"), st.integers(0, 9)),
            st.tuples(st.just("advance"), st.integers(0, 9)),
            st.tuples(st.just("step"), st.booleans()),
        ),
        max_size=80,
    ),
)
def test_any_order_of_work_keeps_every_slot(num_host_slots, work):
    cache, tables = make_cache(5, num_host_slots), Tables()
    held: list[tuple[list[int], tuple[int, ...]]] = []
    for name, argument in work:
        if name == "acquire":
            slots = cache.acquire(hashes(*argument))
            if slots is not None:
                held.append((argument, slots))
            else:
                assert len({content for contents, _ in held for content in contents} | set(argument)) > 5
        elif name == "step":
            copies = cache.take_copies()
            tables.copy(copies)
            if argument:  # it failed, and so do those who have what it was to copy
                cache.undo(copies)
                failed = {copy.crop_slot for copy in copies if not copy.to_host}
                for _, slots in held:
                    if not failed.isdisjoint(slots):
                        cache.release(slots)
                held = [(contents, slots) for contents, slots in held if failed.isdisjoint(slots)]
        elif held and name == "release":
            tables.copy(cache.take_copies())
            cache.release(held.pop(argument % len(held))[1])
        elif held:
            tables.copy(cache.take_copies())
            contents, slots = held[argument % len(held)]
            for content, slot in set(zip(contents, slots, strict=True)):
                if not cache.is_encoded(slot):
                    cache.advance(slot, cache.blocks_done(slot) + 1)
                    tables.device[slot] = content
        cache.check_invariants()
        pairs = pairs_of(held)
        assert len({content for content, _ in pairs}) == len({slot for _, slot in pairs}) == len(pairs)
        assert cache.num_referenced == len(pairs)
    tables.copy(cache.take_copies())
    assert all(tables.device[slot] == content for content, slot in pairs_of(held) if cache.is_encoded(slot))
    on_host = {content for content in range(1, 10) if content.to_bytes(16) in cache.host}
    assert on_host <= set(tables.host.values())


def pairs_of(held):
    return {pair for contents, slots in held for pair in zip(contents, slots, strict=True)}
