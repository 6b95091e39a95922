"""Drafts through whole steps. A KV block holds 4 tokens here; a fake runner of few ids makes texts that repeat."""

import pytest

from model.step import SamplingParams
from server.engine import scheduler as scheduler_module
from server.engine.sequence import Status
from tests.support.builders import expected_of, make_engine
from tests.support.fake_runner import FakeRunner, make_info

NEVER = 99
"""An id that is never drawn."""


def repeating_engine(info=None, *, vocab_size=1, max_draft_tokens=7, **limits):
    """An engine whose answers consist of few ids, with one of 0 alone."""
    info = info or make_info()
    runner = FakeRunner(info, vocab_size=vocab_size)
    return make_engine(info, runner=runner, max_draft_tokens=max_draft_tokens, **limits)


def guessing_engine(monkeypatch, guess, info=None, **limits):
    """An engine whose drafts are `guess(sequence, number of ids)`."""
    engine = make_engine(info, max_draft_tokens=7, **limits)
    monkeypatch.setattr(engine.drafter, "propose", lambda sequence, most: guess(sequence, max(0, min(most, 7))))
    monkeypatch.setattr(engine.drafter, "record", lambda sequence, num_accepted: None)
    return engine


def wrong(sequence, most):
    return (NEVER,) * most


def right(sequence, most):
    """What comes next, as if there were no end id."""
    ends = sequence.eos_id, sequence.stop_token_ids
    sequence.eos_id, sequence.stop_token_ids = None, frozenset()
    future = expected_of(sequence)[len(sequence.generated_ids) :]
    sequence.eos_id, sequence.stop_token_ids = ends
    return tuple(future[:most])


def rows(batch):
    """(first position, number of tokens) of each row."""
    return [(row.start, len(row.token_ids)) for row in batch.rows]


def assert_all_as_alone(engine, *, vocab_size=23):
    answers = [sequence.generated_ids for sequence in engine.finished]
    assert answers == [expected_of(sequence, vocab_size) for sequence in engine.finished]
    engine.assert_empty()


class TestSteps:
    def test_a_text_that_repeats_itself_takes_few_steps(self):
        engine = repeating_engine()
        sequence = engine.add(5, max_tokens=20)
        engine.run_to_end()
        # Three ids alone, then drafts of 3 and 6, and of 5, for which the answer has room.
        assert [rows(batch) for batch in engine.batches] == [
            *([(0, 5)], [(5, 1)], [(6, 1)]),
            *([(7, 4)], [(11, 7)], [(18, 6)]),
        ]
        assert (engine.drafter.num_drafted, engine.drafter.num_accepted) == (14, 14)
        assert sequence.generated_ids == [0] * 20
        assert_all_as_alone(engine, vocab_size=1)

    def test_each_drafted_id_has_the_point_of_its_own_place(self):
        engine = repeating_engine()
        engine.add(5, max_tokens=20, seed=11)
        engine.run_to_end()
        plain = repeating_engine(max_draft_tokens=0)
        plain.add(5, max_tokens=20, seed=11)
        plain.run_to_end()
        points = [
            [point for batch in one.batches for row in batch.rows for point in row.draw.uniforms]
            for one in (engine, plain)
        ]
        assert points[0] == points[1]
        assert len(plain.batches) == 20

    @pytest.mark.parametrize(
        "sampling",
        [
            SamplingParams(),
            SamplingParams(temperature=1.0, num_logprobs=2),
            SamplingParams(frequency_penalty=0.5),
            SamplingParams(logit_bias=((1, 2.0),), min_tokens=30, end_ids=(1,)),
        ],
    )
    @pytest.mark.parametrize("vocab_size", [2, 3])
    def test_where_some_guesses_are_wrong_the_answer_is_the_same(self, vocab_size, sampling):
        engine = repeating_engine(vocab_size=vocab_size, max_step_tokens=24)
        for seed in range(3):
            engine.submit(4, max_tokens=40, sampling=sampling, seed=seed, num_choices=2)
        engine.run_to_end()
        assert 0 < engine.drafter.num_accepted < engine.drafter.num_drafted
        assert sum(len(batch.rows) for batch in engine.batches) < 6 * 40
        assert_all_as_alone(engine, vocab_size=vocab_size)

    def test_log_probabilities_come_with_every_id(self):
        engine = repeating_engine()
        engine.add(5, max_tokens=20, sampling=SamplingParams(num_logprobs=1))
        news = []
        while (batch := engine.schedule()) is not None:
            news += engine.scheduler.update(batch, engine.runner.run(batch), now=1.0)
        assert [len(new.sampled) for new in news] == [1, 1, 1, 4, 7, 6]
        assert all(one.logprob == -0.5 and len(one.top) == 1 for new in news for one in new.sampled)
        assert [new.finish_reason for new in news] == [None] * 5 + ["length"]

    def test_turned_off_there_is_none(self):
        engine = repeating_engine(max_draft_tokens=0)
        engine.add(5, max_tokens=20)
        engine.run_to_end()
        assert len(engine.batches) == 20
        assert engine.drafter.num_drafted == 0


