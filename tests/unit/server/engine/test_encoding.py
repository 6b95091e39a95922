"""The encoder's part of a step, seen through whole steps. A crop takes 4 positions and 4 tower blocks here."""

import pytest

from model.step import CropRows
from server.engine import scheduler as scheduler_module
from server.engine.sequence import Status
from tests.support.builders import expected_of, make_crops, make_engine, without_pixels
from tests.support.fake_runner import make_info


def encoded(batch):
    """(slot, first block, last block) of each crop's work."""
    return [(work.crop_slot, work.first_block, work.last_block) for work in batch.encode]


def rows(batch):
    """(first position, number of tokens) of each row."""
    return [(row.start, len(row.token_ids)) for row in batch.rows]


def decoding_engine(**limits):
    """An engine in which a text sequence decodes for a long time."""
    engine = make_engine(**limits)
    text = engine.add(3, max_tokens=100)
    engine.step()
    return engine, text


def test_a_crop_encoded_in_a_step_is_used_by_the_rows_of_the_same_step():
    engine = make_engine()
    engine.add(10, crops=[(1, 7), (5, 8)])
    batch = engine.step()
    assert encoded(batch) == [(0, 0, 4), (1, 0, 4)]
    assert batch.rows[0].crops == (CropRows(1, 0, 0, 4), CropRows(5, 1, 0, 4))
    assert [bytes(work.pixels) for work in batch.encode] == [bytes([7] * 6), bytes([8] * 6)]
    assert [(work.width, work.height) for work in batch.encode] == [(2, 1), (2, 1)]


def test_while_nobody_decodes_whole_crops_are_encoded():
    engine = make_engine(max_idle_crops=2, max_step_vision_blocks=1)
    engine.add(20, crops=[(0, 1), (4, 2), (8, 3)])
    assert encoded(engine.step()) == [(0, 0, 4), (1, 0, 4)]
    assert encoded(engine.step()) == [(2, 0, 4)]


def test_while_somebody_decodes_encoding_keeps_to_its_share_of_each_step():
    engine, _ = decoding_engine(max_step_vision_blocks=3)
    engine.add(20, crops=[(0, 1), (4, 2), (8, 3)])
    work = [encoded(engine.step()) for _ in range(4)]
    assert work == [[(0, 0, 3)], [(0, 3, 4), (1, 0, 2)], [(1, 2, 4), (2, 0, 1)], [(2, 1, 4)]]
    assert all(rows(batch)[0][1] == 1 for batch in engine.batches[1:])


def test_pixels_travel_with_the_first_part_of_a_crop_only():
    engine, _ = decoding_engine(max_step_vision_blocks=2)
    engine.add(6, crops=[(1, 9)])
    assert [bytes(engine.step().encode[0].pixels) for _ in range(2)] == [bytes([9] * 6), b""]


def test_crops_are_encoded_in_order_of_arrival():
    engine = make_engine(max_idle_crops=1)
    first = engine.add(12, crops=[(0, 1), (4, 2)])
    second = engine.add(12, crops=[(0, 3)])
    order = [engine.step().encode[0].crop_slot for _ in range(3)]
    assert order == [*first.crop_slots, *second.crop_slots]


def test_a_chunk_stops_before_a_crop_that_is_not_encoded():
    engine, _ = decoding_engine(max_step_vision_blocks=4)
    engine.add(16, crops=[(2, 1), (8, 2)])
    # The first crop is there at once, so positions up to the second one's can be computed; then the rest.
    assert [rows(engine.step())[1:] for _ in range(2)] == [[(0, 8)], [(8, 8)]]


def test_a_chunk_may_end_at_a_crop_s_first_position_before_any_of_it_is_encoded():
    engine, _ = decoding_engine(max_step_vision_blocks=1)
    engine.add(16, crops=[(3, 1)])
    assert [rows(engine.step())[1:] for _ in range(4)] == [[(0, 3)], [], [], [(3, 13)]]


def test_alone_a_prompt_waits_for_its_crops_rather_than_be_computed_in_bits():
    engine = make_engine(max_idle_crops=1)
    engine.add(16, crops=[(2, 1), (8, 2)])
    assert [rows(engine.step()) for _ in range(2)] == [[], [(0, 16)]]


