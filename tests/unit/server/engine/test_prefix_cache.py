"""What a sequence finds computed already, through whole steps. A KV block and a crop take 4 tokens each here."""

import pytest

from model.step import SamplingParams
from server.engine import scheduler as scheduler_module
from server.engine.sequence import Status
from tests.support.builders import expected_of, make_engine
from tests.support.fake_runner import make_info

TEXT = list(range(50, 70))


def rows(batch):
    """(first position, number of tokens) of each row."""
    return [(row.start, len(row.token_ids)) for row in batch.rows]


def run_alone(engine, **request):
    """A request from its first step to its end, with nothing else in the engine."""
    sequence = engine.add(**request)
    engine.run_to_end()
    return sequence


def assert_all_as_alone(engine):
    assert [sequence.generated_ids for sequence in engine.finished] == list(map(expected_of, engine.finished))
    engine.assert_empty()


class TestWhatIsFound:
    @pytest.mark.parametrize(
        ("num_prompt", "num_cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12), (20, 16)]
    )
    def test_full_blocks_of_an_equal_prompt_and_one_token_is_always_left(self, num_prompt, num_cached):
        engine = make_engine()
        run_alone(engine, prompt_ids=TEXT[:num_prompt], max_tokens=1)
        again = engine.add(prompt_ids=TEXT[:num_prompt], max_tokens=3)
        assert rows(engine.step()) == [(num_cached, num_prompt - num_cached)]
        assert again.num_cached_prompt == num_cached
        engine.run_to_end()
        assert_all_as_alone(engine)

    def test_a_common_beginning_of_different_prompts(self):
        engine = make_engine()
        run_alone(engine, prompt_ids=TEXT[:14])
        run_alone(engine, prompt_ids=[*TEXT[:10], 1, 2, 3, 4])
        run_alone(engine, prompt_ids=[9, *TEXT[1:14]])
        assert [sequence.num_cached_prompt for sequence in engine.finished] == [0, 8, 0]
        assert_all_as_alone(engine)

    def test_a_second_turn_computes_what_is_new_in_it(self):
        engine = make_engine()
        first = run_alone(engine, prompt_ids=TEXT[:10], crops=[(1, 7)], max_tokens=8)
        # 10 + 8 tokens are known, of which the last was never computed: 4 blocks are full.
        prompt_ids = [*TEXT[:10], *first.generated_ids, 80, 81, 82]
        second = engine.add(prompt_ids=prompt_ids, crops=[(1, 7)], max_tokens=2)
        batch = engine.step()
        assert (rows(batch), batch.encode) == ([(16, 5)], ())
        assert second.num_cached_prompt == 16
        engine.run_to_end()
        assert_all_as_alone(engine)

    def test_a_sequence_that_still_runs_shares_its_blocks(self):
        engine = make_engine(make_info(num_kv_blocks=12))
        first = engine.add(prompt_ids=TEXT, max_tokens=8)
        engine.step()
        second = engine.add(prompt_ids=TEXT, max_tokens=8)
        engine.step()
        assert second.block_table[:4] == first.block_table[:4]
        assert engine.blocks.num_used == 4 + 2 + 1  # shared, the first's others, the second's
        engine.run_to_end()
        assert first in engine.finished
        assert_all_as_alone(engine)

    def test_other_sampling_finds_the_same_blocks(self):
        engine = make_engine()
        run_alone(engine, prompt_ids=TEXT)
        again = run_alone(engine, prompt_ids=TEXT, seed=3, sampling=SamplingParams(1.0, repetition_penalty=1.2))
        assert again.num_cached_prompt == 16
        assert_all_as_alone(engine)

    def test_blocks_of_an_aborted_prompt_are_kept_and_those_of_a_failed_step_are_not(self):
        engine = make_engine(max_step_tokens=8)
        aborted = engine.add(prompt_ids=TEXT)
        engine.step()
        engine.abort(aborted.request_id)
        failed = engine.add(prompt_ids=TEXT)
        engine.fail(engine.schedule())
        assert failed.num_cached_prompt == 8
        again = run_alone(engine, prompt_ids=TEXT)
        assert again.num_cached_prompt == 8
        assert_all_as_alone(engine)

    def test_without_the_cache_nothing_is_found(self):
        engine = make_engine(prefix_cache=False)
        for _ in range(2):
            assert run_alone(engine, prompt_ids=TEXT).num_cached_prompt == 0
        assert [rows(batch)[0] for batch in engine.batches if batch.starts] == [(0, 20)] * 2
        assert (engine.prefixes.num_queries, engine.prefixes.num_hits) == (0, 0)
        assert_all_as_alone(engine)

    def test_tokens_are_counted_by_sequence(self):
        engine = make_engine()
        run_alone(engine, prompt_ids=TEXT)
        run_alone(engine, prompt_ids=TEXT[:9])
        assert (engine.prefixes.num_queries, engine.prefixes.num_hits) == (20 + 9, 8)


class TestWhatIsNotShared:
    def test_equal_placeholders_of_other_pictures(self):
        engine = make_engine()
        run_alone(engine, prompt_ids=TEXT, crops=[(5, 1), (9, 2)])
        other_first = run_alone(engine, prompt_ids=TEXT, crops=[(5, 3), (9, 2)])
        other_second = run_alone(engine, prompt_ids=TEXT, crops=[(5, 1), (9, 3)])
        none = run_alone(engine, prompt_ids=TEXT)
        # The first crop is at positions 5 to 8, blocks 1 and 2, the second at 9 to 12, blocks 2 and 3.
        assert [sequence.num_cached_prompt for sequence in (other_first, other_second, none)] == [4, 8, 4]
        assert_all_as_alone(engine)

    def test_the_same_picture_at_another_place(self):
        engine = make_engine()
        run_alone(engine, prompt_ids=[7] * 20, crops=[(5, 1)])
        moved = run_alone(engine, prompt_ids=[7] * 20, crops=[(6, 1)])
        assert moved.num_cached_prompt == 4
        assert_all_as_alone(engine)

    def test_tenants_with_different_salts(self):
        engine = make_engine()
        for salt, num_cached in ((b"a", 0), (b"b", 0), (b"", 0), (b"a", 16), (b"", 16)):
            assert run_alone(engine, prompt_ids=TEXT, cache_salt=salt).num_cached_prompt == num_cached
        assert_all_as_alone(engine)

    def test_a_salt_made_of_a_block_does_not_stand_for_it(self):
        engine = make_engine()
        first = run_alone(engine, prompt_ids=TEXT)
        ids = b"".join(token_id.to_bytes(4, "little") for token_id in TEXT[4:8])
        forged = run_alone(engine, prompt_ids=TEXT[8:], cache_salt=first.block_hashes[0] + ids)
        assert forged.num_cached_prompt == 0
        assert_all_as_alone(engine)


class TestCrops:
    def test_one_that_lies_in_cached_tokens_takes_no_slot(self):
        engine = make_engine(make_info(num_crop_slots=2))
        run_alone(engine, prompt_ids=TEXT, crops=[(1, 1), (5, 2)])
        holder = engine.add(prompt_ids=list(range(12)), crops=[(0, 3), (4, 4)], max_tokens=20)
        engine.step()
        again = engine.add(prompt_ids=TEXT, crops=[(1, 1), (5, 2)])
        batch = engine.step()
        assert (again.status, again.crop_slots) == (Status.RUNNING, (None, None))
        assert batch.encode == ()
        assert engine.vision.num_queries == 4
        engine.run_to_end()
        assert engine.finished[-1] is holder
        assert_all_as_alone(engine)

    def test_one_that_is_partly_in_them_is_encoded(self):
        engine = make_engine(make_info(num_crop_slots=2))
        run_alone(engine, prompt_ids=TEXT[:11], crops=[(1, 1), (6, 2)])  # 8 tokens, half of the second crop
        run_alone(engine, prompt_ids=list(range(12)), crops=[(0, 3), (4, 4)])  # evicts both crops
        again = engine.add(prompt_ids=TEXT[:11], crops=[(1, 1), (6, 2)])
        batch = engine.step()
        assert rows(batch) == [(8, 3)]
        assert [(bytes(work.pixels), work.crop_slot) for work in batch.encode] == [
            (bytes([2] * 6), again.crop_slots[1])
        ]
        (crop_rows,) = batch.rows[0].crops
        assert (crop_rows.offset, crop_rows.first_query, crop_rows.num_queries) == (0, 2, 2)
        engine.run_to_end()
        assert_all_as_alone(engine)

    def test_pixels_stay_for_a_prompt_that_may_have_to_be_computed_again(self, monkeypatch):
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        engine = make_engine(make_info(num_kv_blocks=9, num_crop_slots=1))
        run_alone(engine, prompt_ids=TEXT[:10], crops=[(1, 1)], max_tokens=1)
        old = engine.add(prompt_ids=list(range(8)), crops=[(0, 2)], max_tokens=25)  # evicts the crop's vectors
        young = engine.add(prompt_ids=TEXT[:10], crops=[(1, 1)], max_tokens=20)
        engine.step()
        assert young.crop_slots == (None,)
        assert engine.arena.offsets == {young.crops[0].offset}
        engine.run_to_end()  # the older one grows into all blocks but one
        assert engine.finished[1:] == [old, young]
        assert [bytes(work.pixels)[0] for batch in engine.batches for work in batch.encode] == [1, 2, 1]
        assert_all_as_alone(engine)

    def test_a_preempted_sequence_that_keeps_its_pixels_gives_back_its_slots(self, monkeypatch):
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        engine = make_engine(make_info(num_kv_blocks=6, num_crop_slots=2))
        run_alone(engine, prompt_ids=TEXT[:10], crops=[(1, 1)], max_tokens=1)
        old = engine.add(prompt_ids=list(range(6)), max_tokens=19)
        young = engine.add(prompt_ids=TEXT[:13], crops=[(1, 1), (9, 2)], max_tokens=8)
        engine.step()
        assert young.crop_slots is not None
        assert [slot is None for slot in young.crop_slots] == [True, False]
        while young.status is Status.RUNNING:
            engine.step()
        assert engine.vision.num_referenced == 0
        engine.run_to_end()
        assert engine.finished[1:] == [old, young]
        assert_all_as_alone(engine)


class TestWaitingForWhatOthersCompute:
    def test_choices_compute_their_prompt_once(self):
        engine = make_engine(max_step_tokens=8)
        choices = engine.submit(prompt_ids=TEXT[:18], crops=[(2, 1)], num_choices=3, max_tokens=5)
        engine.run_to_end()
        prefill = [row for batch in engine.batches for row in rows(batch) if row[0] < 18]
        assert prefill == [(0, 8), (8, 8), (16, 2), (16, 2), (16, 2)]
        assert [sequence.num_cached_prompt for sequence in choices] == [0, 16, 16]
        assert sum(len(batch.encode) for batch in engine.batches) == 1
        assert_all_as_alone(engine)

    def test_questions_about_one_picture_compute_it_once(self):
        engine = make_engine()
        for number in range(4):
            engine.add(prompt_ids=[*TEXT[:15], 90 + number], crops=[(4, 1), (8, 2)])
        assert [rows(engine.step()) for _ in range(2)] == [[(0, 16)], [(16, 1), (12, 4), (12, 4), (12, 4)]]
        engine.run_to_end()
        assert_all_as_alone(engine)

    def test_a_text_does_not_wait_for_a_picture_behind_what_it_shares(self):
        engine = make_engine(max_idle_crops=1)
        engine.add(prompt_ids=TEXT, crops=[(10, 1), (14, 2)])
        text = engine.add(prompt_ids=[*TEXT[:8], 1, 2])
        assert rows(engine.step())[-1] == (0, 10)
        assert text.first_token == 1.0
        engine.run_to_end()
        assert_all_as_alone(engine)

    def test_another_picture_behind_the_same_text_does_not_wait_either(self):
        engine = make_engine(make_info(num_crop_slots=4), max_idle_crops=2)
        first = engine.add(prompt_ids=TEXT, crops=[(10, 1), (14, 2)])
        second = engine.add(prompt_ids=TEXT, crops=[(10, 3), (14, 4)])
        engine.step()
        assert (first.status, second.status) == (Status.RUNNING, Status.RUNNING)
        engine.run_to_end()
        assert_all_as_alone(engine)

    def test_one_that_waits_goes_on_when_the_other_is_gone(self):
        engine = make_engine(max_step_tokens=8)
        first, second = (engine.add(prompt_ids=TEXT) for _ in range(2))
        engine.step()
        assert second.status is Status.WAITING
        engine.abort(first.request_id)
        engine.step()
        assert (second.status, second.num_cached_prompt) == (Status.RUNNING, 8)
        engine.run_to_end()
        assert_all_as_alone(engine)

    def test_others_overtake_one_that_waits(self):
        engine = make_engine(max_step_tokens=8)
        engine.add(prompt_ids=TEXT)
        waiting, other = engine.add(prompt_ids=TEXT), engine.add(prompt_ids=[1, 2], max_tokens=1)
        engine.step()
        assert (waiting.status, other.status) == (Status.WAITING, Status.RUNNING)
        engine.run_to_end()
        assert_all_as_alone(engine)


class TestMemory:
    def test_cached_blocks_are_free_for_whoever_comes(self):
        engine = make_engine(make_info(num_kv_blocks=6))
        run_alone(engine, prompt_ids=TEXT, max_tokens=1)
        assert (engine.blocks.num_used, engine.blocks.num_free) == (0, 6)
        run_alone(engine, prompt_ids=list(range(21)), max_tokens=4)
        assert engine.scheduler.num_preemptions == 0
        assert run_alone(engine, prompt_ids=TEXT, max_tokens=1).num_cached_prompt == 0
        assert_all_as_alone(engine)

    def test_shared_blocks_let_more_sequences_run(self):
        engine = make_engine(make_info(num_kv_blocks=10))
        run_alone(engine, prompt_ids=TEXT, max_tokens=1)
        for _ in range(4):  # 6 blocks each in the end, of which 4 are common: 6 + 2 + 2
            engine.add(prompt_ids=TEXT, max_tokens=4)
        engine.step()
        assert engine.scheduler.num_running == 3
        engine.run_to_end()
        assert engine.scheduler.num_preemptions == 0
        assert_all_as_alone(engine)

    def test_a_preempted_sequence_finds_its_own_tokens(self, monkeypatch):
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        engine = make_engine(make_info(num_kv_blocks=8))
        old, young = engine.add(8, max_tokens=10), engine.add(8, max_tokens=14)
        engine.run_to_end()
        assert engine.scheduler.num_preemptions == 1
        resumed = next(batch for batch in engine.batches[1:] if batch.starts)
        (row,) = (row for row in resumed.rows if row.state_slot == resumed.starts[0].state_slot)
        assert row.start > 8  # more than its prompt
        assert young.num_cached_prompt == 0  # it was not there before the request
        assert engine.finished == [old, young]
        assert_all_as_alone(engine)

    def test_a_preempted_sequence_of_which_only_the_newest_token_is_missing_goes_on(self, monkeypatch):
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        engine = make_engine(make_info(num_kv_blocks=5))
        old = engine.add(8, max_tokens=2)
        young = engine.add(8, max_tokens=4, sampling=SamplingParams(repetition_penalty=1.1))
        engine.step()  # two full blocks each, and each needs a third now: the older one takes the last, and ends
        engine.step()
        assert (young.status, engine.finished) == (Status.WAITING, [old])
        batch = engine.step()
        assert rows(batch) == [(8, 1)]
        assert [start.generated_ids for start in batch.starts] == [tuple(young.generated_ids[:1])]
        engine.run_to_end()
        assert_all_as_alone(engine)