class TestEnds:
    @pytest.mark.parametrize("max_tokens", range(1, 12))
    def test_an_answer_never_grows_beyond_its_length(self, monkeypatch, max_tokens):
        engine = guessing_engine(monkeypatch, right, make_info(num_kv_blocks=4))
        sequence = engine.add(5, max_tokens=max_tokens)
        engine.run_to_end()
        assert len(sequence.generated_ids) == max_tokens
        assert all(
            row.start + len(row.token_ids) <= 5 + max_tokens - 1 for batch in engine.batches for row in batch.rows
        )
        assert_all_as_alone(engine)

    def test_what_a_draft_brings_after_the_end_id_does_not_count(self, monkeypatch):
        engine = guessing_engine(monkeypatch, right)
        plain = make_engine().add(5, max_tokens=30)
        eos_id = expected_of(plain)[4]
        sequence = engine.add(5, max_tokens=30, eos_id=eos_id)
        engine.step()
        batch = engine.schedule()
        output = engine.runner.run(batch)
        assert len(output.sampled[0]) == 8
        (new,) = engine.scheduler.update(batch, output, now=2.0)
        assert new.finish_reason == "stop"
        assert new.sampled[-1].token_id == eos_id
        assert sequence.generated_ids == expected_of(sequence)
        assert sequence.status is Status.FINISHED
        engine.assert_empty()

    def test_stop_ids_end_an_answer_in_the_middle_of_a_draft_and_not_before_min_tokens(self, monkeypatch):
        for min_tokens in (0, 12):
            engine = guessing_engine(monkeypatch, right)
            sampling = SamplingParams(min_tokens=min_tokens, end_ids=(3, 4, 5))
            sequence = engine.add(5, max_tokens=40, stop_token_ids=(3, 4, 5), sampling=sampling)
            engine.run_to_end()
            assert min_tokens < len(sequence.generated_ids) < 40
            assert sequence.generated_ids[-1] in (3, 4, 5)
            assert not {3, 4, 5} & set(sequence.generated_ids[:-1])
            assert_all_as_alone(engine)