def test_a_chunk_cut_by_the_token_budget_does_not_wait():
    engine = make_engine(max_idle_crops=1, max_step_tokens=4)
    engine.add(16, crops=[(8, 1), (12, 2)])
    assert [rows(engine.step()) for _ in range(4)] == [[(0, 4)], [(4, 4)], [(8, 4)], [(12, 4)]]


def test_a_chunk_may_begin_and_end_within_a_crop():
    engine = make_engine(max_step_tokens=5)
    sequence = engine.add(14, crops=[(3, 1), (7, 2)])
    slots = sequence.crop_slots, engine.step(), engine.step(), engine.step()
    first, second, third = (batch.rows[0].crops for batch in slots[1:])
    one, two = sequence.crop_slots
    assert first == (CropRows(offset=3, crop_slot=one, first_query=0, num_queries=2),)
    assert second == (CropRows(0, one, 2, 2), CropRows(2, two, 0, 3))
    assert third == (CropRows(0, two, 3, 1),)


def test_two_sequences_with_the_same_crop_have_it_encoded_once():
    engine = make_engine(max_idle_crops=1)
    first = engine.add(12, crops=[(0, 1), (4, 2)])
    second = engine.add(9, crops=[(3, 2)])
    engine.step()
    assert first.crop_slots[1] == second.crop_slots[0]
    # The second waits for the crop that is encoded for the first, and then both go on.
    assert rows(engine.batches[-1]) == []
    assert len(rows(engine.step())) == 2
    engine.run_to_end()
    assert sum(len(batch.encode) for batch in engine.batches) == 2
    assert (engine.vision.num_queries, engine.vision.num_hits) == (3, 1)
    assert [first.generated_ids, second.generated_ids] == [expected_of(first), expected_of(second)]
    engine.assert_empty()


def test_a_shared_crop_counts_once_in_the_budget():
    engine = make_engine(max_idle_crops=2)
    engine.add(12, crops=[(0, 1)])
    engine.add(12, crops=[(0, 1), (4, 2)])
    assert encoded(engine.step()) == [(0, 0, 4), (1, 0, 4)]


def test_a_sequence_counts_as_worked_on_from_its_first_crop():
    engine = make_engine(max_idle_crops=1)
    sequence = engine.add(12, crops=[(0, 1), (4, 2)])
    engine.run_to_end()
    assert rows(engine.batches[0]) == []
    assert (sequence.scheduled, sequence.first_token) == (0.0, 2.0)


def test_an_encoded_crop_is_not_encoded_again_for_a_later_sequence():
    engine = make_engine()
    engine.add(8, crops=[(1, 5)])
    engine.run_to_end()
    later = engine.add(9, crops=[(3, 5)])
    engine.step()
    assert engine.batches[-1].encode == ()
    assert engine.arena.offsets == set()
    engine.run_to_end()
    assert later.generated_ids == expected_of(later)


def test_a_crop_between_two_that_are_resident_is_encoded():
    engine = make_engine()
    engine.add(12, crops=[(0, 1), (4, 3)])
    engine.run_to_end()
    sequence = engine.add(14, crops=[(0, 1), (4, 2), (8, 3)])
    batch = engine.step()
    assert [work.crop_slot for work in batch.encode] == [sequence.crop_slots[1]]
    assert rows(batch) == [(0, 14)]


def test_pixels_are_released_when_the_first_block_has_run_and_not_before():
    engine, _ = decoding_engine(max_step_vision_blocks=2)
    sequence = engine.add(12, crops=[(0, 1), (4, 2)])
    offsets = [crop.offset for crop in sequence.crops]
    held = []
    for _ in range(3):
        held.append(engine.arena.offsets)
        engine.step()
    assert held == [set(offsets), {offsets[1]}, {offsets[1]}]
    assert engine.arena.offsets == set()


def test_pixels_of_a_crop_found_encoded_stay_until_the_sequence_is_admitted():
    # Before it is admitted nothing keeps the vectors from being evicted.
    engine = make_engine(make_info(num_crop_slots=1, num_state_slots=1))
    engine.add(8, crops=[(1, 5)])
    engine.run_to_end()
    engine.add(3, max_tokens=6)
    engine.step()
    waiting = engine.add(8, crops=[(1, 5)])
    engine.step()
    assert engine.arena.offsets == {waiting.crops[0].offset}
    engine.run_to_end()
    assert waiting.generated_ids == expected_of(waiting)
    engine.assert_empty()


