"""Sequences that search, through whole steps of the scheduler. A KV block holds 4 tokens here."""

from typing import Any

import pytest

from model.step import Draw, SamplingParams
from server.engine import scheduler as scheduler_module
from server.engine.beam_search import BeamParams
from server.engine.scheduler import NewTokens
from server.engine.sequence import Sequence, Status
from tests.support.builders import Engine, expected_of, expected_results_of, make_engine, results_of
from tests.support.fake_runner import make_info

THREE = BeamParams(3)
PENALISED = SamplingParams(repetition_penalty=1.2)


def search(engine: Engine, num_prompt: int = 5, **request: Any) -> Sequence:
    return engine.add(num_prompt, **({"beams": THREE, "sampling": PENALISED, "max_tokens": 8} | request))


def assert_as_alone(engine: Engine, *sequences: Sequence) -> None:
    assert set(engine.finished) == set(sequences)
    for sequence in sequences:
        if sequence.beams is None:
            assert sequence.generated_ids == expected_of(sequence)
        else:
            assert results_of(engine, sequence) == expected_results_of(sequence)
    engine.assert_empty()


def news_of(engine: Engine, sequence: Sequence) -> list[NewTokens]:
    return [new for new in engine.news if new.sequence is sequence]


class TestSteps:
    def test_the_prompt_is_computed_once_and_then_every_beam_decodes(self) -> None:
        engine = make_engine()
        sequence = search(engine, 6, max_tokens=3)
        first = engine.step()
        assert first is not None
        [row] = first.rows
        assert (row.start, len(row.token_ids), row.draw) == (0, 6, Draw((row.draw.uniforms[0],), num_best=6))
        assert (first.forks, first.block_copies) == ((), ())
        second = engine.step()
        assert second is not None
        assert [(row.start, len(row.token_ids)) for row in second.rows] == [(6, 1)] * 3
        tables = [row.block_table for row in second.rows]
        # The full block is shared; of the last one, which two tokens fill, there are two copies.
        assert {table[0] for table in tables} == {row.block_table[0]}
        assert len({table[1] for table in tables}) == 3
        assert len(second.block_copies) == 2
        assert {copied.source for copied in second.block_copies} == {row.block_table[1]}
        assert {copied.target for copied in second.block_copies} < {table[1] for table in tables}
        assert second.starts == ()
        assert [(fork.state_slot, fork.source_slot) for fork in second.forks] == [
            (beam.state_slot, row.state_slot) for beam in second.rows
        ]
        assert [fork.token_id for fork in second.forks] == [beam.token_ids[0] for beam in second.rows]
        engine.run_to_end()
        assert_as_alone(engine, sequence)

    def test_a_prompt_that_fills_its_blocks_needs_no_copy(self) -> None:
        engine = make_engine()
        sequence = search(engine, 8, max_tokens=2)
        engine.run_to_end()
        assert [len(batch.block_copies) for batch in engine.batches] == [0, 0]
        assert_as_alone(engine, sequence)

    @pytest.mark.parametrize("eos_id", [None, 3])
    @pytest.mark.parametrize("num_beams", [2, 3, 4])
    def test_many_lengths(self, num_beams: int, eos_id: int | None) -> None:
        engine = make_engine()
        sequences = [
            search(
                engine, 1 + length % 9, beams=BeamParams(num_beams, 1 + length % 2), max_tokens=length, eos_id=eos_id
            )
            for length in range(1, 20)
        ]
        engine.run_to_end()
        assert_as_alone(engine, *sequences)

    def test_several_end_ids(self) -> None:
        engine = make_engine()
        sequence = search(engine, eos_id=3, stop_token_ids=(4, 9, 17), max_tokens=12, beams=BeamParams(3, 3))
        engine.run_to_end()
        assert_as_alone(engine, sequence)

    def test_among_others(self) -> None:
        engine = make_engine(make_info(num_state_slots=8), max_draft_tokens=3)
        sequences = []
        for number in range(4):
            sequences += [search(engine, 3 + number), engine.add(9 - number, max_tokens=12)]
            engine.step()
        engine.run_to_end()
        assert_as_alone(engine, *sequences)

    def test_a_draft_is_never_made_for_a_beam(self) -> None:
        engine = make_engine(max_draft_tokens=3)
        search(engine, prompt_ids=[1, 2, 1, 2, 1, 2, 1, 2], max_tokens=20)
        engine.run_to_end()
        assert all(len(row.token_ids) == 1 for batch in engine.batches[1:] for row in batch.rows)

    def test_with_a_picture(self) -> None:
        engine = make_engine(max_step_tokens=5)
        sequence = search(engine, 14, crops=[(1, 1), (7, 2)])
        engine.run_to_end()
        assert_as_alone(engine, sequence)


