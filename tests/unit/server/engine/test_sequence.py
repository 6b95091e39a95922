import pytest

from server.engine.sequence import Status, uniform
from tests.support.builders import make_sequence


def test_known_tokens_are_the_prompt_and_what_was_generated():
    sequence = make_sequence(prompt_ids=[7, 8, 9], max_tokens=3)
    sequence.append(20, now=1.0)
    sequence.append(21, now=2.0)
    assert sequence.num_known == 5
    assert sequence.ids(0, 5) == [7, 8, 9, 20, 21]
    assert sequence.ids(2, 4) == [9, 20]
    assert sequence.ids(0, 2) == [7, 8]
    assert sequence.ids(4, 5) == [21]
    assert sequence.max_computed == 5


@pytest.mark.parametrize(
    ("max_tokens", "eos_id", "ids", "reasons"),
    [
        (3, 2, [5, 2], [None, "stop"]),
        (3, None, [5, 2, 2], [None, None, "length"]),
        (2, 2, [5, 2], [None, "stop"]),
        (1, 2, [5], ["length"]),
    ],
)
def test_a_sequence_ends_at_its_end_id_or_at_its_length(max_tokens, eos_id, ids, reasons):
    sequence = make_sequence(max_tokens=max_tokens, eos_id=eos_id)
    assert [sequence.append(token_id, now=0.0) for token_id in ids] == reasons
    assert sequence.generated_ids == ids


def test_stop_ids_end_a_sequence_like_the_end_id():
    for eos_id in (2, None):
        sequence = make_sequence(max_tokens=4, eos_id=eos_id, stop_token_ids=(7, 9))
        assert [sequence.append(token_id, now=0.0) for token_id in (5, 9)] == [None, "stop"]


def test_it_decodes_when_only_the_newest_generated_id_is_missing():
    sequence = make_sequence(prompt_ids=[7, 8], max_tokens=3)
    sequence.num_computed = 1
    assert not sequence.is_decoding  # the last of the prompt is missing, nothing was generated
    sequence.num_computed = 2
    sequence.append(20, now=0.0)
    assert not sequence.is_decoding  # found in the prefix cache after a preemption: the runner does not know it yet
    sequence.has_state = True
    assert sequence.is_decoding
    sequence.num_computed = 0
    assert not sequence.is_decoding


def test_stamps_are_set_once():
    sequence = make_sequence()
    sequence.work_begins(1.0)
    sequence.work_begins(2.0)
    sequence.append(5, now=3.0)
    sequence.append(5, now=4.0)
    assert (sequence.scheduled, sequence.first_token) == (1.0, 3.0)


def test_states_from_the_queue_to_the_end_and_back():
    sequence = make_sequence(3)
    sequence.check_invariants()
    sequence.crop_slots = ()
    sequence.admit(state_slot=1, block_table=[4], num_cached=1)
    assert (sequence.num_computed, sequence.num_cached_prompt, sequence.has_state) == (1, 1, False)
    sequence.work_begins(1.0)
    sequence.advance(1)
    assert (sequence.num_computed, sequence.has_state) == (2, True)
    sequence.check_invariants()
    with pytest.raises(AssertionError):
        sequence.admit(state_slot=1, block_table=[4], num_cached=0)
    sequence.leave(Status.WAITING)
    assert (sequence.num_computed, sequence.block_table, sequence.state_slot) == (0, [], None)
    sequence.check_invariants()
    sequence.admit(state_slot=1, block_table=[4], num_cached=2)
    assert sequence.num_cached_prompt == 1  # what it had computed itself does not count
    sequence.check_invariants()
    sequence.leave(Status.FINISHED)
    sequence.check_invariants()
    with pytest.raises(AssertionError):
        sequence.leave(Status.WAITING)


def test_draws_are_those_of_splitmix64():
    # The first outputs of the published generator for the seed 1234567.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [uniform(1234567, index) for index in range(4)] == [(value >> 11) / 2**53 for value in outputs]


def test_draws_are_spread_over_the_unit_interval_whatever_the_seed():
    for seed in (0, 1, -1, 2**63, 2**64 - 1):
        draws = [uniform(seed, index) for index in range(4000)]
        assert all(0.0 <= draw < 1.0 for draw in draws)
        assert abs(sum(draws) / 4000 - 0.5) < 0.02
        assert len(set(draws)) == 4000
    # One draw from each of many neighbouring seeds is as good.
    assert abs(sum(uniform(seed, 0) for seed in range(4000)) / 4000 - 0.5) < 0.02
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)