def test_sequences_of_one_request_release_their_common_pixels_once():
    engine = make_engine(make_info(num_state_slots=2))
    sequences = engine.submit(8, crops=[(1, 5)], num_choices=3)
    offset = sequences[0].crops[0].offset
    engine.step()
    assert sequences[2].crop_slots is None  # it waits for what the first computes, and could still need the pixels
    assert engine.arena.offsets == {offset}
    engine.run_to_end()
    assert [sequence.generated_ids for sequence in sequences] == [expected_of(sequence) for sequence in sequences]
    engine.assert_empty()


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_an_aborted_sequence_gives_slots_and_pixels_back_at_every_stage(num_steps):
    engine, text = decoding_engine(max_step_vision_blocks=2)
    sequence = engine.add(9, crops=[(1, 5)], max_tokens=50)
    for _ in range(num_steps):
        engine.step()
    engine.abort(sequence.request_id)
    assert engine.arena.offsets == set()
    assert engine.vision.num_referenced == 0
    assert engine.step().encode == ()
    assert text.num_known == text.num_computed + 1


def test_a_crop_whose_owner_is_aborted_is_finished_for_the_others():
    engine, _ = decoding_engine(max_step_vision_blocks=2)
    owner = engine.add(9, crops=[(1, 5)])
    other = engine.add(9, crops=[(1, 5)])
    engine.step()
    engine.abort(owner.request_id)
    assert encoded(engine.step()) == [(other.crop_slots[0], 2, 4)]
    while other not in engine.finished:
        engine.step()
    assert other.generated_ids == expected_of(other)


def test_more_crops_than_slots_is_refused_before_it_comes_here():
    engine = make_engine(make_info(num_crop_slots=2))
    with pytest.raises(AssertionError):
        engine.add(20, crops=[(0, 1), (4, 2), (8, 3)])


# ---- the second tier, and pixels that were not sent ----


def seen_before(*contents, **info):
    """An engine that has the crops encoded; of the last ones as many as its slots hold, and the others on the host."""
    engine = make_engine(make_info(**info))
    for content in contents:
        engine.add(8, crops=[(1, content)])
        engine.run_to_end()
    return engine


def num_encoded(engine):
    return sum(len(batch.encode) for batch in engine.batches)


def test_a_crop_that_left_the_device_is_copied_back_instead_of_encoded():
    engine = seen_before(1, 2, num_crop_slots=1, num_host_slots=1)
    again = engine.add(9, crops=[(2, 1)])
    batch = engine.step()
    assert [copy.to_host for copy in batch.copies] == [False]  # the one host slot was spoken for: 2 is lost
    assert (batch.encode, rows(batch)) == ((), [(0, 9)])
    engine.run_to_end()
    assert again.generated_ids == expected_of(again)
    assert num_encoded(engine) == 2
    engine.assert_empty()


@pytest.mark.parametrize("num_slots", [1, 2])
def test_without_pixels_a_resident_crop_is_enough(num_slots):
    engine = seen_before(1, 2, num_crop_slots=num_slots, num_host_slots=2)
    num_put = engine.arena.num_put
    (again,) = engine.submit_crops(9, without_pixels([(2, 1)]), num_choices=1)
    engine.run_to_end()
    assert again.generated_ids == expected_of(again)
    assert (num_encoded(engine), engine.arena.num_put, engine.wanted) == (2, num_put, [])
    engine.assert_empty()


def test_pixels_of_a_crop_that_is_gone_are_asked_for_once():
    engine = seen_before(1, 2, num_crop_slots=1)
    sequences = engine.submit_crops(9, without_pixels([(2, 1)]), num_choices=2)
    text = engine.add(3)
    engine.step()
    assert engine.wanted == [sequences[0].request_id]
    while engine.step() is not None:  # who waits for pixels stands in nobody's way
        pass
    assert text.generated_ids == expected_of(text)
    assert engine.scheduler.is_idle
    assert engine.scheduler.num_waiting == 2
    engine.supply(sequences[0])
    assert not engine.scheduler.is_idle
    engine.run_to_end()
    assert engine.wanted == []
    assert [sequence.generated_ids for sequence in sequences] == [expected_of(sequence) for sequence in sequences]
    assert num_encoded(engine) == 3
    engine.assert_empty()