class TestNews:
    def test_what_all_agree_on_comes_early_and_the_rest_at_the_end(self) -> None:
        engine = make_engine()
        early = 0
        for number in range(12):
            sequence = search(engine, 3 + number, max_tokens=12, beams=BeamParams(2))
            engine.run_to_end()
            *before, last = news_of(engine, sequence)
            assert [new.finish_reason for new in before] == [None] * len(before)
            assert last.finish_reason == "length"
            assert last.sampled
            # The first step is told of, so that the prompt counts as computed.
            assert before[0].sampled == ()
            early += sum(len(new.sampled) for new in before)
            assert results_of(engine, sequence) == expected_results_of(sequence)
        assert early > 12

    def test_several_results_and_their_ends(self) -> None:
        engine = make_engine()
        for number in range(6):
            sequence = search(engine, 4, request_id=number, beams=BeamParams(4, 4), eos_id=5, max_tokens=7)
            engine.run_to_end()
            ends = {new.rank: new.finish_reason for new in news_of(engine, sequence) if new.finish_reason is not None}
            results = expected_results_of(sequence)
            assert ends == {rank: "stop" if ids[-1] == 5 else "length" for rank, ids in enumerate(results)}
            assert results_of(engine, sequence) == results

    def test_the_stamps(self) -> None:
        engine = make_engine(max_step_tokens=4)
        sequence = search(engine, 6)
        engine.run_to_end()
        assert (sequence.scheduled, sequence.first_token) == (0.0, 2.0)


class TestPlaces:
    def test_a_search_waits_for_a_slot_for_each_beam_and_nobody_overtakes_it(self) -> None:
        engine = make_engine(make_info(num_state_slots=4))
        running = [engine.add(3, max_tokens=6) for _ in range(2)]
        engine.step()
        waiting, later = search(engine), engine.add(2, max_tokens=1)
        engine.step()
        assert (waiting.status, later.status) == (Status.WAITING, Status.WAITING)
        engine.run_to_end()
        assert_as_alone(engine, *running, waiting, later)

    def test_one_that_can_never_run_is_refused_before_it_comes_here(self) -> None:
        with pytest.raises(AssertionError):
            search(make_engine(make_info(num_state_slots=2)))
        # 5 + 8 - 1 tokens of each beam take 3 blocks, the first of which is common.
        with pytest.raises(AssertionError):
            search(make_engine(make_info(num_kv_blocks=6)))
        engine = make_engine(make_info(num_kv_blocks=7))
        sequence = search(engine)
        engine.run_to_end()
        assert_as_alone(engine, sequence)

    @pytest.mark.parametrize("prefix_cache", [True, False])
    @pytest.mark.parametrize("num_prompt", [4, 5, 7])
    def test_preempted_and_resumed(self, monkeypatch: pytest.MonkeyPatch, num_prompt: int, prefix_cache: bool) -> None:
        monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
        info = make_info(num_kv_blocks=18, num_state_slots=9)
        engine = make_engine(info, prefix_cache=prefix_cache, max_step_tokens=11)
        sequences = [search(engine, num_prompt, max_tokens=14) for _ in range(3)]
        sequences.append(engine.add(5, max_tokens=20))
        engine.run_to_end()
        assert engine.scheduler.num_preemptions > 0
        assert_as_alone(engine, *sequences)

    @pytest.mark.parametrize("num_steps", [2, 5, 9])
    def test_a_resumed_search_computes_what_is_common_once(self, num_steps: int) -> None:
        engine = make_engine(prefix_cache=False)
        sequence = search(engine, 8, max_tokens=20)
        for _ in range(num_steps):
            engine.step()
        engine.scheduler._preempt(sequence)
        engine.settle()
        num_known = sequence.num_known
        batch = engine.step()
        assert batch is not None
        [row] = batch.rows
        assert (row.start, row.draw) == (0, None)
        num_common = len(row.token_ids)
        assert 8 <= num_common < num_known
        if num_common < num_known - 1:
            batch = engine.step()
            assert batch is not None
            rest = num_known - 1 - num_common
            assert [(row.start, len(row.token_ids), row.draw) for row in batch.rows] == [(num_common, rest, None)] * 3
        batch = engine.step()
        assert batch is not None
        assert [row.start for row in batch.rows] == [num_known - 1] * 3
        engine.run_to_end()
        assert_as_alone(engine, sequence)


class TestEnds:
    @pytest.mark.parametrize("num_steps", range(6))
    def test_an_abort_gives_everything_back(self, num_steps: int) -> None:
        engine = make_engine(max_step_tokens=4)
        sequence = search(engine, 9, crops=[(0, 1)], max_tokens=30)
        for _ in range(num_steps):
            engine.step()
        engine.abort(sequence.request_id)
        engine.assert_empty()

    def test_it_goes_on_until_nobody_waits_for_any_result(self) -> None:
        engine = make_engine()
        sequence = search(engine, beams=BeamParams(3, 2), max_tokens=30)
        engine.step()
        engine.abort(sequence.request_id, 1)
        assert sequence.status is Status.RUNNING
        for _ in range(20):
            engine.step()
        assert {new.rank for new in engine.news} == {0}
        engine.abort(sequence.request_id, 0)
        engine.assert_empty()

    @pytest.mark.parametrize("num_steps", range(5))
    def test_a_failed_step_ends_the_whole_search(self, num_steps: int) -> None:
        engine = make_engine(max_step_tokens=4)
        sequence = search(engine, 9, max_tokens=30)
        for _ in range(num_steps):
            engine.step()
        batch = engine.schedule()
        assert batch is not None
        assert engine.fail(batch) == [sequence]
        engine.assert_empty()

    def test_a_slot_that_a_beam_left_is_as_new(self) -> None:
        engine = make_engine(make_info(num_state_slots=3))
        first, second = search(engine), search(engine, 7)
        third = engine.add(5, max_tokens=6, sampling=PENALISED)
        engine.run_to_end()
        assert_as_alone(engine, first, second, third)
