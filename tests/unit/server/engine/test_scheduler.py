"""Each rule of the scheduler, through whole steps. A KV block holds 4 tokens here; see tests.support.builders."""

import pytest

from model.step import Draw, SamplingParams, SequenceRow, StateStart
from server.engine import scheduler as scheduler_module
from server.engine.sequence import Status, uniform
from tests.support.builders import expected_of, make_engine, make_sequence
from tests.support.fake_runner import make_info


def rows(batch):
    """(first position, number of tokens) of each row."""
    return [(row.start, len(row.token_ids)) for row in batch.rows]


def assert_all_as_alone(engine, *sequences):
    assert set(engine.finished) == set(sequences)
    assert [sequence.generated_ids for sequence in sequences] == [expected_of(sequence) for sequence in sequences]
    engine.assert_empty()


def without_growth(monkeypatch):
    """Admits as if no running sequence grew, so that small pools run out."""
    monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)


class TestCatchingUp:
    def test_a_prompt_that_fits_the_budget_is_computed_in_one_step_and_draws(self):
        engine = make_engine()
        sampling = SamplingParams(temperature=0.7, top_p=0.8)
        engine.add(prompt_ids=[3, 4, 5, 6, 7], sampling=sampling, seed=11)
        batch = engine.schedule()
        assert batch.starts == (StateStart(3, sampling, ()),)
        assert batch.encode == ()
        (row,) = batch.rows
        assert row == SequenceRow(3, [3, 4, 5, 6, 7], 0, row.block_table, (), Draw((uniform(11, 0),)))
        assert len(row.block_table) == 2

    def test_each_further_step_computes_the_newest_id_and_draws_the_next(self):
        engine = make_engine()
        sequence = engine.add(5, max_tokens=3, seed=11)
        engine.run_to_end()
        assert [rows(batch) for batch in engine.batches] == [[(0, 5)], [(5, 1)], [(6, 1)]]
        assert [row.token_ids for batch in engine.batches[1:] for row in batch.rows] == [
            [token_id] for token_id in sequence.generated_ids[:2]
        ]
        assert [batch.rows[0].draw for batch in engine.batches] == [Draw((uniform(11, index),)) for index in range(3)]
        assert [len(batch.starts) for batch in engine.batches] == [1, 0, 0]
        assert_all_as_alone(engine, sequence)

    def test_a_long_prompt_is_cut_into_chunks_and_draws_at_its_end_only(self):
        engine = make_engine(max_step_tokens=4)
        sequence = engine.add(10, max_tokens=2)
        engine.run_to_end()
        assert [rows(batch) for batch in engine.batches] == [[(0, 4)], [(4, 4)], [(8, 2)], [(10, 1)]]
        assert [batch.rows[0].draw is not None for batch in engine.batches] == [False, False, True, True]
        assert [len(batch.starts) for batch in engine.batches] == [1, 0, 0, 0]
        assert_all_as_alone(engine, sequence)

    def test_several_prompts_share_a_step_in_order_of_arrival(self):
        engine = make_engine(max_step_tokens=8)
        for num_prompt in (6, 5, 3):
            engine.add(num_prompt, max_tokens=1)
        # A prompt that has been begun goes on before the next one is.
        assert [rows(engine.step()) for _ in range(2)] == [[(0, 6), (0, 2)], [(2, 3), (0, 3)]]

    def test_decode_comes_first_and_prefill_gets_the_rest_of_the_budget(self):
        engine = make_engine(max_step_tokens=5)
        first, second = engine.add(2, max_tokens=9), engine.add(3, max_tokens=9)
        engine.step()
        third = engine.add(7, max_tokens=1)
        assert [rows(engine.step()) for _ in range(3)] == [
            [(2, 1), (3, 1), (0, 3)],
            [(3, 1), (4, 1), (3, 3)],
            [(4, 1), (5, 1), (6, 1)],
        ]
        engine.run_to_end()
        assert_all_as_alone(engine, first, second, third)

    def test_decode_may_take_the_whole_budget(self):
        engine = make_engine(max_step_tokens=4)
        sequences = [engine.add(1, max_tokens=6) for _ in range(3)]
        engine.step()
        sequences.append(engine.add(1, max_tokens=6))
        engine.step()
        assert rows(engine.step()) == [(2, 1), (2, 1), (2, 1), (1, 1)]
        engine.run_to_end()
        assert_all_as_alone(engine, *sequences)

    def test_nothing_to_do(self):
        engine = make_engine()
        assert engine.schedule() is None
        engine.add()
        engine.run_to_end()
        assert engine.schedule() is None