def test_who_waits_for_pixels_holds_none_of_the_others():
    # Two requests that each hold a part of the arena and wait for another part of it would wait for ever.
    engine = make_engine()
    crops = make_crops(engine.arena, [(0, 1)]) + without_pixels([(4, 2)])
    (sequence,) = engine.submit_crops(10, crops, num_choices=1)
    engine.schedule()
    engine.settle()
    assert (engine.wanted, engine.arena.offsets) == ([sequence.request_id], set())
    engine.supply(sequence)
    engine.run_to_end()
    assert sequence.generated_ids == expected_of(sequence)
    engine.assert_empty()


def test_a_crop_that_is_about_to_begin_for_another_is_waited_for():
    engine, _ = decoding_engine(max_step_vision_blocks=1)
    engine.add(12, crops=[(0, 1), (4, 2)])
    (second,) = engine.submit_crops(9, without_pixels([(2, 2)]), num_choices=1)
    for _ in range(4):
        engine.step()
        assert second.crop_slots is None
    engine.step()  # the first block reads the pixels of 2
    assert second.crop_slots is None
    engine.step()
    assert second.crop_slots is not None
    while second not in engine.finished:
        engine.step()
    assert engine.wanted == []
    assert second.generated_ids == expected_of(second)


def test_when_the_other_one_leaves_before_its_first_block_the_pixels_are_asked_for():
    engine, _ = decoding_engine(max_step_vision_blocks=1)
    first = engine.add(12, crops=[(0, 1), (4, 2)])
    (second,) = engine.submit_crops(9, without_pixels([(2, 2)]), num_choices=1)
    engine.step()
    engine.abort(first.request_id)
    engine.step()
    assert engine.wanted == [second.request_id]


def test_crops_in_cached_tokens_need_no_pixels():
    engine = seen_before(1, 2, num_crop_slots=1)
    (again,) = engine.submit_crops(9, without_pixels([(1, 1)]), num_choices=1, prompt_ids=[*range(8), 50])
    assert engine.batches[0].rows[0].token_ids == list(range(8))
    engine.run_to_end()
    assert again.num_cached_prompt == 8
    assert engine.wanted == []
    assert again.generated_ids == expected_of(again)


@pytest.mark.parametrize("when", ["asked", "unasked", "ended"])
def test_pixels_that_nobody_needs_are_given_back(when):
    engine = seen_before(1, num_crop_slots=1)
    (sequence,) = engine.submit_crops(9, without_pixels([(2, 3 if when == "asked" else 1)]), num_choices=1)
    engine.step()
    if when == "asked":
        engine.abort(sequence.request_id)
    if when == "ended":
        engine.run_to_end()
    engine.supply(sequence)
    assert engine.arena.offsets == set()
    engine.run_to_end()
    engine.assert_empty()


def test_pixels_may_be_asked_for_after_a_preemption(monkeypatch):
    monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
    engine = seen_before(1, num_crop_slots=1, num_kv_blocks=9)
    old = engine.add(8, crops=[(0, 2)], max_tokens=25)  # evicts the crop's vectors
    (young,) = engine.submit_crops(
        10, without_pixels([(1, 1)]), num_choices=1, prompt_ids=[*range(8), 50, 51], max_tokens=20
    )
    engine.step()
    assert young.crop_slots == (None,)  # its picture lies in cached tokens
    while engine.step() is not None:  # the older one grows into all blocks but one
        pass
    assert (young.status, engine.wanted) == (Status.WAITING, [young.request_id])
    engine.supply(young)
    engine.run_to_end()
    assert engine.finished[1:] == [old, young]
    assert [one.generated_ids for one in (old, young)] == [expected_of(old), expected_of(young)]
    engine.assert_empty()


def test_a_failed_step_takes_what_it_was_to_copy_with_it():
    engine = seen_before(1, 2, num_crop_slots=1, num_host_slots=2)
    (again,) = engine.submit_crops(9, without_pixels([(2, 1)]), num_choices=1)
    batch = engine.schedule()
    assert [copy.to_host for copy in batch.copies] == [True, False]
    assert engine.fail(batch) == [again]
    (third,) = engine.submit_crops(9, without_pixels([(2, 2)]), num_choices=1)
    engine.step()
    assert engine.wanted == [third.request_id]  # 2 was on its way to the host
    engine.supply(third)
    engine.run_to_end()
    assert third.generated_ids == expected_of(third)
    engine.assert_empty()