class TestRoom:
    def test_prompts_of_others_come_first(self):
        engine = repeating_engine(max_step_tokens=8)
        engine.add(3, max_tokens=40)
        for _ in range(5):
            engine.step()
        engine.add(20, max_tokens=1)
        assert [rows(engine.step())[1:] for _ in range(3)] == [[(0, 7)], [(7, 7)], [(14, 6)]]
        assert [len(batch.rows[0].token_ids) for batch in engine.batches[-3:]] == [1, 1, 2]  # what the prompt left
        assert len(engine.step().rows[0].token_ids) > 2
        engine.run_to_end()
        assert all(sum(len(row.token_ids) for row in batch.rows) <= 8 for batch in engine.batches)
        assert_all_as_alone(engine, vocab_size=1)

    @pytest.mark.parametrize(("num_decoding", "drafts"), [(2, True), (3, False)])
    def test_where_many_decode_nothing_is_guessed(self, num_decoding, drafts):
        engine = repeating_engine(max_draft_sequences=2)
        for _ in range(num_decoding):
            engine.add(3, max_tokens=20)
        for _ in range(8):
            engine.step()
        assert (engine.drafter.num_drafted > 0) == drafts

    def test_when_enough_of_them_have_ended_it_begins(self):
        engine = repeating_engine(max_draft_sequences=1)
        engine.add(3, max_tokens=20)
        short = engine.add(3, max_tokens=9)
        while short.status is not Status.FINISHED:
            engine.step()
            assert engine.drafter.num_drafted == 0
        engine.run_to_end()
        assert engine.drafter.num_accepted > 0
        assert_all_as_alone(engine, vocab_size=1)

    def test_draws_of_a_step_are_bounded(self):
        engine = repeating_engine(make_info(max_step_draws=6))
        for _ in range(2):
            engine.add(3, max_tokens=30)
        engine.run_to_end()
        draws = [[len(row.draw.uniforms) for row in batch.rows] for batch in engine.batches]
        assert max(map(sum, draws)) == 6
        assert [5, 1] in draws  # the older one first
        assert_all_as_alone(engine, vocab_size=1)

    def test_a_draft_takes_free_blocks_alone_and_gives_them_back(self, monkeypatch):
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        engine = guessing_engine(monkeypatch, wrong, make_info(num_kv_blocks=5))
        old = engine.add(8, max_tokens=8)
        young = engine.add(3, max_tokens=4)
        engine.step()  # 3 blocks are taken
        batch = engine.step()
        # The older one needs a block; its draft takes the last one, and goes as far as that holds.
        assert rows(batch) == [(8, 7), (3, 1)]
        assert [len(batch.rows[number].block_table) for number in range(2)] == [4, 1]
        assert (len(old.block_table), engine.blocks.num_free) == (3, 1)
        assert rows(engine.step()) == [(9, 3), (4, 2)]  # now the younger one needs it
        assert engine.scheduler.num_preemptions == 0
        engine.run_to_end()
        assert young in engine.finished
        assert_all_as_alone(engine)

    def test_whoever_decodes_may_take_the_blocks_of_a_younger_one_and_a_draft_may_not(self, monkeypatch):
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        preemptions = []
        for guess in (wrong, lambda sequence, most: ()):
            engine = guessing_engine(monkeypatch, guess, make_info(num_kv_blocks=8, num_state_slots=8))
            for _ in range(8):
                engine.add(3, max_tokens=20)
            engine.run_to_end()
            preemptions.append(engine.scheduler.num_preemptions)
            assert_all_as_alone(engine)
        assert preemptions[0] == preemptions[1] > 0


class TestWithOthers:
    @pytest.mark.parametrize("guess", [wrong, right])
    def test_blocks_that_are_found_again_hold_no_guess_that_was_wrong(self, monkeypatch, guess):
        engine = guessing_engine(monkeypatch, guess)
        first = engine.add(6, max_tokens=22)
        engine.run_to_end()
        again = engine.add(prompt_ids=[*first.prompt_ids, *first.generated_ids, 7, 8], max_tokens=9)
        engine.run_to_end()
        assert again.num_cached_prompt == 24  # 27 tokens of the first one were computed
        assert_all_as_alone(engine)

    @pytest.mark.parametrize("vocab_size", [1, 2])
    def test_a_preempted_sequence_goes_on_where_it_was(self, monkeypatch, vocab_size):
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        engine = repeating_engine(make_info(num_kv_blocks=9), vocab_size=vocab_size)
        for number in range(3):
            penalised = SamplingParams(temperature=1.0, repetition_penalty=1.2, min_tokens=20, end_ids=(1,))
            engine.add(5, max_tokens=25, sampling=penalised, seed=number)
        engine.run_to_end()
        assert engine.scheduler.num_preemptions > 0
        assert engine.drafter.num_accepted > 0
        assert_all_as_alone(engine, vocab_size=vocab_size)

    def test_an_answer_about_a_picture(self):
        engine = repeating_engine(vocab_size=2)
        engine.submit(12, crops=[(1, 1), (6, 2)], max_tokens=40, num_choices=2)
        engine.run_to_end()
        assert engine.drafter.num_accepted > 0
        assert_all_as_alone(engine, vocab_size=2)

    def test_an_abort_between_steps(self):
        engine = repeating_engine()
        sequence = engine.add(5, max_tokens=40)
        for _ in range(4):
            engine.step()
        engine.abort(sequence.request_id)
        engine.assert_empty()

    @pytest.mark.parametrize("was_run", [True, False])
    def test_a_failed_step_takes_a_draft_and_its_blocks_with_it(self, was_run):
        engine = repeating_engine()
        sequence = engine.add(5, max_tokens=40)
        for _ in range(4):
            engine.step()
        batch = engine.schedule()
        assert len(batch.rows[0].token_ids) > 1
        if was_run:
            engine.runner.run(batch)
        assert engine.fail(batch) == [sequence]
        engine.assert_empty()