class TestEnds:
    def test_the_end_id_ends_a_sequence_and_is_among_its_ids(self):
        engine = make_engine()
        sequence = make_sequence(max_tokens=30)
        eos_id = expected_of(sequence)[4]
        ended, ignoring = engine.add(max_tokens=30, eos_id=eos_id), engine.add(max_tokens=30, request_id=0)
        engine.run_to_end()
        assert ended.generated_ids == ignoring.generated_ids[: len(ended.generated_ids)]
        assert ended.generated_ids[-1] == eos_id
        assert len(ended.generated_ids) <= 5
        assert len(ignoring.generated_ids) == 30
        assert_all_as_alone(engine, ended, ignoring)

    def test_news_say_who_got_what_and_why_it_ended(self):
        engine = make_engine()
        first = engine.add(max_tokens=2)
        second = engine.add(max_tokens=1, sampling=SamplingParams(num_logprobs=2))
        batch = engine.schedule()
        output = engine.runner.run(batch)
        news = engine.scheduler.update(batch, output, now=5.0)
        assert [(new.sequence, new.finish_reason) for new in news] == [(first, None), (second, "length")]
        assert [new.sampled for new in news] == list(output.sampled)
        assert [len(new.sampled) for new in news] == [1, 1]
        assert (first.scheduled, first.first_token) == (0.0, 5.0)
        assert second.status is Status.FINISHED

    def test_a_sequence_joins_and_leaves_at_any_step(self):
        engine = make_engine()
        sequences = []
        for num_tokens in (7, 3, 5, 1, 6):
            sequences.append(engine.add(num_tokens + 2, max_tokens=num_tokens))
            engine.step()
        engine.run_to_end()
        assert_all_as_alone(engine, *sequences)


class TestAdmission:
    def test_no_more_run_than_there_are_state_slots(self):
        engine = make_engine(make_info(num_state_slots=2))
        sequences = [engine.add(3, max_tokens=3) for _ in range(5)]
        while engine.step() is not None:
            assert engine.scheduler.num_running <= 2
        assert_all_as_alone(engine, *sequences)

    def test_a_text_request_does_not_wait_for_a_picture_to_be_encoded(self):
        engine = make_engine(max_idle_crops=1)
        picture = engine.add(20, crops=[(0, 1), (4, 2), (8, 3), (12, 4)])
        text = engine.add(5, max_tokens=2)
        engine.run_to_end()
        assert engine.finished == [text, picture]
        assert text.first_token == 1.0
        assert_all_as_alone(engine, text, picture)

    def test_nobody_overtakes_a_sequence_that_waits_for_blocks(self):
        engine = make_engine(make_info(num_kv_blocks=8))
        running = engine.add(8, max_tokens=8)  # takes 4 of the 8 blocks in the end
        large = engine.add(20, max_tokens=1)  # needs 5
        small = engine.add(2, max_tokens=1)
        engine.step()
        assert [sequence.status for sequence in (running, large, small)] == [
            Status.RUNNING,
            Status.WAITING,
            Status.WAITING,
        ]
        engine.run_to_end()
        assert engine.finished == [running, large, small]
        assert engine.scheduler.num_preemptions == 0

    def test_an_admission_leaves_room_for_the_running_to_grow(self):
        # 8 + 8 tokens in the end take 4 of 8 blocks each; 6 prompts would fit now, and run into each other later.
        engine = make_engine(make_info(num_kv_blocks=8, num_state_slots=6))
        sequences = [engine.add(8, max_tokens=9) for _ in range(6)]
        engine.step()
        assert engine.scheduler.num_running == 2
        engine.run_to_end()
        assert engine.scheduler.num_preemptions == 0
        assert_all_as_alone(engine, *sequences)

    def test_a_sequence_that_waits_for_crop_slots_is_overtaken_by_text_alone(self):
        engine = make_engine(make_info(num_crop_slots=3))
        running = engine.add(12, crops=[(0, 1), (4, 2)], max_tokens=4)
        engine.step()
        large = engine.add(12, crops=[(0, 3), (4, 4)], max_tokens=1)
        small = engine.add(12, crops=[(0, 5)], max_tokens=1)
        text = engine.add(3, max_tokens=1)
        engine.step()
        assert engine.finished == [text]
        assert (large.status, small.status) == (Status.WAITING, Status.WAITING)
        engine.run_to_end()
        assert engine.finished == [text, running, large, small]
        assert_all_as_alone(engine, running, large, small, text)

    @pytest.mark.parametrize(
        "request_", [{"num_prompt": 10, "max_tokens": 4}, {"num_prompt": 5, "max_tokens": 0}, {"prompt_ids": []}]
    )
    def test_what_can_never_run_is_refused_before_it_comes_here(self, request_):
        engine = make_engine(make_info(num_kv_blocks=3))
        sequence = make_sequence(**request_)
        sequence.prompt_ids = request_.get("prompt_ids", sequence.prompt_ids)
        with pytest.raises(AssertionError):
            engine.scheduler.add(sequence)

    def test_a_sequence_that_fills_the_whole_cache_runs(self):
        engine = make_engine(make_info(num_kv_blocks=3))
        sequence = engine.add(8, max_tokens=5)  # the last id is never computed: 12 tokens
        engine.run_to_end()
        assert_all_as_alone(engine, sequence)


