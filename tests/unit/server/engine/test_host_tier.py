from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.host_tier import HostTier


def test_the_crop_that_left_the_device_longest_ago_goes_first():
    host = HostTier(2)
    first, second = host.store(b"a"), host.store(b"b")
    assert {first, second} == {0, 1}
    assert host.store(b"c") == first
    assert (b"a" in host, b"b" in host, b"c" in host) == (False, True, True)
    assert host.num_evictions == 1
    host.check_invariants()


def test_a_taken_slot_is_given_out_again_only_when_it_is_free():
    host = HostTier(1)
    slot = host.store(b"a")
    assert host.take(b"a") == slot
    assert b"a" not in host
    assert host.store(b"b") is None  # counted: nothing was pushed out, but b is lost
    host.free(slot)
    assert host.store(b"c") == slot
    assert (host.num_queries, host.num_hits, host.num_evictions) == (1, 1, 1)
    host.check_invariants()


def test_without_slots_nothing_is_kept_or_counted():
    host = HostTier(0)
    assert host.store(b"a") is None
    assert host.take(b"a") is None
    assert (host.num_queries, host.num_evictions, host.num_used) == (0, 0, 0)


def test_a_discarded_slot_holds_nothing():
    host = HostTier(2)
    slot = host.store(b"a")
    host.discard(slot)
    host.discard(slot)
    assert b"a" not in host
    assert host.take(b"a") is None
    host.check_invariants()


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["store", "take", "free", "discard"]), st.integers(0, 5)), max_size=60),
)
def test_any_order_of_work_keeps_every_slot(num_slots, work):
    host = HostTier(num_slots)
    taken = []
    for name, number in work:
        content_hash = bytes([number])
        if name == "store" and content_hash not in host:
            assert (host.store(content_hash) is None) == (len(taken) == num_slots)
        elif name == "take":
            was_here = content_hash in host
            slot = host.take(content_hash)
            assert was_here == (slot is not None)
            taken += [slot] if was_here else []
        elif name == "free" and taken:
            host.free(taken.pop(number % len(taken)))
        elif name == "discard":
            host.discard(number % num_slots)
        host.check_invariants()
        assert host.num_used <= num_slots - len(taken)