class TestPreemption:
    def test_the_youngest_gives_its_blocks_to_the_older_and_goes_on_later(self, monkeypatch):
        without_growth(monkeypatch)
        engine = make_engine(make_info(num_kv_blocks=5))
        old = engine.add(8, max_tokens=8)
        young = engine.add(8, max_tokens=8, sampling=SamplingParams(repetition_penalty=1.2))
        engine.step()  # two blocks each, one is free, and each needs a third for its first new token
        batch = engine.step()
        assert rows(batch) == [(8, 1)]
        assert (young.status, young.num_computed, len(young.generated_ids)) == (Status.WAITING, 0, 1)
        assert engine.scheduler.num_preemptions == 1
        engine.run_to_end()
        resumed = next(batch for batch in engine.batches[1:] if batch.starts)
        assert resumed.starts[0].generated_ids == (young.generated_ids[0],)
        assert resumed.starts[0].sampling == young.sampling
        assert rows(resumed) == [(4, 5)]  # of its blocks the older one took the last
        assert engine.finished == [old, young]
        assert_all_as_alone(engine, old, young)

    def test_a_preempted_sequence_stands_before_those_that_came_later(self, monkeypatch):
        without_growth(monkeypatch)
        engine = make_engine(make_info(num_kv_blocks=5, num_state_slots=2))
        old, young = (engine.add(8, max_tokens=6) for _ in range(2))
        engine.step()
        last = engine.add(1, max_tokens=1)
        while young.status is not Status.WAITING:
            engine.step()
        while young.status is Status.WAITING:
            assert last.scheduled is None  # a block is free for it all the time
            engine.step()
        engine.run_to_end()
        assert_all_as_alone(engine, old, young, last)

    def test_it_stands_behind_an_older_one_that_waits_for_crop_slots(self, monkeypatch):
        without_growth(monkeypatch)
        engine = make_engine(make_info(num_kv_blocks=5, num_crop_slots=1))
        old = engine.add(8, crops=[(0, 1)], max_tokens=8)
        waiting = engine.add(4, crops=[(0, 2)], max_tokens=1)
        young = engine.add(8, max_tokens=8)
        engine.step()
        engine.step()
        assert (waiting.scheduled, young.status) == (None, Status.WAITING)
        engine.run_to_end()
        assert waiting.scheduled is not None
        assert waiting.arrival < young.arrival
        assert engine.finished == [old, waiting, young]
        assert_all_as_alone(engine, old, waiting, young)

    def test_a_picture_is_not_needed_again_after_a_preemption(self, monkeypatch):
        without_growth(monkeypatch)
        engine = make_engine(make_info(num_kv_blocks=5, num_crop_slots=1))
        old = engine.add(8, max_tokens=8)
        young = engine.add(8, crops=[(2, 6)], max_tokens=8)
        engine.step()
        engine.step()
        assert young.status is Status.WAITING
        assert engine.arena.offsets == set()
        assert engine.vision.num_referenced == 1
        engine.run_to_end()
        assert sum(len(batch.encode) for batch in engine.batches) == 1
        assert_all_as_alone(engine, old, young)

    def test_a_prompt_in_the_middle_of_its_prefill_can_be_preempted(self, monkeypatch):
        without_growth(monkeypatch)
        engine = make_engine(make_info(num_kv_blocks=6), max_step_tokens=6)
        old = engine.add(4, max_tokens=12)
        young = engine.add(20, max_tokens=1)
        engine.step()
        assert young.num_computed == 2
        engine.step()
        assert young.num_computed == 0
        engine.run_to_end()
        assert engine.finished == [old, young]
        assert_all_as_alone(engine, old, young)

    def test_several_are_preempted_one_after_the_other_and_all_finish(self, monkeypatch):
        without_growth(monkeypatch)
        engine = make_engine(make_info(num_kv_blocks=8, num_state_slots=8))
        sequences = [engine.add(3, max_tokens=20) for _ in range(8)]
        engine.run_to_end()
        assert engine.scheduler.num_preemptions > 4
        assert engine.finished[0] is sequences[0]
        assert_all_as_alone(engine, *sequences)


class TestAbortAndFailure:
    @pytest.mark.parametrize("num_steps", range(6))
    def test_an_aborted_sequence_gives_everything_back_at_every_stage(self, num_steps):
        engine = make_engine(make_info(num_state_slots=1), max_step_tokens=4, max_idle_crops=1)
        sequence = engine.add(12, crops=[(2, 1), (6, 2)], max_tokens=9)
        other = engine.add(3)
        for _ in range(num_steps):
            engine.step()
        engine.abort(sequence.request_id)
        assert sequence.status is Status.FINISHED
        engine.run_to_end()
        assert_all_as_alone(engine, other)

    def test_a_preempted_sequence_can_be_aborted(self, monkeypatch):
        without_growth(monkeypatch)
        engine = make_engine(make_info(num_kv_blocks=5))
        old = engine.add(8, max_tokens=8)
        young = engine.add(8, crops=[(2, 6)], max_tokens=8)
        engine.step()
        engine.step()
        assert young.status is Status.WAITING
        engine.abort(young.request_id)
        assert engine.vision.num_referenced == 0
        engine.run_to_end()
        assert_all_as_alone(engine, old)

    def test_one_choice_or_all_of_a_request(self):
        engine = make_engine()
        first, second, third = engine.submit(num_choices=3)
        other = engine.add()
        engine.step()
        engine.abort(first.request_id, choice=1)
        assert second.status is Status.FINISHED
        engine.step()
        engine.abort(first.request_id)
        engine.abort(first.request_id)  # it may have ended while the message was on its way
        assert (first.status, third.status) == (Status.FINISHED, Status.FINISHED)
        engine.run_to_end()
        assert_all_as_alone(engine, other)

    def test_a_failed_step_takes_its_rows_and_the_users_of_its_crops(self):
        engine = make_engine(max_idle_crops=1)
        owner = engine.add(12, crops=[(0, 1), (4, 2)])
        sharing = engine.add(12, crops=[(2, 1), (6, 2)])
        later = engine.add(12, crops=[(2, 3)])
        batch = engine.schedule()
        assert batch.rows == ()
        assert set(engine.fail(batch)) == {owner, sharing}
        text = engine.add(4)
        batch = engine.schedule()
        assert set(engine.fail(batch)) == {later, text}
        engine.assert_empty()

    def test_a_crop_of_a_failed_step_is_encoded_anew(self):
        engine = make_engine()
        engine.add(12, crops=[(0, 1), (4, 2)])
        engine.fail(engine.schedule())
        again = engine.add(12, crops=[(0, 1), (4, 2)])
        engine.run_to_end()
        assert [work.first_block for work in engine.batches[0].encode] == [0, 0]
        assert_all_as_alone(engine, again)


class TestDraws:
    def test_the_same_seed_draws_the_same_whatever_else_runs(self, monkeypatch):
        without_growth(monkeypatch)
        sampling = SamplingParams(temperature=1.0)
        engine = make_engine(make_info(num_kv_blocks=9), max_step_tokens=5)
        sequences = [
            engine.submit(prompt_ids=[5, 6, 7], sampling=sampling, seed=40, num_choices=2, max_tokens=12)[0],
            engine.add(9, sampling=sampling, seed=40, max_tokens=9),
            engine.add(prompt_ids=[5, 6, 7], sampling=sampling, seed=40, max_tokens=12),
        ]
        engine.run_to_end()
        assert engine.scheduler.num_preemptions > 0
        assert sequences[0].generated_ids == sequences[2].generated_ids
        assert [sequence.generated_ids for sequence in engine.finished] == list(map(expected_of, engine.finished))
        choices = [sequence.generated_ids for sequence in engine.finished if sequence.request_id == 0]
        assert choices[0] != choices[1]
